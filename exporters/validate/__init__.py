"""Validate data sets: `validate` checks any supported data set, `verify` compares a version with its manifest."""

from exporters.validate.folder import validate
from exporters.validate.issues import ISSUE_KINDS, Issue, IssueReport
from exporters.validate.version import verify

__all__ = ["ISSUE_KINDS", "Issue", "IssueReport", "validate", "verify"]
