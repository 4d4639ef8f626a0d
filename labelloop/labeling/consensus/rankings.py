"""Consensus of rankings (`Ranker`): the bucket of an item by weighted vote, the order in it by weighted Borda count.

How well an annotator ranks is estimated like the accuracy of texts: the similarity of two rankings (Kendall's tau,
where it is positive) is the product of what the two get right, over all tasks. In Thurstone's model (each annotator
orders by true values plus normal noise), the share of wrong pairs grows with the noise. The weight, the inverse of the
variance, is therefore ``1 / (1 - c)^2 - 1`` for an annotator who gets ``c`` right: none for one who ranks at random.
"""

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from labelloop.labeling.consensus.texts import Similarities, fit_text_accuracy

# (bucket, item) pairs in the order of an annotator; the bucket is the control's name where it has none.
Ranking = tuple[tuple[str, str], ...]
# (annotator, ranking) pairs of one task.
Rankings = tuple[tuple[int, Ranking], ...]

# What an unknown annotator gets right, and the least weight: of one who ranks at random.
TYPICAL, _LEAST_WEIGHT = 0.7, 1e-3
# What a majority over another item adds to a Borda count: it decides between nearly equal counts.
_MAJORITY = 0.05
# Items that are compared; of a longer list, the first ones.
MAX_ITEMS = 500


def items_by_bucket(ranking: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """The items of each bucket, in order."""
    buckets: dict[str, list[str]] = {}
    for bucket, item in ranking:
        buckets.setdefault(bucket, []).append(item)
    return buckets


class RankingConsensus(msgspec.Struct, frozen=True, gc=False):
    """The consensus of one ranking.

    Attributes:
        ranking: The items of all annotators, in order, bucket after bucket.
        nearest: The annotator whose ranking is the most similar.
        similarity: Weighted mean similarity of the annotators' rankings with it, 0 to 1.
        rankings: The rankings.
    """

    ranking: Ranking
    nearest: int
    similarity: float
    rankings: Rankings


def ranking_similarity(a: Ranking, b: Ranking) -> float:
    """Share of the pairs of items that both rank alike, 0 to 1: in the same buckets and, within one, the same order.

    An item that only one of them ranks is in a bucket of its own.
    """
    items = list(dict.fromkeys(item for _, item in (*a, *b)))[:MAX_ITEMS]
    if len(items) < 2:
        return float(set(a) == set(b))
    first, second = (_relations(ranking, items) for ranking in (a, b))
    same_place = first.place == second.place
    same = same_place[:, None] & same_place[None] & (first.before == second.before)
    upper = np.triu_indices(len(items), 1)
    return float(same[upper].mean())


class _Relations(msgspec.Struct, frozen=True):
    """How an annotator ranks items: the bucket of each (n,), and 1 or -1 of a pair in one bucket by its order."""

    place: NDArray[np.str_]
    before: NDArray[np.int8]


def _relations(ranking: Ranking, items: Sequence[str]) -> _Relations:
    bucket = {item: name for name, item in ranking}
    position = {item: index for index, (_, item) in enumerate(ranking)}
    place = np.array([bucket.get(item, "\0") for item in items], dtype=np.str_)
    order = np.array([position.get(item, -1) for item in items])
    before = np.sign(order[None] - order[:, None]) * (place[:, None] == place[None])
    return _Relations(place, before.astype(np.int8))


def ranking_similarities(rankings: Rankings) -> Similarities:
    """Kendall's tau of each pair of annotators, 0 where it is negative."""
    return tuple(
        (annotator, other, round(max(2 * ranking_similarity(ranking, other_ranking) - 1, 0.0), 6))
        for index, (annotator, ranking) in enumerate(rankings)
        for other, other_ranking in rankings[index + 1 :]
    )


def merge_rankings(rankings: Rankings, accuracy: Mapping[int, float] | None = None) -> RankingConsensus:
    """Merge at least one ranking of the same items.

    Args:
        rankings: The rankings.
        accuracy: What each annotator gets right, see `fit_ranking_accuracy`; None: estimated from these rankings.
    """
    if accuracy is None:
        accuracy = fit_ranking_accuracy([ranking_similarities(rankings)])
    weights = [_weight(accuracy.get(annotator, TYPICAL)) for annotator, _ in rankings]
    items = list(dict.fromkeys(item for _, ranking in rankings for _, item in ranking))
    buckets = list(dict.fromkeys(bucket for _, ranking in rankings for bucket, _ in ranking))
    votes = np.zeros((len(items), len(buckets)))
    index = {item: number for number, item in enumerate(items)}
    for (_, ranking), weight in zip(rankings, weights, strict=True):
        for bucket, item in ranking:
            votes[index[item], buckets.index(bucket)] += weight
    chosen = votes.argmax(axis=1)
    merged: list[tuple[str, str]] = []
    for number, bucket in enumerate(buckets):
        members = [item for item, place in zip(items, chosen.tolist(), strict=True) if place == number]
        merged += [(bucket, item) for item in _by_borda(members, bucket, rankings, weights)]
    result = tuple(merged)
    similar = [ranking_similarity(ranking, result) for _, ranking in rankings]
    nearest = max(range(len(rankings)), key=lambda one: (round(similar[one], 9), weights[one]))
    mean = float(np.average(similar, weights=weights))
    return RankingConsensus(result, rankings[nearest][0], mean, rankings)


def _by_borda(members: list[str], bucket: str, rankings: Rankings, weights: Sequence[float]) -> list[str]:
    """The items of a bucket, by the mean over the others of the weighted share of annotators who place it before them.

    Only annotators with both items in the bucket count for a pair. Ties keep the order of the most reliable annotator.
    """
    if len(members) < 2:
        return members
    wins = np.zeros((len(members), len(members)))
    votes = np.zeros_like(wins)
    for (_, ranking), weight in zip(rankings, weights, strict=True):
        position = {item: rank for rank, (name, item) in enumerate(ranking) if name == bucket}
        order = np.array([position.get(item, np.nan) for item in members])
        ahead = order[None] - order[:, None]
        wins += weight * (np.nan_to_num(ahead) > 0)
        votes += weight * ~np.isnan(ahead)
    np.fill_diagonal(votes, 0.0)
    share = np.divide(wins, votes, out=np.full_like(wins, 0.5), where=votes > 0)
    np.fill_diagonal(share, 0.0)
    best = max(range(len(rankings)), key=lambda one: weights[one])
    tie = {item: rank for rank, (_, item) in enumerate(rankings[best][1])}
    score = share.sum(axis=1) + _MAJORITY * np.sign(np.round(share - share.T, 9)).sum(axis=1)
    order_of = sorted(range(len(members)), key=lambda one: (-round(score[one], 9), tie.get(members[one], len(tie))))
    return [members[one] for one in order_of]


def fit_ranking_accuracy(tasks: Sequence[Similarities]) -> dict[int, float]:
    """What each annotator gets right, 0 to 1: the similarity of two is modelled as the product of theirs.

    Estimates are shrunk to their mean by the share of their variance that is chance (James and Stein 1961).
    """
    accuracy = fit_text_accuracy(tasks, typical=TYPICAL)
    if len(accuracy) < 2:
        return accuracy
    squares, information = dict.fromkeys(accuracy, 0.0), dict.fromkeys(accuracy, 1e-9)
    for a, b, similarity in (pair for task in tasks for pair in task):
        error = similarity - accuracy[a] * accuracy[b]
        for own, other in ((a, b), (b, a)):
            squares[own] += (accuracy[other] * error) ** 2
            information[own] += accuracy[other] ** 2
    chance = float(np.mean([squares[who] / information[who] ** 2 for who in accuracy]))
    mean, variance = float(np.mean(list(accuracy.values()))), float(np.var(list(accuracy.values()), ddof=1))
    kept = max(1 - chance / variance, 0.0) if variance > 0 else 1.0
    return {who: mean + kept * (value - mean) for who, value in accuracy.items()}


def _weight(accuracy: float) -> float:
    return max(1 / (1 - accuracy) ** 2 - 1, _LEAST_WEIGHT)
