"""`labelloop doctor`: the table of checks, and running them."""

from labelloop.doctor.checks import CHECKS
from labelloop.doctor.context import DoctorContext
from labelloop.doctor.finding import DoctorCheck, Finding
from labelloop.doctor.run import Diagnosis, diagnose

__all__ = ["CHECKS", "Diagnosis", "DoctorCheck", "DoctorContext", "Finding", "diagnose"]
