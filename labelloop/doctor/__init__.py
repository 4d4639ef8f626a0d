"""What is wrong with this installation, in plain words, with the fix: the table of checks and how it is run."""

from labelloop.doctor.checks import CHECKS
from labelloop.doctor.context import Context
from labelloop.doctor.finding import Check, Finding
from labelloop.doctor.run import Diagnosis, diagnose

__all__ = ["CHECKS", "Check", "Context", "Diagnosis", "Finding", "diagnose"]
