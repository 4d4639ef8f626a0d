"""Owns the pages for people, of learning and of all projects: HTML that loads, runs and trusts nothing."""

import base64
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ml_backend.learning.report.charts import ABOVE, edits_over_time, learning_curve
from ml_backend.learning.report.report import Report
from ml_backend.learning.store.annotations import STATES

VERSIONS = 100
"""Runs in the table of versions."""

_HERE = Path(__file__).parent / "templates"


def learning_page(report: Report, *, label_studio: str = "", notes: Sequence[str] = ()) -> str:
    """The page of a report.

    Args:
        report: What it shows.
        label_studio: Address of Label Studio as a browser reaches it, for links to tasks; empty: no links.
        notes: What is not pre-labelled or not learned from in the project, and why.
    """
    return _render(
        "learning.html.jinja",
        report=report,
        notes=notes,
        curve=learning_curve(report.runs),
        edits=edits_over_time(report.tasks),
        versions=list(reversed(report.runs))[:VERSIONS],
        states=STATES,
        kinds=(*ABOVE, "deleted"),
        tasks_at=f"{label_studio.rstrip('/')}/projects/{report.project}/data" if label_studio else "",
    )


def front_page(projects: Sequence[tuple[int, int, str, Sequence[str]]], *, served: str) -> str:
    """The page at the service's own address: what it is, and the way to each project's page.

    Args:
        projects: Number, labelled tasks, served version and notes of each connected project.
        served: The version that other projects are served.
    """
    return _render("front.html.jinja", projects=projects, served=served)


def _render(template: str, **values: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"when": _when, "figure": _figure, "score": _score, "share": _share}
    style = Markup(_style())  # noqa: S704 - our own style sheet, not data
    return environment.get_template(template).render(values, style=style, policy=_policy())


def page_headers() -> dict[str, str]:
    """What an answer with the page says beside it: nothing from elsewhere, no script, no frame, nothing kept."""
    return {
        "Content-Security-Policy": f"{_policy()}; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }


@cache
def _style() -> str:
    return (_HERE / "learning.css").read_text(encoding="utf-8")


def _policy() -> str:
    """Only this very style sheet holds, by its checksum."""
    digest = base64.b64encode(hashlib.sha256(_style().encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"  # noqa: RUF001 - an en dash stands for no figure


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"  # noqa: RUF001 - as above


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "–"  # noqa: RUF001 - as above
