"""Pre-labelling in one process and over a Ray cluster of this machine: tasks a second, and what starting it costs."""

from __future__ import annotations

import base64
import importlib.util
import os
import tempfile
import time
from pathlib import Path

from bench.predict import _photos
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.task import read_task
from labelloop.service.media import Media
from labelloop.service.settings import Settings
from labelloop.stack.demo_project import LABEL_CONFIG
from ml_backend.bulk.prelabel import prelabel
from ml_backend.bulk.ray_cluster import LOCAL_CLUSTER, PrelabelCluster
from ml_backend.predict.protocol import ProjectOptions
from ml_backend.serving.activation import open_served_model

TASKS = 100


class Memory:
    """The part of Label Studio that pre-labelling needs, in memory: its time is no part of what is measured."""

    def __init__(self, tasks):
        self._tasks, self.stored = tasks, 0

    def label_config(self, project):
        del project
        return LabelConfig.parse(LABEL_CONFIG)

    def tasks(self, project, *, only_ids=None):
        del project, only_ids
        return (read_task({**task, "annotations": [], "predictions": []}) for task in self._tasks)

    def import_predictions(self, project, rows):
        del project
        self.stored += len(rows)
        return len(rows)


def run() -> str:
    """The figures, in Markdown."""
    if importlib.util.find_spec("ray") is None:
        return "Not measured: ray is not installed (pip install 'labelloop[scale]')."
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files, which = _photos(folder)
        urls = ["data:image/jpeg;base64," + base64.b64encode(file.read_bytes()).decode() for file in files]
        tasks = [{"id": n + 1, "data": {"image": urls[n % len(urls)]}} for n in range(TASKS)]
        settings = Settings(home=folder / "home")
        detector, _ = open_served_model(settings)
        options = ProjectOptions()

        def timed(look=None) -> float:
            studio, started = Memory(tasks), time.perf_counter()
            report = prelabel(
                studio, 1, detector=detector, photos=Media(settings, None),
                score_threshold=settings.score_threshold, options=options, predict_chunks=look,
            )  # fmt: skip
            assert report.imported == studio.stored == TASKS
            return time.perf_counter() - started

        started, cores = time.perf_counter(), os.cpu_count() or 1
        with PrelabelCluster(
            LOCAL_CLUSTER, workers=cores, settings=settings, version=detector.version, xml=LABEL_CONFIG, options=options
        ) as cluster:
            list(cluster.predict_chunks(iter([tasks[:1]] * cores)))
            opening = time.perf_counter() - started
            rounds = [(timed(), timed(cluster.predict_chunks)) for _ in range(3)]
    alone, spread = (min(column) for column in zip(*rounds, strict=True))
    return "\n".join(
        [
            f"{TASKS} tasks, {which}; the embedded detector; Label Studio in memory. Best of 3 rounds each.",
            f"Load average when it ended: {os.getloadavg()[0]:.1f} on {cores} cores.",
            "",
            "| way | s | tasks a second |",
            "|---|---|---|",
            f"| one process, one session on all cores | {alone:.1f} | {TASKS / alone:.1f} |",
            f"| Ray, {cores} workers of one core each | {spread:.1f} | {TASKS / spread:.1f} |",
            "",
            f"Starting Ray and opening a session in each worker: {opening:.1f} s.",
        ]
    )
