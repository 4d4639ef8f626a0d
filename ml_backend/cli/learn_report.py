"""Command `labelloop learn report`: the learning report on the terminal, as HTML and as JSON."""

import sys
import time
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from labelloop.service.logging import setup_logging
from labelloop.service.readiness import open_existing_database
from labelloop.service.settings import Settings
from ml_backend.learning.report.page import learning_page
from ml_backend.learning.report.prelabel_edits import PrelabelEdits
from ml_backend.learning.report.report import LearningReport, make_report
from ml_backend.learning.store.annotations import NotConnectedToLearning, TrainingDataStore
from ml_backend.policy import read_learning_policy
from ml_backend.predict.control_support import why_not_learnable
from ml_backend.server.project_options import ProjectOptionsStore
from ml_backend.serving import activation


def learn_report(
    project: int,
    *,
    out: Path | None = None,
    json_: Annotated[Path | None, Parameter(name="--json")] = None,
    settings: Annotated[Settings | None, Parameter(parse=False)] = None,
) -> None:
    """Print the learning report of a project: edits per task, quality by class, versions and next tasks.

    The ML backend serves the same report with charts at `/projects/PROJECT/learning`.

    ```
    labelloop learn report 7
    labelloop learn report 7 --out learning.html --json learning.json
    ```

    Args:
        project: Project number, as in its address: /projects/NUMBER/.
        out: HTML file for the page, which is self-contained.
        json_: JSON file for all data: runs, edits of each task, classes, next tasks.
        settings: None: read from the environment.

    Raises:
        NotConnectedToLearning: The project was never connected.
    """
    settings = settings or Settings()
    setup_logging(settings)
    engine = open_existing_database(settings)
    if TrainingDataStore(engine).project(project) is None:
        raise NotConnectedToLearning(project=project)
    report = make_report(
        project,
        engine=engine,
        policy=read_learning_policy(settings.home, project),
        served=activation.served_version(settings, project=project),
        clock=time.time,
        unlearned=why_not_learnable(project, ProjectOptionsStore.of(settings).config(project)),
    )
    _print(Console(highlight=False, width=None if sys.stdout.isatty() else 160), report)
    if json_ is not None:
        json_.parent.mkdir(parents=True, exist_ok=True)
        json_.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1))
        print(f"JSON: {json_}")
    if out is not None:
        url = settings.label_studio_public_url or settings.label_studio_url
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(learning_page(report, label_studio=url), encoding="utf-8")
        print(f"Page: {out}")


def _print(console: Console, report: LearningReport) -> None:
    labelled = report.counts.get("teaches", 0) + report.counts.get("held_out", 0)
    published = sum(run.verdict == "published" for run in report.runs)
    refused = sum(run.verdict == "refused" for run in report.runs)
    console.print(f"Project {report.project} is served {report.served}; {labelled} labelled tasks.", markup=False)
    console.print(f"{len(report.runs)} training runs: {published} published, {refused} refused.")
    for name, (edits, tasks) in {"First": report.first, "Last": report.lately}.items():
        if tasks:
            console.print(
                f"{name} {tasks} pre-labelled tasks: {edits.total / tasks:.1f} edits per task ({_edit_counts(edits)})"
            )
    if report.classes:
        edited = ("accepted", "moved", "relabelled", "added", "deleted")
        table = Table("class", "boxes", "AP50", "before", *edited, "threshold", box=None)
        for quality in report.classes:
            scores = ("-" if value is None else f"{value:.3f}" for value in (quality.ap50, quality.before))
            counts = (str(getattr(quality.edits, name)) for name in edited)
            cut = "-" if quality.threshold is None else f"{quality.threshold:.2f}"
            table.add_row(quality.name, str(quality.boxes), *scores, *counts, cut)
        console.print(table, markup=False)
    for line in report.runs[-1].metrics.lines() if report.runs else ():
        console.print(line, markup=False)
    for line in report.course:
        console.print(line, markup=False)
    if report.doubted:
        console.print(f"Possible label errors on {report.doubted} tasks:")
    for entry in report.doubts:
        console.print(f"  task {entry.task}: {entry.note}", markup=False)
    if report.withheld:
        console.print(report.withheld, markup=False)
    for position, task in enumerate(report.next, 1):
        console.print(f"{position:3}. task {task.task}: {task.why}")


def _edit_counts(edits: PrelabelEdits) -> str:
    return ", ".join(f"{getattr(edits, name)} {name}" for name in edits.__struct_fields__)
