"""A share with its 95 % interval from counts: of so many occasions, so many."""

from qc_webhooks.statistics.bootstrap import ENOUGH, LEVEL, Estimate


def proportion_ci(hits: int, n: int, *, enough: int = ENOUGH) -> Estimate:
    """The share of occasions, with the interval of the Beta posterior under Jeffreys' prior.

    Where nothing or everything hit, the interval reaches 0 or 1 (Brown, Cai and DasGupta, "Interval Estimation for a
    Binomial Proportion", Statistical Science 16 (2001), section 3.1.3).

    Args:
        hits: How often it was so.
        n: How many occasions there were.
        enough: Below this many occasions nothing is told.
    """
    if n < enough:
        return Estimate.lacking(n, f"{n} of the {enough} that it takes")
    from scipy.special import betaincinv

    low, high = (betaincinv(hits + 0.5, n - hits + 0.5, tail) for tail in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Estimate(hits / n, 0.0 if hits == 0 else float(low), 1.0 if hits == n else float(high), n)
