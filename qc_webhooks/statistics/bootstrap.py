"""Estimates with confidence intervals; without enough evidence there is no value."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from qc_webhooks.statistics.ratings import Floats, Ratings

# Minimum units: with fewer, the interval is too wide to be useful.
MIN_UNITS = 20
LEVEL = 0.95
RESAMPLES = 1000

# Maximum ratings over all resamples: intervals of large projects are narrow, so they need fewer resamples.
_WORK = 20_000_000
_FEWEST = 200


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval.

    Attributes:
        value: The value; None without enough evidence.
        low: Lower end of the interval; None without enough evidence.
        high: Upper end.
        n: Number of units.
        evidence: "enough", or what is missing, in words.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    evidence: str = "enough"

    @classmethod
    def insufficient(cls, n: int, reason: str = "") -> "Estimate":
        """An estimate without a value: not enough evidence."""
        return cls(None, None, None, n, f"not enough evidence: {reason or f'{n} of the {MIN_UNITS} required'}")


Statistic = Callable[[Ratings, Floats | None], float]


def estimate(statistic: Statistic, ratings: Ratings, *, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Compute a statistic with its bootstrap interval (Efron's percentile method, resampling units).

    Args:
        statistic: Function of ratings and unit weights.
        ratings: The ratings.
        seed: Seed of the resampling, for reproducible reports.
        resamples: Maximum number of resamples.
    """
    n = ratings.units
    if n < MIN_UNITS:
        return Estimate.insufficient(n)
    value = statistic(ratings, None)
    if math.isnan(value):
        return Estimate.insufficient(n, "all ratings are the same")
    # Equally rated units are one distinct unit with a frequency: resampling units is a multinomial draw of frequencies.
    # Thousands of units rarely have more than hundreds of distinct ratings.
    distinct, frequencies = ratings.distinct
    units = int(frequencies.sum())
    rng = np.random.default_rng(seed)
    times = min(resamples, resample_count(distinct.codes.size))
    draws = rng.multinomial(units, frequencies / units, size=times).astype(np.float64)
    resampled = [statistic(distinct, weights) for weights in draws]
    defined = np.array(resampled)[~np.isnan(resampled)]
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist() if defined.size else (value, value)
    return Estimate(value, min(low, value), max(high, value), n)


def resample_count(size: int) -> int:
    """Resamples of data of this many numbers."""
    return max(_FEWEST, min(RESAMPLES, _WORK // max(size, 1)))


def mean_of_tasks(sums: Sequence[float], counts: Sequence[int]) -> Estimate:
    """Mean of values that belong to tasks, with a bootstrap interval over the tasks.

    Args:
        sums: Sum of the values of each task.
        counts: Number of values of each task.
    """
    total, number, n = np.array(sums, dtype=float), np.array(counts, dtype=float), len(sums)
    if n < MIN_UNITS:
        return Estimate.insufficient(n)
    value = float(total.sum() / number.sum())
    draws = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=resample_count(n))
    if total.min() == total.max() and number.min() == number.max() and value in {0.0, 1.0}:
        return proportion_ci(round(value * n), n)  # a bootstrap of equal values has width zero
    means = (draws @ total) / (draws @ number)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return Estimate(value, min(low, value), max(high, value), n)


def proportion_ci(hits: int, n: int, *, enough: int = MIN_UNITS) -> Estimate:
    """Proportion with the 95 % credible interval of the Beta posterior under Jeffreys' prior.

    With no hits or only hits, the interval reaches 0 or 1 (Brown, Cai and DasGupta, "Interval Estimation for a Binomial
    Proportion", Statistical Science 16 (2001), section 3.1.3).

    Args:
        hits: Number of successes.
        n: Number of trials.
        enough: Fewest trials for an estimate.
    """
    if n < enough:
        return Estimate.insufficient(n, f"{n} of the {enough} required")
    from scipy.special import betaincinv

    low, high = (betaincinv(hits + 0.5, n - hits + 0.5, tail) for tail in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Estimate(hits / n, 0.0 if hits == 0 else float(low), 1.0 if hits == n else float(high), n)
