"""Render the learning page and the project list as self-contained HTML without scripts or external resources."""

import base64
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from labelloop.service.charts import decimal, percent
from ml_backend.learning.report.charts import (
    ABOVE,
    edits_over_time,
    head_curves,
    learning_curve,
    training_curves,
)
from ml_backend.learning.report.report import LearningReport
from ml_backend.learning.store.annotations import STATES
from ml_backend.learning.store.runs import FINETUNED
from ml_backend.learning.store.train_jobs import STATES as TRAIN_STATES

# Most runs in the table of versions.
VERSIONS = 100

_HERE = Path(__file__).parent / "templates"


def learning_page(
    report: LearningReport, *, label_studio: str = "", projects_at: str = "", notes: Sequence[str] = ()
) -> str:
    """Return the learning page of a project as HTML.

    Args:
        report: The report to show.
        label_studio: Label Studio's address in the browser, for links to tasks; empty: no links.
        projects_at: Address of the list of projects; empty: no link.
        notes: Controls that are not pre-labelled or not trained, with the reason.
    """
    return _render(
        "learning.html.jinja",
        report=report,
        notes=notes,
        curve=learning_curve(report.runs),
        curves=head_curves(report.runs),
        trainings=[(job, training_curves(job)) for job in report.trainings],
        tuned_versions={job.version for job in report.trainings if job.version}
        | {run.version for run in report.runs if run.source == FINETUNED},
        train_states=TRAIN_STATES,
        edits=edits_over_time(report.tasks),
        versions=list(reversed(report.runs))[:VERSIONS],
        states=STATES,
        kinds=(*ABOVE, "deleted"),
        projects_at=projects_at,
        tasks_at=f"{label_studio.rstrip('/')}/projects/{report.project}/data" if label_studio else "",
    )


def front_page(projects: Sequence[tuple[int, int, str, Sequence[str]]], *, served: str) -> str:
    """Return the project list, the page at the service's root address, as HTML.

    Args:
        projects: (id, number of labelled tasks, served version, notes) of each connected project.
        served: The version served to other projects.
    """
    return _render("front.html.jinja", projects=projects, served=served)


def _render(template: str, **values: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "when": _when,
        "figure": lambda value: decimal(value, 3),
        "score": decimal,
        "code": _code,
        "share": lambda part, total: percent(part, of=total),
    }
    style = Markup(_style())  # noqa: S704 - our own style sheet, not data
    return environment.get_template(template).render(values, style=style, policy=_policy())


def page_headers() -> dict[str, str]:
    """Return the response headers of the page: no external resources, scripts or frames, no caching."""
    return {
        "Content-Security-Policy": f"{_policy()}; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }


def _code(text: str) -> Markup:
    """Return text with what is between backticks as code."""
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if place % 2 else part for place, part in enumerate(text.split("`"))
    )


@cache
def _style() -> str:
    return (_HERE / "learning.css").read_text(encoding="utf-8")


def _policy() -> str:
    """Return the content security policy, which allows only the page's own style sheet."""
    digest = base64.b64encode(hashlib.sha256(_style().encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
