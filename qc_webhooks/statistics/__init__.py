"""How far a project's annotators agree: STATISTICS, each with its interval and the number of units it rests on."""

from qc_webhooks.statistics.bootstrap import ENOUGH, Estimate, estimate
from qc_webhooks.statistics.catalogue import STATISTICS, describe
from qc_webhooks.statistics.ratings import ABSENT, Ratings
from qc_webhooks.verdict.agreement_scores import consensus_score, overall_score, pairwise_score

__all__ = ["ABSENT", "ENOUGH", "STATISTICS", "Estimate", "Ratings", "consensus_score", "describe", "estimate",
           "overall_score", "pairwise_score"]  # fmt: skip
