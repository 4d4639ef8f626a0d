"""Checks of a project's fine-tuning, and of the base model that it starts from."""

from __future__ import annotations

from labelloop.doctor.context import DoctorContext
from labelloop.doctor.finding import Finding, ok, problem, skipped, warning
from labelloop.service.readiness import sqlite_file
from ml_backend.catalogue.offer import better_start
from ml_backend.errors import ModelError
from ml_backend.learning.base_models import BaseModels
from ml_backend.learning.service import LearningService
from ml_backend.policy import LearningPolicyError

PAGE = "docs/how-to/train.md"


def fine_tuning(context: DoctorContext) -> Finding:
    """Can the project be fine-tuned as its policy says, and how did the last fine-tuning end?"""
    file = sqlite_file(context.settings.database_url)
    if file is not None and not file.exists():
        return skipped("There is no database yet: nothing was learned.")
    project = int(context.project()["id"])
    try:
        impossible, state, last = LearningService(context.settings).finetuning_state(project)
    except LearningPolicyError as error:
        return problem(error.message, error.fix)
    if impossible:
        return problem(impossible, f"See {PAGE}, or set `on` in the table [train] of learn.toml to auto.")
    if last is not None and last.state == "failed":
        return warning(
            f"The last fine-tuning failed: {context.redact(last.reason)}",
            f"{state} `labelloop train {project}` tries again now.",
        )
    return ok(state)


def base_model(context: DoctorContext) -> Finding:
    """Which model do the project's learning and fine-tuning start from?"""
    try:
        served = BaseModels(context.settings).served(int(context.project()["id"]))
    except ModelError as error:
        return skipped(f"The base model is unknown: {error.message}")
    return ok(f"{served.base}{better_start(served.path)}")
