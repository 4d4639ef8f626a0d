"""Command `labelloop train`: fine-tune an ONNX detector, with its progress bar and final table."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from labelloop.service.errors import SettingsError
from labelloop.service.logging import setup_logging
from labelloop.service.settings import Settings
from labelloop.service.signals import graceful_stop
from labelloop.service.system import available_cores
from ml_backend.errors import TestListUnusable
from ml_backend.finetune.checkpoints import checkpoint_file
from ml_backend.finetune.data import read_training_data
from ml_backend.finetune.errors import disk_errors_name
from ml_backend.finetune.recipe import Recipe
from ml_backend.finetune.run import Finetuned, FinetuneJob, finetune
from ml_backend.finetune.torch_parts import require_torch
from ml_backend.inference.detector import embedded_model
from ml_backend.training.datasets import LocalImage

if TYPE_CHECKING:
    from ml_backend.finetune.loop import Progress as TrainingProgress

# Most lines printed about items left out.
MAX_LINES = 20

# Largest accepted drop in AP50 against the refit, as the default of learn.toml.
TOLERANCE = 0.03


def train(
    project: int | None = None,
    *,
    data: str = "",
    model: str = "default",
    out: Path | None = None,
    minutes: float = 10.0,
    images: Path | None = None,
    test_list: Path | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    threads: int = 0,
    flip: bool = True,
    seed: int = 0,
    steps: int = 0,
    layout: str = "",
    fresh: Annotated[bool, Parameter(negative=())] = False,
    json_: Annotated[Path | None, Parameter(name="--json")] = None,
) -> None:
    """Fine-tune the detector on your labels for some minutes, and write it back as the same ONNX graph.

    `labelloop learn` refits the last layer in seconds; this trains all layers, and pays from about 50 labelled images
    on, or where your images look unlike photos. It needs the extra [train]: pip install 'labelloop[train]'.

    ```
    labelloop train 7                                             # project 7: train, compare, publish
    labelloop train --data ./cars --model yolox_nano.onnx --minutes 10 --out cars.onnx
    labelloop train --data s3://bucket/cars --out cars.onnx       # the latest version that `export` published
    ```

    With a project, the labelled tasks are trained on, except those held out for evaluation. The result passes the same
    check as a refit, becomes a version, is served, and the refit goes on upon it. With --data, the file is written to
    --out; serve it with `labelloop models add OUT.onnx --activate`.

    A tenth of the images is held out: training stops early when it no longer gets better on them, and the table at the
    end compares the model before, the refit and the result on them. Ctrl-C writes a checkpoint; the same command goes
    on from it.

    Args:
        project: Project number, as in its address: /projects/NUMBER/.
        data: Labelled images: a folder of COCO, Pascal VOC or YOLO with its images, or a data set of `labelloop export`
            (a folder, s3://BUCKET/PREFIX, gs:// or az://). Polygons and masks count as their bounding boxes.
        model: ONNX detector to start from, or `default` for the embedded model. With a project: the one it is served.
        out: The ONNX file to write. Its class layers are those of your labels; inputs, outputs and speed are the
            model's.
        minutes: Budget of the training, without reading images and the final comparison.
        images: Folder of the images, if they are not in the folder of --data.
        test_list: Text file with names of images that are never trained on, one per line; the final table is on them.
            Default: the images in folders named `val` and `test`, if the data set has any.
        device: Where to train; auto: on a GPU that torch finds, else on the CPU.
        threads: CPU threads; 0: one per core.
        flip: Mirror images left to right while training. Pass --no-flip where a label names a side, such as "left ear".
        seed: Of the split, the order of images and the augmentation.
        steps: Train this many steps instead of --minutes: with the same seed, threads and machine the same model.
        layout: Layout of the model's outputs; default: recognised.
        fresh: Ignore the checkpoint of a stopped training.
        json_: File for the table, the curve and the options.

    Raises:
        TorchMissing: The extra is not installed.
        NotTrainable: The model cannot be fine-tuned.
        DatasetUnreadable: The data set cannot be read.
    """
    settings = Settings()
    setup_logging(settings)
    require_torch()
    _check_options(project, data=data, out=out, minutes=minutes, json_=json_)
    _limit_threads(threads or available_cores())
    console = Console(stderr=True, highlight=False)
    recipe = Recipe(minutes=minutes, steps=steps, seed=seed)
    recipe = replace(recipe, augment=replace(recipe.augment, flip=flip))
    if project is not None:
        _train_project(project, settings, recipe, device, console, fresh=fresh)
        return
    labelled = read_training_data(data, images=images, settings=settings)
    _print_limited(console, [f"left out: {note}" for note in labelled.notes])
    pool, test = _test_split(labelled.images, test_list) if test_list is not None else labelled.by_split()
    if test and test_list is None:
        console.print(f"The {len(test)} images of its folders `val` and `test` are not trained on, but evaluated on.")
    path = embedded_model() if model == "default" else Path(model).expanduser().absolute()
    assert out is not None
    job = FinetuneJob(
        path,
        pool,
        out.expanduser().absolute(),
        recipe,
        source=data,
        data_version=labelled.version,
        layout=layout,
        test=test,
        device=device,
        checkpoint=checkpoint_file(settings.home, path, labelled.version, recipe, fresh=fresh),
        folder=settings.home / "learn",
    )
    with _progress(console) as shown, graceful_stop("the step") as stopping:
        done = finetune(job, progress=shown.step, phase=shown.phase, stopping=stopping)
    _print_limited(console, [f"left out: {line}" for line in done.bad])
    if done.stopped:
        _stopped(console, stopping.exit_status, done.training.unsaved)
    print_result(done)
    print(f"Written: {job.out}")
    if json_ is not None:
        file = json_.expanduser()
        with disk_errors_name(file):
            file.write_text(json.dumps(as_json(done), indent=1), encoding="utf-8")


def _train_project(
    project: int,
    settings: Settings,
    recipe: Recipe,
    device: Literal["auto", "cpu", "cuda"],
    console: Console,
    *,
    fresh: bool,
) -> None:
    """Train on a project, and print what came of it; exits with status 1 where the result is not served."""
    from labelloop.service.db.engine import open_database
    from labelloop.service.studio import Studio
    from ml_backend.learning.context import LearningContext
    from ml_backend.learning.finetuning import finetune_project
    from ml_backend.learning.train_by_hand import train_by_hand

    with (
        closing(Studio.from_settings(settings)) as studio,
        _progress(console) as shown,
        graceful_stop("the step") as stopping,
    ):
        context = LearningContext.of(settings, studio, open_database(settings))
        trained = train_by_hand(
            context,
            project,
            lambda reporter: finetune_project(
                context,
                project,
                recipe=recipe,
                device=device,
                fresh=fresh,
                progress=_both(shown.step, reporter.step),
                phase=_both(shown.phase, reporter.phase),
                stopping=lambda: stopping() or reporter.lost,
            ),
            minutes=recipe.minutes,
        )
    _print_limited(console, trained.notes)
    if not trained.version:
        _stopped(console, stopping.exit_status, trained.unsaved)
    if trained.tuned is not None:
        print_result(trained.tuned)
    print(f"{'published' if trained.published else 'not published'} {trained.version} (train): {trained.reason}")
    if not trained.published:
        raise SystemExit(1)
    print("`labelloop worker` pre-labels the open tasks with it, and refits its last layer after every submit.")


def _both(*calls: Callable[[Any], None]) -> Callable[[Any], None]:
    def call(value: Any) -> None:
        for each in calls:
            each(value)

    return call


def _check_options(project: int | None, *, data: str, out: Path | None, minutes: float, json_: Path | None) -> None:
    if (project is None) == (not data):
        raise SettingsError(
            "Give a project or a data set.", fix="`labelloop train 7`, or `--data FOLDER --out OUT.onnx`."
        )
    if data and out is None:
        raise SettingsError("There is no file to write to.", fix="Give --out OUT.onnx.")
    if out is not None and out.suffix != ".onnx":
        raise SettingsError(f"{out} is not an ONNX file.", fix="Give --out a name that ends with .onnx.")
    if out is not None and json_ is not None and json_.stem == out.stem and json_.parent == out.parent:
        raise SettingsError(f"{json_} would be read as the class names of {out.name}.", fix="Give --json another name.")
    if minutes <= 0:
        raise SettingsError(f"--minutes {minutes:g} is not above 0.", fix="Give for instance --minutes 10.")
    for option, file in (("--out", out), ("--json", json_)):
        if file is not None and (reason := _not_writable(file.expanduser())):
            fix = f"Give {option} the name of a file in a folder that you can write to."
            raise SettingsError(f"{option} {file} cannot be written: {reason}.", fix=fix)


def _not_writable(file: Path) -> str:
    """Why a file cannot be written, before minutes are spent; empty if it can."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=file.parent):
            return "it is a folder" if file.is_dir() else ""
    except OSError as error:
        return error.strerror or type(error).__name__


def _limit_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _test_split(images: Sequence[LocalImage], test_list: Path) -> tuple[list[LocalImage], list[LocalImage]]:
    """Split images by a list of names, with or without folder and extension."""
    try:
        lines = {line.strip() for line in test_list.read_text(encoding="utf-8-sig").splitlines() if line.strip()}
    except (OSError, UnicodeDecodeError) as error:
        raise TestListUnusable(path=test_list, reason=str(error)) from error
    named = [image for image in images if {image.name, image.path.name, image.path.stem} & lines]
    if not any(image.labels for image in named):
        raise TestListUnusable(path=test_list, reason="it names no labelled image of the data set")
    kept = {image.name for image in named}
    return [image for image in images if image.name not in kept], named


class TrainingBar:
    """The progress bar of a training."""

    def __init__(self, bar: Progress, task: TaskID) -> None:
        """Shows nothing yet."""
        self._bar, self._task = bar, task

    def phase(self, name: str) -> None:
        """Show a phase without a share."""
        if self._bar.console.is_terminal:
            self._bar.update(self._task, description=name, total=None if name != "training" else 1.0)
        else:
            self._bar.console.print(name)

    def step(self, state: TrainingProgress) -> None:
        """Show a step."""
        held_out = "" if state.ap50 is None else f"  AP50 {state.ap50:.3f} (best {state.best or 0:.3f})"
        self._bar.update(
            self._task, description=f"step {state.step}  loss {state.loss:.2f}{held_out}", completed=state.share
        )


@contextmanager
def _progress(console: Console) -> Iterator[TrainingBar]:
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        yield TrainingBar(bar, bar.add_task("opening the model", total=None))


def _stopped(console: Console, status: int, unsaved: str) -> None:
    if unsaved:
        resumed = "The same command goes on from the one before, or begins again."
        console.print(f"Stopped; the checkpoint cannot be written: {unsaved}. {resumed}", markup=False)
    else:
        console.print("Stopped; the checkpoint is written. The same command goes on from it.")
    raise SystemExit(status)


def print_result(done: Finetuned) -> None:
    """Print the table of the models compared, and what to do next."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    training = done.training
    ended = "an early stop" if training.ended == "early stop" else "the budget"
    console.print(
        f"Trained on {done.trained} images: {training.steps} steps, {training.seen} images seen, "
        f"{training.seconds / 60:.1f} minutes, ended by {ended}."
    )
    if done.scores:
        scores = done.scores.values()
        table = Table("AP50", *done.scores, box=None)
        table.add_row("all classes", *(f"{score.ap50:.3f}" for score in scores))
        for label in done.names[:MAX_LINES]:
            table.add_row(
                escape(label), *(f"{score.by_class[label]:.3f}" if label in score.by_class else "-" for score in scores)
            )
        console.print(table)
        if len(done.names) > MAX_LINES:
            console.print(f"... and {len(done.names) - MAX_LINES} more classes (--json FILE has all)")
        console.print(f"AP50 on {done.evaluated} images with {done.evaluated_boxes} boxes that were not trained on.")
    else:
        console.print("Too few images to hold any out: the result is not evaluated. Give --test-list to compare it.")
    for note in done.notes:
        console.print(note, markup=False)
    refit, tuned = done.scores.get("refit"), done.scores.get("fine-tuned")
    if refit and tuned and tuned.ap50 < refit.ap50 - TOLERANCE:
        console.print(
            "The refit is better here: serve that (`labelloop learn`), or label more images and train longer."
        )


def as_json(done: Finetuned) -> dict[str, Any]:
    """The result for a file."""
    training = done.training
    return {
        "scores": {name: {"ap50": score.ap50, "by_class": score.by_class} for name, score in done.scores.items()},
        "images": done.trained,
        "evaluated": done.evaluated,
        "steps": training.steps,
        "seen": training.seen,
        "seconds": training.seconds,
        "ended": training.ended,
        "curve": [list(point) for point in training.curve],
    }


def _print_limited(console: Console, lines: Sequence[str]) -> None:
    for line in lines[:MAX_LINES]:
        console.print(line, markup=False, soft_wrap=True)
    if len(lines) > MAX_LINES:
        console.print(f"... and {len(lines) - MAX_LINES} more")
