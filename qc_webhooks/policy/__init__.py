"""The policy of a project: its values, and the TOML files that it is read from."""

from qc_webhooks.policy.conflict_rules import ConflictPolicy, LabelConflicts, describe_conflict_policy
from qc_webhooks.policy.file import parse_policy, policy_files, read_policy
from qc_webhooks.policy.values import (
    OPERATORS,
    OVERALL,
    ControlPolicy,
    Policy,
    ReviewRoute,
    describe_policy,
)

__all__ = ["OPERATORS", "OVERALL", "ConflictPolicy", "ControlPolicy", "LabelConflicts", "Policy", "ReviewRoute",
           "describe_conflict_policy", "describe_policy", "parse_policy", "policy_files", "read_policy"]  # fmt: skip
