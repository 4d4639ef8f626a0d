"""Check of a project's automatic exports: can their policy be followed, and does anything start them?"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from exporters.automation.policy import ExportPolicyError, policy_files, read_export_policy
from labelloop.doctor.finding import Finding, ok, problem, warning

if TYPE_CHECKING:
    from labelloop.doctor.context import Context


def export_policy(context: Context) -> Finding:
    """Can the policy of automatic exports be followed, does anything start one, and is its command there?"""
    number = int(context.project()["id"])
    home = context.settings.home
    own = policy_files(home, number)[1]
    if not own.is_file():
        return ok("the project is not exported by itself")
    try:
        policy = read_export_policy(home, number)
    except ExportPolicyError as error:
        return problem(f"Nothing is exported by itself: {error.message}", error.fix)
    if policy.then and shutil.which(policy.then[0]) is None:
        return problem(
            f"{own}: then starts {policy.then[0]!r}, which is not there or not executable.",
            "Give the program's whole path, and make it executable (chmod +x).",
        )
    if not policy.triggered:
        return warning(
            f"{own} says nothing of when a version is made, so none ever is.",
            "Set every_tasks, every_hours, at or when_done in it.",
        )
    return ok("the policy of automatic exports can be followed")
