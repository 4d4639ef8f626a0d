"""Fit a head on labelled images; hyperparameters are chosen by cross-validation on them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ml_backend.detection.box_voting import PlattCalibration, apply_calibration, edge_aspect_features
from ml_backend.detection.detections import Detections, Ints
from ml_backend.detection.logits import expit, logit
from ml_backend.training.calibration import calibrate_head, fit_calibrations
from ml_backend.training.examples import Example, is_ignored
from ml_backend.training.fit import blend_heads, fit_heads
from ml_backend.training.linear_head import LinearHead
from ml_backend.training.metrics import GroundTruth, mean_ap50
from ml_backend.training.parallel import parallel_map, single_threaded_blas
from ml_backend.training.table import CandidateTable, build_table

FOLDS = 2
# Minimum number of labelled images for cross-validation; below, the first configuration is taken.
MIN_IMAGES = 2

# From this many images on the prototype alone is not tried: it never won over logistic regression.
PROTOTYPE_MAX_PHOTOS = 5

# With fewer boxes, levels share one row first...
SHARED_BELOW_BOXES = 50

# ... where images have fewer boxes than this on average: many boxes on one image cover all levels that matter.
SHARED_BELOW_BOXES_PER_IMAGE = 5

# Images held out at most, drawn at random: enough to choose by, in bounded time.
MAX_HELD_OUT = 24

# Images fitted on at most. With MAX_HELD_OUT + MAX_FITTED images, a single split replaces the folds, since it is closer
# to the fit on all images.
MAX_FITTED = 48

# Prior of the preferred configuration, AP50 times labelled images: it decides while cross-validation is mostly noise.
PRIOR = 0.3

# With fewer boxes, the prior grows with the inverse square from `FEW_BOXES_PRIOR` on: two objects do not tell how to
# learn.
FEW_BOXES, FEW_BOXES_PRIOR = 20, 0.01

# Earlier fits whose cross-validation counts as well, at most.
MAX_EVIDENCE = 7

# Minimum score of the detections that are evaluated.
FLOOR = 0.01


@dataclass(frozen=True)
class FitConfig:
    """How a head is fitted.

    Attributes:
        trainer: A key of `TRAINERS`.
        refit_boxes: Whether boxes are regressed.
        lean: Weight of the prototype's rows in the blend. With few objects many directions separate them; the prototype
            regularises towards the class mean.
    """

    trainer: str
    refit_boxes: bool
    lean: float = 0.0

    @property
    def name(self) -> str:
        """It in words, as results of training runs store it."""
        return f"trainer {self.trainer}, refit_boxes {self.refit_boxes}, lean {self.lean}"

    @property
    def trainers(self) -> tuple[str, ...]:
        """The solvers that it needs."""
        return (self.trainer, PROTOTYPE) if self.lean else (self.trainer,)

    def head(self, heads: Mapping[str, LinearHead]) -> LinearHead:
        """Build the head of this configuration from those of its solvers."""
        return blend_heads(heads[self.trainer], heads[PROTOTYPE], self.lean) if self.lean else heads[self.trainer]


PROTOTYPE = "prototype"


def _with_boxes(trainer: str, lean: float = 0.0) -> tuple[FitConfig, FitConfig]:
    return FitConfig(trainer, refit_boxes=False, lean=lean), FitConfig(trainer, refit_boxes=True, lean=lean)


LOGISTIC = _with_boxes("logistic")
BLENDED = _with_boxes("logistic", 0.3)
SHARED = _with_boxes("shared", 0.4)


def candidate_configs(examples: Sequence[Example], *, pretrained: bool) -> tuple[FitConfig, ...]:
    """List the configurations to try; the first is taken where nothing can be held out.

    Args:
        examples: Labelled images.
        pretrained: Whether the backbone knows classes of the project: fits start there and need no simpler solver.
    """
    if pretrained:
        return LOGISTIC
    few = (FitConfig(PROTOTYPE, refit_boxes=False),) if len(examples) < PROTOTYPE_MAX_PHOTOS else ()
    return (*(SHARED if is_scarce(examples) else ()), *BLENDED, *LOGISTIC, *few)


def is_scarce(examples: Sequence[Example]) -> bool:
    """Whether so few boxes are labelled that all levels of the network share one row first."""
    boxes = sum(len(example.labels) for example in examples)
    return boxes < min(SHARED_BELOW_BOXES, SHARED_BELOW_BOXES_PER_IMAGE * len(examples))


def select_config(
    examples: Sequence[Example],
    scores: Mapping[FitConfig, float],
    evidence: Sequence[Mapping[str, float]],
) -> FitConfig:
    """Select a configuration by the mean of this fit's cross-validation and earlier ones.

    One cross-validation differs from the next by about .03 AP50 only because other images are held out, which is more
    than the configurations differ. Each fit of a project holds out others, so that their mean is much surer at no cost.

    Args:
        examples: Labelled images.
        scores: Out-of-fold mean AP50 by configuration.
        evidence: The same of earlier fits, by the names of configurations, latest first.
    """
    names = {choice: choice.name for choice in scores}
    comparable = [scores_before for scores_before in evidence if set(names.values()) <= set(scores_before)]
    comparable = comparable[:MAX_EVIDENCE]
    boxes = sum(len(example.labels) for example in examples)
    prior = max(PRIOR / len(examples), FEW_BOXES_PRIOR * (FEW_BOXES / boxes) ** 2) / (1 + len(comparable))
    preferred = BLENDED[1] if next(iter(scores)) == BLENDED[0] else next(iter(scores))

    def expected(choice: FitConfig) -> float:
        values = [scores[choice], *(scores_before[names[choice]] for scores_before in comparable)]
        return float(np.mean(values)) + prior * (choice == preferred)

    return max(scores, key=expected)


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


@dataclass(frozen=True)
class FitResult:
    """A fitted head with the results of its model selection.

    Attributes:
        head: Fitted on all examples.
        choice: Its configuration.
        scores: Out-of-fold mean AP50 by configuration; empty without cross-validation.
        predictions: Out-of-fold predictions of the choice.
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
    evidence: Sequence[Mapping[str, float]] = (),
) -> FitResult:
    """Choose a configuration by cross-validation, and fit it on all images.

    Scores are calibrated out of fold: about 70 % of the boxes with score 0.7 are correct.

    Args:
        examples: Labelled images, at least one of them with a box.
        levels: Number of candidates per level.
        backbone_classes: Project classes that the backbone knows, as (name, index); fits start from them.
        evidence: Cross-validated AP50 of earlier fits of the project, by the names of configurations, latest first.
    """
    scores: dict[FitConfig, float] = {}
    predictions: Mapping[FitConfig, OutOfFoldPredictions] = {}
    best = candidate_configs(examples, pretrained=bool(backbone_classes))[0]
    with single_threaded_blas():
        table = build_table(examples, levels, prior_classes=[index for _, index in backbone_classes])
        if sum(bool(example.labels) for example in examples) >= MIN_IMAGES:
            scores, predictions = cross_validate(examples, table, levels=levels, backbone_classes=backbone_classes)
            best = select_config(examples, scores, evidence)
        heads = fit_heads(
            table,
            table.indices,
            levels=levels,
            trainers=best.trainers,
            refit_boxes=best.refit_boxes,
            backbone_classes=backbone_classes,
        )
    out_of_fold = predictions.get(best, OutOfFoldPredictions())
    calibrations = fit_calibrations(
        out_of_fold.detections, out_of_fold.truths, out_of_fold.sizes, names=out_of_fold.names
    )
    return FitResult(
        calibrate_head(best.head(heads), calibrations), best, scores, _calibrated(out_of_fold, calibrations)
    )


def cross_validate(
    examples: Sequence[Example],
    table: CandidateTable,
    *,
    levels: Sequence[int],
    backbone_classes: Sequence[tuple[str, int]] = (),
) -> tuple[dict[FitConfig, float], dict[FitConfig, OutOfFoldPredictions]]:
    """Evaluate each configuration out of fold.

    Args:
        examples: As in `select_and_fit`.
        table: Their table.
        levels: Number of candidates per level.
        backbone_classes: As in `select_and_fit`.

    Returns:
        Mean AP50, and the out-of-fold predictions, by configuration.
    """
    choices = candidate_configs(examples, pretrained=bool(backbone_classes))
    names = sorted({label for example in examples for label in example.labels})
    folds = [fold for fold in _folds(examples) if any(examples[index].labels for index in fold[1])]
    indices_held_out = [index for indices, _ in folds for index in indices]
    held_out = [examples[index] for index in indices_held_out]
    truths = [GroundTruth(example.drawn, example.labels) for example in held_out]
    sizes = [(example.candidates.fit.width, example.candidates.fit.height) for example in held_out]

    def evaluate(fold: tuple[list[int], list[int]]) -> dict[FitConfig, list[Detections]]:
        indices, fitted_on = fold
        predictions: dict[FitConfig, list[Detections]] = {choice: [] for choice in choices}
        trainers = tuple(dict.fromkeys(trainer for choice in choices for trainer in choice.trainers))
        heads = fit_heads(
            table, fitted_on, levels=levels, trainers=trainers, refit_boxes=True, backbone_classes=backbone_classes
        )
        for trainer, lean in dict.fromkeys((choice.trainer, choice.lean) for choice in choices):
            configs = [choice for choice in choices if (choice.trainer, choice.lean) == (trainer, lean)]
            head = configs[0].head(heads)
            class_indices = np.array([names.index(name) if name in names else -1 for name in head.names], np.int64)
            for example in (examples[index] for index in indices):
                boxes, scores = head.score_candidates(example.candidates, exact=False)
                for choice in configs:
                    refined = boxes if choice.refit_boxes else example.candidates.boxes
                    detections = head.postprocess(example.candidates, refined, scores, floor=FLOOR)
                    detections = detections[~is_ignored(detections.boxes, example.ignored)]
                    predictions[choice].append(_renumbered(detections, class_indices))
        return predictions

    fold_results = parallel_map(evaluate, folds)
    detections = {
        choice: [prediction for fold_result in fold_results for prediction in fold_result[choice]] for choice in choices
    }
    return (
        {choice: mean_ap50(truths, detections[choice], names=names) for choice in choices},
        {
            choice: OutOfFoldPredictions(tuple(names), truths, sizes, detections[choice], indices_held_out)
            for choice in choices
        },
    )


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
