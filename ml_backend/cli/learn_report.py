"""Owns `labelloop learn report`: how learning of a project went, on the terminal, as a page and as JSON."""

import sys
import time
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from labelloop.service.db.engine import open_database
from labelloop.service.logging import setup_logging
from labelloop.service.settings import Settings
from ml_backend.learning.report.page import learning_page
from ml_backend.learning.report.prelabel_edits import Edits
from ml_backend.learning.report.report import Report, make_report
from ml_backend.learning.store.annotations import NotConnected, TrainingDataStore
from ml_backend.policy import read_learning_policy
from ml_backend.predict.control_support import unlearned
from ml_backend.server.project_options import Projects
from ml_backend.serving import activation


def learn_report(
    project: int,
    *,
    out: Path | None = None,
    json_: Annotated[Path | None, Parameter(name="--json")] = None,
    settings: Annotated[Settings | None, Parameter(parse=False)] = None,
) -> None:
    """Say how learning of a project went: edits per task, quality by class, versions, and what comes next and why.

    The ML backend shows the same as a page, with the learning curve and the edits drawn, at
    `/projects/PROJECT/learning`.

    Args:
        project: The project's number, as in its address: /projects/NUMBER/.
        out: HTML file to write the page to. It loads nothing, so it can be sent or kept.
        json_: File to write every figure to: runs, edits of each task, classes, what comes next.
        settings: Read from the environment where None.

    Raises:
        NotConnected: The project was never connected.
    """
    settings = settings or Settings()
    setup_logging(settings)
    engine = open_database(settings)
    if TrainingDataStore(engine).project(project) is None:
        raise NotConnected(project)
    report = make_report(
        project,
        engine=engine,
        policy=read_learning_policy(settings.home, project),
        served=activation.served_version(settings, project=project),
        clock=time.time,
        unlearned=unlearned(project, Projects.of(settings).config(project)),
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


def _print(console: Console, report: Report) -> None:
    labelled = report.counts.get("teaches", 0) + report.counts.get("held_out", 0)
    published = sum(run.verdict == "published" for run in report.runs)
    refused = sum(run.verdict == "refused" for run in report.runs)
    console.print(f"Project {report.project} is served {report.served}; {labelled} labelled tasks.", markup=False)
    console.print(f"{len(report.runs)} fits: {published} published, {refused} refused by the gate.")
    for name, (edits, tasks) in {"At first": report.first, "Lately": report.lately}.items():
        if tasks:
            console.print(f"{name}: {edits.made / tasks:.1f} edits a task ({_counted(edits)}; {tasks} tasks)")
    if report.classes:
        edited = ("accepted", "moved", "relabelled", "added", "deleted")
        table = Table("class", "boxes", "AP50", "before", *edited, "shown from", box=None)
        for each in report.classes:
            scores = ("-" if value is None else f"{value:.3f}" for value in (each.ap50, each.before))
            counts = (str(getattr(each.edits, name)) for name in edited)
            cut = "-" if each.threshold is None else f"{each.threshold:.2f}"
            table.add_row(each.name, str(each.boxes), *scores, *counts, cut)
        console.print(table, markup=False)
    for line in report.course:
        console.print(line, markup=False)
    if report.doubted:
        console.print(f"The model differs from what was drawn on {report.doubted} tasks:")
    for doubt in report.doubts:
        console.print(f"  task {doubt.task}: {doubt.note}", markup=False)
    for place, task in enumerate(report.next, 1):
        console.print(f"{place:3}. task {task.task}: {task.why}")


def _counted(edits: Edits) -> str:
    return ", ".join(f"{getattr(edits, name)} {name}" for name in edits.__struct_fields__)
