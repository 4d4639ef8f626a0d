"""How fast a worker drains the inbox, and what one look for due subjects costs, by the number of waiting events."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from pathlib import Path

import structlog

from labelloop.service.db.engine import open_database
from labelloop.service.jobs.inbox import EVENTS, Inbox
from labelloop.service.jobs.jobs import Jobs
from labelloop.service.jobs.worker import run_worker
from labelloop.service.settings import Settings

SIZES = (1_000, 100_000)
DRAINED = 1_000
"""Events whose handling is timed, whatever waits beside them."""

THREADS = 4
SWEEP_LIMIT = 100


def run() -> str:
    """Measure and return the table, in Markdown."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    engines = {"SQLite": "", **({"Postgres": url} if (url := os.environ.get("BENCH_POSTGRES_URL")) else {})}
    text = (
        f"One event a subject, a handler that does nothing, a worker with {THREADS} threads; the rate is over the first"
        f" {DRAINED} events. `due()` is the worker's look for subjects to wake. Commit 11e2178 on the machine below:"
        " 106 and 41 to 80 events/s, 2 and 90 ms."
    )
    lines = [
        text,
        "",
        "| engine | waiting events | drained | `due()` |",
        "|---|---|---|---|",
    ]
    for name, url in engines.items():
        for size in SIZES:
            rate, due_s = measure(url, size)
            lines.append(f"| {name} | {size:,} | {rate:.0f} events/s | {1000 * due_s:.1f} ms |")
    return "\n".join(lines)


def measure(database_url: str, size: int) -> tuple[float, float]:
    """Events drained in a second and seconds of one `due()`, with `size` events waiting."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(home=Path(folder), database_url=database_url)
        inbox = Inbox.from_settings(settings, open_database(settings))
        _fill(inbox, size)
        looks = [_timed(lambda: inbox.due_subjects(SWEEP_LIMIT)) for _ in range(5)]
        handled, enough, stop = [], threading.Event(), threading.Event()

        def handle(_subject, events):
            handled.extend(event.id for event in events)
            if len(handled) >= DRAINED:
                enough.set()

        jobs = Jobs(settings, inbox, {"t": handle})
        worker = threading.Thread(target=run_worker, args=(jobs, THREADS), kwargs={"stop": stop})
        begun = time.monotonic()
        worker.start()
        enough.wait(600)
        took_s = time.monotonic() - begun
        stop.set()
        worker.join()
        jobs.close()
        with inbox.engine.begin() as connection:
            connection.execute(EVENTS.delete())
        inbox.engine.dispose()
    return len(handled) / took_s, sorted(looks)[2]


def _fill(inbox: Inbox, size: int) -> None:
    now = time.time()
    rows = [
        {
            "topic": "t", "subject": f"1:{number}", "key": f"annotation:{number}", "payload": "{}", "state": "pending",
            "attempts": 0, "created_at": now - 60, "due_at": now - 60 + number * 1e-6, "reason": "",
        }
        for number in range(size)
    ]  # fmt: skip
    with inbox.engine.begin() as connection:
        for start in range(0, size, 5_000):
            connection.execute(EVENTS.insert(), rows[start : start + 5_000])


def _timed(call):
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


if __name__ == "__main__":
    print(run())
