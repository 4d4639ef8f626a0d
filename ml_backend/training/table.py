"""Design matrix over the candidates of all labelled images, with their class targets and box targets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ml_backend.detection.box_voting import SCORE_FUSION_IOU
from ml_backend.detection.detections import Floats, Ints, cross_iou
from ml_backend.training.examples import (
    CandidateMatch,
    Example,
    boxes_to_input,
    clip_to_image,
    is_ignored,
    match_candidates,
)
from ml_backend.training.linear_head import Doubles, apply_box_deltas, encode_box_deltas, feature_matrix
from ml_backend.training.parallel import parallel_map
from ml_backend.training.solvers import BinaryProblem, Row

# A candidate is positive from this IoU with a box of its class.
POSITIVE_IOU = 0.6

# A candidate is negative below this IoU with every box of the class; between, it is ignored.
NEGATIVE_IOU = 0.5

# The best candidate of a box is positive from this IoU on, so that small objects keep a positive.
NEAREST_IOU = 0.3

# IoU with target 1; the target falls linearly to `MIN_TARGET` at `NEAREST_IOU`, so that the better of two boxes on an
# object scores higher.
FULL_IOU = 0.9

# Target of the worst positive.
MIN_TARGET = 0.3

# Candidates train the box regression from this IoU on; worse ones are seldom shown.
REGRESSION_IOU = 0.55

# Candidates below this IoU keep their overlap after regression: they stay negative.
REFINED_IOU = 0.15

# On a sparsely labelled image, unmatched candidates from this backbone score on are ignored.
CONFIDENT = 0.5

# Rows of the table; with more images, fewer negatives are sampled from each.
MAX_CANDIDATES = 60_000

# Positives per class; of more, a random sample is taken and reweighted.
MAX_POSITIVES = 5_000


@dataclass(frozen=True, eq=False)
class Scale:
    """Mean and standard deviation (d,) of features; standardised features share one penalty."""

    mean: Doubles
    spread: Doubles

    def to_raw(self, rows: Doubles) -> Doubles:
        """Convert rows (..., d + 1, k) over standardised features to rows over raw features."""
        weights = rows[..., :-1, :] / self.spread[:, None]
        return np.concatenate([weights, rows[..., -1:, :] - (self.mean @ weights)[..., None, :]], axis=-2)

    def identity_row(self, column: int) -> Row:
        """The row (d + 1,) over standardised features that returns one raw feature."""
        row = np.zeros(len(self.mean) + 1)
        row[column], row[-1] = self.spread[column], self.mean[column]
        return row


@dataclass(frozen=True, eq=False)
class _ImageRows:
    """Rows of one image: the candidates at `selected`, their overlaps, and their indices in the table.

    `ignored` (selected,) marks candidates on ignored objects.
    """

    example: Example
    selected: Ints
    match: CandidateMatch
    rows: Ints
    ignored: npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class CandidateTable:
    """Candidates of all labelled images.

    Attributes:
        features: (n, d + 1) float32, standardised, the last column 1; rows are sorted by level.
        spans: First and last row of each level.
        scale: Of the standardisation.
        prior_classes: As in `LinearHead`.
        parts: One per image.
    """

    features: Floats
    spans: tuple[tuple[int, int], ...]
    scale: Scale
    prior_classes: tuple[int, ...]
    parts: tuple[_ImageRows, ...]

    @property
    def indices(self) -> range:
        """Indices of all images."""
        return range(len(self.parts))

    def binary_problem(
        self,
        name: str,
        images: Sequence[int],
        *,
        refined_overlaps: Mapping[int, Floats] | None = None,
        backbone_class: int | None = None,
    ) -> BinaryProblem | None:
        """Build the one-vs-rest problem of a class on some images; None without a positive candidate.

        Args:
            name: Class name.
            images: Indices of the images to fit on.
            refined_overlaps: From `refined_overlaps`, where boxes will be regressed: a candidate counts by the mean of
                its IoU before and after.
            backbone_class: Index of the class in the backbone, to start from; one of `prior_classes`.
        """
        positives, weights, truth, negatives = [], [], [], []
        for index in images:
            part = self.parts[index]
            of_class = np.flatnonzero(np.array([label == name for label in part.example.labels], bool))
            overlaps = part.match.iou[:, of_class]
            if refined_overlaps is not None:
                overlaps = (overlaps + refined_overlaps[index][:, of_class]) * np.float32(0.5)
            positive, owner = _assign_positives(overlaps)
            positives.append(part.rows[positive])
            weights.append(1 / np.bincount(owner, minlength=1)[owner])
            truth.append(overlaps[positive, owner])
            negative = (overlaps.max(axis=1, initial=0) < NEGATIVE_IOU) & ~part.ignored
            if not part.example.complete:
                negative &= ~_unexplained(part)
            negatives.append(part.rows[negative])
        rows, sample_weights, best_iou = np.concatenate(positives), np.concatenate(weights), np.concatenate(truth)
        if not len(rows):
            return None
        order = np.argsort(rows)
        if len(order) > MAX_POSITIVES:
            sample_weights = sample_weights * len(order) / MAX_POSITIVES
            order = np.sort(np.random.default_rng(0).permutation(len(order))[:MAX_POSITIVES])
            order = order[np.argsort(rows[order])]
        return BinaryProblem(
            features=self.features,
            spans=self.spans,
            positives=rows[order],
            weights=sample_weights[order],
            truth=np.clip((best_iou[order] - NEAREST_IOU) / (FULL_IOU - NEAREST_IOU), MIN_TARGET, 1.0),
            negatives=np.sort(np.concatenate(negatives)),
            start=None
            if backbone_class is None
            else self.scale.identity_row(len(self.scale.mean) - len(self.prior_classes) + backbone_class),
        )

    def mean_overlap_mass(self, name: str, images: Sequence[int]) -> float:
        """Mean over objects of a class of the summed IoU of their candidates."""
        masses = []
        for part in (self.parts[index] for index in images):
            overlaps = part.match.iou[:, [label == name for label in part.example.labels]]
            masses.append(np.where(overlaps >= SCORE_FUSION_IOU, overlaps, 0).sum(axis=0))
        return float(np.concatenate(masses).mean())

    def box_regression_normal_equations(self, images: Sequence[int]) -> tuple[Doubles, Doubles]:
        """Accumulate the weighted normal equations of the box regression.

        Returns:
            The Gram matrix (d + 1, d + 1) float64 and the right-hand side (d + 1, 4) float64.
        """
        size = self.features.shape[1]
        gram, target = np.zeros((size, size)), np.zeros((size, 4))
        for part in (self.parts[index] for index in images):
            matched = np.flatnonzero(part.match.best >= REGRESSION_IOU)
            owner = part.match.owner[matched]
            weight = 1 / np.bincount(owner, minlength=1)[owner]
            features = self.features[part.rows[matched]]
            deltas = encode_box_deltas(part.example.candidates.boxes[part.selected[matched]], part.example.boxes[owner])
            weighted = features * weight[:, None].astype(np.float32)
            gram += weighted.T @ features
            target += weighted.T.astype(np.float64) @ deltas
        return gram, target

    def refined_overlaps(self, images: Sequence[int], regressor: Doubles) -> dict[int, Floats]:
        """Compute the IoU (selected, m) of each image's candidates with its boxes after box regression.

        Args:
            images: Indices.
            regressor: (d + 1, 4) over standardised features.

        Returns:
            IoU by image.
        """
        overlaps = {}
        for index in images:
            part = self.parts[index]
            overlaps[index] = part.match.iou
            matched = np.flatnonzero(part.match.best >= REFINED_IOU)
            if len(matched):
                candidates = part.example.candidates
                boxes = apply_box_deltas(
                    candidates.boxes[part.selected[matched]],
                    (self.features[part.rows[matched]] @ regressor.astype(np.float32)).astype(np.float64),
                )
                refined = cross_iou(clip_to_image(boxes, candidates.fit), part.example.boxes)
                overlaps[index] = part.match.iou.copy()
                overlaps[index][matched] = refined
        return overlaps


def build_table(
    examples: Sequence[Example], levels: Sequence[int], *, prior_classes: Sequence[int] = ()
) -> CandidateTable:
    """Build the table of labelled images.

    Args:
        examples: At least one.
        levels: Number of candidates per level.
        prior_classes: Backbone classes whose logits are features, by index.
    """
    share = MAX_CANDIDATES // len(examples)
    ends = np.cumsum([0, *levels])

    def select(index: int) -> tuple[CandidateMatch, Ints]:
        overlaps = match_candidates(examples[index])
        keep = _subsample(overlaps, share, seed=index)
        return overlaps[keep], keep

    matches, selected = zip(*parallel_map(select, range(len(examples))), strict=True)
    bounds = np.array([np.searchsorted(keep, ends) for keep in selected])  # (images, levels + 1)
    sizes = np.diff(bounds, axis=1).T
    offsets = (np.cumsum(sizes.ravel()) - sizes.ravel()).reshape(sizes.shape)
    parts = tuple(
        _ImageRows(
            example,
            keep,
            overlaps,
            np.concatenate([offset + np.arange(size) for offset, size in zip(offsets[:, i], sizes[:, i], strict=True)]),
            is_ignored(example.candidates.boxes[keep], boxes_to_input(example.candidates.fit, example.ignored)),
        )
        for i, (example, keep, overlaps) in enumerate(zip(examples, selected, matches, strict=True))
    )

    def features_of(index: int) -> Floats:
        return feature_matrix(examples[index].candidates, levels, prior_classes=prior_classes, exact=False)

    first = features_of(0)
    table = np.ones((int(sizes.sum()), first.shape[1] + 1), np.float32)

    def fill(index: int) -> None:
        """Write the rows of an image in place: a list of all of them would take the memory of a second table."""
        features = first if index == 0 else features_of(index)
        table[parts[index].rows, :-1] = features[selected[index]]

    parallel_map(fill, range(len(examples)))
    spans = np.cumsum([0, *sizes.sum(axis=1).tolist()])
    return CandidateTable(
        features=table,
        spans=tuple((int(low), int(high)) for low, high in pairwise(spans)),
        scale=_standardise(table),
        prior_classes=tuple(prior_classes),
        parts=parts,
    )


def _standardise(table: Floats) -> Scale:
    """Standardise all columns but the last, in place."""
    features = table[:, :-1]
    mean = features.mean(axis=0, dtype=np.float64)
    features -= mean.astype(np.float32)
    spread = np.sqrt(np.einsum("ij,ij->j", features, features) / len(features)).astype(np.float64) + 1e-6
    features /= spread.astype(np.float32)
    return Scale(mean, spread)


def _subsample(matches: CandidateMatch, count: int, *, seed: int) -> Ints:
    """Select all candidates that overlap a box by `NEAREST_IOU`, and a random sample of the others up to `count`."""
    near = matches.best >= NEAREST_IOU
    far = np.flatnonzero(~near)
    room = max(count - int(near.sum()), count // 4)
    sampled = np.random.default_rng(seed).permutation(far)[:room]
    return np.sort(np.concatenate([np.flatnonzero(near), sampled]))


def _assign_positives(overlaps: Floats) -> tuple[Ints, Ints]:
    """Assign positives: candidates and their objects, from the IoU (n, m) with the objects of a class."""
    if not overlaps.shape[1]:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    positive = np.flatnonzero(overlaps.max(axis=1) >= POSITIVE_IOU)
    owner = overlaps[positive].argmax(axis=1)
    missed = (overlaps.max(axis=0) >= NEAREST_IOU) & (np.bincount(owner, minlength=overlaps.shape[1]) == 0)
    return (
        np.concatenate([positive, overlaps.argmax(axis=0)[missed]]),
        np.concatenate([owner, np.flatnonzero(missed)]),
    )


def _unexplained(part: _ImageRows) -> npt.NDArray[np.bool_]:
    """Mask (selected,) of candidates that the backbone is confident of although they match no box."""
    candidates = part.example.candidates
    scores = (candidates.scores.max(axis=1, initial=0) * candidates.objectness)[part.selected]
    return np.asarray((scores >= CONFIDENT) & (part.match.best < NEGATIVE_IOU))
