"""Owns the commands of learning: plain functions that the command line mounts under `learn`."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
from cyclopts import Parameter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from labelloop.service.errors import SettingsError
from labelloop.service.logging import setup_logging
from labelloop.service.settings import Settings
from labelloop.service.signals import status_of
from ml_backend.errors import TestListUnusable
from ml_backend.inference.detector import embedded_model
from ml_backend.training.backbone import open_backbone
from ml_backend.training.datasets import LabelledPhoto, read_labelled
from ml_backend.training.feature_cache import FeatureCache
from ml_backend.training.simulate import STRATEGIES, Album, Run, readable, simulate

KEPT_BYTES = 8 * 2**30
"""Of sights on disk; about 2,000 photos with the embedded model."""

LONGEST = 80
"""Characters of a line that are shown."""

MOST_TOLD = 20
"""Lines on what was left out of a data set."""


def learn_simulate(
    *,
    images: Path,
    annotations: Path,
    test_list: Path,
    model: str = "default",
    labelled: str = "1,5,10,20",
    strategy: str = "random,active",
    seeds: int = 5,
    json_: Annotated[Path | None, Parameter(name="--json")] = None,
    settings: Annotated[Settings | None, Parameter(parse=False)] = None,
) -> None:
    """Say how many labels you need: replay a labelled data set through the code that learns in service.

    No server is needed. Photos are labelled one after the other, in random order and in the order that active learning
    asks for; a model learns from them and is judged on the test photos. Prints AP50 (pycocotools) of each strategy and
    number of labelled photos, and what was labelled.

    Ctrl-C stops it, and says what is done so far.

    Args:
        images: Folder of photos.
        annotations: A folder of Pascal VOC XML, a folder of YOLO text files, or a COCO JSON file: what
            `labelloop import` reads. Polygons and masks count as the boxes around them.
        test_list: Text file that names the test photos, one a line; the others may be labelled.
        model: ONNX detector to learn on, or `default` for the one that comes with labelloop.
        labelled: Numbers of labelled photos, with commas.
        strategy: `random`, `active`, or both with a comma.
        seeds: How often each is repeated, each time on another draw of the photos.
        json_: File to write every run to.
        settings: Read from the environment where None.

    Raises:
        DatasetError: The annotations cannot be read.
        DatasetUnreadable: The photos cannot be read, or nothing is drawn on them.
        TestListUnusable: The list cannot be read, or does not meet the photos.
        ModelError: The model cannot be opened, or cannot learn.
    """
    settings = settings or Settings()
    setup_logging(settings)
    sizes = _numbers(labelled)
    strategies = list(dict.fromkeys(_strategy(one.strip()) for one in strategy.split(",")))
    if seeds < 1:
        raise SettingsError(f"{seeds} seeds are none.", fix="Give --seeds 1 or more.")
    if json_ is not None:
        _writable(json_)
    data = read_labelled(images, annotations, settings=settings)
    wanted, unknown = data.listed(test_list)
    path = embedded_model() if model == "default" else Path(model).expanduser().absolute()
    folder = settings.home / "learn"
    backbone = open_backbone(path, folder=folder, threads=settings.inference_threads)
    album = Album(backbone, FeatureCache(folder / "sights", max_bytes=KEPT_BYTES))
    console = Console(stderr=True, highlight=False)
    runs: list[Run] = []
    stopped = 0
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    ) as progress:
        looking = progress.add_task("photos seen", total=len(data.photos))
        good, bad = readable(album, data.photos, lambda done, _: progress.update(looking, completed=done))
        told = [f"left out: {line}" for line in (*(f"{one.item}: {one.reason}" for one in data.problems), *bad)]
        told += [f"not a photo of the data set: {_cut(line)}, in {test_list}" for line in unknown]
        for line in _shortened(told):
            progress.console.print(line, markup=False, soft_wrap=True)
        test = [one for one in good if one.name in wanted]
        pool = [one for one in good if one.name not in wanted]
        _check(test_list, test, pool)
        done = progress.add_task("runs", total=len(sizes) * len(strategies) * seeds)
        try:
            for run in simulate(album, pool, test, sizes=sizes, strategies=strategies, seeds=seeds):
                runs.append(run)
                progress.advance(done)
        except KeyboardInterrupt as stop:
            stopped = status_of(stop)
    if len(pool) < sizes[-1]:
        console.print(f"There are {len(pool)} photos to label: no more than so many were labelled.")
    if runs:
        Console(highlight=False).print(_table(runs))
    if json_ is not None:
        head = {"model": backbone.version, "test_photos": len(test), "pool_photos": len(pool)}
        json_.write_bytes(msgspec.json.format(json.dumps({**head, "runs": [asdict(run) for run in runs]}).encode()))
    if stopped:
        console.print(f"Stopped after {len(runs)} of {len(sizes) * len(strategies) * seeds} runs.")
        raise SystemExit(stopped)


def _check(test_list: Path, test: Sequence[LabelledPhoto], pool: Sequence[LabelledPhoto]) -> None:
    if not test:
        raise TestListUnusable(test_list, "it names none of the photos that are labelled and can be decoded")
    if not any(one.labels for one in test):
        raise TestListUnusable(test_list, "nothing is drawn on the photos that it names")
    if not any(one.labels for one in pool):
        raise TestListUnusable(test_list, "it leaves no photo to label on which anything is drawn")


def _writable(file: Path) -> None:
    """Whether results can be written: asked before the work, not after it."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.open("ab").close()
    except OSError as error:
        raise SettingsError(
            f"{file} cannot be written: {error.strerror}.", fix="Give another file with --json."
        ) from None


def _cut(line: str) -> str:
    """At most `LONGEST` characters of a line: somebody may have given another file."""
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} ..."


def _shortened(lines: Sequence[str]) -> list[str]:
    if len(lines) <= MOST_TOLD:
        return list(lines)
    return [*lines[:MOST_TOLD], f"... and {len(lines) - MOST_TOLD} more of the kind"]


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(one) for one in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise SettingsError(f"{text!r} is no list of numbers of photos.", fix="Give for instance --labelled 1,5,10,20.")
    return sorted(set(numbers))


def _strategy(name: str) -> Literal["random", "active"]:
    for known in STRATEGIES:
        if name == known:
            return known
    raise SettingsError(f"There is no strategy {name!r}.", fix=f"Give one of {', '.join(STRATEGIES)}, or both.")


def _table(runs: Sequence[Run]) -> Table:
    """Means over seeds, a row a strategy and size."""
    table = Table("strategy", "labelled", "AP50", "± seeds", "images", "boxes", "fit, s")
    cells: dict[tuple[str, int], list[Run]] = defaultdict(list)
    for run in runs:
        cells[run.strategy, run.labelled].append(run)
    for (strategy, size), some in cells.items():
        scores = [run.ap50 for run in some]
        table.add_row(
            strategy,
            str(size),
            f"{np.mean(scores):.3f}",
            f"{np.std(scores):.3f}",
            f"{np.mean([run.images for run in some]):.1f}",
            f"{np.mean([run.boxes for run in some]):.1f}",
            f"{np.mean([run.seconds for run in some]):.2f}",
        )
    return table
