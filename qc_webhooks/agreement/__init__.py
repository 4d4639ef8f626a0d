"""Agreement of two annotators: METRICS, one function `(a, b, tolerance) -> [0, 1]` per kind of answer."""

from qc_webhooks.agreement.answers import Answers, read_answers, read_prediction, complete_answers
from qc_webhooks.agreement.compare import Comparison, compare
from qc_webhooks.agreement.conflicts import CONFLICTS, Conflict
from qc_webhooks.agreement.metrics import METRICS, Tolerance

__all__ = [
    "CONFLICTS",
    "METRICS",
    "Answers",
    "Comparison",
    "Conflict",
    "Tolerance",
    "compare",
    "read_answers",
    "read_prediction",
    "complete_answers",
]
