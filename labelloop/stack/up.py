"""`labelloop up`: install, start, connect and fill the local stack, then watch it until it is told to end."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from labelloop.connect import NotConnected, connect
from labelloop.service.db.engine import open_database
from labelloop.service.disk import keep_private
from labelloop.service.errors import LabelloopError
from labelloop.service.readiness import require_home, require_known_database
from labelloop.service.settings import PREFIX, Settings
from labelloop.service.studio import NotFound, Studio, StudioUnauthorized
from labelloop.stack import demo_project as demo
from labelloop.stack.environment import read_env, with_secrets, write_env
from labelloop.stack.label_studio import require_disk
from labelloop.stack.label_studio_server import label_studio_part, wait_until_up
from labelloop.stack.layout import URLS, Plan
from labelloop.stack.people import ADMIN, ANNOTATORS, PEOPLE, admin_token, sign_up_annotator
from labelloop.stack.process import Child, end_leftovers
from labelloop.stack.progress import Steps
from labelloop.stack.state import DemoProject, State, read_state, sole_supervisor, write_state
from labelloop.stack.supervisor import Stopped, StopSignals, Supervisor
from qc_webhooks.store.projects import ProjectStore

TOKEN, HOOK = "LABELLOOP_LABEL_STUDIO_API_KEY", "LABELLOOP_WEBHOOK_SECRET"
KEY_USER, KEY = "LABELLOOP_BASIC_AUTH_USER", "LABELLOOP_BASIC_AUTH_PASSWORD"
DASHBOARD = "LABELLOOP_DASHBOARD_PASSWORD"
RUN_BYTES = 300_000_000


@dataclass(frozen=True)
class Ready:
    """Everything runs: what there is to tell.

    Attributes:
        plan: Where everything is.
        project: The project's id in Label Studio.
        title: Its title.
        tasks: How many photographs it has.
    """

    plan: Plan
    project: int
    title: str
    tasks: int


def up(plan: Plan, steps: Steps, *, images: Path | None, show: Callable[[Ready], None], reset: bool = False) -> int:
    """Run the stack until it is told to end.

    Args:
        plan: Where everything is.
        steps: Shows the progress.
        images: The user's own photographs; None for those inside installed packages.
        show: Called once, when everything runs.
        reset: Delete the accounts, projects and annotations of earlier runs first.

    Returns:
        The exit status: 0 when it was asked to end, 1 when Label Studio ended by itself again and again.

    Raises:
        LabelloopError: It could not be brought up; whatever had been started has been ended.
    """
    require_home(Settings(home=plan.home))
    keep_private(plan.home)
    read_state(plan.home)  # a state of a newer labelloop is said now, not after the services have failed
    require_known_database(Settings(home=plan.home))
    if images:
        demo.own_source(images).files()  # a wrong folder is said at once, not after the installation
    try:
        with StopSignals() as signals, sole_supervisor(plan.home, plan.urls[URLS["port"]]):
            for name in end_leftovers(plan.records):
                steps.warn(f"{name} was left over from a run that had been killed; it has been ended.")
            plan.require_ports()
            require_disk(plan.home, RUN_BYTES, what="Running the stack")
            plan.label_studio.prepare(steps)
            if reset:
                plan.forget()
            with Supervisor(plan.records, signals) as supervisor:
                run = _Run(plan, steps, supervisor)
                try:
                    run.start()
                    show(run.fill(images))
                    supervisor.watch(run.tell)
                except Stopped:
                    steps.note("Ending everything ...")
                    raise
    except Stopped as stopped:
        steps.note(f"Everything has ended ({stopped}). What you did is kept in {plan.home}.")
        return 0
    return 1


class _Run:
    """One run's steps, in order."""

    def __init__(self, plan: Plan, steps: Steps, supervisor: Supervisor) -> None:
        self._plan, self._steps, self._supervisor = plan, steps, supervisor
        self._url = plan.urls[URLS["port"]]
        self._moved = False

    def start(self) -> None:
        """Start every part: all at once where the token is known, else Label Studio first, which makes it."""
        self._write_settings()
        plan, steps = self._plan, self._steps
        part = label_studio_part(
            plan.label_studio,
            data=plan.data,
            port=plan.port,
            log=plan.logs / "label-studio.log",
            admin=ADMIN.account(plan.home),
        )
        server = self._supervisor.start(part)
        services = self._start_services() if read_env(plan.home)[TOKEN] else []
        with steps.step("starting Label Studio") as step:
            wait_until_up(server, step)
        if not self._token_works():
            for child in services:
                self._supervisor.end(child)
            write_env(plan.home, {TOKEN: admin_token(self._url, plan.home)})
            services = self._start_services()
        with steps.step("starting the ML backend, quality control and the worker") as step:
            self._sign_up_annotators()
            for child in services:
                wait_until_up(child, step)

    def fill(self, images: Path | None) -> Ready:
        """Make the project where it is not there yet, and see that it is connected."""
        plan, steps = self._plan, self._steps
        packaged = demo.packaged_source(plan.home / "photos", plan.label_studio.package)
        source = demo.own_source(images) if images else packaged
        settings = self._settings()
        studio = Studio.from_settings(settings)
        made = self._existing(studio, source)
        if not made.complete:
            photos = source.files()
            with steps.step(f"making the project {source.title!r} with {len(photos)} photographs") as step:
                made = DemoProject(demo.create_project(studio, source.title), photos=len(photos))
                self._remember(source, made)
                demo.upload(studio, made.id, photos, step)
        self._connect(studio, made.id, source.title, settings)
        if self._moved:
            for other in {row.project for row in ProjectStore(open_database(settings)).all()} - {made.id}:
                self._connect(studio, other, str(other), settings)
        if not made.complete:
            self._prelabel(studio, made.id)
            self._remember(source, msgspec.structs.replace(made, complete=True))
        return Ready(plan, made.id, source.title, made.photos)

    def _connect(self, studio: Studio, project: int, title: str, settings: Settings) -> None:
        """What cannot be connected is told with its fix, and the start goes on: everything else works without it."""
        try:
            with self._steps.step(f"connecting the project {title!r}") as step:
                connect(project, settings, studio=studio, tell=lambda change: step.say(change.what))
        except (NotConnected, NotFound) as error:
            self._steps.warn(f"{error.message} {error.fix}")

    def tell(self, child: Child, how: str, again: bool) -> None:
        """A part ended by itself: which, how, its last lines, where its log is, and what comes of it."""
        warn = self._steps.warn
        warn(f"{child.part.name} has ended by itself ({how}). Its last lines:")
        for line in child.tail(6):
            self._steps.note(f"    {line}")
        warn(f"Its log: {child.part.log}")
        if again:
            warn("It is started again; what it had not finished waits for it.")
        elif self._supervisor.needs(child):
            warn("Nothing works without it, so the others are ended too. Start again with: labelloop up")
        else:
            warn("The other parts go on. To have it back: Ctrl-C here, then labelloop up")

    def _write_settings(self) -> None:
        """Addresses and secrets for every command; a token goes with the Label Studio that gave it."""
        home, fresh = self._plan.home, not self._plan.data.exists()
        last = read_env(home)
        values = last | self._plan.urls
        self._moved = any(last.get(name, url) != url for name, url in self._plan.urls.items())
        # A home from before the services asked for a key: its connections have to learn it.
        self._moved |= not fresh and not last.get(KEY)
        values[KEY_USER] = values.get(KEY_USER) or "labelloop"
        if fresh or TOKEN not in values:
            values[TOKEN] = ""
        if fresh:
            write_state(home, State())
        write_env(home, with_secrets(values, (HOOK, DASHBOARD, KEY, *(person.secret for person in PEOPLE))))

    def _settings(self) -> Settings:
        """What our programs are started with: `settings.env`, whatever the shell says about the same names."""
        ours = read_env(self._plan.home)
        names = {name.removeprefix(PREFIX).lower(): value for name, value in ours.items() if name.startswith(PREFIX)}
        return Settings(home=self._plan.home, **names)

    def _start_services(self) -> list[Child]:
        return [self._supervisor.start(part) for part in self._plan.services()]

    def _token_works(self) -> bool:
        if not read_env(self._plan.home)[TOKEN]:
            return False
        try:
            Studio.from_settings(self._settings()).me()
        except StudioUnauthorized:
            return False
        return True

    def _sign_up_annotators(self) -> None:
        home = self._plan.home
        for person in ANNOTATORS:
            state = read_state(home)
            if person.email not in state.people:
                sign_up_annotator(self._url, person, home)
                write_state(home, msgspec.structs.replace(state, people=(*state.people, person.email)))

    def _existing(self, studio: Studio, source: demo.Source) -> DemoProject:
        """The project of an earlier run; one whose making was interrupted is removed."""
        made = read_state(self._plan.home).projects.get(source.key)
        if made is None:
            return DemoProject(0)
        try:
            studio.project(made.id)
            if made.complete:
                return made
            studio.request("DELETE", f"api/projects/{made.id}/")
        except NotFound:
            pass  # somebody deleted it: it is made anew
        return DemoProject(0)

    def _remember(self, source: demo.Source, project: DemoProject) -> None:
        state = read_state(self._plan.home)
        projects = {**state.projects, source.key: project}
        write_state(self._plan.home, msgspec.structs.replace(state, projects=projects))

    def _prelabel(self, studio: Studio, project: int) -> None:
        """Without pre-labels the loop still works, so this is told and the start goes on."""
        try:
            with self._steps.step("pre-labelling every photograph") as step:
                log = self._plan.logs / "ml-backend.log"
                demo.prelabel(studio, project, step, settings=self._settings(), log=log)
        except LabelloopError as error:
            self._steps.warn(f"{error.message} {error.fix}")
