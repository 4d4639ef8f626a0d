"""STATISTICS: chance-corrected agreement coefficients and their components, functions of Ratings and unit weights.

Also the task agreement scores of Label Studio Enterprise: pairwise, by consensus, and overall with weights.

Undefined results (no unit rated twice, or only one value) are NaN.

- Cohen, "A Coefficient of Agreement for Nominal Scales", 1960; for several pairs of raters pooled as by De Vries and
  others, "Using Pooled Kappa to Summarize Interrater Agreement across Many Items", Field Methods 20 (2008).
- Fleiss, "Measuring Nominal Scale Agreement Among Many Raters", 1971, and Gwet, "Computing Inter-Rater Reliability and
  its Variance in the Presence of High Agreement", 2008; both with missing ratings as in Gwet's Handbook, 4th ed.
- Conger, "Integration and Generalization of Kappas for Multiple Raters", 1980, and Brennan and Prediger, "Coefficient
  Kappa: Some Uses, Misuses, and Alternatives", 1981; as in Gwet's Handbook.
- ICC(1): Shrout and Fleiss, "Intraclass Correlations: Uses in Assessing Rater Reliability", 1979; with a different
  number of raters per unit as in Donner, "A Review of Inference Procedures for the Intraclass Correlation Coefficient",
  1986.
- Krippendorff, "Computing Krippendorff's Alpha-Reliability", 2011.
- Positive agreement: Hripcsak and Rothschild, "Agreement, the F-Measure, and Reliability in Information Retrieval",
  2005.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np

from qc_webhooks.statistics.bootstrap import Estimate, Statistic, estimate
from qc_webhooks.statistics.ratings import ABSENT, Floats, Ratings
from qc_webhooks.verdict.verdict import largest_group

NAN = float("nan")
# Tolerance of float sums.
_ROUNDING = 1e-9


def observed_agreement(ratings: Ratings, weights: Floats | None = None) -> float:
    """Share of equal pairs of ratings per unit, averaged over units."""
    counts, size, weight = _rated_twice(ratings, weights)
    shares = (counts * (counts - 1)).sum(axis=1) / (size * (size - 1))
    return _mean(shares, weight)


def positive_agreement(ratings: Ratings, weights: Floats | None = None) -> float:
    """F1 of one rater against another, pooled over all pairs: 2 * both / (first + second).

    ``ABSENT`` marks a unit that a rater saw and left out: pairs of two absents are ignored. Without absents it equals
    the share of equal pairs.
    """
    counts, size, weight = _rated_twice(ratings, weights)
    not_absent = np.array([value != ABSENT for value in ratings.values], dtype=bool)
    both = (counts * (counts - 1))[:, not_absent].sum(axis=1) @ weight
    either = (counts * (size[:, None] - 1))[:, not_absent].sum(axis=1) @ weight
    return _ratio(both, either)


def positive_agreements(ratings: Ratings) -> dict[Any, float]:
    """`positive_agreement` of each value separately."""
    counts, size, weight = _rated_twice(ratings, None)
    both, either = (counts * (counts - 1)).T @ weight, (counts * (size[:, None] - 1)).T @ weight
    return {value: _ratio(both[index], either[index]) for index, value in enumerate(ratings.values) if value != ABSENT}


def cohen_kappa(ratings: Ratings, weights: Floats | None = None) -> float:
    """Cohen's kappa; for more than two raters pooled over all pairs."""
    pair, unit, first, second = ratings.pairs.T
    if not pair.size:
        return NAN
    values, pairs = len(ratings.values), int(pair.max()) + 1
    weight = np.ones(pair.size) if weights is None else weights[unit]
    sizes = np.bincount(pair, weight, pairs)
    same = np.bincount(pair, weight * (first == second), pairs)
    margins = [
        np.bincount(pair * values + side, weight, pairs * values).reshape(pairs, values) for side in (first, second)
    ]
    chance = np.divide((margins[0] * margins[1]).sum(axis=1), sizes, out=np.zeros(pairs), where=sizes > 0)
    return _ratio((same - chance).sum(), (sizes - chance).sum())


def fleiss_kappa(ratings: Ratings, weights: Floats | None = None) -> float:
    """Fleiss' kappa."""
    prevalence = _prevalence(ratings, weights)
    return _corrected(observed_agreement(ratings, weights), float((prevalence**2).sum()))


def gwet_ac1(ratings: Ratings, weights: Floats | None = None) -> float:
    """Gwet's AC1, which stays meaningful if nearly all ratings have one value."""
    if len(ratings.values) < 2:
        return NAN
    prevalence = _prevalence(ratings, weights)
    chance = float((prevalence * (1 - prevalence)).sum()) / (len(prevalence) - 1)
    return _corrected(observed_agreement(ratings, weights), chance)


def conger_kappa(ratings: Ratings, weights: Floats | None = None) -> float:
    """Conger's kappa: Cohen's kappa for many raters, each with an own distribution of values."""
    raters, values = ratings.codes.shape[0], len(ratings.values)
    if raters < 2:
        return NAN
    rater, unit = np.nonzero(ratings.codes >= 0)
    weight = np.ones(len(unit)) if weights is None else weights[unit]
    value_counts = np.bincount(rater * values + ratings.codes[rater, unit], weight, raters * values).reshape(
        raters, values
    )
    total = value_counts.sum(axis=1, keepdims=True)
    distributions = np.divide(value_counts, total, out=np.zeros_like(value_counts), where=total > 0)[total[:, 0] > 0]
    if len(distributions) < 2:
        return NAN
    chance = float((distributions.mean(axis=0) ** 2 - distributions.var(axis=0, ddof=1) / len(distributions)).sum())
    return _corrected(observed_agreement(ratings, weights), chance)


def brennan_prediger(ratings: Ratings, weights: Floats | None = None) -> float:
    """Brennan and Prediger's coefficient: by chance, every value is equally frequent."""
    return _corrected(observed_agreement(ratings, weights), 1 / len(ratings.values)) if ratings.values else NAN


def krippendorff_alpha(
    ratings: Ratings, weights: Floats | None = None, *, level: str = "nominal", distances: Floats | None = None
) -> float:
    """Krippendorff's alpha.

    Args:
        ratings: The ratings; numeric for every level except nominal.
        weights: Weight of each unit, (units,); None: all equal.
        level: Key of ``DISTANCES``.
        distances: Distances of the values instead, (values, values).
    """
    counts, size, weight = _rated_twice(ratings, weights)
    if not len(counts):
        return NAN
    shares = weight / (size - 1)
    coincidences = (counts * shares[:, None]).T @ counts
    coincidences[np.diag_indices_from(coincidences)] -= shares @ counts
    totals = coincidences.sum(axis=1)
    distance = DISTANCES[level](ratings.values, totals) if distances is None else distances
    expected = float(totals @ distance @ totals)
    return 1 - (float(totals.sum()) - 1) * float((coincidences * distance).sum()) / expected if expected > 0 else NAN


def intraclass_correlation(ratings: Ratings, weights: Floats | None = None) -> float:
    """ICC(1): share of the variance that is between units; numeric ratings, of at least two raters per unit."""
    values = np.array(ratings.values, dtype=np.float64)
    sizes = ratings.counts.sum(axis=1)
    rated = sizes >= 2
    counts, sizes = ratings.counts[rated], sizes[rated]
    weight = np.ones(len(sizes)) if weights is None else weights[rated]
    units, total = float(weight.sum()), float(weight @ sizes)
    if units < 2 or total <= units:
        return NAN
    means = counts @ values / sizes
    mean = float(weight @ (sizes * means)) / total
    within = float(weight @ (counts @ values**2 - sizes * means**2)) / (total - units)
    between = float(weight @ (sizes * (means - mean) ** 2)) / (units - 1)
    size = (total - float(weight @ sizes**2) / total) / (units - 1)
    spread = between + (size - 1) * within
    return (between - within) / spread if spread > 0 else NAN


def _nominal(values: tuple[Any, ...], totals: Floats) -> Floats:
    del totals
    return 1 - np.eye(len(values))


def _ordinal(values: tuple[Any, ...], totals: Floats) -> Floats:
    del values
    below = np.cumsum(totals) - totals / 2
    squared: Floats = (below[:, None] - below[None, :]) ** 2
    return squared


def _interval(values: tuple[Any, ...], totals: Floats) -> Floats:
    del totals
    numbers = np.array(values, dtype=np.float64)
    squared: Floats = (numbers[:, None] - numbers[None, :]) ** 2
    return squared


def _by_ratio(values: tuple[Any, ...], totals: Floats) -> Floats:
    del totals
    numbers = np.array(values, dtype=np.float64)
    difference, total = numbers[:, None] - numbers[None, :], numbers[:, None] + numbers[None, :]
    squared: Floats = np.divide(difference, total, out=np.zeros_like(difference), where=total != 0) ** 2
    return squared


# Squared distances of the values, (values, values), by level of measurement.
DISTANCES: Mapping[str, Callable[[tuple[Any, ...], Floats], Floats]] = {
    "nominal": _nominal,
    "ordinal": _ordinal,
    "interval": _interval,
    "ratio": _by_ratio,
}


def _rated_twice(ratings: Ratings, weights: Floats | None) -> tuple[Floats, Floats, Floats]:
    """Counts (n, values), sizes (n,) and weights (n,) of the n units with at least two ratings."""
    counts = ratings.counts
    size = counts.sum(axis=1)
    twice = size >= 2
    weight = np.ones(int(twice.sum())) if weights is None else weights[twice]
    return counts[twice], size[twice], weight


def _prevalence(ratings: Ratings, weights: Floats | None) -> Floats:
    """Frequency of each value: its share of a unit's ratings, averaged over all rated units."""
    size = ratings.counts.sum(axis=1)
    rated = size > 0
    weight = np.ones(len(size)) if weights is None else weights
    shares = ratings.counts[rated] / size[rated, None]
    total = weight[rated].sum()
    prevalence: Floats = weight[rated] @ shares / total if total > 0 else np.full(len(ratings.values), NAN)
    return prevalence


def _corrected(observed: float, chance: float) -> float:
    return (observed - chance) / (1 - chance) if chance < 1 else NAN


def _mean(values: Floats, weights: Floats) -> float:
    return _ratio(float(values @ weights), float(weights.sum()))


def _ratio(part: float, whole: float) -> float:
    return float(part) / float(whole) if whole > 0 else NAN


# Kinds of ratings: labels and choices; presence of objects (alpha: `detection_alpha`); stars; numbers.
NOMINAL, DETECTION, ORDINAL, NUMBER, DATE = "nominal", "detection", "ordinal", "number", "date"


@dataclass(frozen=True)
class StatisticEntry:
    """One statistic.

    Attributes:
        function: Function of ratings and unit weights.
        kinds: Kinds of ratings that it applies to.
    """

    function: Statistic
    kinds: frozenset[str]


_ANY = frozenset({NOMINAL, ORDINAL, NUMBER})

STATISTICS: Mapping[str, StatisticEntry] = {
    "agreement": StatisticEntry(observed_agreement, _ANY),
    "positive_agreement": StatisticEntry(positive_agreement, frozenset({NOMINAL, DETECTION})),
    "cohen_kappa": StatisticEntry(cohen_kappa, frozenset({NOMINAL})),
    "fleiss_kappa": StatisticEntry(fleiss_kappa, frozenset({NOMINAL})),
    "conger_kappa": StatisticEntry(conger_kappa, frozenset({NOMINAL})),
    "gwet_ac1": StatisticEntry(gwet_ac1, frozenset({NOMINAL})),
    "brennan_prediger": StatisticEntry(brennan_prediger, frozenset({NOMINAL})),
    "alpha_nominal": StatisticEntry(krippendorff_alpha, frozenset({NOMINAL})),
    "alpha_ordinal": StatisticEntry(partial(krippendorff_alpha, level="ordinal"), frozenset({ORDINAL})),
    "alpha_interval": StatisticEntry(partial(krippendorff_alpha, level="interval"), frozenset({NUMBER, DATE})),
    "alpha_ratio": StatisticEntry(partial(krippendorff_alpha, level="ratio"), frozenset({NUMBER})),
    "icc": StatisticEntry(intraclass_correlation, frozenset({ORDINAL, NUMBER, DATE})),
}


def describe(ratings: Ratings, kind: str) -> dict[str, Estimate]:
    """Estimate every statistic that applies to this kind of ratings."""
    return {name: estimate(entry.function, ratings) for name, entry in STATISTICS.items() if kind in entry.kinds}


def pairwise_score(agreements: Mapping[tuple[int, int], float]) -> float | None:
    """Mean agreement over all pairs of annotators; None without a pair."""
    return sum(agreements.values()) / len(agreements) if agreements else None


def consensus_score(annotators: Sequence[int], agreements: Mapping[tuple[int, int], float], threshold: float) -> float:
    """Share of the annotators in the largest group whose members all agree with each other.

    Args:
        annotators: User ids, at least one.
        agreements: Pair of annotators (in the order of ``annotators``) -> agreement in [0, 1].
        threshold: Minimum agreement of two who agree.
    """
    neighbours: dict[int, set[int]] = {annotator: set() for annotator in annotators}
    for first, second in combinations(annotators, 2):
        if agreements[first, second] >= threshold - _ROUNDING:
            neighbours[first].add(second)
            neighbours[second].add(first)
    return len(largest_group(neighbours)) / len(annotators)


def overall_score(scores: Mapping[str, float], weights: Mapping[str, float] | None = None) -> float | None:
    """Weighted mean over controls, default weight 1; None if all weights are 0 or there is no score."""
    used_weights = {control: 1.0 if weights is None else weights.get(control, 1.0) for control in scores}
    total = sum(used_weights.values())
    return sum(score * used_weights[control] for control, score in scores.items()) / total if total > 0 else None
