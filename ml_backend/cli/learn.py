"""The command `labelloop learn PROJECT`: the state of learning, and training now."""

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Column, Table

from labelloop.labeling.errors import MalformedConfig
from labelloop.service.errors import BadRequest, LabelloopError
from labelloop.service.jobs.inbox import Inbox
from labelloop.service.logging import setup_logging
from labelloop.service.readiness import open_existing_database
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio, StudioError
from ml_backend.learning.annotations import count_labelled
from ml_backend.learning.events import LEARN, train_now_event
from ml_backend.learning.service import LearningState, learning_state
from ml_backend.learning.store.annotations import STATES, NotConnectedToLearning, TrainingDataStore
from ml_backend.learning.store.runs import PHASES, RunStore, TrainingRun
from ml_backend.policy import LearningPolicy, read_learning_policy, too_few_labelled
from ml_backend.predict.control_support import ControlSupport, NotServed, controls_of, reasons
from ml_backend.serving import activation
from ml_backend.studio.extra_params import options_of

# Seconds of waiting after which the status asks whether a worker is running.
WORKER_HINT_S = 30.0

POLL_S = 0.25
# Most runs in the table.
MAX_RUNS = 10

RUN_COLUMNS = ("when", "tasks", "boxes", "AP50", "before", "judged by", "verdict", "version", "s")


def learn(
    project: int,
    *,
    now: Annotated[bool, Parameter(negative="")] = False,
    watch: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Show the learning state of a project: labelled tasks, the last training runs with their verdicts, served version.

    Training itself is done by `labelloop worker` after every submit. If a requested run is not possible, the command
    says why and exits with status 1.

    ```
    labelloop learn 7
    labelloop learn 7 --watch
    ```

    Args:
        project: Project number, as in its address: /projects/NUMBER/.
        now: Train now, even if nothing changed; "Start training" in Label Studio does the same.
        watch: Show phases and verdicts as they come, until Ctrl-C.
    """
    settings = Settings()
    setup_logging(settings)
    engine = open_existing_database(settings)
    training_data, runs, inbox = TrainingDataStore(engine), RunStore(engine), Inbox.from_settings(settings, engine)
    if training_data.project(project) is None:
        raise NotConnectedToLearning(project=project)
    policy = read_learning_policy(settings.home, project)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    last = next(iter(runs.last(project, 1)), None)
    notes = _controls(project, settings)
    if now:
        try:
            _require_trainable(project, policy, training_data, notes)
        except TooFew:
            if not inbox.unfinished_events(LEARN, str(project)):
                raise  # otherwise the worker has not read the last submits yet
        event = train_now_event(project, source="command")
        inbox.put(event.topic, str(project), event.key, event.payload)
        console.print(f"Training of project {project} is requested; `labelloop worker` runs it.")
    else:
        _print_state(console, project, settings, policy, training_data, notes=notes or ())
        last_runs = runs.last(project, MAX_RUNS)
        console.print(_runs_table(last_runs))
        for line in last_runs[0].metrics.lines() if last_runs else ():
            console.print(line, markup=False, soft_wrap=True)
        page = f"{settings.ml_url.rstrip('/')}/projects/{project}/learning"
        console.print(f"Report with charts: {page}, or `labelloop learn report {project}`.", soft_wrap=True)
    if watch:
        _watch(
            console,
            lambda: learning_state(project, training_data, runs, inbox),
            lambda: runs.last(project, MAX_RUNS),
            last,
        )


def _controls(project: int, settings: Settings) -> tuple[ControlSupport, ...] | None:
    """Return what each control supports; None if Label Studio cannot be reached."""
    if not settings.label_studio_api_key.get_secret_value():
        return None
    try:
        with contextlib.closing(Studio.from_settings(settings)) as studio:
            config = studio.label_config(project)
            options = options_of(studio.ml_backends(project), settings.ml_url)
    except (StudioError, MalformedConfig, BadRequest):
        return None
    return controls_of(config, activation.served_outputs(settings, project), options=options.controls)


def _require_trainable(
    project: int, policy: LearningPolicy, training_data: TrainingDataStore, notes: Sequence[ControlSupport] | None
) -> None:
    """Check that a training run is possible.

    Raises:
        NoFit: The policy turns learning off.
        TooFew: Too few tasks are labelled, as far as the worker has read them.
        NotServed: No control can be trained.
    """
    if not policy.learn:
        raise NoFit(project, "its learn.toml turns learning off", fix="Set `learn = true` there.")
    if notes is not None and not any(control.learns for control in notes):
        raise NotServed(project, "learned from", notes)
    labelled = count_labelled(training_data.training_tasks(project, "teaches"))
    if labelled < policy.first:
        raise TooFew(project, too_few_labelled(labelled, policy.first), fix=_LABEL_FIX)


class NoFit(LabelloopError):
    """A requested training run is not possible."""

    code = "nothing_to_learn"
    status = 409

    def __init__(self, project: int, reason: str, *, fix: str) -> None:
        super().__init__(f"Project {project} is not trained: {reason[0].lower()}{reason[1:].rstrip('.')}.", fix=fix)


class TooFew(NoFit):
    """Too few tasks with boxes are labelled."""


_LABEL_FIX = "Label more tasks with boxes. Recent submits count once `labelloop worker` has read them."


def _print_state(
    console: Console,
    project: int,
    settings: Settings,
    policy: LearningPolicy,
    training_data: TrainingDataStore,
    *,
    notes: Sequence[ControlSupport],
) -> None:
    counts = training_data.counts(project)
    console.print(f"Project {project} is served {activation.served_version(settings, project=project)}")
    for state, words in STATES.items():
        console.print(f"  {counts.get(state, 0):5} tasks {words}")
    try:
        _require_trainable(project, policy, training_data, notes or None)
    except NotServed as error:  # its message names every control
        console.print(f"  {error.message}", soft_wrap=True)
        return
    except NoFit as error:
        console.print(f"  {error.message}", soft_wrap=True)
    for reason in reasons(notes):
        console.print(f"  {reason}", soft_wrap=True)


def _runs_table(runs: Sequence[TrainingRun]) -> Table | str:
    """Return the table of the last runs, newest last."""
    if not runs:
        return "No training run yet."
    columns = (Column(name, no_wrap=True) for name in RUN_COLUMNS)
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


def _watch(
    console: Console,
    state: Callable[[], LearningState],
    newest: Callable[[], Sequence[TrainingRun]],
    last: TrainingRun | None,
) -> None:
    """Print phases and verdicts until Ctrl-C."""
    last_id, printed = last.id if last is not None else 0, ""
    status = console.status("Waiting for a submit") if sys.stdout.isatty() else None
    try:
        if status is not None:
            status.start()
        while True:
            line = phase_text(state())
            if status is not None:
                status.update(line)
            elif line != printed:
                print(line, flush=True)
            printed = line
            for run in reversed(newest()):
                if run.id > last_id:
                    last_id = run.id
                    console.print(_run_line(run), soft_wrap=True)
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        return
    finally:
        if status is not None:
            status.stop()


def phase_text(state: LearningState) -> str:
    if state.job_status == "running":
        counted = f" {state.done}/{state.total}" if state.total else ""
        return f"{PHASES.get(state.phase, state.phase)}{counted}"
    if state.job_status == "queued" and state.waiting_s > WORKER_HINT_S:
        return f"{_events(state.waiting)} for {state.waiting_s:.0f} s. Is `labelloop worker` running? See its log"
    if state.job_status == "queued":
        return _events(state.waiting)
    return "Waiting for a submit"


def _events(count: int) -> str:
    return "1 event waits for the worker" if count == 1 else f"{count} events wait for the worker"


def _run_line(run: TrainingRun) -> str:
    seconds = ", ".join(f"{name} {value:.1f}" for name, value in run.seconds.items())
    return f"{run.verdict} {run.version}: {run.reason} ({run.tasks} tasks, {run.boxes} boxes; seconds: {seconds})"
