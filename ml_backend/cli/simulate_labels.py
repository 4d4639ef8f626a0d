"""The part of `labelloop learn simulate` about labels of whole images."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import msgspec
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from labelloop.service.settings import Settings
from labelloop.service.signals import exit_status_of
from ml_backend.errors import NotLearnable, TestListUnusable
from ml_backend.training.backbone import FrozenBackbone
from ml_backend.training.feature_cache import FeatureCache
from ml_backend.training.labelled_images import LabelledFolder, read_labelled_folder
from ml_backend.training.simulate import SimulationRun, Strategy
from ml_backend.training.simulate_labels import (
    METRICS,
    ImageFeatureSource,
    LabelRun,
    image_features,
    simulate_labels,
    split_by_hash,
)

# Share of the images that are tested on without a list of test images.
TEST_SHARE = 0.3

# Most lines printed about items left out of a data set, and most characters of one.
MAX_LINES, MAX_LINE = 20, 120


def simulate_image_labels(
    backbone: FrozenBackbone,
    cache: FeatureCache,
    *,
    images: Path,
    table: Path | None,
    test_list: Path | None,
    sizes: Sequence[int],
    strategies: Sequence[Strategy],
    seeds: int,
    report: Path | None,
    settings: Settings,
) -> None:
    """Replay a data set of labelled images, and print the learning curve.

    Args:
        backbone: Gives the features.
        cache: Of the features.
        images: Folder of the images.
        table: CSV file of their labels; None: each subfolder is a class.
        test_list: Names of the test images; None: the data set's own test folders, else a share of all.
        sizes: Numbers of labelled images.
        strategies: How they are chosen.
        seeds: Draws per strategy.
        report: File for the results of every run; None: none.
        settings: Of the service.

    Raises:
        DatasetError, DatasetUnreadable: The images or their labels cannot be read.
        TestListUnusable: The list cannot be read, or does not split the data set.
        NotLearnable: The model gives no features of images.
    """
    data = read_labelled_folder(images, table, settings=settings)
    console = Console(stderr=True, highlight=False)
    console.print(data.sentence(), soft_wrap=True, markup=False)
    wanted, unknown = data.listed(test_list) if test_list is not None else (split_by_hash(data.images, TEST_SHARE), [])
    runs: list[LabelRun] = []
    stopped = 0
    columns = (BarColumn(bar_width=30), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, console=console) as progress:
        bar = progress.add_task("images", total=len(data.images))
        source = ImageFeatureSource(backbone, cache)
        good, features, bad = image_features(source, data.images, lambda done, _: progress.update(bar, completed=done))
        lines = [
            f"left out: {line}" for line in (*(f"{problem.item}: {problem.reason}" for problem in data.problems), *bad)
        ]
        lines += [f"not an image of the data set: {line[:MAX_LINE]}" for line in unknown]
        for line in lines[:MAX_LINES] + [f"... and {len(lines) - MAX_LINES} more"] * (len(lines) > MAX_LINES):
            progress.console.print(line, markup=False, soft_wrap=True)
        if not features.shape[1]:
            raise NotLearnable(path=backbone.detector.path, reason="it gives no features of whole images")
        tested = sum(image.name in wanted for image in good)
        _require_split(test_list or images, tested, len(good) - tested)
        bar = progress.add_task("runs", total=len(sizes) * len(strategies) * seeds)
        try:
            for run in simulate_labels(
                good, features, test=wanted, kind=data.kind, sizes=sizes, strategies=strategies, seeds=seeds
            ):
                runs.append(run)
                progress.advance(bar)
        except KeyboardInterrupt as stop:
            stopped = exit_status_of(stop)
    if len(good) - tested < sizes[-1]:
        console.print(f"Only {len(good) - tested} images can be labelled, so larger numbers were not simulated.")
    if runs:
        Console(highlight=False).print(_table(runs, data, tested))
    if report is not None:
        head = {
            "model": backbone.version, "metric": METRICS[data.kind], "classes": list(data.classes),
            "test_photos": tested, "pool_photos": len(good) - tested,
        }  # fmt: skip
        report.write_bytes(msgspec.json.format(json.dumps({**head, "runs": [asdict(run) for run in runs]}).encode()))
    if stopped:
        console.print(f"Stopped after {len(runs)} of {len(sizes) * len(strategies) * seeds} runs.")
        raise SystemExit(stopped)


def _require_split(path: Path, tested: int, pool: int) -> None:
    if not tested:
        raise TestListUnusable(path=path, reason="it names no image that is labelled and can be decoded")
    if not pool:
        raise TestListUnusable(path=path, reason="it leaves no labelled image to label")


def _table(runs: Sequence[LabelRun], data: LabelledFolder, tested: int) -> Table:
    """Return the table of means over seeds, one row per strategy and size."""
    metric = METRICS[data.kind]
    table = means_table(
        [(run, run.score, run.classes) for run in runs], metric=metric, amount="labels seen", of=len(data.classes)
    )
    table.caption = f"{metric} on {tested} test images"
    return table


def means_table(
    runs: Sequence[tuple[LabelRun | SimulationRun, float, int]], *, metric: str, amount: str, of: int | None = None
) -> Table:
    """Return a table of means over seeds, one row per strategy and number of labelled images.

    Args:
        runs: Each run of a simulation, with its score and its amount.
        metric: Title of the scores.
        amount: Title of the amounts.
        of: The most that the amount can be; None: not shown.
    """
    table = Table("strategy", "labelled", metric, "± seeds", "images", amount, "fit, s")
    cells: dict[tuple[str, int], list[tuple[LabelRun | SimulationRun, float, int]]] = defaultdict(list)
    for item in runs:
        cells[item[0].strategy, item[0].labelled].append(item)
    for (strategy, size), group in cells.items():
        scores = [score for _, score, _ in group]
        mean_amount = f"{np.mean([number for _, _, number in group]):.1f}"
        table.add_row(
            strategy,
            str(size),
            f"{np.mean(scores):.3f}",
            f"{np.std(scores):.3f}",
            f"{np.mean([run.images for run, _, _ in group]):.1f}",
            mean_amount if of is None else f"{mean_amount} of {of}",
            f"{np.mean([run.seconds for run, _, _ in group]):.2f}",
        )
    return table
