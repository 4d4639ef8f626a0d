"""Learn small objects on tiles of an image, where cross-validation says that tiles beat whole images.

A network of 416 pixels shows an object of 10 pixels on a photo of 4000 as 1 pixel: nothing can be learned from it.
Where the median object is smaller than `SMALL_PX` at the network's input, a head is also fitted on tiles that show it
large enough, and both are compared on the same held-out tiles. Tiles are served as sliced inference, see
`inference.slicing`.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ml_backend.detection.detections import Floats
from ml_backend.detection.preprocess import InputSpec
from ml_backend.inference.slicing import Slices, slice_boxes
from ml_backend.layouts.labelloop import MAX_TILES
from ml_backend.training.backbone import CandidateFeatures
from ml_backend.training.examples import Example
from ml_backend.training.metrics import mean_ap50
from ml_backend.training.model_selection import FitResult, OutOfFoldPredictions, select_and_fit

# Median object side in pixels of the network's input below which tiles are tried; see `bench/results/tiles.md`.
SMALL_PX = 24.0

# Side that the median object has on a tile.
TARGET_PX = 24.0

# Tiles along the longer side.
GRIDS = (2, 3, 4, 6, 8, 12, MAX_TILES)

# Pixels of the network's input per pixel of the image above which a larger tile shows nothing more.
MAX_ENLARGEMENT = 2.0

# Tiles that a fit uses: a random sample of each image's, at least `MIN_OF_IMAGE` and at most `MAX_OF_IMAGE`; of more
# images, the newest. A tile takes 3 MB of memory with the embedded model.
MAX_FITTED_TILES, MIN_OF_IMAGE, MAX_OF_IMAGE = 160, 4, 30

# Tiles with objects for each one without.
WITH_PER_EMPTY = 3

# Mean AP50, and share of it, by which tiles must beat whole images: they take several times as long to serve.
MARGIN, RELATIVE_MARGIN = 0.01, 0.1

# Share of an object inside a tile from which the tile shows it; less is ignored.
VISIBLE = 0.9

Part = tuple[int, int, int, int]


@dataclass(frozen=True)
class TilePlan:
    """How images would be tiled.

    Attributes:
        grid: Tiles along the longer side; 1: whole images.
        median_px: Median side of an object, geometric mean of its width and height, in pixels of the network's input.
        input_px: Longer side of the network's input.
    """

    grid: int
    median_px: float
    input_px: int

    @property
    def slices(self) -> Slices:
        """The tiles."""
        return Slices(grid=self.grid)

    def sentence(self, tiled: float | None, whole: float | None, *, chosen: bool) -> str:
        """Why tiles were chosen or not, for the user."""
        objects = f"median object {self.median_px:.0f} px at {self.input_px}"
        if tiled is None or whole is None:
            scores = "too few images to compare"
        else:
            scores = f"AP50 on held-out tiles {tiled:.3f}, on whole images {whole:.3f}"
        return f"{objects}: {f'{self.grid} x {self.grid} tiles' if chosen else 'whole images'} ({scores})"


def plan_tiles(examples: Sequence[Example], spec: InputSpec) -> TilePlan:
    """Choose a grid by the size of the labelled objects.

    Args:
        examples: Whole labelled images.
        spec: Input format of the network.
    """
    input_px = max(spec.width, spec.height)
    sides = [_sides(example.boxes) for example in examples if len(example.drawn)]
    if not sides:
        return TilePlan(1, 0.0, input_px)
    median = float(np.median(np.concatenate(sides)))
    scales = [max(example.candidates.fit.scale_x, example.candidates.fit.scale_y) for example in examples]
    limit = MAX_ENLARGEMENT / float(np.median(scales))
    if median >= SMALL_PX:
        return TilePlan(1, median, input_px)
    possible = [grid for grid in GRIDS if _enlargement(grid) <= max(limit, _enlargement(GRIDS[0]))]
    enough = (grid for grid in possible if median * _enlargement(grid) >= TARGET_PX)
    return TilePlan(next(enough, possible[-1]), median, input_px)


def _enlargement(grid: int) -> float:
    return 1 + (grid - 1) * (1 - Slices().overlap)


def _sides(boxes: Floats) -> Floats:
    return np.asarray(np.sqrt(np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=1)), np.float32)


def sample_parts(size: tuple[int, int], drawn: Floats, plan: TilePlan, *, count: int, key: str) -> list[Part]:
    """The tiles of an image that are trained on.

    Args:
        size: (width, height) of the image.
        drawn: (m, 4) labelled boxes, pixels of the image.
        plan: How it is tiled.
        count: Most tiles.
        key: Seeds the sample.
    """
    parts = slice_boxes(*size, plan.slices)
    order = sorted(parts, key=lambda part: hashlib.sha256(f"{key} {part}".encode()).digest())
    with_objects = [part for part in order if (_visible(drawn, part) >= VISIBLE).any()]
    without = [part for part in order if not (_visible(drawn, part) > 0).any()]
    empty = without[: max(1, count // (WITH_PER_EMPTY + 1))]
    return with_objects[: count - len(empty)] + empty


def _visible(drawn: Floats, part: Part) -> Floats:
    """Share of each box (m, 4) inside a part; (m,)."""
    low, high = np.maximum(drawn[:, :2], part[:2]), np.minimum(drawn[:, 2:], part[2:])
    areas = np.prod(np.clip(drawn[:, 2:] - drawn[:, :2], 1e-6, None), axis=1)
    return np.asarray(np.prod(np.clip(high - low, 0, None), axis=1) / areas, np.float32)


def view_of(example: Example, candidates: CandidateFeatures, part: Part, *, image: int) -> Example:
    """The example of one tile.

    Args:
        example: The whole image.
        candidates: Of the tile.
        part: The tile, pixels of the image.
        image: Number of the image.
    """
    shares = _visible(example.drawn, part)
    shown = shares >= VISIBLE
    return _view(example, candidates, shown, (shares > 0) & ~shown, image)


def whole_view(example: Example, plan: TilePlan, *, image: int) -> Example:
    """The whole image, which shows the objects that are too large for a tile."""
    fit = example.candidates.fit
    sides = (example.drawn[:, 2:] - example.drawn[:, :2]).max(axis=1, initial=0)
    large = sides >= plan.slices.large_from(fit.width, fit.height)
    return _view(example, example.candidates, large, ~large, image)


def _view(
    example: Example,
    candidates: CandidateFeatures,
    shown: npt.NDArray[np.bool_],
    ignored: npt.NDArray[np.bool_],
    image: int,
) -> Example:
    labels = tuple(label for label, keep in zip(example.labels, shown, strict=True) if keep)
    return Example(candidates, example.drawn[shown], labels, example.complete, example.drawn[ignored], image)


# (index of an image, its tiles) -> the candidates of each tile; empty where the image cannot be loaded any more.
TileFeatures = Callable[[int, Sequence[Part]], Sequence[CandidateFeatures]]


def fit_on_best_view(
    examples: Sequence[Example],
    tile_features: TileFeatures,
    *,
    spec: InputSpec,
    levels: Sequence[int],
    backbone_classes: Sequence[tuple[str, int]] = (),
) -> FitResult:
    """Fit a head on whole images, and on tiles where objects are small; return the better one.

    Args:
        examples: Whole labelled images, at least one of them with a box.
        tile_features: Computes the features of tiles.
        spec: Input format of the network.
        levels: Number of candidates per level.
        backbone_classes: As in `select_and_fit`.

    Raises:
        MediaError, ModelBroken: The features of tiles cannot be computed.
    """
    plan = plan_tiles(examples, spec)
    whole = select_and_fit(examples, levels=levels, backbone_classes=backbone_classes)
    if plan.grid == 1:
        return whole
    views: list[Example] = []
    parts_of_view: list[Part | None] = []
    newest = range(max(0, len(examples) - MAX_FITTED_TILES // MIN_OF_IMAGE), len(examples))
    count = min(MAX_OF_IMAGE, MAX_FITTED_TILES // len(newest))
    for index in newest:
        example, fit = examples[index], examples[index].candidates.fit
        parts = sample_parts((fit.width, fit.height), example.drawn, plan, count=count, key=f"{fit.width} {index}")
        candidates = tile_features(index, parts) if parts else ()
        parts = parts if candidates else []  # the image cannot be loaded any more
        views += [
            whole_view(example, plan, image=index),
            *(view_of(example, of_part, part, image=index) for of_part, part in zip(candidates, parts, strict=True)),
        ]
        parts_of_view += [None, *parts]
    if not any(view.labels for view in views):
        return whole
    tiled = select_and_fit(views, levels=levels, backbone_classes=backbone_classes)
    scores = _compare(whole.predictions, tiled.predictions, views, parts_of_view)
    chosen = scores is None or scores[0] > scores[1] * (1 + RELATIVE_MARGIN) + MARGIN
    sentence = plan.sentence(*(scores or (None, None)), chosen=chosen)
    if not chosen:
        return replace(whole, tiling=sentence)
    return replace(tiled, head=replace(tiled.head, tiles=plan.grid), tiling=sentence)


def _compare(
    whole: OutOfFoldPredictions,
    tiled: OutOfFoldPredictions,
    views: Sequence[Example],
    parts: Sequence[Part | None],
) -> tuple[float, float] | None:
    """Mean AP50 of both on the tiles that both held out: (on tiles, on whole images); None without such tiles."""
    of_image = dict(zip(whole.indices, whole.detections, strict=True))
    truths, on_tiles, on_whole = [], [], []
    for index, truth, detections in zip(tiled.indices, tiled.truths, tiled.detections, strict=True):
        part = parts[index]
        if part is None or views[index].image not in of_image:
            continue
        found = of_image[views[index].image]
        centres = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
        inside = ((centres >= part[:2]) & (centres < part[2:])).all(axis=1)
        seen = _visible(found.boxes, part) >= VISIBLE
        truths.append(truth)
        on_tiles.append(detections)
        on_whole.append(found[inside & seen])
    if not any(truth.labels for truth in truths):
        return None
    return mean_ap50(truths, on_tiles, names=tiled.names), mean_ap50(truths, on_whole, names=whole.names)
