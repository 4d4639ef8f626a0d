"""Owns the model's second opinion: where it differs from an annotator, how, and how sure it is. Pure functions.

The head that judges a photo must not have learned from it: `second_opinions` sees to that by cross-validation. Scores
are calibrated where `learn` made the head: the confidence of a missing object is the chance that an annotator would
have drawn it. Where a class is seldom drawn though it is there, many remarks are of that kind: see them by kind.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from labelloop.labeling.geometry.overlap import box_blocks
from ml_backend.detection.detections import Detections, Floats
from ml_backend.training.examples import Example
from ml_backend.training.linear_head import Head
from ml_backend.training.model_selection import select_and_fit

Kind = Literal["missing", "spurious", "class", "loose"]

FOLDS = 8
"""Of cross-validation: each photo is judged by a head learned on seven eighths of the others."""

SAME_IOU = 0.5
"""Overlap from which a candidate speaks of a drawn box."""

APART_IOU = 0.3
"""A detection that covers a drawn box less than this does not speak of it."""

EXPLAINED = 1.5
"""A missing object's confidence falls with this power of the share of its box that nothing else explains: neither drawn
boxes nor surer remarks. Two halves of drawn neighbours look like an object that lies between them."""

BLIND = 0.35
"""Confidence that nothing is in a drawn box in which the model sees nothing at all. Of such boxes of blood cells a
quarter to two fifths were empty, where one box in twenty was planted: the model is as often blind itself."""

UNKNOWN = 0.2
"""What speaks for neither class of a drawn box, beside the scores that speak for each: with little in sight, nobody
knows."""

POINTS = 12
"""Across a box and down, at which it is looked how much of it is explained."""

LOOSE_IOU = 0.7
"""A detection that covers a drawn box of its class less than this says that the box is loose."""

BETTER = 0.05
"""Score from which a detection that lies better about an object says that its box is not loose."""

FLOOR, FAINT = 0.02, 0.01
"""Confidence of the weakest remark, and the score of the weakest candidate that speaks for a drawn box."""


@dataclass(frozen=True)
class LabelIssue:
    """One difference.

    Attributes:
        kind: `missing`: an object that nobody drew; `spurious`: a drawn box with nothing of its class, nor of another,
            in it; `class`: a drawn box that shows another class; `loose`: one that lies badly about its object.
        confidence: In [0, 1].
        box: x_min, y_min, x_max, y_max in pixels of the photo: where the model sees the object; of a spurious box: the
            drawn one.
        label: What the model sees; of a spurious box: what was drawn.
        drawn: Index of the drawn box; None where there is none.
    """

    kind: Kind
    confidence: float
    box: tuple[float, float, float, float]
    label: str
    drawn: int | None = None


def find_label_issues(example: Example, head: Head) -> list[LabelIssue]:
    """What a head that did not learn from a photo says of what was drawn on it, surest first.

    Classes that the head does not know are not spoken of: boxes of such a class are neither doubted nor missed.
    """
    boxes, scores = head.score_candidates(example.sight, exact=False)
    found = head.postprocess(example.sight, boxes, scores, floor=FLOOR)
    overlap: Floats = np.zeros((len(found), 0), np.float32)
    if len(example.drawn):
        overlap = np.concatenate(
            [part.astype(np.float32) for _, part in box_blocks(found.boxes, example.drawn)], axis=1
        )
    loose = dict(_loose(found, overlap, example, head))
    remarks = [*_missing(found, overlap, example, head, spoken=loose), *loose.values()]
    support = _support(example, boxes, scores)
    for index, label in enumerate(example.labels):
        if label in head.names:
            near = float(found.scores[overlap[:, index] >= APART_IOU].max(initial=0))
            remarks += _doubts(index, example, dict(zip(head.names, support[index].tolist(), strict=True)), near)
    kept = [one for one in remarks if one.confidence >= FLOOR]
    return sorted(kept, key=lambda one: -one.confidence)


def second_opinions(
    examples: Sequence[Example], *, levels: Sequence[int], known: Sequence[tuple[str, int]] = (), folds: int = FOLDS
) -> Iterator[tuple[int, list[LabelIssue]]]:
    """The opinion on every photo, of heads that did not learn from it: (index of the photo, remarks), fold by fold.

    Args:
        examples: Labelled photos; fewer than two give nothing.
        levels: Of the backbone.
        known: As in `learn`.
        folds: How many heads are learned.
    """
    order = np.random.default_rng(0).permutation(len(examples)).tolist()
    for fold in range(min(folds, len(examples))):
        held = set(order[fold::folds])
        rest = [one for index, one in enumerate(examples) if index not in held]
        if not any(one.labels for one in rest):
            continue
        head = select_and_fit(rest, levels=levels, known=known).head
        for index in sorted(held):
            yield index, find_label_issues(examples[index], head)


def _support(example: Example, boxes: Floats, scores: Floats) -> Floats:
    """(m, classes): the best score of each class among the candidates that cover each drawn box."""
    support = np.zeros((len(example.labels), scores.shape[1]), np.float32)
    likely = np.flatnonzero(scores.max(axis=1) >= FAINT)
    if not len(likely) or not len(example.drawn):
        return support
    told = scores[likely]
    for columns, part in box_blocks(boxes[likely], example.boxes):
        for place, covers in enumerate((part >= SAME_IOU).T, start=columns.start):
            support[place] = told[covers].max(axis=0, initial=0)
    return support


def _missing(
    found: Detections, overlap: Floats, example: Example, head: Head, *, spoken: Collection[int]
) -> Iterator[LabelIssue]:
    """The detections that speak of no drawn box, the surer the less of them is explained by others.

    Args:
        found: Best first.
        overlap: (found, drawn).
        example: The photo.
        head: Names the classes.
        spoken: Detections that say something of a drawn box already.
    """
    explained = [example.drawn]
    for index in np.flatnonzero(overlap.max(axis=1, initial=0) < SAME_IOU).tolist():
        if index in spoken:
            continue
        box = found.boxes[index]
        share = 1 - _covered(box, np.concatenate(explained))
        yield LabelIssue(
            "missing", float(found.scores[index]) * share**EXPLAINED, _box(box), head.names[found.classes[index]]
        )
        explained.append(box[None])


def _covered(box: Floats, others: Floats) -> float:
    """Which share of a box lies within at least one of the others (n, 4), at so many points."""
    steps = (np.arange(POINTS) + 0.5) / POINTS
    across, down = box[0] + steps * (box[2] - box[0]), box[1] + steps * (box[3] - box[1])
    within_x = (across[:, None] >= others[:, 0]) & (across[:, None] <= others[:, 2])
    within_y = (down[:, None] >= others[:, 1]) & (down[:, None] <= others[:, 3])
    return float((within_x[:, None] & within_y[None]).any(axis=2).mean())


def _loose(found: Detections, overlap: Floats, example: Example, head: Head) -> Iterator[tuple[int, LabelIssue]]:
    """(index, remark) of each detection that covers the drawn box of its class next to it neither well nor hardly."""
    for index in range(len(found)):
        label = head.names[found.classes[index]]
        same = [place for place, one in enumerate(example.labels) if one == label]
        if not same:
            continue
        place = same[int(overlap[index, same].argmax())]
        away = (LOOSE_IOU - overlap[index, place]) / (LOOSE_IOU - APART_IOU)
        if 0 < away <= 1 and found.scores[overlap[:, place] > overlap[index, place]].max(initial=0) < BETTER:
            confidence = float(found.scores[index] * away)
            yield index, LabelIssue("loose", confidence, _box(found.boxes[index]), label, place)


def _doubts(index: int, example: Example, support: Mapping[str, float], near: float) -> Iterator[LabelIssue]:
    """Of one drawn box: that it shows another class, or nothing.

    Args:
        index: Of the box.
        example: The photo.
        support: The best score of each class among the candidates that cover it.
        near: The best score of a detection that covers it a little.
    """
    label, box = example.labels[index], _box(example.drawn[index])
    mine = support[label]
    rival, other = max(((score, name) for name, score in support.items() if name != label), default=(0.0, label))
    yield LabelIssue("class", rival / (rival + mine + UNKNOWN), box, other, index)
    # A small object may be overlooked by the model: only what it is blind to in every class counts.
    yield LabelIssue("spurious", BLIND * (1 - max(mine, rival, near)) ** 2, box, label, index)


def _box(corners: Floats) -> tuple[float, float, float, float]:
    left, top, right, bottom = (float(one) for one in corners)
    return left, top, right, bottom
