"""How long a small task of quality control waits while dense tasks are judged and two projects learn.

The worker is `labelloop worker`; Label Studio is the tests' own in memory, over HTTP in a process of its own.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import sqlalchemy as sa

from bench.bounds import CONFIG as DENSE_CONFIG
from bench.bounds import dense_task
from bench.learning_sizes import CONFIG, _data, _policy, _worker, draw_photos, peak_mb
from labelloop.service.db.engine import open_database
from labelloop.service.jobs.inbox import EVENTS, Inbox
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio
from ml_backend.learning.events import LEARN, QUEUE, train_now_event
from ml_backend.learning.service import connect_to_learning
from qc_webhooks.events import TASK, recheck_event

DENSE = tuple(map(int, os.environ.get("BENCH_DENSE", "20000,30000").split(",")))
"""Boxes of each of two annotators; one task each."""

SMALL, LEARNED = 100, 30
"""Small disputes; labelled photos of each project that learns."""

SECONDS, EVERY_S, FIT_EVERY_S = float(os.environ.get("BENCH_SECONDS", "150")), 0.5, 6.0
QC, LEARNING = 1, (2, 3)


def run() -> str:
    """The table, in Markdown."""
    lines = [
        f"A small task (two boxes that differ) every {EVERY_S} s, each dense task twice, a fit of each of two projects",
        f"every {FIT_EVERY_S:.0f} s ({LEARNED} photos), for {SECONDS} s and until all are done. Seconds from the event",
        "until its job is done.",
        "",
        "| dense tasks, boxes | job | jobs | p50 | p95 | most |",
        "|---|---|---|---|---|---|",
    ]
    for dense in ((), DENSE):
        lines += measured(dense)
    return "\n".join(lines)


def measured(dense: tuple[int, ...]) -> list[str]:
    """Rows of one run."""
    with tempfile.TemporaryDirectory() as folder:
        photos, home = Path(folder, "photos"), Path(folder, "home")
        photos.mkdir()
        home.mkdir()
        drawn = draw_photos(photos, LEARNED)
        command = [sys.executable, "-m", "bench.job_lanes", folder, *map(str, dense)]
        Path(folder, "drawn.json").write_text(json.dumps(drawn))
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        try:
            url = server.stdout.readline().strip()
            values = {"home": str(home), "label_studio_url": url, "label_studio_api_key": "0" * 40, "ml_url": url,
                      "local_files_root": str(photos)}  # fmt: skip
            settings = Settings(**values)
            with _worker({f"LABELLOOP_{name}".upper(): value for name, value in values.items()}) as worker:
                time.sleep(8)  # it is up
                rows = _drive(settings, dense)
                return [*rows, f"| {_sizes(dense)} | worker's peak, MB | | | | {peak_mb(worker.pid):.0f} |"]
        finally:
            server.kill()


def _drive(settings: Settings, dense: tuple[int, ...]) -> list[str]:
    engine = open_database(settings)
    inbox = Inbox.from_settings(settings, engine)
    for project in LEARNING:
        _policy(settings, project)
        connect_to_learning(Studio.from_settings(settings), project, settings, engine)

    def put(event: Any) -> None:
        subject = event.subject if event.topic == TASK else str(event.project)
        inbox.put(event.topic, subject, event.key, event.payload)

    def is_idle() -> bool:
        unfinished = EVENTS.c.state.in_(("pending", "claimed")) & EVENTS.c.topic.in_((TASK, LEARN, QUEUE))
        with engine.connect() as connection:
            return connection.scalar(sa.select(EVENTS.c.id).where(unfinished).limit(1)) is None

    _wait(is_idle)
    first = _newest(engine)
    started, fits = time.monotonic(), 0
    big = [SMALL + at for _ in range(2) for at in range(1, len(dense) + 1)]
    for at in range(int(SECONDS / EVERY_S)):
        time.sleep(max(0.0, started + at * EVERY_S - time.monotonic()))
        put(recheck_event(QC, 1 + at % SMALL, source="bench"))
        if at * EVERY_S >= fits * FIT_EVERY_S:
            fits += 1
            for project in LEARNING:
                put(train_now_event(project, source="bench"))
        if big and at % 40 == 10:
            put(recheck_event(QC, big.pop(), source="bench"))
    _wait(is_idle)
    with engine.connect() as connection:
        rows = connection.execute(sa.select(EVENTS).where(EVENTS.c.id > first, EVENTS.c.topic.in_((TASK, LEARN)))).all()
    engine.dispose()
    waits: dict[str, list[float]] = {}
    for row in rows:
        is_dense = row.topic == TASK and int(row.subject.partition(":")[2]) > SMALL
        name = "fit" if row.topic == LEARN else "dense task" if is_dense else "small task"
        assert row.state == "done", (row.topic, row.subject, row.reason)
        waits.setdefault(name, []).append(row.finished_at - row.created_at)
    return [
        f"| {_sizes(dense)} | {name} | {len(found)} | "
        + " | ".join(f"{value:.2f}" for value in (*np.percentile(found, (50, 95)), max(found)))
        + " |"
        for name, found in sorted(waits.items())
    ]


def _newest(engine: sa.Engine) -> int:
    with engine.connect() as connection:
        return int(connection.scalar(sa.select(sa.func.max(EVENTS.c.id))) or 0)


def _sizes(dense: tuple[int, ...]) -> str:
    return ", ".join(f"2 x {size:,}" for size in dense) or "none"


def _wait(condition: Any, seconds: float = 900.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise SystemExit("The worker did not finish its jobs in time.")
        time.sleep(0.2)


def serve(folder: Path, dense: tuple[int, ...]) -> None:
    """A Label Studio in memory with a project for quality control and two that learn; prints its URL."""
    from tests.label_studio_in_memory import LabelStudioInMemory
    from tests.web_server import Asked, WebServer

    studio, drawn = LabelStudioInMemory(), json.loads(Path(folder, "drawn.json").read_text())
    studio.put_project(QC, label_config=DENSE_CONFIG, model_version="base-1")
    for size in (2,) * SMALL + dense:
        task = dense_task(size, 2)
        number = studio.put_task(QC, task["data"], overlap=2)
        for each in task["annotations"]:
            shift = 30 * (each["completed_by"] - 1) if size == 2 else 0
            for result in each["result"]:
                result["value"]["x"] += shift
            studio.annotate(number, each["completed_by"], each["result"])
    for project in LEARNING:
        studio.put_project(project, label_config=CONFIG, model_version="")
        for number in range(LEARNED):
            studio.annotate(studio.put_task(project, _data(number)), 1, drawn[number])

    def answer(asked: Asked) -> tuple[int, Any]:
        parts = urlsplit(asked.path)
        body = json.loads(asked.body) if asked.body else None
        try:
            return studio.answer(asked.method, parts.path, dict(parse_qsl(parts.query)), body)
        except NotImplementedError:  # a request to the ML backend, which is not measured
            return 404, {}

    print(WebServer(answer).url, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    serve(Path(sys.argv[1]), tuple(map(int, sys.argv[2:])))
