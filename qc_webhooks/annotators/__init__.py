"""Statistics per annotator: reliability, speed, drift, duplicates, pre-label bias, repeatability, disagreements."""

from qc_webhooks.annotators.disagreement_patterns import DisagreementPattern, find_disagreement_patterns
from qc_webhooks.annotators.profile import AnnotatorProfile, profile_annotators

__all__ = ["AnnotatorProfile", "DisagreementPattern", "find_disagreement_patterns", "profile_annotators"]
