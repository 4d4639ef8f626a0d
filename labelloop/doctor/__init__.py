"""`labelloop doctor`: the table of checks, and running them."""

from labelloop.doctor.checks import CHECKS
from labelloop.doctor.context import DoctorContext
from labelloop.doctor.finding import DoctorCheck, Finding
from labelloop.doctor.run import DoctorReport, diagnose

__all__ = ["CHECKS", "DoctorCheck", "DoctorContext", "DoctorReport", "Finding", "diagnose"]
