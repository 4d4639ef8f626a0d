"""Owns `labelloop prelabel`: the progress bar, Ctrl-C, and what it says when it is done."""

import contextlib
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Annotated, Any

from cyclopts import Parameter

from labelloop.service.logging import setup_logging
from labelloop.service.media import Media
from labelloop.service.settings import Settings
from labelloop.service.signals import finishing
from labelloop.service.store import open_store
from labelloop.service.studio import Studio
from ml_backend.bulk.prelabel import Progress, Report, prelabel, prune
from ml_backend.bulk.ray_cluster import Cluster
from ml_backend.malloc import give_memory_back
from ml_backend.predict.control_support import ModelOutputs, controls_of
from ml_backend.predict.protocol import ProjectOptions, read_options, with_thresholds
from ml_backend.serving import activation
from ml_backend.serving.registry import Registry
from ml_backend.studio.connect import same_address

LISTED = 20
"""Bad photos that are listed; of more, the number is said."""


def prelabel_project(
    project: int,
    *,
    every: Annotated[bool, Parameter(name="--all", negative="--only-missing")] = False,
    prune_old: Annotated[bool, Parameter(name="--prune", negative="")] = False,
    ray: str = "",
    workers: int = 0,
) -> None:
    """Pre-label a whole project with the version that is served to it. Ctrl-C loses nothing: run it again.

    Args:
        project: The project's number, as in its address: /projects/NUMBER/.
        every: Make predictions of this version anew; else only tasks that have none are looked at.
        prune_old: Remove the predictions of older versions that this store knows.
        ray: Spread the photos over a Ray cluster: its address (`auto`, `ray://host:10001`), or `local` for one of this
            machine's cores. Needs the extra `[scale]`.
        workers: Sessions on the cluster; default one for each of its cores.
    """
    settings = Settings()
    # What is wrong with a photo is listed at the end: log lines would tear the progress bar.
    setup_logging(settings.but(log_level="ERROR"))
    give_memory_back()
    with contextlib.closing(Studio.from_settings(settings)) as studio:
        studio.project(project)
        detector, thresholds = activation.open_served(settings, project)
        print(f"Project {project} is pre-labelled with {detector.version}", flush=True)
        for one in controls_of(studio.label_config(project), ModelOutputs.of(detector)):
            if not one.prelabels:
                print(f"  {one.sentence}", flush=True)
        started = time.monotonic()
        options = with_thresholds(_options(studio, project, settings), thresholds)
        with ExitStack() as stack:
            cluster = None
            if ray:
                xml = str(studio.project(project).get("label_config") or "")
                version = detector.version
                cluster = stack.enter_context(
                    Cluster(ray, workers=workers, settings=settings, version=version, xml=xml, options=options)
                )
                print(f"  {cluster.workers} workers on the Ray cluster {ray}", flush=True)
            stop, progress = stack.enter_context(finishing("the photos at work")), stack.enter_context(_bar())
            report = prelabel(
                studio,
                project,
                detector=detector,
                photos=Media(settings, studio),
                score_threshold=settings.score_threshold,
                options=options,
                every=every,
                progress=progress,
                stop=stop,
                look=cluster.look if cluster else None,
            )
        _tell(report, project, time.monotonic() - started)
        if report.stopped:
            raise SystemExit(stop.status)
        if prune_old:
            for version, count in prune(studio, project, keep=report.version, ours=_ours(settings)).items():
                print(f"  removed {count} predictions of {version}")
        _follow(studio, project, report, settings)


def _options(studio: Studio, project: int, settings: Settings) -> ProjectOptions:
    """What the project's connection asks for."""
    rows = (row for row in studio.ml_backends(project) if same_address(row["url"], settings.ml_url))
    return read_options(next((row.get("extra_params") for row in rows), None))


def _ours(settings: Settings) -> frozenset[str]:
    stored = Registry(open_store(settings.store_url, settings)).versions()
    embedded = settings.but(model=None, model_layout="")
    given = {activation.given_version(settings), activation.given_version(embedded)}
    return frozenset({manifest.version for manifest in stored} | given)


def _follow(studio: Studio, project: int, report: Report, settings: Settings) -> None:
    """The project's `model_version`: by its connection where it has one, else by the predictions that are there."""
    changes, notes = activation.follow([(project, report.version)], settings, studio)
    for note in notes:
        print(f"  {note}")
    if changes or notes or not report.made + report.there:
        return
    fields: dict[str, Any] = {"model_version": report.version, "show_collab_predictions": True}
    if any(studio.project(project).get(name) != value for name, value in fields.items()):
        studio.update_project(project, **fields)
        print(f"  the project shows the pre-labels of {report.version}")


def _tell(report: Report, project: int, seconds: float) -> None:
    each = f", {1000 * seconds / report.made:.0f} ms a task" if report.made else ""
    print(f"{report.made} of {report.tasks} tasks pre-labelled, {report.boxes} regions ({seconds:.1f} s{each})")
    if report.there:
        print(f"  {report.there} had predictions of this version already")
    if report.gone:
        print(f"  {report.gone} were deleted meanwhile")
    for one in report.bad[:LISTED]:
        print(f"  task {one.task}: {one.reason}")
    if len(report.bad) > LISTED:
        print(f"  and {len(report.bad) - LISTED} photos more that could not be used")
    if report.stopped:
        print(f"Stopped. Everything so far is kept; go on with: labelloop prelabel {project}")


@contextlib.contextmanager
def _bar() -> Iterator[Progress]:
    """A progress bar on a terminal's standard error; a line now and then elsewhere."""
    if not sys.stderr.isatty():
        said = time.monotonic()

        def say(done: int, total: int) -> None:
            nonlocal said
            if time.monotonic() - said > 10:
                said = time.monotonic()
                print(f"  {done}/{total}", file=sys.stderr, flush=True)

        yield say
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        row = bar.add_task("tasks", total=None)
        yield lambda done, total: bar.update(row, completed=done, total=total)
