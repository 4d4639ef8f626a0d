"""Looking for faults: FLAWS is what can be found, ``validate`` looks a folder through, ``verify`` a version of ours."""

from exporters.validate.folder import validate
from exporters.validate.issues import FLAWS, Problem, Problems
from exporters.validate.version import verify

__all__ = ["FLAWS", "Problem", "Problems", "validate", "verify"]
