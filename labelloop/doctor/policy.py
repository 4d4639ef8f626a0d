"""Check of a project's policy: can it be followed, and does it name what the project has?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from labelloop.doctor.finding import Finding, ok, problem, warning
from qc_webhooks.errors import PolicyError
from qc_webhooks.policy import policy_files, read_policy
from qc_webhooks.schedulers.overlap import count_short, describe_short

if TYPE_CHECKING:
    from labelloop.doctor.context import Context


def qc_policy(context: Context) -> Finding:
    """Can the policy of quality control be followed, and are the controls and labels that it names the project's?"""
    number = int(context.project()["id"])
    try:
        policy = read_policy(context.settings.home, number, config=context.label_config())
    except PolicyError as error:
        return problem(f"Quality control judges nothing: {error.message}", error.fix)
    if policy.ground_truth_share and not context.project().get("ground_truth_number"):
        return warning(
            "ground_truth_share asks for tasks whose ground truth is known, and the project has none.",
            "docs/how-to/ground-truth.md says how to make some.",
        )
    if (tasks := count_short(context.studio, context.project(), policy)) and not policy.raise_overlap:
        return warning(
            f"{describe_short(tasks, policy)}.",
            f"Set raise_overlap = true in {policy_files(context.settings.home, number)[1]}, or raise their overlap.",
        )
    return ok("the policy of quality control can be followed")
