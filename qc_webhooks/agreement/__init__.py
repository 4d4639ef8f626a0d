"""Agreement of two annotators: METRICS, one function `(a, b, tolerance) -> [0, 1]` per kind of answer."""

from qc_webhooks.agreement.answers import Answers, complete_answers, read_answers, read_prediction
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
    "complete_answers",
    "read_answers",
    "read_prediction",
]
