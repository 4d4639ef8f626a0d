"""Check of a project's policy: can it be followed, and does it name what the project has?"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

from labelloop.doctor.finding import Finding, ok, problem, warning
from qc_webhooks.errors import PolicyError
from qc_webhooks.policy import OVERALL, policy_files, read_policy

if TYPE_CHECKING:
    from collections.abc import Iterable

    from labelloop.doctor.context import Context


def qc_policy(context: Context) -> Finding:
    """Can the policy of quality control be followed, and are the controls and labels that it names the project's?"""
    number = int(context.project()["id"])
    try:
        policy = read_policy(context.settings.home, number)
    except PolicyError as error:
        return problem(f"Quality control judges nothing: {error.message}", error.fix)
    config = context.label_config()
    controls = set(config.controls)
    labels = {label.stored for control in config.controls.values() for label in control.labels}
    named = [(f"controls.{name}", name, controls) for name in policy.controls]
    for place, route in enumerate(policy.review, start=1):
        if route.dimension != OVERALL:
            named.append((f"review[{place}].dimension", route.dimension, controls))
    for place, rule in enumerate(policy.rules, start=1):
        named += [(f"rules[{place}].labels", label, labels) for label in (*rule.labels, *rule.others)]
        if rule.control:
            named.append((f"rules[{place}].control", rule.control, controls))
    unknown = [f"{where} names {name!r}{_meant(name, known)}" for where, name, known in named if name not in known]
    file = policy_files(context.settings.home, number)[1]
    if unknown:
        return problem(
            f"The policy of quality control names what the project does not have: {'; '.join(unknown)}.",
            f"Correct it in {file}; the names are those of the labeling interface.",
        )
    if policy.ground_truth_share and not context.project().get("ground_truth_number"):
        return warning(
            "ground_truth_share asks for tasks whose ground truth is known, and the project has none.",
            "docs/how-to/ground-truth.md says how to make some.",
        )
    return ok("the policy of quality control can be followed")


def _meant(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, list(known), n=1)
    return f" ({near[0]!r}?)" if near else ""
