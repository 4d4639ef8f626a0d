"""Delivery of quality control: how soon a webhook is answered, and how soon after a Submit its dispute is routed.

The web service (gunicorn), the inbox, the worker and the database are the real ones; Label Studio is the tests' own in
memory, so that what is measured is ours: Label Studio on SQLite takes no 20 submits a second itself.
"""

import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time

import httpx
import structlog

from labelloop.service.db.engine import open_database
from labelloop.service.jobs.inbox import Inbox
from labelloop.service.jobs.jobs import Jobs
from labelloop.service.jobs.worker import run_worker
from labelloop.service.settings import Settings, env_name
from labelloop.stack.ports import free_port
from qc_webhooks.jobs import handlers
from qc_webhooks.store.projects import ProjectStore
from tests.qc_webhooks.conftest import PROJECT, QcStudio

RATE, SECONDS = 20, 30
SECRET = {"X-Labelloop-Secret": "bench"}


class TimedStudio(QcStudio):
    """Notes when each task was asked of one more annotator."""

    def __init__(self) -> None:
        super().__init__()
        self.routed: dict[int, float] = {}

    def update_task(self, task, **fields):
        answer = super().update_task(task, **fields)
        if fields.get("overlap") == 3:
            self.routed[task] = time.perf_counter()
        return answer


def run() -> str:
    """Post events at a steady rate; every one is the second annotation of a task, and makes it a dispute."""
    import logging

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        values = {"home": folder, "webhook_secret": "bench", "qc_url": f"http://127.0.0.1:{port}"}
        settings, studio = Settings(**values), TimedStudio()
        engine = open_database(settings)
        ProjectStore(engine).add(PROJECT)
        env = os.environ | {env_name(name): value for name, value in values.items()}
        code = f"from qc_webhooks.cli.qc import serve; serve(port={port}, workers=2)"
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        service = subprocess.Popen([sys.executable, "-c", code], env=env, **quiet)
        jobs = Jobs(settings, Inbox.from_settings(settings, engine), handlers(settings, studio, engine))
        stop = threading.Event()
        worker = threading.Thread(target=run_worker, args=(jobs,), kwargs={"stop": stop})
        worker.start()
        try:
            _wait_for(f"http://127.0.0.1:{port}/health")
            return _measure(studio, f"http://127.0.0.1:{port}/webhook")
        finally:
            stop.set()
            service.send_signal(signal.SIGTERM)
            service.wait(30)
            worker.join(30)
            engine.dispose()


def _measure(studio: TimedStudio, url: str) -> str:
    number = RATE * SECONDS
    for _ in range(number):
        task = studio.add_task()
        studio.annotate(task, 1, [_box(0)])
    answered, submitted = [], {}
    started, cpu = time.perf_counter(), _cpu()
    with httpx.Client(headers=SECRET, trust_env=False) as client:
        for task in range(1, number + 1):
            time.sleep(max(0.0, started + (task - 1) / RATE - time.perf_counter()))
            id_ = studio.annotate(task, 2, [_box(60)])
            held = studio.tasks_by_id[task]["annotations"][-1]
            body = {"id": id_, "task": task, "project": PROJECT, "updated_at": held["updated_at"]}
            submitted[task] = before = time.perf_counter()
            client.post(url, json={"action": "ANNOTATION_CREATED", "annotation": body}).raise_for_status()
            answered.append(1000 * (time.perf_counter() - before))
    until = time.perf_counter() + 60
    while len(studio.routed) < number and time.perf_counter() < until:
        time.sleep(0.05)
    used = _cpu() - cpu
    routed = sorted(studio.routed[task] - submitted[task] for task in studio.routed)
    answered.sort()
    load = os.getloadavg()[0]
    lines = [
        f"{number} submits at {RATE} a second; every one is a dispute, and is sent to one more annotator.",
        f"Load of the machine at the end, this run included: {load:.1f} on {os.cpu_count()} cores.",
        "",
        "| what | median | p95 | p99 |",
        "|---|---|---|---|",
        _row("webhook answered, ms (target: p99 10)", answered),
        _row("submit to routed, s (target: p95 1)", routed),
        "",
        f"Routed: {len(routed)} of {number}. CPU of worker and client: {1000 * used / number:.1f} ms a submit.",
    ]
    return "\n".join(lines)


def _row(title: str, ordered: list[float]) -> str:
    return f"| {title} | " + " | ".join(f"{_at(ordered, share):.2f}" for share in (0.5, 0.95, 0.99)) + " |"


def _at(ordered: list[float], share: float) -> float:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else float("nan")


def _cpu() -> float:
    return time.process_time() + resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime


def _box(x: float) -> dict[str, object]:
    value = {"x": x, "y": 10, "width": 20, "height": 30, "rotation": 0, "rectanglelabels": ["Car"]}
    return {
        "id": f"r{x}", "from_name": "label", "to_name": "image", "type": "rectanglelabels", "original_width": 200,
        "original_height": 100, "value": value,
    }  # fmt: skip


def _wait_for(url: str) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            if httpx.get(url, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.2)
    raise SystemExit(f"{url} did not come up")


if __name__ == "__main__":
    print(run())
