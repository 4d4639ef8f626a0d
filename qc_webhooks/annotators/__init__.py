"""What the facts of many tasks tell about the people: speed, drift, copies, anchoring, repeats, splits of opinion."""

from qc_webhooks.annotators.disagreement_patterns import DisagreementPattern, splits
from qc_webhooks.annotators.profile import AnnotatorProfile, portraits

__all__ = ["AnnotatorProfile", "DisagreementPattern", "portraits", "splits"]
