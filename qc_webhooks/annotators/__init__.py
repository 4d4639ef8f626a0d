"""What the facts of many tasks tell about the people: speed, drift, copies, anchoring, repeats, splits of opinion."""

from qc_webhooks.annotators.disagreement_patterns import Split, splits
from qc_webhooks.annotators.profile import Portrait, portraits

__all__ = ["Portrait", "Split", "portraits", "splits"]
