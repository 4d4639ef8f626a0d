"""Owns acquisition: which photos teach most if they are labelled next. Pure functions; see `next_photos`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.backbone import Sight
from ml_backend.detections import Detections, Floats

COLD = 2
"""Photos labelled before uncertainty counts: until then the head knows too little to know what it does not know."""

POOL = 5
"""The most uncertain photos looked at, times the batch: diversity chooses among them."""

BEST_BOXES = 3
"""Boxes of a class on a photo whose entropy counts, the most uncertain first: a crowd counts no more than a few."""

EMPTY_EVERY = 5
"""One photo in so many is one on which nothing was seen, while there are any."""

FLOOR = 0.05
"""Score of the weakest detection that is looked at."""


@dataclass(frozen=True, eq=False)
class Look:
    """What is known of a photo that nobody labelled yet.

    Attributes:
        vector: (d,) float32 of length 1: what is on it, as `photo_vector` has it.
        uncertainty: As `uncertainty` has it; None where nothing was seen on it.
    """

    vector: Floats
    uncertainty: float | None = None


def photo_vector(sight: Sight) -> Floats:
    """Mean of the embeddings of the candidates, each as heavy as its objectness: (d,), of length 1."""
    weights = sight.objectness + 1e-6
    mean = weights @ sight.embeddings / weights.sum()
    return np.asarray(mean / (np.linalg.norm(mean) + 1e-12), np.float32)


def entropy(scores: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Binary entropy in bits of each score: 1 where the head cannot tell, 0 where it is sure."""
    chance = np.clip(np.asarray(scores, np.float64), 1e-6, 1 - 1e-6)
    return np.asarray(-(chance * np.log2(chance) + (1 - chance) * np.log2(1 - chance)))


def uncertainty(found: Detections, *, names: Sequence[str], drawn: Mapping[str, int]) -> float | None:
    """How much the head wonders about a photo, classes that were seldom drawn counting more.

    The sum over classes of the mean entropy of the most uncertain `BEST_BOXES` boxes, divided by sqrt(1 + boxes of the
    class drawn so far).

    Args:
        found: Detections of at least `FLOOR`, suppressed.
        names: Their classes.
        drawn: Boxes drawn of each class.

    Returns:
        None where nothing was found.
    """
    if not len(found):
        return None
    doubt = entropy(found.scores)
    total = 0.0
    for index in np.unique(found.classes).tolist():
        most = np.sort(doubt[found.classes == index])[::-1][:BEST_BOXES]
        total += float(most.mean()) / np.sqrt(1 + drawn.get(names[index], 0))
    return total


def spread(vectors: Floats, taken: Floats, count: int) -> list[int]:
    """k-center: one after the other the vector that is farthest from all that are taken (Sener & Savarese 2018).

    Args:
        vectors: (n, d) to choose from.
        taken: (m, d) that are there already; where there are none the one nearest the middle comes first.
        count: How many.

    Returns:
        Indices into `vectors`, in the order in which they were chosen.
    """
    chosen: list[int] = []
    if len(taken):
        distance = np.min(np.linalg.norm(vectors[:, None] - taken[None], axis=2), axis=1)
    else:
        distance = -np.linalg.norm(vectors - vectors.mean(axis=0), axis=1)
    while len(chosen) < min(count, len(vectors)):
        first = not len(taken) and not chosen
        pick = int(distance.argmax())
        chosen.append(pick)
        away = np.linalg.norm(vectors - vectors[pick], axis=1)
        distance = away if first else np.minimum(distance, away)
        distance[chosen] = -np.inf
    return chosen


def rank(doubts: Sequence[float | None]) -> list[int]:
    """Photos by how much the head wonders about them, most first, one in `EMPTY_EVERY` of those without a box.

    A photo on which nothing was seen may be empty, or show what the head never learned. By a number of its own it would
    stand before all others or behind them; in turn it neither floods the queue nor waits for ever.

    Args:
        doubts: Of each photo; None where nothing was seen on it.

    Returns:
        Indices into `doubts`, all of them.
    """
    seen = sorted((index for index, doubt in enumerate(doubts) if doubt is not None), key=lambda i: -(doubts[i] or 0))
    empty = [index for index, doubt in enumerate(doubts) if doubt is None]
    order: list[int] = []
    while seen and empty:
        order += seen[: EMPTY_EVERY - 1] + empty[:1]
        seen, empty = seen[EMPTY_EVERY - 1 :], empty[1:]
    return order + seen + empty


def next_photos(looks: Sequence[Look], labelled: Floats, count: int) -> list[int]:
    """The photos to label next, best first.

    A cold start spreads over the embeddings. Then the first `POOL` x count photos of `rank` are taken, and of these the
    ones most unlike each other and what is labelled.

    Args:
        looks: Photos to choose from.
        labelled: (m, d) vectors of the labelled photos.
        count: How many.

    Returns:
        Indices into `looks`.
    """
    vectors = np.stack([look.vector for look in looks])
    doubts = [look.uncertainty for look in looks]
    if len(labelled) < COLD or all(doubt is None for doubt in doubts):
        return spread(vectors, labelled, count)
    pool = rank(doubts)[: POOL * count]
    return [pool[index] for index in spread(vectors[pool], labelled, count)]
