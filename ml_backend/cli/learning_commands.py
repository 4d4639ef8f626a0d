"""Owns `labelloop learn PROJECT`: how learning stands, a fit on demand, and watching it."""

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import ClassVar

from rich.console import Console
from rich.table import Column, Table

from labelloop.labeling.errors import MalformedConfig
from labelloop.service.db.engine import open_database
from labelloop.service.errors import LabelloopError
from labelloop.service.jobs.inbox import Inbox
from labelloop.service.logging import setup_logging
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio, StudioError
from ml_backend.learning.annotations import with_boxes
from ml_backend.learning.events import LEARN, now_hint
from ml_backend.learning.service import State, state_of
from ml_backend.learning.store.annotations import STATES, NotConnected, TrainingDataStore
from ml_backend.learning.store.runs import PHASES, Run, Runs
from ml_backend.policy import LearningPolicy, read_learning_policy, too_few
from ml_backend.predict.control_support import ControlSupport, NotServed, controls_of, reasons
from ml_backend.serving import activation

PATIENCE_S = 30.0
"""From so long a wait on it is asked whether there is a worker."""

LOOK_S = 0.25
SHOWN = 10
"""Runs in the table."""

COLUMNS = ("when", "tasks", "boxes", "AP50", "before", "judged by", "verdict", "version", "s")


def learn(project: int, *, now: bool = False, watch: bool = False) -> None:
    """Say how learning of a project stands: what it learned from, the last runs and their verdicts, what is served.

    Learning itself is done by `labelloop worker` after every submit. Asked for a fit that cannot come, it says why and
    ends with the exit status 1.

    Args:
        project: The project's number, as in its address: /projects/NUMBER/.
        now: Have the worker fit now, whether anything changed or not; "Start training" in Label Studio does the same.
        watch: Stay, and show each phase and each verdict as it comes, until Ctrl-C.
    """
    settings = Settings()
    setup_logging(settings)
    engine = open_database(settings)
    lessons, runs, inbox = TrainingDataStore(engine), Runs(engine), Inbox.from_settings(settings, engine)
    if lessons.project(project) is None:
        raise NotConnected(project)
    policy = read_learning_policy(settings.home, project)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    last = next(iter(runs.last(project, 1)), None)
    notes = _notes(project, settings)
    if now:
        try:
            _refuse(project, policy, lessons, notes)
        except TooFew:
            if not inbox.open_events(LEARN, str(project)):
                raise  # else the worker has yet to read what was labelled
        hint = now_hint(project, source="command")
        inbox.put(hint.topic, str(project), hint.key, hint.payload)
        console.print(f"A fit of project {project} is asked for; `labelloop worker` does it.")
    else:
        _stand(console, project, settings, policy, lessons, notes=notes or ())
        console.print(_table(runs.last(project, SHOWN)))
        page = f"{settings.ml_url.rstrip('/')}/projects/{project}/learning"
        console.print(f"More, drawn: {page}, or `labelloop learn report {project}`.", soft_wrap=True)
    if watch:
        _watch(console, lambda: state_of(project, lessons, runs, inbox), lambda: runs.last(project, SHOWN), last)


def _notes(project: int, settings: Settings) -> tuple[ControlSupport, ...] | None:
    """What each control of the project gets and teaches; None where Label Studio cannot be asked for the controls."""
    if not settings.label_studio_api_key.get_secret_value():
        return None
    try:
        with contextlib.closing(Studio.from_settings(settings)) as studio:
            config = studio.label_config(project)
    except (StudioError, MalformedConfig):
        return None
    return controls_of(config, activation.served_outputs(settings, project))


def _refuse(
    project: int, policy: LearningPolicy, lessons: TrainingDataStore, notes: Sequence[ControlSupport] | None
) -> None:
    """Raises where a fit that is asked for cannot come.

    Raises:
        NoFit: The policy says no.
        TooFew: Too little is labelled, as far as the worker has read.
        NotServed: No control can be learned from.
    """
    if not policy.learn:
        raise NoFit(project, "its learn.toml says that it does not learn", fix="Set `learn = true` there.")
    if notes is not None and not any(one.learns for one in notes):
        raise NotServed(project, "learned from", notes)
    labelled = with_boxes(lessons.training_tasks(project, "teaches"))
    if labelled < policy.first:
        raise TooFew(project, too_few(labelled, policy.first), fix=_LABEL)


class NoFit(LabelloopError):
    """A fit was asked for that would not come."""

    code: ClassVar[str] = "nothing_to_learn"
    status: ClassVar[int] = 409

    def __init__(self, project: int, reason: str, *, fix: str) -> None:
        super().__init__(f"Project {project} is not fitted: {reason[0].lower()}{reason[1:].rstrip('.')}.", fix=fix)


class TooFew(NoFit):
    """Too few tasks have boxes."""


_LABEL = "Label more tasks with boxes. What was submitted seconds ago counts once `labelloop worker` has read it."


def _stand(
    console: Console,
    project: int,
    settings: Settings,
    policy: LearningPolicy,
    lessons: TrainingDataStore,
    *,
    notes: Sequence[ControlSupport],
) -> None:
    counts = lessons.counts(project)
    console.print(f"Project {project} is served {activation.served_version(settings, project=project)}")
    for state, words in STATES.items():
        console.print(f"  {counts.get(state, 0):5} tasks {words}")
    try:
        _refuse(project, policy, lessons, notes or None)
    except NotServed as error:  # its message names every control
        console.print(f"  {error.message}", soft_wrap=True)
        return
    except NoFit as error:
        console.print(f"  {error.message}", soft_wrap=True)
    for one in reasons(notes):
        console.print(f"  {one}", soft_wrap=True)


def _table(runs: Sequence[Run]) -> Table | str:
    """The last runs, the newest last."""
    if not runs:
        return "Nothing was learned yet."
    columns = (Column(name, no_wrap=True) for name in COLUMNS)
    table = Table(*columns, box=None)
    for run in reversed(runs):
        table.add_row(
            datetime.fromtimestamp(run.finished_at).astimezone().strftime("%m-%d %H:%M:%S"),
            str(run.tasks),
            str(run.boxes),
            "-" if run.ap50 is None else f"{run.ap50:.3f}",
            "-" if run.parent_ap50 is None else f"{run.parent_ap50:.3f}",
            run.judged_by,
            run.verdict,
            run.version,
            f"{run.finished_at - run.asked_at:.1f}",
        )
    return table


def _watch(console: Console, state: Callable[[], State], newest: Callable[[], Sequence[Run]], last: Run | None) -> None:
    """Lines for phases and verdicts, until Ctrl-C."""
    seen, shown = last.id if last is not None else 0, ""
    status = console.status("Waiting for a submit") if sys.stdout.isatty() else None
    try:
        if status is not None:
            status.start()
        while True:
            line = _phase(state())
            if status is not None:
                status.update(line)
            elif line != shown:
                print(line, flush=True)
            shown = line
            for run in reversed(newest()):
                if run.id > seen:
                    seen = run.id
                    console.print(_told(run), soft_wrap=True)
            time.sleep(LOOK_S)
    except KeyboardInterrupt:
        return
    finally:
        if status is not None:
            status.stop()


def _phase(state: State) -> str:
    if state.job_status == "running":
        counted = f" {state.done}/{state.total}" if state.total else ""
        return f"{PHASES.get(state.phase, state.phase)}{counted}"
    if state.job_status == "queued" and state.waiting_s > PATIENCE_S:
        return f"{_events(state.waiting)} for {state.waiting_s:.0f} s: is `labelloop worker` running? Its log says more"
    if state.job_status == "queued":
        return _events(state.waiting)
    return "Waiting for a submit"


def _events(count: int) -> str:
    return "1 event waits for the worker" if count == 1 else f"{count} events wait for the worker"


def _told(run: Run) -> str:
    seconds = ", ".join(f"{name} {value:.1f}" for name, value in run.seconds.items())
    return f"{run.verdict} {run.version}: {run.reason} ({run.tasks} tasks, {run.boxes} boxes; seconds: {seconds})"
