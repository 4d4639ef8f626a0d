"""Owns `Training`: the candidates of all labelled photos in one table, and which of them show what."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ml_backend.detection.box_voting import SCORE_FUSION_IOU
from ml_backend.detection.detections import Floats, Ints, cross_iou
from ml_backend.training.examples import Example, Match, match, visible
from ml_backend.training.linear_head import Doubles, apply_box_deltas, encode_box_deltas, feature_matrix
from ml_backend.training.parallel import parallel_map
from ml_backend.training.solvers import BinaryProblem, Row

POSITIVE_IOU = 0.6
"""A candidate that covers a drawn box this far shows the class: a detection there counts as right, not only just."""

NEGATIVE_IOU = 0.5
"""A candidate that covers every drawn box of the class less than this shows something else; between, nobody knows."""

NEAREST_IOU = 0.3
"""The best candidate of a drawn box shows the class from here on, so that small objects are not lost altogether."""

FULL_IOU = 0.9
"""A candidate that covers a drawn box this far shows it fully; one at `NEAREST_IOU` by `LEAST_TRUTH`, between by a
line: of two boxes on one object the better is to score higher."""

LEAST_TRUTH = 0.3

SHIFT_IOU = 0.55
"""A candidate that covers a drawn box this far teaches how boxes are to be moved; worse ones are seldom shown."""

MOVED_IOU = 0.15
"""A candidate that covers a drawn box less than this covers it as much when it has been moved: it shows nothing."""

CONFIDENT = 0.5
"""From this score of the backbone on, a candidate that matches nothing on a sparsely labelled photo is left out."""

MOST = 60_000
"""Candidates in the table; of more photos, fewer of the background are taken from each."""

MOST_POSITIVES = 5_000
"""Candidates that show a class; of more, so many are drawn by chance and weigh more."""


@dataclass(frozen=True, eq=False)
class Scale:
    """Mean and spread (d,) of features, so that one penalty is right for all of them."""

    mean: Doubles
    spread: Doubles

    def unfold(self, rows: Doubles) -> Doubles:
        """Rows (..., d + 1, k) over standardised features -> over features as they are."""
        weights = rows[..., :-1, :] / self.spread[:, None]
        return np.concatenate([weights, rows[..., -1:, :] - (self.mean @ weights)[..., None, :]], axis=-2)

    def start(self, column: int) -> Row:
        """The row (d + 1,) over standardised features that answers one feature as it is."""
        row = np.zeros(len(self.mean) + 1)
        row[column], row[-1] = self.spread[column], self.mean[column]
        return row


@dataclass(frozen=True, eq=False)
class _Part:
    """What is in the table of one photo: the candidates at `kept`, their overlaps, and their rows in the table."""

    example: Example
    kept: Ints
    match: Match
    rows: Ints


@dataclass(frozen=True, eq=False)
class CandidateTable:
    """The table.

    Attributes:
        features: (n, d + 1) float32, standardised, the last column 1; candidates lie level after level.
        spans: First and last row of each level.
        scale: How they were standardised.
        prior: As in `head.Head`.
        parts: A photo each.
    """

    features: Floats
    spans: tuple[tuple[int, int], ...]
    scale: Scale
    prior: tuple[int, ...]
    parts: tuple[_Part, ...]

    @property
    def photos(self) -> range:
        """All photos."""
        return range(len(self.parts))

    def problem(
        self,
        name: str,
        photos: Sequence[int],
        *,
        refined_overlaps: Mapping[int, Floats] | None = None,
        known: int | None = None,
    ) -> BinaryProblem | None:
        """The problem of a class on some of the photos; None where no candidate shows it.

        Args:
            name: The class.
            photos: Indices of those that are learned from.
            refined_overlaps: As `moved` has it, where boxes will be moved: a candidate counts by the mean of its overlaps before
                and after, since the shift is not yet sure.
            known: Index of the class in the backbone, to start from; it is one of `prior`.
        """
        positives, weights, truth, negatives = [], [], [], []
        for index in photos:
            part = self.parts[index]
            mine = np.flatnonzero(np.array([label == name for label in part.example.labels], bool))
            overlap = part.match.iou[:, mine]
            if refined_overlaps is not None:
                overlap = (overlap + refined_overlaps[index][:, mine]) * np.float32(0.5)
            shows, owner = _shown(overlap)
            positives.append(part.rows[shows])
            weights.append(1 / np.bincount(owner, minlength=1)[owner])
            truth.append(overlap[shows, owner])
            away = overlap.max(axis=1, initial=0) < NEGATIVE_IOU
            if not part.example.complete:
                away &= ~_unexplained(part)
            negatives.append(part.rows[away])
        chosen, share, covered = np.concatenate(positives), np.concatenate(weights), np.concatenate(truth)
        if not len(chosen):
            return None
        order = np.argsort(chosen)
        if len(order) > MOST_POSITIVES:
            share = share * len(order) / MOST_POSITIVES
            order = np.sort(np.random.default_rng(0).permutation(len(order))[:MOST_POSITIVES])
            order = order[np.argsort(chosen[order])]
        return BinaryProblem(
            features=self.features,
            spans=self.spans,
            positives=chosen[order],
            weights=share[order],
            truth=np.clip((covered[order] - NEAREST_IOU) / (FULL_IOU - NEAREST_IOU), LEAST_TRUTH, 1.0),
            negatives=np.sort(np.concatenate(negatives)),
            start=None if known is None else self.scale.start(len(self.scale.mean) - len(self.prior) + known),
        )

    def mean_overlap_mass(self, name: str, photos: Sequence[int]) -> float:
        """How many candidates see an object of a class, by their overlaps with it: the mean over the photos."""
        seen = []
        for part in (self.parts[index] for index in photos):
            overlap = part.match.iou[:, [label == name for label in part.example.labels]]
            seen.append(np.where(overlap >= SCORE_FUSION_IOU, overlap, 0).sum(axis=0))
        return float(np.concatenate(seen).mean())

    def box_regression_normal_equations(self, photos: Sequence[int]) -> tuple[Doubles, Doubles]:
        """Weighted normal equations of the shifts that take candidates to the boxes that they cover.

        Returns:
            The Gram matrix (d + 1, d + 1) and the right side (d + 1, 4).
        """
        size = self.features.shape[1]
        gram, target = np.zeros((size, size)), np.zeros((size, 4))
        for part in (self.parts[index] for index in photos):
            near = np.flatnonzero(part.match.best >= SHIFT_IOU)
            owner = part.match.owner[near]
            weight = 1 / np.bincount(owner, minlength=1)[owner]
            features = self.features[part.rows[near]]
            there = encode_box_deltas(part.example.sight.boxes[part.kept[near]], part.example.boxes[owner])
            weighed = features * weight[:, None].astype(np.float32)
            gram += weighed.T @ features
            target += weighed.T.astype(np.float64) @ there
        return gram, target

    def moved(self, photos: Sequence[int], shift: Doubles) -> dict[int, Floats]:
        """The overlaps (kept, m) of each photo's candidates with what was drawn, once they are moved.

        Args:
            photos: Indices.
            shift: (d + 1, 4) over standardised features.
        """
        overlaps = {}
        for index in photos:
            part = self.parts[index]
            overlaps[index] = part.match.iou
            near = np.flatnonzero(part.match.best >= MOVED_IOU)
            if len(near):
                sight = part.example.sight[part.kept[near]]
                boxes = apply_box_deltas(
                    sight.boxes, (self.features[part.rows[near]] @ shift.astype(np.float32)).astype(np.float64)
                )
                overlap = cross_iou(visible(replace(sight, boxes=boxes)), part.example.boxes)
                overlaps[index] = part.match.iou.copy()
                overlaps[index][near] = overlap
        return overlaps


def build_table(examples: Sequence[Example], levels: Sequence[int], *, prior: Sequence[int] = ()) -> CandidateTable:
    """The table of labelled photos.

    Args:
        examples: At least one.
        levels: Of the backbone.
        prior: Classes of the backbone whose log-odds are features too, by index.
    """
    share = MOST // len(examples)
    ends = np.cumsum([0, *levels])
    cut: list[list[Floats]] = [[] for _ in levels]
    kept, found = [], []

    def described(index: int) -> tuple[Match, Ints, Floats]:
        overlaps = match(examples[index])
        chosen = _thin(overlaps, share, seed=index)
        features = feature_matrix(examples[index].sight, levels, prior=prior, exact=False)[chosen]
        return overlaps, chosen, np.asarray(features, np.float32)

    for overlaps, chosen, features in parallel_map(described, range(len(examples))):
        bounds = np.searchsorted(chosen, ends)
        for level, part in enumerate(cut):
            part.append(features[bounds[level] : bounds[level + 1]])
        kept.append(chosen)
        found.append(overlaps[chosen])
    sizes = np.array([[len(part) for part in level] for level in cut])
    firsts = (np.cumsum(sizes.ravel()) - sizes.ravel()).reshape(sizes.shape)
    parts = tuple(
        _Part(
            one,
            chosen,
            overlaps,
            np.concatenate([first + np.arange(size) for first, size in zip(firsts[:, i], sizes[:, i], strict=True)]),
        )
        for i, (one, chosen, overlaps) in enumerate(zip(examples, kept, found, strict=True))
    )
    table = np.ones((int(sizes.sum()), cut[0][0].shape[1] + 1), np.float32)
    np.concatenate([part for level in cut for part in level], out=table[:, :-1])
    bounds = np.cumsum([0, *sizes.sum(axis=1).tolist()])
    return CandidateTable(
        features=table,
        spans=tuple((int(low), int(high)) for low, high in pairwise(bounds)),
        scale=_standardise(table),
        prior=tuple(prior),
        parts=parts,
    )


def _standardise(table: Floats) -> Scale:
    """Standardises all columns but the last, in place."""
    features = table[:, :-1]
    mean = features.mean(axis=0, dtype=np.float64)
    features -= mean.astype(np.float32)
    spread = np.sqrt(np.einsum("ij,ij->j", features, features) / len(features)).astype(np.float64) + 1e-6
    features /= spread.astype(np.float32)
    return Scale(mean, spread)


def _thin(found: Match, most: int, *, seed: int) -> Ints:
    """All candidates that touch a drawn box by `NEAREST_IOU`, and of the others so many that there are `most`."""
    near = found.best >= NEAREST_IOU
    far = np.flatnonzero(~near)
    room = max(most - int(near.sum()), most // 4)
    drawn = np.random.default_rng(seed).permutation(far)[:room]
    return np.sort(np.concatenate([np.flatnonzero(near), drawn]))


def _shown(overlap: Floats) -> tuple[Ints, Ints]:
    """Candidates that show an object, and which one, from the overlaps (n, m) with the objects of a class."""
    if not overlap.shape[1]:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    shows = np.flatnonzero(overlap.max(axis=1) >= POSITIVE_IOU)
    owner = overlap[shows].argmax(axis=1)
    missed = (overlap.max(axis=0) >= NEAREST_IOU) & (np.bincount(owner, minlength=overlap.shape[1]) == 0)
    return (
        np.concatenate([shows, overlap.argmax(axis=0)[missed]]),
        np.concatenate([owner, np.flatnonzero(missed)]),
    )


def _unexplained(part: _Part) -> npt.NDArray[np.bool_]:
    """(kept,) which candidates the backbone is confident of though they match nothing that was drawn."""
    sight = part.example.sight[part.kept]
    scores = sight.scores.max(axis=1, initial=0) * sight.objectness
    return np.asarray((scores >= CONFIDENT) & (part.match.best < NEGATIVE_IOU))
