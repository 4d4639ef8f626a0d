"""Fit a head on labelled images: the mean of several configurations, weighted by cross-validation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ml_backend.detection.box_voting import PlattCalibration, apply_calibration, edge_aspect_features
from ml_backend.detection.detections import Detections, Ints
from ml_backend.detection.logits import expit, logit
from ml_backend.training.calibration import calibrate_head, fit_calibrations
from ml_backend.training.examples import Example, is_ignored
from ml_backend.training.fit import average_heads, fit_heads
from ml_backend.training.linear_head import LinearHead
from ml_backend.training.metrics import GroundTruth, mean_ap50
from ml_backend.training.parallel import parallel_map, single_threaded_blas
from ml_backend.training.table import CandidateTable, build_table

FOLDS = 2
# Minimum number of labelled images for cross-validation; below, the first configuration is taken.
MIN_IMAGES = 2

# One row for all levels is tried where images have fewer boxes than this on average: many boxes on one image cover all
# levels that matter ...
SHARED_BELOW_BOXES_PER_IMAGE = 5

# ... and is always part of the mean where there are fewer boxes.
SHARED_BELOW_BOXES = 50

# Images held out at most, drawn at random: enough to weight by, in bounded time.
MAX_HELD_OUT = 24

# Images fitted on at most. With MAX_HELD_OUT + MAX_FITTED images, a single split replaces the folds, since it is closer
# to the fit on all images.
MAX_FITTED = 48

# Difference of cross-validated AP50 at which one configuration has e times the weight of another, times the root of the
# held-out boxes: about its standard error.
NOISE = 0.15

# A configuration of less weight is left out of the mean.
MIN_WEIGHT = 0.01

# Labelled boxes at which half of the box regression is applied.
HALF_REGRESSION_BOXES = 10

# Minimum score of the detections that are evaluated.
FLOOR = 0.01


@dataclass(frozen=True)
class FitConfig:
    """How a head is fitted: the weighted mean of the rows of some solvers.

    Attributes:
        rows: (key of `TRAINERS`, weight) of each solver; weights sum to 1. The prototype regularises towards the class
            mean: with few objects many directions separate them.
        box_share: Share of the regressed box offsets that is applied; 0: boxes stay.
    """

    rows: tuple[tuple[str, float], ...]
    box_share: float = 0.0

    @property
    def name(self) -> str:
        """It in words, as results of training runs store it."""
        rows = " + ".join(f"{weight:.2f} {solver}" for solver, weight in self.rows)
        return f"{rows}, boxes moved by {self.box_share:.2f} of their regression"

    def head(self, heads: Mapping[str, LinearHead]) -> LinearHead:
        """Build the head of this configuration from those of its solvers."""
        mean = average_heads([(heads[solver], weight) for solver, weight in self.rows])
        if mean.box_regressor is None or not self.box_share:
            return replace(mean, box_regressor=None)
        return replace(mean, box_regressor=self.box_share * mean.box_regressor)


LOGISTIC = FitConfig((("logistic", 1.0),))
BLENDED = FitConfig((("logistic", 0.7), ("prototype", 0.3)))
SHARED = FitConfig((("shared", 0.6), ("prototype", 0.4)))


def candidate_configs(examples: Sequence[Example], *, pretrained: bool) -> tuple[FitConfig, ...]:
    """List the configurations to average; the first is taken where nothing can be held out.

    Args:
        examples: Labelled images.
        pretrained: Whether the backbone knows classes of the project: fits start there and need no simpler solver.
    """
    if pretrained:
        return (LOGISTIC,)
    boxes = sum(len(example.labels) for example in examples)
    if boxes >= SHARED_BELOW_BOXES_PER_IMAGE * len(examples):
        return BLENDED, LOGISTIC
    return (SHARED, BLENDED) if boxes < SHARED_BELOW_BOXES else (BLENDED, LOGISTIC, SHARED)


def box_share(boxes: int) -> float:
    """Share of the box regression that is applied: it grows from 0 to 1 with the number of labelled boxes."""
    return float(boxes**2 / (boxes**2 + HALF_REGRESSION_BOXES**2))


def average_config(scores: Mapping[FitConfig, float], *, held_out_boxes: int) -> FitConfig:
    """Average configurations of one box share: weights are the softmax of their scores over the scores' noise.

    One cross-validation differs from the next by about as much as configurations do, so that the best of them is
    chosen by chance; the mean of linear heads is a linear head.

    Args:
        scores: Out-of-fold mean AP50 by configuration.
        held_out_boxes: Number of boxes on the held-out images.
    """
    logits = np.array(list(scores.values())) * np.sqrt(max(held_out_boxes, 1)) / NOISE
    weights = np.exp(logits - logits.max())
    weights[weights < MIN_WEIGHT * weights.sum()] = 0
    rows: dict[str, float] = {}
    for config, weight in zip(scores, (weights / weights.sum()).tolist(), strict=True):
        for solver, share in config.rows if weight else ():
            rows[solver] = rows.get(solver, 0.0) + weight * share
    return FitConfig(tuple(rows.items()), next(iter(scores)).box_share)


@dataclass(frozen=True, eq=False)
class OutOfFoldPredictions:
    """Detections on images by heads that were not fitted on them.

    Attributes:
        names: Class names of the detections.
        truths: Ground truth of each example.
        sizes: (width, height) of each image, pixels.
        detections: One per example, calibrated like the final head.
        indices: Index of each example.
    """

    names: tuple[str, ...] = ()
    truths: Sequence[GroundTruth] = ()
    sizes: Sequence[tuple[int, int]] = ()
    detections: Sequence[Detections] = ()
    indices: Sequence[int] = ()

    def mean_ap50(self) -> float:
        """Mean AP50 over the classes."""
        return mean_ap50(self.truths, self.detections, names=self.names)


@dataclass(frozen=True)
class FitResult:
    """A fitted head with its cross-validation.

    Attributes:
        head: Fitted on all examples.
        choice: Its configuration, the average of those that were tried.
        scores: Out-of-fold mean AP50 of the configurations tried and of their average; empty without cross-validation.
        predictions: Out-of-fold predictions of the average.
        tiling: Why it was fitted on tiles or not, in words; empty where objects are large enough.
    """

    head: LinearHead
    choice: FitConfig
    scores: Mapping[FitConfig, float]
    predictions: OutOfFoldPredictions = OutOfFoldPredictions()
    tiling: str = ""


def select_and_fit(
    examples: Sequence[Example],
    *,
    levels: Sequence[int],
    backbone_classes: Sequence[tuple[str, int]] = (),
) -> FitResult:
    """Weight configurations by cross-validation, and fit their mean on all images.

    Scores are calibrated out of fold: about 70 % of the boxes with score 0.7 are correct.

    Args:
        examples: Labelled images, at least one of them with a box.
        levels: Number of candidates per level.
        backbone_classes: Project classes that the backbone knows, as (name, index); fits start from them.
    """
    scores: dict[FitConfig, float] = {}
    out_of_fold = OutOfFoldPredictions()
    configs = candidate_configs(examples, pretrained=bool(backbone_classes))
    choice = configs[0]
    with single_threaded_blas():
        table = build_table(examples, levels, prior_classes=[index for _, index in backbone_classes])
        if sum(bool(example.labels) for example in examples) >= MIN_IMAGES:
            share = box_share(sum(len(example.labels) for example in examples))
            configs = tuple(replace(config, box_share=share) for config in configs)
            solvers = tuple(dict.fromkeys(solver for config in configs for solver, _ in config.rows))
            folds = fit_folds(examples, table, solvers, levels=levels, backbone_classes=backbone_classes)
            predictions = {config: folds.predict(config) for config in configs}
            scores = {config: tried.mean_ap50() for config, tried in predictions.items()}
            choice = average_config(scores, held_out_boxes=folds.boxes)
            out_of_fold = predictions[choice] if choice in predictions else folds.predict(choice)
            scores[choice] = out_of_fold.mean_ap50()
        heads = fit_heads(
            table,
            table.indices,
            levels=levels,
            trainers=[solver for solver, _ in choice.rows],
            refit_boxes=choice.box_share > 0,
            backbone_classes=backbone_classes,
        )
    calibrations = fit_calibrations(
        out_of_fold.detections, out_of_fold.truths, out_of_fold.sizes, names=out_of_fold.names
    )
    return FitResult(
        calibrate_head(choice.head(heads), calibrations), choice, scores, _calibrated(out_of_fold, calibrations)
    )


@dataclass(frozen=True, eq=False)
class FoldHeads:
    """Heads of each solver by fold, and the images that each fold held out.

    Attributes:
        examples: All examples.
        names: Class names of the project.
        folds: (indices of the held-out examples, heads by solver) of each fold.
    """

    examples: Sequence[Example]
    names: tuple[str, ...]
    folds: Sequence[tuple[Sequence[int], Mapping[str, LinearHead]]]

    @property
    def boxes(self) -> int:
        """Number of boxes on the held-out images."""
        return sum(len(self.examples[index].labels) for indices, _ in self.folds for index in indices)

    def predict(self, config: FitConfig) -> OutOfFoldPredictions:
        """Detect objects on the held-out images with the head of a configuration that was not fitted on them."""
        work = [(index, config.head(heads)) for indices, heads in self.folds for index in indices]
        held_out = [self.examples[index] for index, _ in work]

        def detect(item: tuple[int, LinearHead]) -> Detections:
            example, head = self.examples[item[0]], item[1]
            detections = head.detect(example.candidates, floor=FLOOR, exact=False)
            detections = detections[~is_ignored(detections.boxes, example.ignored)]
            return _renumbered(
                detections,
                np.array([self.names.index(name) if name in self.names else -1 for name in head.names], np.int64),
            )

        return OutOfFoldPredictions(
            self.names,
            [GroundTruth(example.drawn, example.labels) for example in held_out],
            [(example.candidates.fit.width, example.candidates.fit.height) for example in held_out],
            parallel_map(detect, work),
            [index for index, _ in work],
        )


def fit_folds(
    examples: Sequence[Example],
    table: CandidateTable,
    solvers: Sequence[str],
    *,
    levels: Sequence[int],
    backbone_classes: Sequence[tuple[str, int]] = (),
) -> FoldHeads:
    """Fit each solver on each fold, with box regression.

    Args:
        examples: As in `select_and_fit`.
        table: Their table.
        solvers: Keys of `TRAINERS`.
        levels: Number of candidates per level.
        backbone_classes: As in `select_and_fit`.
    """
    folds = [fold for fold in _folds(examples) if any(examples[index].labels for index in fold[1])]

    def fit(fold: tuple[list[int], list[int]]) -> tuple[list[int], dict[str, LinearHead]]:
        return fold[0], fit_heads(
            table, fold[1], levels=levels, trainers=solvers, refit_boxes=True, backbone_classes=backbone_classes
        )

    names = sorted({label for example in examples for label in example.labels})
    return FoldHeads(examples, tuple(names), parallel_map(fit, folds))


def _calibrated(
    predictions: OutOfFoldPredictions, calibrations: Mapping[str, PlattCalibration]
) -> OutOfFoldPredictions:
    """Apply the head's calibrations to out-of-fold scores."""
    by_class = [calibrations[name] for name in predictions.names]

    def recalibrate(detections: Detections, size: tuple[int, int]) -> Detections:
        logits = apply_calibration(
            logit(detections.scores), edge_aspect_features(detections.boxes, *size), by_class, detections.classes
        )
        scores = expit(logits).astype(np.float32)
        order = np.argsort(-scores, kind="stable")
        return Detections(detections.boxes[order], scores[order], detections.classes[order])

    return replace(
        predictions,
        detections=[
            recalibrate(detections, size) if len(detections) else detections
            for detections, size in zip(predictions.detections, predictions.sizes, strict=True)
        ],
    )


def _folds(examples: Sequence[Example]) -> list[tuple[list[int], list[int]]]:
    """Split the indices of examples into (held out, fitted on) pairs; those of one image stay together."""
    images = [example.image if example.image >= 0 else -1 - index for index, example in enumerate(examples)]
    if all(example.image < 0 for example in examples):
        return _image_folds(len(examples))
    members: dict[int, list[int]] = {}
    for index, image in enumerate(images):
        members.setdefault(image, []).append(index)
    groups = list(members.values())
    return [
        (
            [index for group in held_out for index in groups[group]],
            [index for group in fitted for index in groups[group]],
        )
        for held_out, fitted in _image_folds(len(groups))
    ]


def _image_folds(count: int) -> list[tuple[list[int], list[int]]]:
    """Split image indices into (held out, fitted on) pairs."""
    order = np.random.default_rng(count).permutation(count).tolist()  # others than those of the fits before
    if count >= MAX_HELD_OUT + MAX_FITTED:
        return [(order[:MAX_HELD_OUT], order[MAX_HELD_OUT : MAX_HELD_OUT + MAX_FITTED])]
    order = order[:MAX_HELD_OUT]
    return [
        (order[fold::FOLDS], [index for position, index in enumerate(order) if position % FOLDS != fold])
        for fold in range(FOLDS)
    ]


def _renumbered(detections: Detections, class_indices: Ints) -> Detections:
    classes = class_indices[detections.classes]
    return Detections(detections.boxes, detections.scores, classes)[classes >= 0]
