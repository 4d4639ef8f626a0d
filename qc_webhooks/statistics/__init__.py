"""Agreement statistics of a project: STATISTICS, each with its confidence interval and number of units."""

from qc_webhooks.statistics.agreement_coefficients import (
    STATISTICS,
    consensus_score,
    describe,
    overall_score,
    pairwise_score,
)
from qc_webhooks.statistics.bootstrap import MIN_UNITS, Estimate, estimate
from qc_webhooks.statistics.ratings import ABSENT, Ratings

__all__ = ["ABSENT", "MIN_UNITS", "STATISTICS", "Estimate", "Ratings", "consensus_score", "describe", "estimate",
           "overall_score", "pairwise_score"]  # fmt: skip
