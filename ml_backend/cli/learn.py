"""Commands `labelloop learn PROJECT` and `labelloop learn simulate`."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from cyclopts import Parameter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table

from labelloop.labeling.errors import MalformedConfig
from labelloop.service.db.engine import open_database
from labelloop.service.errors import BadRequest, LabelloopError, SettingsError
from labelloop.service.jobs.inbox import Inbox
from labelloop.service.logging import setup_logging
from labelloop.service.settings import Settings
from labelloop.service.signals import exit_status_of
from labelloop.service.studio import Studio, StudioError
from ml_backend.cli.simulate_labels import means_table, simulate_image_labels
from ml_backend.errors import NotLearnable, TestListUnusable
from ml_backend.inference.detector import embedded_model
from ml_backend.learning.annotations import count_labelled
from ml_backend.learning.events import LEARN, train_now_event
from ml_backend.learning.service import LearningState, learning_state
from ml_backend.learning.store.annotations import STATES, NotConnectedToLearning, TrainingDataStore
from ml_backend.learning.store.runs import PHASES, RunStore, TrainingRun
from ml_backend.policy import LearningPolicy, read_learning_policy, too_few_labelled
from ml_backend.predict.control_support import ControlSupport, NotServed, controls_of, reasons
from ml_backend.serving import activation
from ml_backend.studio.extra_params import options_of
from ml_backend.training.backbone import open_backbone
from ml_backend.training.datasets import LocalDataset, LocalImage, read_labelled
from ml_backend.training.feature_cache import FeatureCache
from ml_backend.training.simulate import STRATEGIES, FeatureSource, SimulationRun, decodable_images, simulate

# Seconds of waiting after which the status asks whether a worker is running.
WORKER_HINT_S = 30.0

POLL_S = 0.25
# Most runs in the table.
MAX_RUNS = 10

RUN_COLUMNS = ("when", "tasks", "boxes", "AP50", "before", "judged by", "verdict", "version", "s")


def learn(project: int, *, now: bool = False, watch: bool = False) -> None:
    """Show the learning state of a project: labelled tasks, the last training runs with their verdicts, served version.

    Training itself is done by `labelloop worker` after every submit. If a requested run is not possible, the command
    says why and exits with status 1.

    Args:
        project: Project number, as in its address: /projects/NUMBER/.
        now: Train now, even if nothing changed; "Start training" in Label Studio does the same.
        watch: Show phases and verdicts as they come, until Ctrl-C.
    """
    settings = Settings()
    setup_logging(settings)
    engine = open_database(settings)
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


# Bytes of features on disk, about 2,000 images with the embedded model.
CACHE_BYTES = 8 * 2**30

# Endings of a table of labels of whole images.
TABLES = frozenset({".csv", ".tsv"})

# Most characters printed of a line.
MAX_LINE = 80

# Most lines printed about items left out of a data set.
MAX_LINES = 20


def learn_simulate(
    *,
    images: Path,
    annotations: Path | None = None,
    test_list: Path | None = None,
    model: str = "default",
    labelled: str = "1,5,10,20",
    strategy: str = "random,active",
    seeds: int = 5,
    json_: Annotated[Path | None, Parameter(name="--json")] = None,
    settings: Annotated[Settings | None, Parameter(parse=False)] = None,
) -> None:
    """Estimate how many labels you need: replay a labelled data set through the training code of the service.

    No server is needed. Images are labelled one after the other, in random order and in the order of active learning; a
    model is trained on them and evaluated on the test images. Prints the AP50 (pycocotools) of each strategy and number
    of labelled images; for labels of whole images, the accuracy, or the macro-F1 of several tags an image.

    Ctrl-C stops it and prints the results so far.

    Args:
        images: Folder of images.
        annotations: A folder of Pascal VOC XML, a folder of YOLO text files or a COCO JSON file, as read by
            `labelloop import`. Polygons and masks count as their bounding boxes. For labels of whole images, a CSV file
            (image,label or image,label1|label2, or a column of 0 and 1 for each label); without it, each subfolder of
            the images is a class.
        test_list: Text file with the names of the test images, one per line; the others may be labelled. Optional for
            labels of whole images: the folders `test` or `val`, else 30 % of the images, are tested on.
        model: ONNX model to train on, or `default` for the embedded model.
        labelled: Numbers of labelled images, separated by commas.
        strategy: `random`, `active`, or both with a comma.
        seeds: Repetitions, each with another random sample of the images.
        json_: File for the results of every run.
        settings: None: read from the environment.

    Raises:
        DatasetError: The annotations cannot be read.
        DatasetUnreadable: The images cannot be read, or have no annotations.
        TestListUnusable: The list cannot be read, or does not split the data set.
        ModelError: The model cannot be opened or trained.
    """
    settings = settings or Settings()
    setup_logging(settings)
    sizes = _numbers(labelled)
    strategies = list(dict.fromkeys(_strategy(name.strip()) for name in strategy.split(",")))
    if seeds < 1:
        raise SettingsError(f"--seeds {seeds} is below 1.", fix="Give --seeds 1 or more.")
    if json_ is not None:
        _require_writable(json_)
    path = embedded_model() if model == "default" else Path(model).expanduser().absolute()
    folder = settings.home / "learn"
    if annotations is None or annotations.suffix.lower() in TABLES:
        cache = FeatureCache(folder / "whole", max_bytes=CACHE_BYTES)
        simulate_image_labels(
            open_backbone(path, folder=folder, threads=settings.inference_threads), cache, images=images,
            table=annotations, test_list=test_list, sizes=sizes, strategies=strategies, seeds=seeds, report=json_,
            settings=settings,
        )  # fmt: skip
        return
    if test_list is None:
        raise SettingsError("Boxes need a list of test images.", fix="Name them with --test-list FILE, one a line.")
    data = read_labelled(images, annotations, settings=settings)
    wanted, unknown = data.listed(test_list)
    backbone = open_backbone(path, folder=folder, threads=settings.inference_threads)
    if not backbone.levels:
        raise NotLearnable(path=path, reason=backbone.no_boxes)
    features = FeatureSource(backbone, FeatureCache(folder / "sights", max_bytes=CACHE_BYTES))
    console = Console(stderr=True, highlight=False)
    runs: list[SimulationRun] = []
    stopped = 0
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    ) as progress:
        images_bar = progress.add_task("images", total=len(data.images))
        good, bad = decodable_images(features, data.images, lambda done, _: progress.update(images_bar, completed=done))
        lines = _notes(data, bad, unknown, test_list)
        for line in _limited(lines):
            progress.console.print(line, markup=False, soft_wrap=True)
        test = [image for image in good if image.name in wanted]
        pool = [image for image in good if image.name not in wanted]
        _require_test_images(test_list, test, pool)
        runs_bar = progress.add_task("runs", total=len(sizes) * len(strategies) * seeds)
        try:
            for run in simulate(features, pool, test, sizes=sizes, strategies=strategies, seeds=seeds):
                runs.append(run)
                progress.advance(runs_bar)
        except KeyboardInterrupt as stop:
            stopped = exit_status_of(stop)
    if len(pool) < sizes[-1]:
        console.print(f"Only {len(pool)} images can be labelled, so larger numbers were not simulated.")
    if runs:
        Console(highlight=False).print(
            means_table([(run, run.ap50, run.boxes) for run in runs], metric="AP50", amount="boxes")
        )
        console.print(*(f"Views: {line}." for line in {runs[-1].tiling} if line))
    if json_ is not None:
        head = {"model": backbone.version, "test_photos": len(test), "pool_photos": len(pool)}
        json_.write_bytes(msgspec.json.format(json.dumps({**head, "runs": [asdict(run) for run in runs]}).encode()))
    if stopped:
        console.print(f"Stopped after {len(runs)} of {len(sizes) * len(strategies) * seeds} runs.")
        raise SystemExit(stopped)


def _notes(data: LocalDataset, undecodable: Sequence[str], unknown: Sequence[str], test_list: Path) -> list[str]:
    """What was left out of a data set or changed, one line an item."""
    lines = [f"left out: {problem.item}: {problem.reason}" for problem in data.problems]
    lines += [f"left out: {line}" for line in undecodable]
    lines += [f"not an image of the data set: {_truncated(line)}, in {test_list}" for line in unknown]
    if data.scaled:
        lines.append(f"{data.scaled} images have another size than their labels are for: the boxes are scaled")
    return lines


def _require_test_images(test_list: Path, test: Sequence[LocalImage], pool: Sequence[LocalImage]) -> None:
    if not test:
        raise TestListUnusable(path=test_list, reason="it names no image that is labelled and can be decoded")
    if not any(image.labels for image in test):
        raise TestListUnusable(path=test_list, reason="the images it names have no annotations")
    if not any(image.labels for image in pool):
        raise TestListUnusable(path=test_list, reason="it leaves no annotated image to label")


def _require_writable(file: Path) -> None:
    """Check that results can be written, before the work starts."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.open("ab").close()
    except OSError as error:
        raise SettingsError(
            f"{file} cannot be written: {error.strerror}.", fix="Give another file with --json."
        ) from None


def _truncated(line: str) -> str:
    """Return at most `MAX_LINE` characters of a line: the file may be something else entirely."""
    return line if len(line) <= MAX_LINE else f"{line[:MAX_LINE]} ..."


def _limited(lines: Sequence[str]) -> list[str]:
    if len(lines) <= MAX_LINES:
        return list(lines)
    return [*lines[:MAX_LINES], f"... and {len(lines) - MAX_LINES} more"]


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise SettingsError(
            f"{text!r} is not a list of numbers of images.", fix="Give for instance --labelled 1,5,10,20."
        )
    return sorted(set(numbers))


def _strategy(name: str) -> Literal["random", "active"]:
    for strategy in STRATEGIES:
        if name == strategy:
            return strategy
    raise SettingsError(f"There is no strategy {name!r}.", fix=f"Give one of {', '.join(STRATEGIES)}, or both.")
