"""Owns acquisition: which photos teach most if they are labelled next. Pure functions; see `next_photos`."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ml_backend.detection.detections import Detections, Floats
from ml_backend.training.backbone import CandidateFeatures

COLD = 2
"""Photos labelled before what the head sees counts. One photo tells nothing of how classes vary from photo to photo."""

POOL = 5
"""The most promising photos looked at, times the batch."""

SURE = 0.1
"""Score from which a detection counts. Scores are calibrated: what is below is a guess, of which there are many."""

VARIED = 0.7
"""How much the number of some class must have been seen to differ from photo to photo before it decides: where all
photos show about the same, what the head expects says only how much a photo is like the labelled ones."""

CUT = 0.3
"""What an object counts that the edge of its photo cuts: it teaches less of how its class looks."""

EDGE = 0.03
"""Share of a box's side: a box that comes as near to the edge of its photo is cut by it, or was found to end there."""

CHANCE = 1e-3
"""What chance adds to the worth of a photo, at most: it decides between equals, and nothing else."""

TWIN = 0.1
"""Two photos nearer to each other than this share of the usual distance show the same: one of them waits."""

TWINS_OF = 200
"""Photos at the head of an order that are looked through for twins."""

EMPTY_EVERY = 5
"""One photo in so many is one on which nothing was seen, while there are any; the labelled ones count."""

EMPTY_TURN = 3
"""Whose turn it is, of so many: not the last, where held-out tasks are served that are a tenth or a fifth of all."""

FLOOR = 0.05
"""Score of the weakest detection that is looked at."""


@dataclass(frozen=True, eq=False)
class UnlabelledImage:
    """What is known of a photo that nobody labelled yet.

    Attributes:
        vector: (d,) float32 of length 1: what is on it, as `photo_vector` has it.
        uncertainty: As `uncertainty` has it: what it would teach; None where nothing was seen on it.
    """

    vector: Floats
    uncertainty: float | None = None


@dataclass(frozen=True)
class LabelCounts:
    """What was drawn so far.

    Attributes:
        objects: Of each class, as `weights` counts them.
        varies: Of each class that was drawn, how much its number differs from photo to photo, in (0, 1].
    """

    objects: Mapping[str, float]
    varies: Mapping[str, float]

    @classmethod
    def on(cls, photos: Iterable[tuple[Sequence[str], Floats]]) -> LabelCounts:
        """Of the labels on each labelled photo, and their `weights`.

        `varies` is the index of dispersion, variance / mean, which is 1 where objects lie on photos by chance (Poisson;
        Fisher 1925, "Statistical Methods for Research Workers", section 16), taken from one photo more of just that
        index, and cut at 1. A class that is on every photo once has 1 / n: a head that sees two there is wrong.
        """
        sums: dict[str, float] = defaultdict(float)
        squares: dict[str, float] = defaultdict(float)
        count = 0
        for labels, shares in photos:
            count += 1
            mine: dict[str, float] = defaultdict(float)
            for label, share in zip(labels, shares.tolist(), strict=True):
                mine[label] += share
            for label, number in mine.items():
                sums[label] += number
                squares[label] += number * number
        varies = {name: min(1.0, squares[name] / total - total / count + 1 / count) for name, total in sums.items()}
        return cls(dict(sums), varies)


def weights(boxes: Floats, *, width: int, height: int) -> Floats:
    """What each object counts: 1, or `CUT` where the edge of the photo cuts it.

    Args:
        boxes: (n, 4) corners in pixels of the photo.
        width: Of the photo; `height` the same. 0: not known, and nothing is cut.
        height: See `width`.

    Returns:
        (n,).
    """
    near = np.tile(np.maximum((boxes[:, 2:] - boxes[:, :2]) * EDGE, 1.0), 2)
    to_edge = np.concatenate([boxes[:, :2], np.array([width, height], np.float32) - boxes[:, 2:]], axis=1)
    cut = (to_edge <= near).any(axis=1) & (width > 0)
    return np.where(cut, np.float32(CUT), np.float32(1))


def photo_vector(sight: CandidateFeatures) -> Floats:
    """Mean of the embeddings of the candidates, each as heavy as its objectness: (d,), of length 1."""
    weights = sight.objectness + 1e-6
    mean = weights @ sight.embeddings / weights.sum()
    return np.asarray(mean / (np.linalg.norm(mean) + 1e-12), np.float32)


def uncertainty(found: Detections, shares: Floats, *, names: Sequence[str], drawn: LabelCounts) -> float | None:
    """How much a photo would teach: the objects that the head expects on it, those of rarely drawn classes above all.

    The sum over classes of varies x ln(1 + expected / (1 + drawn)): `drawn` objects of the class so far, `expected` the
    sum of its sure scores, both as `weights` counts them; about the growth of the logarithm of what is drawn of each
    class, with which its AP50 grows. What the head expects tells little of a class whose number hardly differs: it
    counts as far as it does; where none varies by `VARIED`, chance decides. (Entropy, and distance in the embedding,
    were measured to choose worse than chance: they ask for what is unlike the rest, which the head will hardly meet
    again. See `bench/results/learn_ablation.md`.)

    Args:
        found: Detections of at least `FLOOR`, suppressed, by calibrated scores.
        shares: (n,) their `weights`.
        names: Their classes.
        drawn: On the labelled photos.

    Returns:
        None where nothing was found.
    """
    if not len(found):
        return None
    total = CHANCE * zlib.crc32(np.ascontiguousarray(found.scores).tobytes()) / 2**32
    sure = found.scores >= SURE
    seen = {names[index]: sure & (found.classes == index) for index in np.unique(found.classes[sure]).tolist()}
    varies = {**dict.fromkeys(seen, 1.0), **drawn.varies}
    if max(varies.values(), default=0.0) < VARIED:
        return total
    for name, mine in seen.items():
        expected = float(found.scores[mine] @ shares[mine])
        total += varies[name] * float(np.log1p(expected / (1 + drawn.objects.get(name, 0.0))))
    return total


def random_order(vectors: Floats, *, seed: int = 0) -> list[int]:
    """Indices of photos by chance, the same for the same photos and seed, in whatever order they come."""
    return sorted(range(len(vectors)), key=lambda index: zlib.crc32(vectors[index].astype("<f4").tobytes(), seed))


def sample_without_near_duplicates(vectors: Floats, taken: Floats, count: int, *, seed: int = 0) -> list[int]:
    """Photos by chance; twins of others, and of what is taken, come last.

    Chance draws what is usual often and what is odd seldom, as the photos will come that the model is for.

    Args:
        vectors: (n, d) to choose from.
        taken: (m, d) that are there already.
        count: How many.
        seed: Of chance.

    Returns:
        Indices into `vectors`, in the order in which they were chosen.
    """
    return _without_twins(random_order(vectors, seed=seed), vectors, taken, count)


def _without_twins(order: Sequence[int], vectors: Floats, taken: Floats, count: int) -> list[int]:
    """The first `count` of the same order, with twins among its first `TWINS_OF` behind those."""
    if not len(order):
        return []
    head, rest = list(order[:TWINS_OF]), list(order[TWINS_OF:])
    usual = float(np.median(np.linalg.norm(vectors[head] - vectors[head].mean(axis=0), axis=1))) * 2**0.5
    kept: list[int] = []
    waiting: list[int] = []
    for index in head:
        if len(kept) == count:
            return kept
        others = np.concatenate([taken.reshape(-1, vectors.shape[1]), vectors[kept]])
        nearest = np.linalg.norm(others - vectors[index], axis=1).min(initial=np.inf)
        (waiting if nearest < TWIN * usual else kept).append(index)
    return [*kept, *waiting, *rest][:count]


def rank(doubts: Sequence[float | None], *, labelled: int = 0) -> list[int]:
    """Photos by how much they would teach, most first, one in `EMPTY_EVERY` of those without a box.

    A photo on which nothing was seen may be empty, or show what the head never learned. By a number of its own it would
    stand before all others or behind them; in turn it neither floods the queue nor waits for ever.

    Args:
        doubts: Of each photo; None where nothing was seen on it.
        labelled: Photos that are labelled already: whose turn it is hangs on their number, since the order is made anew
            after each.

    Returns:
        Indices into `doubts`, all of them.
    """
    seen = sorted((index for index, doubt in enumerate(doubts) if doubt is not None), key=lambda i: -(doubts[i] or 0))
    empty = [index for index, doubt in enumerate(doubts) if doubt is None]
    order: list[int] = []
    before = (EMPTY_TURN - labelled) % EMPTY_EVERY
    while seen and empty:
        order += seen[:before] + empty[:1]
        seen, empty, before = seen[before:], empty[1:], EMPTY_EVERY - 1
    return order + seen + empty


def next_photos(looks: Sequence[UnlabelledImage], labelled: Floats, count: int, *, seed: int = 0) -> list[int]:
    """The photos to label next, best first.

    A cold start takes photos by chance, and so it goes on where none promises anything: then those on which nothing was
    seen, which are unlike the labelled ones, are as good as others. Else those that teach most come first, as `rank`
    has them. Photos that show the same as others come last.

    Args:
        looks: Photos to choose from.
        labelled: (m, d) vectors of the labelled photos.
        count: How many.
        seed: Of chance.

    Returns:
        Indices into `looks`.
    """
    vectors = np.stack([look.vector for look in looks])
    doubts = [look.uncertainty for look in looks]
    if len(labelled) < COLD or max(doubt or 0.0 for doubt in doubts) <= CHANCE:
        return sample_without_near_duplicates(vectors, labelled, count, seed=seed)
    return _without_twins(rank(doubts, labelled=len(labelled)), vectors, labelled, count)
