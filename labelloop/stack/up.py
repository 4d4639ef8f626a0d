"""`labelloop up`: install, start, connect and fill the local stack, then supervise it until it is stopped."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from labelloop.connect import IncompleteConnection, connect
from labelloop.service.db.engine import open_database
from labelloop.service.errors import LabelloopError
from labelloop.service.readiness import require_home, require_known_database
from labelloop.service.settings import PREFIX, Settings
from labelloop.service.studio import Studio, StudioNotFound, StudioUnauthorized
from labelloop.service.system import restrict_to_owner
from labelloop.stack import demo_project as demo
from labelloop.stack.accounts import ADMIN, ANNOTATORS, USERS, admin_token, sign_up_annotator
from labelloop.stack.environment import read_env, with_secrets, write_env
from labelloop.stack.label_studio import require_disk
from labelloop.stack.label_studio_server import label_studio_service, wait_until_healthy
from labelloop.stack.layout import URLS, StackLayout
from labelloop.stack.process import Child, stop_orphans
from labelloop.stack.progress import Steps
from labelloop.stack.state import DemoProject, StackState, read_state, sole_supervisor, write_state
from labelloop.stack.supervisor import Stopped, StopSignals, Supervisor
from qc_webhooks.store.projects import ProjectStore

TOKEN, HOOK = "LABELLOOP_LABEL_STUDIO_API_KEY", "LABELLOOP_WEBHOOK_SECRET"
KEY_USER, KEY = "LABELLOOP_BASIC_AUTH_USER", "LABELLOOP_BASIC_AUTH_PASSWORD"
DASHBOARD = "LABELLOOP_DASHBOARD_PASSWORD"
RUN_BYTES = 300_000_000
SHOWN_CHARACTERS = 200  # of each last line of a part that has exited; Label Studio logs addresses of 1,000


@dataclass(frozen=True)
class Ready:
    """The running stack and its projects, as `welcome` prints them.

    Attributes:
        plan: Folders, ports and addresses.
        project: The project's id in Label Studio.
        title: Its title.
        tasks: Its number of tasks (images).
        others: (id, title) of further projects.
    """

    plan: StackLayout
    project: int
    title: str
    tasks: int
    others: tuple[tuple[int, str], ...] = ()


def up(
    plan: StackLayout, steps: Steps, *, images: Path | None, show: Callable[[Ready], None], reset: bool = False
) -> int:
    """Run the stack until it is stopped.

    Args:
        plan: Folders, ports and addresses.
        steps: Shows the progress.
        images: Folder with the user's own images; None for those inside installed packages.
        show: Called once, when everything runs.
        reset: Delete the accounts, projects and annotations of earlier runs first.

    Returns:
        The exit status: 0 when it was stopped, 1 when Label Studio kept exiting.

    Raises:
        LabelloopError: The start failed; every part that had been started was stopped.
    """
    require_home(Settings(home=plan.home))
    restrict_to_owner(plan.home)
    read_state(plan.home)  # fails early on a state file of a newer labelloop
    require_known_database(Settings(home=plan.home))
    if images:
        demo.user_source(images).files()  # fails early on a wrong folder, before the installation
    try:
        with StopSignals() as signals, sole_supervisor(plan.home, plan.urls[URLS["port"]]):
            for name in stop_orphans(plan.records):
                steps.warn(f"{name} was left over from a killed run; it has been stopped.")
            plan.require_ports()
            require_disk(plan.home, RUN_BYTES, what="Running the stack")
            plan.label_studio.prepare(steps)
            if reset:
                plan.delete_data()
            with Supervisor(plan.records, signals) as supervisor:
                run = _Run(plan, steps, supervisor)
                try:
                    run.start()
                    show(run.fill(images))
                    supervisor.watch(run.report_exit)
                except Stopped:
                    steps.note("Stopping everything ...")
                    raise
    except Stopped as stopped:
        steps.note(f"Everything has stopped ({stopped}). Your data stays in {plan.home}.")
        return 0
    return 1


class _Run:
    """One run's steps, in order."""

    def __init__(self, plan: StackLayout, steps: Steps, supervisor: Supervisor) -> None:
        self._plan, self._steps, self._supervisor = plan, steps, supervisor
        self._url = plan.urls[URLS["port"]]
        self._moved = False

    def start(self) -> None:
        """Start every part: all at once if the token is known, else Label Studio first to create it."""
        self._write_settings()
        plan, steps = self._plan, self._steps
        part = label_studio_service(
            plan.label_studio,
            data=plan.data,
            port=plan.port,
            log=plan.logs / "label-studio.log",
            admin=ADMIN.account(plan.home),
        )
        server = self._supervisor.start(part)
        services = self._start_services() if read_env(plan.home)[TOKEN] else []
        with steps.step("starting Label Studio") as step:
            wait_until_healthy(server, step)
        if not self._token_works():
            for child in services:
                self._supervisor.stop_child(child)
            write_env(plan.home, {TOKEN: admin_token(self._url, plan.home)})
            services = self._start_services()
        with steps.step("starting the ML backend, quality control and the worker") as step:
            self._sign_up_annotators()
            for child in services:
                wait_until_healthy(child, step)

    def fill(self, images: Path | None) -> Ready:
        """Create each project unless it exists, connect it and pre-label it."""
        plan = self._plan
        packaged = demo.packaged_sources(plan.home / "photos", plan.label_studio.package)
        sources = [demo.user_source(images)] if images else packaged
        settings = self._settings()
        studio = Studio.from_settings(settings)
        projects = [self._fill_project(studio, source, settings) for source in sources]
        if self._moved:
            for other in {row.project for row in ProjectStore(open_database(settings)).all()} - {
                project.id for project in projects
            }:
                self._connect(studio, other, str(other), settings)
        first, *others = zip(sources, projects, strict=True)
        return Ready(
            plan, first[1].id, first[0].title, first[1].photos,
            others=tuple((project.id, source.title) for source, project in others),
        )  # fmt: skip

    def _fill_project(self, studio: Studio, source: demo.DemoSource, settings: Settings) -> DemoProject:
        project = self._existing(studio, source)
        if not project.complete:
            images = source.files()
            with self._steps.step(f"creating the project {source.title!r} with {len(images)} images") as step:
                project = DemoProject(demo.create_project(studio, source), photos=len(images))
                self._save(source, project)
                demo.upload_images(studio, project.id, images, step)
        if not project.complete and source.interface.is_prelabelled:
            self._prelabel(studio, project.id)  # before the worker ranks the tasks of a connected project
        self._connect(studio, project.id, source.title, settings)
        if not project.complete:
            self._save(source, msgspec.structs.replace(project, complete=True))
        return project

    def _connect(self, studio: Studio, project: int, title: str, settings: Settings) -> None:
        """Connect a project; a failure is a warning with its fix, since everything else works without it."""
        try:
            with self._steps.step(f"connecting the project {title!r}") as step:
                connect(project, settings, studio=studio, on_change=lambda change: step.say(change.what))
        except (IncompleteConnection, StudioNotFound) as error:
            self._steps.warn(f"{error.message} {error.fix}")

    def report_exit(self, child: Child, how: str, restarting: bool) -> None:
        """Warn that a part exited: its last log lines, its log file and what happens next."""
        warn = self._steps.warn
        warn(f"{child.part.name} has exited ({how}). Its last lines:")
        for line in child.tail(6):
            self._steps.note(f"    {line[:SHOWN_CHARACTERS]}")
        warn(f"Its log: {child.part.log}")
        if restarting:
            warn("It is being restarted; unfinished work stays queued.")
        elif self._supervisor.is_essential(child):
            warn("Nothing works without it, so the other parts are stopped too. Start again with: labelloop up")
        else:
            warn("The other parts keep running. To restart it: Ctrl-C here, then labelloop up")

    def _write_settings(self) -> None:
        """Write addresses and secrets to `settings.env`; a token is dropped with the Label Studio that issued it."""
        home, fresh = self._plan.home, not self._plan.data.exists()
        last = read_env(home)
        values = last | self._plan.urls
        self._moved = any(last.get(name, url) != url for name, url in self._plan.urls.items())
        # A home folder from before the services required a key: its connections need the new key.
        self._moved |= not fresh and not last.get(KEY)
        values[KEY_USER] = values.get(KEY_USER) or "labelloop"
        if fresh or TOKEN not in values:
            values[TOKEN] = ""
        folder = self._plan.label_studio.folder
        elsewhere = "" if folder == home / "label-studio" else str(folder)
        state = StackState() if fresh else read_state(home)
        if fresh or state.label_studio != elsewhere:
            write_state(home, msgspec.structs.replace(state, label_studio=elsewhere))
        write_env(home, with_secrets(values, (HOOK, DASHBOARD, KEY, *(user.secret for user in USERS))))

    def _settings(self) -> Settings:
        """The settings that our services are started with: `settings.env` wins over the shell's environment."""
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
        for user in ANNOTATORS:
            state = read_state(home)
            if user.email not in state.people:
                sign_up_annotator(self._url, user, home)
                write_state(home, msgspec.structs.replace(state, people=(*state.people, user.email)))

    def _existing(self, studio: Studio, source: demo.DemoSource) -> DemoProject:
        """The project of an earlier run; an incomplete one is deleted."""
        project = read_state(self._plan.home).projects.get(source.key)
        if project is None:
            return DemoProject(0)
        try:
            studio.project(project.id)
            if project.complete:
                return project
            studio.request("DELETE", f"api/projects/{project.id}/")
        except StudioNotFound:
            pass  # deleted in Label Studio: it is created again
        return DemoProject(0)

    def _save(self, source: demo.DemoSource, project: DemoProject) -> None:
        state = read_state(self._plan.home)
        projects = {**state.projects, source.key: project}
        write_state(self._plan.home, msgspec.structs.replace(state, projects=projects))

    def _prelabel(self, studio: Studio, project: int) -> None:
        """Pre-label the project; a failure is a warning, since the loop works without pre-labels."""
        try:
            with self._steps.step("pre-labelling every image") as step:
                log = self._plan.logs / "ml-backend.log"
                demo.prelabel(studio, project, step, settings=self._settings(), log=log)
        except LabelloopError as error:
            self._steps.warn(f"{error.message} {error.fix}")
