"""Statistics per annotator: reliability, speed, drift, duplicates, pre-label bias, repeatability, disagreements."""

from qc_webhooks.annotators.diagnoses import find_diagnoses
from qc_webhooks.annotators.diagnosis import DIAGNOSES, OPEN_KINDS, Diagnosis
from qc_webhooks.annotators.profile import AnnotatorProfile, profile_annotators

__all__ = ["DIAGNOSES", "OPEN_KINDS", "AnnotatorProfile", "Diagnosis", "find_diagnoses", "profile_annotators"]
