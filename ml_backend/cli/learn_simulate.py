"""The command `labelloop learn simulate`: a learning curve from a data set that is already labelled."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
from cyclopts import Parameter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from labelloop.service.errors import SettingsError
from labelloop.service.logging import setup_logging
from labelloop.service.settings import Settings
from labelloop.service.signals import exit_status_of
from ml_backend.errors import NotLearnable, TestListUnusable
from ml_backend.inference.detector import embedded_model
from ml_backend.training.backbone import open_backbone
from ml_backend.training.datasets import read_labelled
from ml_backend.training.feature_cache import FeatureCache
from ml_backend.training.labelled_images import read_labelled_folder
from ml_backend.training.simulate import STRATEGIES, FeatureSource, SimulationRun, Strategy, decodable_images, simulate
from ml_backend.training.simulate_labels import (
    METRICS,
    ImageFeatureSource,
    LabelRun,
    image_features,
    simulate_labels,
    split_by_hash,
)

# Bytes of features on disk, about 2,000 images with the embedded model.
CACHE_BYTES = 8 * 2**30

# Endings of a table of labels of whole images.
TABLES = frozenset({".csv", ".tsv"})

# Share of labelled whole images that are tested on without a list of test images.
TEST_SHARE = 0.3

# Most lines printed about what was left out of a data set, and most characters of a line of another file.
MAX_LINES, MAX_LINE = 20, 80

_Run = TypeVar("_Run", SimulationRun, LabelRun)


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

    ```
    labelloop learn simulate --images photos --annotations boxes --test-list test.txt
    labelloop learn simulate --images flowers --labelled 20,50,100     # each subfolder is a class
    ```

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
        strategy: Choice of the images: `random`, `active`, or both with a comma.
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
    curve = _Curve(images, test_list, sizes, strategies, seeds, json_)
    if annotations is None or annotations.suffix.lower() in TABLES:
        _simulate_labels(curve, path, annotations, settings)
    else:
        _simulate_boxes(curve, path, annotations, settings)


@dataclass(frozen=True)
class _Curve:
    """What simulations with boxes and with labels of whole images share: the arguments, the bars and the results."""

    images: Path
    test_list: Path | None
    sizes: Sequence[int]
    strategies: Sequence[Strategy]
    seeds: int
    report: Path | None
    console: Console = field(default_factory=lambda: Console(stderr=True, highlight=False))

    def bars(self) -> Progress:
        columns = (BarColumn(bar_width=30), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        return Progress(TextColumn("{task.description}"), *columns, console=self.console)

    def print_left_out(self, bars: Progress, lines: Sequence[str], unknown: Sequence[str]) -> None:
        """Print what was left out or changed, and the lines of the list of test images that name no image."""
        named = (f"not an image of the data set: {_truncated(line)}, in {self.test_list}" for line in unknown)
        every = [*lines, *named]
        rest = [f"... and {len(every) - MAX_LINES} more"] if len(every) > MAX_LINES else []
        for line in (*every[:MAX_LINES], *rest):
            bars.console.print(line, markup=False, soft_wrap=True)

    def unusable(self, reason: str) -> TestListUnusable:
        return TestListUnusable(path=self.test_list or self.images, reason=reason)

    def collect(self, bars: Progress, runs: Iterable[_Run]) -> tuple[list[_Run], int]:
        """Run to the end or until Ctrl-C: the runs, and the exit status."""
        bar = bars.add_task("runs", total=self._total)
        finished: list[_Run] = []
        try:
            for run in runs:
                finished.append(run)
                bars.advance(bar)
        except KeyboardInterrupt as stop:
            return finished, exit_status_of(stop)
        return finished, 0

    def finish(
        self, runs: Sequence[SimulationRun | LabelRun], table: Table, head: Mapping[str, Any], *, pool: int, status: int
    ) -> None:
        """Print the table, and write the runs below the head of the report."""
        if pool < self.sizes[-1]:
            self.console.print(f"Only {pool} images can be labelled, so larger numbers were not simulated.")
        if runs:
            Console(highlight=False).print(table)
            self.console.print(*(f"Views: {line}." for line in {getattr(runs[-1], "tiling", "")} if line))
        if self.report is not None:
            body = json.dumps({**head, "runs": [asdict(run) for run in runs]})
            self.report.write_bytes(msgspec.json.format(body.encode()))
        if status:
            self.console.print(f"Stopped after {len(runs)} of {self._total} runs.")
            raise SystemExit(status)

    @property
    def _total(self) -> int:
        return len(self.sizes) * len(self.strategies) * self.seeds


def _simulate_boxes(curve: _Curve, model: Path, annotations: Path, settings: Settings) -> None:
    if curve.test_list is None:
        raise SettingsError("Boxes need a list of test images.", fix="Name them with --test-list FILE, one a line.")
    data = read_labelled(curve.images, annotations, settings=settings)
    wanted, unknown = data.listed(curve.test_list)
    folder = settings.home / "learn"
    backbone = open_backbone(model, folder=folder, threads=settings.inference_threads)
    if not backbone.levels:
        raise NotLearnable(path=model, reason=backbone.no_boxes)
    features = FeatureSource(backbone, FeatureCache(folder / "sights", max_bytes=CACHE_BYTES))
    with curve.bars() as bars:
        bar = bars.add_task("images", total=len(data.images))
        good, bad = decodable_images(features, data.images, lambda done, _: bars.update(bar, completed=done))
        lines = [f"left out: {line}" for line in (*(f"{one.item}: {one.reason}" for one in data.problems), *bad)]
        if data.scaled:
            lines.append(f"{data.scaled} images have another size than their labels are for: the boxes are scaled")
        curve.print_left_out(bars, lines, unknown)
        test = [image for image in good if image.name in wanted]
        pool = [image for image in good if image.name not in wanted]
        if not test:
            raise curve.unusable("it names no image that is labelled and can be decoded")
        if not any(image.labels for image in test):
            raise curve.unusable("the images it names have no annotations")
        if not any(image.labels for image in pool):
            raise curve.unusable("it leaves no annotated image to label")
        runs, status = curve.collect(
            bars, simulate(features, pool, test, sizes=curve.sizes, strategies=curve.strategies, seeds=curve.seeds)
        )
    table = _means_table([(run, run.ap50, run.boxes) for run in runs], metric="AP50", amount="boxes")
    head = {"model": backbone.version, "test_photos": len(test), "pool_photos": len(pool)}
    curve.finish(runs, table, head, pool=len(pool), status=status)


def _simulate_labels(curve: _Curve, model: Path, labels: Path | None, settings: Settings) -> None:
    """Simulate with labels of whole images; without a table of labels, each subfolder is a class."""
    data = read_labelled_folder(curve.images, labels, settings=settings)
    curve.console.print(data.sentence(), soft_wrap=True, markup=False)
    listed = curve.test_list and data.listed(curve.test_list)
    wanted, unknown = listed or (split_by_hash(data.images, TEST_SHARE), [])
    folder = settings.home / "learn"
    backbone = open_backbone(model, folder=folder, threads=settings.inference_threads)
    source = ImageFeatureSource(backbone, FeatureCache(folder / "whole", max_bytes=CACHE_BYTES))
    with curve.bars() as bars:
        bar = bars.add_task("images", total=len(data.images))
        good, features, bad = image_features(source, data.images, lambda done, _: bars.update(bar, completed=done))
        lines = [f"left out: {line}" for line in (*(f"{one.item}: {one.reason}" for one in data.problems), *bad)]
        curve.print_left_out(bars, lines, unknown)
        if not features.shape[1]:
            raise NotLearnable(path=model, reason="it gives no features of whole images")
        tested = sum(image.name in wanted for image in good)
        pool = len(good) - tested
        if not tested:
            raise curve.unusable("it names no image that is labelled and can be decoded")
        if not pool:
            raise curve.unusable("it leaves no labelled image to label")
        runs, status = curve.collect(
            bars,
            simulate_labels(
                good, features, test=wanted, kind=data.kind, sizes=curve.sizes, strategies=curve.strategies,
                seeds=curve.seeds,
            ),
        )  # fmt: skip
    metric = METRICS[data.kind]
    table = _means_table(
        [(run, run.score, run.classes) for run in runs], metric=metric, amount="labels seen", of=len(data.classes)
    )
    table.caption = f"{metric} on {tested} test images"
    head = {"model": backbone.version, "metric": metric, "classes": list(data.classes), "test_photos": tested,
            "pool_photos": pool}  # fmt: skip
    curve.finish(runs, table, head, pool=pool, status=status)


def _means_table(
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


def _strategy(name: str) -> Strategy:
    for strategy in STRATEGIES:
        if name == strategy:
            return strategy
    raise SettingsError(f"There is no strategy {name!r}.", fix=f"Give one of {', '.join(STRATEGIES)}, or both.")
