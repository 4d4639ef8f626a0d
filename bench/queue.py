"""What the queue costs: storing an event, waking a worker, working off a backlog; on each engine that is here."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from labelloop.service.db.engine import open_database
from labelloop.service.jobs.inbox import Inbox
from labelloop.service.jobs.jobs import Jobs
from labelloop.service.settings import Settings

EVENTS = 100
BACKLOG = 500
# The worker is another process, as in service; it tells the time of each start through a file. The clock is the
# machine's monotonic one, which processes share.
WORKER = """
import os, sys, time
from labelloop.service.db.engine import open_database
from labelloop.service.jobs.inbox import Inbox
from labelloop.service.jobs.jobs import Jobs
from labelloop.service.jobs.worker import run_worker
from labelloop.service.settings import Settings
import logging; logging.disable(logging.CRITICAL)
import structlog; structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
settings = Settings()
out = os.open(sys.argv[1], os.O_APPEND | os.O_WRONLY)
def handler(subject, events):
    now = time.monotonic()
    os.write(out, "".join(f"{event.key} {now}\\n" for event in events).encode())
run_worker(Jobs(settings, Inbox.from_settings(settings, open_database(settings)), {"t": handler}), 4)
"""


def run() -> str:
    """Measure and return the table, in Markdown."""
    text = (
        f"{EVENTS} single events, 0.1 s apart, from another process to an idle worker with 4 threads; then a backlog "
        f"of {BACKLOG} events of {BACKLOG} subjects, submitted while the worker works. `submit` is what a webhook "
        "waits for; `start` is from `submit` until the handler runs."
    )
    header = "| engine | submit p50 | submit p95 | start p50 | start p95 | worker's CPU, idle | backlog |"
    lines = [text, "", header, "|---|---|---|---|---|---|---|"]
    for name, engine in ENGINES.items():
        with engine() as urls:
            if urls is None:
                lines.append(f"| {name} | not installed here | | | | | |")
                continue
            lines.append(f"| {name} | {' | '.join(_measure(urls))} |")
    return "\n".join(lines)


def _measure(urls: dict[str, str]) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(home=Path(folder), **urls)
        starts = Path(folder) / "starts"
        starts.touch()
        jobs = Jobs(settings, Inbox.from_settings(settings, open_database(settings)))
        variables = {f"LABELLOOP_{name}".upper(): url for name, url in urls.items()}
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(starts)], env=os.environ | variables | {"LABELLOOP_HOME": folder}
        )
        try:
            jobs.submit("t", "warm-up", "warm-up", {})
            _wait(lambda: _read(starts))
            time.sleep(1.5)
            submitted, took = {}, []
            for number in range(EVENTS):
                submitted[str(number)] = time.monotonic()
                jobs.submit("t", str(number), str(number), {"action": "ANNOTATION_CREATED", "task": number})
                took.append(time.monotonic() - submitted[str(number)])
                time.sleep(0.1)
            _wait(lambda: len(_read(starts)) == EVENTS + 1)
            started = _read(starts)
            waited = [started[key] - at for key, at in submitted.items()]
            for values in (took, waited):
                yield f"{statistics.median(values) * 1000:.1f} ms"
                yield f"{statistics.quantiles(values, n=20)[18] * 1000:.1f} ms"
            before = _cpu_s(worker.pid)
            time.sleep(4)
            yield f"{(_cpu_s(worker.pid) - before) / 4:.1%}"
            begun = time.monotonic()
            for number in range(BACKLOG):
                jobs.submit("t", f"b{number}", f"b{number}", {})
            _wait(lambda: jobs.inbox.counts()["done"] == EVENTS + 1 + BACKLOG)
            yield f"{BACKLOG / (time.monotonic() - begun):.0f} events/s"
        finally:
            worker.terminate()
            worker.wait()
            jobs.close()
            jobs.inbox.engine.dispose()


def _read(starts: Path) -> dict[str, float]:
    return {line.split()[0]: float(line.split()[1]) for line in starts.read_text().splitlines()}


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _wait(condition: Callable[[], object], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the worker did not finish")
        time.sleep(0.02)


@contextmanager
def _sqlite() -> Iterator[dict[str, str] | None]:
    yield {}


@contextmanager
def _redis() -> Iterator[dict[str, str] | None]:
    binary = shutil.which("redis-server")
    if binary is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        socket = f"{folder}/redis.sock"
        server = subprocess.Popen(
            [binary, "--port", "0", "--unixsocket", socket, "--save", ""], cwd=folder, stdout=subprocess.DEVNULL
        )
        try:
            _wait(lambda: Path(socket).exists())
            yield {"queue_url": f"unix://{socket}"}
        finally:
            server.terminate()
            server.wait()


@contextmanager
def _postgres() -> Iterator[dict[str, str] | None]:
    url = os.environ.get("BENCH_POSTGRES_URL")
    yield {"database_url": url, "queue_url": url} if url else None


ENGINES = {
    "SQLite (default)": _sqlite,
    "SQLite, Redis queue": _redis,
    "Postgres (BENCH_POSTGRES_URL)": _postgres,
}

if __name__ == "__main__":
    print(run())
