"""Command `labelloop prelabel`, with its progress bar, Ctrl-C handling and summary."""

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
from labelloop.service.signals import graceful_stop
from labelloop.service.store import open_store
from labelloop.service.studio import Studio
from ml_backend.bulk.prelabel import PrelabelReport, Progress, prelabel, prune
from ml_backend.bulk.ray_cluster import PrelabelCluster
from ml_backend.malloc import return_freed_memory
from ml_backend.predict.control_support import ModelOutputs, controls_of
from ml_backend.predict.protocol import ProjectOptions, with_thresholds
from ml_backend.segmentation.box_segmenter import BoxSegmenter
from ml_backend.serving import activation
from ml_backend.serving.registry import Registry
from ml_backend.studio.extra_params import options_of

# Most failed images that are listed; the rest are counted.
MAX_LISTED = 20


def prelabel_project(
    project: int,
    *,
    every: Annotated[bool, Parameter(name="--all", negative="--only-missing")] = False,
    prune_old: Annotated[bool, Parameter(name="--prune", negative="")] = False,
    ray: str = "",
    workers: int = 0,
) -> None:
    """Pre-label a whole project with its served version (resumable). Stop it with Ctrl-C and run it again.

    ```
    labelloop prelabel 7
    labelloop prelabel 7 --prune        # and delete the predictions of older versions
    ```

    Args:
        project: Project number, as in its address: /projects/NUMBER/.
        every: Replace existing predictions of this version; otherwise only tasks without one are predicted.
        prune_old: Delete the predictions of other versions on this store.
        ray: Distribute the work over a Ray cluster: its address (`auto`, `ray://host:10001`), or `local` for a cluster
            on this machine's cores. Needs the extra `[scale]`.
        workers: Sessions on the cluster; default one per core.
    """
    settings = Settings()
    # Failed images are listed at the end: log lines would break the progress bar.
    setup_logging(settings.replace(log_level="ERROR"))
    return_freed_memory()
    with contextlib.closing(Studio.from_settings(settings)) as studio:
        studio.project(project)
        detector, thresholds = activation.open_served_model(settings, project)
        print(f"Pre-labelling project {project} with {detector.version}", flush=True)
        options = with_thresholds(_options(studio, project, settings), thresholds)
        config, outputs = studio.label_config(project), ModelOutputs.of(detector)
        for control in controls_of(config, outputs, options=options.controls):
            if not control.prelabels:
                print(f"  {control.sentence}", flush=True)
        started = time.monotonic()
        with ExitStack() as stack:
            cluster = None
            if ray:
                xml = str(studio.project(project).get("label_config") or "")
                version = detector.version
                cluster = stack.enter_context(
                    PrelabelCluster(ray, workers=workers, settings=settings, version=version, xml=xml, options=options)
                )
                print(f"  {cluster.workers} workers on the Ray cluster {ray}", flush=True)
            stop, progress = stack.enter_context(graceful_stop("the images in progress")), stack.enter_context(_bar())
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
                predict_chunks=cluster.predict_chunks if cluster else None,
                segmenter=BoxSegmenter(settings),
            )
        _print_report(report, project, time.monotonic() - started)
        if report.stopped:
            raise SystemExit(stop.exit_status)
        if prune_old:
            for version, count in prune(studio, project, keep=report.version, ours=_own_versions(settings)).items():
                print(f"  removed {count} predictions of {version}")
        _follow(studio, project, report, settings)


def _options(studio: Studio, project: int, settings: Settings) -> ProjectOptions:
    """Return the options of the project's connection."""
    return options_of(studio.ml_backends(project), settings.ml_url)


def _own_versions(settings: Settings) -> frozenset[str]:
    stored = Registry(open_store(settings.store_url, settings)).versions()
    embedded = settings.replace(model=None, model_layout="")
    defaults = {activation.default_version(settings), activation.default_version(embedded)}
    return frozenset({manifest.version for manifest in stored} | defaults)


def _follow(studio: Studio, project: int, report: PrelabelReport, settings: Settings) -> None:
    """Set the project's `model_version`, by its connection if it has one, else directly."""
    changes, notes = activation.follow([(project, report.version)], settings, studio)
    for note in notes:
        print(f"  {note}")
    if changes or notes or not report.imported + report.already_done:
        return
    fields: dict[str, Any] = {"model_version": report.version, "show_collab_predictions": True}
    if any(studio.project(project).get(name) != value for name, value in fields.items()):
        studio.update_project(project, **fields)
        print(f"  the project now shows the pre-labels of {report.version}")


def _print_report(report: PrelabelReport, project: int, seconds: float) -> None:
    per_task = f", {1000 * seconds / report.imported:.0f} ms per task" if report.imported else ""
    print(f"{report.imported} of {report.tasks} tasks pre-labelled, {report.boxes} regions ({seconds:.1f} s{per_task})")
    if report.already_done:
        print(f"  {report.already_done} already had predictions of this version")
    if report.deleted:
        print(f"  {report.deleted} were deleted during the run")
    for failure in report.failures[:MAX_LISTED]:
        print(f"  task {failure.task}: {failure.reason}")
    if len(report.failures) > MAX_LISTED:
        print(f"  and {len(report.failures) - MAX_LISTED} more images that could not be used")
    if report.stopped:
        print(f"Stopped. Imported predictions are kept. Resume with: labelloop prelabel {project}")


@contextlib.contextmanager
def _bar() -> Iterator[Progress]:
    """Show a progress bar if standard error is a terminal, else print a line every ten seconds."""
    if not sys.stderr.isatty():
        last_printed = time.monotonic()

        def print_progress(done: int, total: int) -> None:
            nonlocal last_printed
            if time.monotonic() - last_printed > 10:
                last_printed = time.monotonic()
                print(f"  {done}/{total}", file=sys.stderr, flush=True)

        yield print_progress
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
