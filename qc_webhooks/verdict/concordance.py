"""Kendall's coefficient of concordance (W): how far several rankings of the same items agree.

Kendall and Babington Smith, "The Problem of m Rankings", Annals of Mathematical Statistics 10 (1939).
"""

from collections.abc import Sequence

import numpy as np

from labelloop.labeling.consensus.rankings import Ranking


def kendall_w(rankings: Sequence[Ranking]) -> float | None:
    """W of the items that all rank, 0 to 1; None for several buckets, fewer than two rankings, or two common items."""
    common = set.intersection(*({item for _, item in ranking} for ranking in rankings)) if rankings else set()
    buckets = {bucket for ranking in rankings for bucket, _ in ranking}
    raters, n = len(rankings), len(common)
    if raters < 2 or n < 2 or len(buckets) > 1:
        return None
    items = sorted(common)
    sums = np.zeros(n)
    for ranking in rankings:
        ranks = {item: index for index, item in enumerate(item for _, item in ranking if item in common)}
        sums += [ranks[item] for item in items]
    squares = float(((sums - sums.mean()) ** 2).sum())
    return 12 * squares / (raters**2 * (n**3 - n))
