"""Agreement corrected for chance, and its parts; each a function of Ratings and of a weight for each unit.

What cannot be said (nobody rated anything twice, or there is only one value) is NaN.

- Cohen, "A Coefficient of Agreement for Nominal Scales", 1960; for several pairs of raters pooled as by De Vries and
  others, "Using Pooled Kappa to Summarize Interrater Agreement across Many Items", Field Methods 20 (2008).
- Fleiss, "Measuring Nominal Scale Agreement Among Many Raters", 1971, and Gwet, "Computing Inter-Rater Reliability and
  its Variance in the Presence of High Agreement", 2008; both with missing ratings as in Gwet's Handbook, 4th ed.
- Conger, "Integration and Generalization of Kappas for Multiple Raters", 1980, and Brennan and Prediger, "Coefficient
  Kappa: Some Uses, Misuses, and Alternatives", 1981; as in Gwet's Handbook.
- Krippendorff, "Computing Krippendorff's Alpha-Reliability", 2011.
- Positive agreement: Hripcsak and Rothschild, "Agreement, the F-Measure, and Reliability in Information Retrieval",
  2005.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from qc_webhooks.statistics.ratings import ABSENT, Floats, Ratings

NAN = float("nan")


def observed_agreement(ratings: Ratings, weights: Floats | None = None) -> float:
    """Share of pairs of ratings of a unit that are the same, averaged over units."""
    counts, size, weight = _rated_twice(ratings, weights)
    shares = (counts * (counts - 1)).sum(axis=1) / (size * (size - 1))
    return _mean(shares, weight)


def positive_agreement(ratings: Ratings, weights: Floats | None = None) -> float:
    """F1 of one rater against another, over all pairs: of what either gave, the share that both did.

    Raters who left out a unit that they looked at (``ABSENT``) gave nothing: both leaving it out counts for nothing.
    Where nothing is ever left out it is the share of pairs of ratings that are the same.
    """
    counts, size, weight = _rated_twice(ratings, weights)
    given = np.array([value != ABSENT for value in ratings.values], dtype=bool)
    both = (counts * (counts - 1))[:, given].sum(axis=1) @ weight
    either = (counts * (size[:, None] - 1))[:, given].sum(axis=1) @ weight
    return _ratio(both, either)


def positive_agreements(ratings: Ratings) -> dict[Any, float]:
    """`positive_agreement` of each value by itself."""
    counts, size, weight = _rated_twice(ratings, None)
    both, either = (counts * (counts - 1)).T @ weight, (counts * (size[:, None] - 1)).T @ weight
    return {value: _ratio(both[place], either[place]) for place, value in enumerate(ratings.values) if value != ABSENT}


def cohen_kappa(ratings: Ratings, weights: Floats | None = None) -> float:
    """Cohen's kappa; of more than two raters pooled over all pairs."""
    pair, unit, one, other = ratings.pairs.T
    if not pair.size:
        return NAN
    values, pairs = len(ratings.values), int(pair.max()) + 1
    weight = np.ones(pair.size) if weights is None else weights[unit]
    sizes = np.bincount(pair, weight, pairs)
    same = np.bincount(pair, weight * (one == other), pairs)
    margins = [
        np.bincount(pair * values + side, weight, pairs * values).reshape(pairs, values) for side in (one, other)
    ]
    chance = np.divide((margins[0] * margins[1]).sum(axis=1), sizes, out=np.zeros(pairs), where=sizes > 0)
    return _ratio((same - chance).sum(), (sizes - chance).sum())


def fleiss_kappa(ratings: Ratings, weights: Floats | None = None) -> float:
    """Fleiss' kappa."""
    common = _prevalence(ratings, weights)
    return _corrected(observed_agreement(ratings, weights), float((common**2).sum()))


def gwet_ac1(ratings: Ratings, weights: Floats | None = None) -> float:
    """Gwet's AC1, which stays sensible where nearly all ratings are of one value."""
    if len(ratings.values) < 2:
        return NAN
    common = _prevalence(ratings, weights)
    chance = float((common * (1 - common)).sum()) / (len(common) - 1)
    return _corrected(observed_agreement(ratings, weights), chance)


def conger_kappa(ratings: Ratings, weights: Floats | None = None) -> float:
    """Conger's kappa: Cohen's for many raters, each with habits of his own."""
    raters, values = ratings.codes.shape[0], len(ratings.values)
    if raters < 2:
        return NAN
    rater, unit = np.nonzero(ratings.codes >= 0)
    weight = np.ones(len(unit)) if weights is None else weights[unit]
    given = np.bincount(rater * values + ratings.codes[rater, unit], weight, raters * values).reshape(raters, values)
    total = given.sum(axis=1, keepdims=True)
    habits = np.divide(given, total, out=np.zeros_like(given), where=total > 0)[total[:, 0] > 0]
    if len(habits) < 2:
        return NAN
    chance = float((habits.mean(axis=0) ** 2 - habits.var(axis=0, ddof=1) / len(habits)).sum())
    return _corrected(observed_agreement(ratings, weights), chance)


def brennan_prediger(ratings: Ratings, weights: Floats | None = None) -> float:
    """Brennan and Prediger's coefficient: chance is every value equally often."""
    return _corrected(observed_agreement(ratings, weights), 1 / len(ratings.values)) if ratings.values else NAN


def krippendorff_alpha(ratings: Ratings, weights: Floats | None = None, *, level: str = "nominal") -> float:
    """Krippendorff's alpha.

    Args:
        ratings: The ratings; numbers for every level but the nominal one.
        weights: How much each unit counts.
        level: A key of ``DISTANCES``.
    """
    counts, size, weight = _rated_twice(ratings, weights)
    if not len(counts):
        return NAN
    shares = weight / (size - 1)
    coincidences = (counts * shares[:, None]).T @ counts
    coincidences[np.diag_indices_from(coincidences)] -= shares @ counts
    totals = coincidences.sum(axis=1)
    distance = DISTANCES[level](ratings.values, totals)
    expected = float(totals @ distance @ totals)
    return 1 - (float(totals.sum()) - 1) * float((coincidences * distance).sum()) / expected if expected > 0 else NAN


def _nominal(values: tuple[Any, ...], totals: Floats) -> Floats:
    del totals
    return 1 - np.eye(len(values))


def _ordinal(values: tuple[Any, ...], totals: Floats) -> Floats:
    del values
    below = np.cumsum(totals) - totals / 2
    found: Floats = (below[:, None] - below[None, :]) ** 2
    return found


def _interval(values: tuple[Any, ...], totals: Floats) -> Floats:
    del totals
    numbers = np.array(values, dtype=np.float64)
    found: Floats = (numbers[:, None] - numbers[None, :]) ** 2
    return found


def _by_ratio(values: tuple[Any, ...], totals: Floats) -> Floats:
    del totals
    numbers = np.array(values, dtype=np.float64)
    apart, together = numbers[:, None] - numbers[None, :], numbers[:, None] + numbers[None, :]
    found: Floats = np.divide(apart, together, out=np.zeros_like(apart), where=together != 0) ** 2
    return found


# Level of measurement -> squared distances of the values, of shape (values, values).
DISTANCES: Mapping[str, Callable[[tuple[Any, ...], Floats], Floats]] = {
    "nominal": _nominal,
    "ordinal": _ordinal,
    "interval": _interval,
    "ratio": _by_ratio,
}


def _rated_twice(ratings: Ratings, weights: Floats | None) -> tuple[Floats, Floats, Floats]:
    """Counts, numbers of ratings and weights of the units that at least two rated."""
    counts = ratings.counts
    size = counts.sum(axis=1)
    twice = size >= 2
    weight = np.ones(int(twice.sum())) if weights is None else weights[twice]
    return counts[twice], size[twice], weight


def _prevalence(ratings: Ratings, weights: Floats | None) -> Floats:
    """How common each value is: the mean over units of the share of its ratings; units rated once count too."""
    size = ratings.counts.sum(axis=1)
    rated = size > 0
    weight = np.ones(len(size)) if weights is None else weights
    shares = ratings.counts[rated] / size[rated, None]
    total = weight[rated].sum()
    found: Floats = weight[rated] @ shares / total if total > 0 else np.full(len(ratings.values), NAN)
    return found


def _corrected(observed: float, chance: float) -> float:
    return (observed - chance) / (1 - chance) if chance < 1 else NAN


def _mean(values: Floats, weights: Floats) -> float:
    return _ratio(float(values @ weights), float(weights.sum()))


def _ratio(part: float, whole: float) -> float:
    return float(part) / float(whole) if whole > 0 else NAN
