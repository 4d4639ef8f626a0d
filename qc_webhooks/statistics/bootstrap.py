"""Estimates: a number is never told without its interval, and not at all without enough evidence."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from qc_webhooks.statistics.ratings import Floats, Ratings

# Below this many units an interval says little, and a number alone says something wrong.
ENOUGH = 20
LEVEL = 0.95
RESAMPLES = 1000

# Ratings looked at in all resamples together: large projects need fewer, their intervals are narrow anyway.
_WORK = 20_000_000
_FEWEST = 200


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval.

    Attributes:
        value: The number; None without enough evidence.
        low: Lower end of the interval; None without enough evidence.
        high: Upper end.
        n: How many units it rests on.
        evidence: "enough", or what is lacking, in words.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    evidence: str = "enough"

    @classmethod
    def lacking(cls, n: int, reason: str = "") -> "Estimate":
        """No number: not enough evidence."""
        return cls(None, None, None, n, f"not enough evidence: {reason or f'{n} of the {ENOUGH} that it takes'}")


Statistic = Callable[[Ratings, Floats | None], float]


def estimate(statistic: Statistic, ratings: Ratings, *, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """The statistic with a bootstrap interval: units are drawn anew with replacement (Efron's percentile method).

    Args:
        statistic: A function of ratings and weights of the units.
        ratings: The ratings.
        seed: Of the resampling, so that a report is the same when it is made again.
        resamples: How often it is resampled at most.
    """
    n = ratings.units
    if n < ENOUGH:
        return Estimate.lacking(n)
    value = statistic(ratings, None)
    if math.isnan(value):
        return Estimate.lacking(n, "all ratings are the same")
    # Units that were rated alike are one with a weight: to draw so many units out of all is to draw how often each kind
    # comes (a multinomial draw), and of thousands of units there are seldom more than hundreds of kinds.
    kinds, often = ratings.kinds
    units = int(often.sum())
    rng = np.random.default_rng(seed)
    times = max(_FEWEST, min(resamples, _WORK // max(kinds.codes.size, 1)))
    draws = rng.multinomial(units, often / units, size=times).astype(np.float64)
    found = [statistic(kinds, weights) for weights in draws]
    known = np.array(found)[~np.isnan(found)]
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist() if known.size else (value, value)
    return Estimate(value, min(low, value), max(high, value), n)
