"""What a submit costs by the size of the project: on stock Label Studio, and on one in memory with 100,000 tasks."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.many_tasks import PROJECT, ManyTasks, serve
from bench.stack import running_stack
from bench.stock_requests import Spent
from labelloop.connect import connect
from labelloop.service.db.engine import open_database
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio
from labelloop.stack.ports import free_port
from ml_backend.learning.service import LearningService, connect_to_learning
from ml_backend.learning.task_order import HEAD
from ml_backend.serving.activation import served_version
from tests.drawn import SIDE, draw_shapes

STOCK, IN_MEMORY = (200, 5_000, 20_000), (200, 100_000)
PART = os.environ.get("BENCH_PART", "")
"""`memory` or `stock`: that half alone, less than five minutes each."""

PHOTOS = 512
"""Different photos; a larger project shows them several times."""

SUBMITS = 12
POLL_S = 0.2
"""Between two questions whether stock Label Studio names the version."""

THINKS_S = 2.0
"""Between a version that is named and the next submit."""

BATCH = 2000
WAIT_S = 180.0
CONFIG = """<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">
<Label value="Disc"/><Label value="Square"/></RectangleLabels></View>"""


@dataclass
class Figures:
    """Of one project."""

    tasks: int
    first_s: float = 0.0
    named_s: list[float] = field(default_factory=list)
    requests: list[int] = field(default_factory=list)
    memory_mb: float = 0.0
    spent: Spent | None = None

    def row(self, name: str) -> str:
        """A row of the table."""
        p50, p95 = (f"{np.percentile(self.named_s, part):.1f}" for part in (50, 95))
        asked = f"{np.median(self.requests):.0f}" if self.requests else "as above"
        return f"| {name} | {self.tasks:,} | {self.first_s:.1f} | {p50} | **{p95}** | {asked} | {self.memory_mb:.0f} |"


def run() -> str:
    """The figures, in Markdown."""
    load = os.getloadavg()[0]
    rows = [
        "First order: from `connect` until the first tasks have theirs. Named: from a submit until Label Studio names",
        "the version that learned from it, with the next tasks in its order;",
        f"{SUBMITS} submits of one annotator, {THINKS_S:.0f} s after the version before. Photos of discs and squares",
        "from this machine's disk. Requests: all that Label Studio is asked from the submit until the version is",
        "named; the other pre-labels (`prelabels`, 500) follow, with three for each 25. The worker's memory is its",
        "peak.",
        "",
        "| Label Studio | open tasks | first order, s | named p50, s | p95, s | requests | worker, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder)
        drawn = draw_photos(photos, max(*STOCK, *IN_MEMORY))
        for count in () if PART == "stock" else IN_MEMORY:
            rows.append(_in_memory(photos, drawn, count).row("in memory, over HTTP"))
            print(rows[-1], flush=True)
        os.environ["LABELLOOP_LOCAL_FILES_ROOT"] = folder
        if PART != "memory":
            with running_stack() as settings:
                for count in STOCK:
                    figures = _stock(settings, drawn, count)
                    rows.append(figures.row("stock 1.23.2, SQLite"))
                    print(rows[-1], flush=True)
            rows += ["", f"Stock Label Studio with {figures.tasks:,} tasks, from a submit until its version is named;"]
            rows += [f"the bench asks for the project every {POLL_S} s, too."]
            rows += ["", figures.spent.rows() if figures.spent else ""]
    rows += ["", f"{os.cpu_count()} cores; load average {load:.1f} at the start, {os.getloadavg()[0]:.1f} at the end."]
    return "\n".join(rows)


def draw_photos(folder: Path, count: int) -> list[list[dict[str, Any]]]:
    """Files `0.jpg` and so on, and what is on each of the first `PHOTOS`, as Label Studio's JSON."""
    found = []
    for seed in range(PHOTOS):
        photo, shapes = draw_shapes(seed, ("Disc", "Square") if seed % 3 else ("Disc",))
        Image.fromarray(photo).save(folder / f"{seed}.jpg", quality=90)
        found.append([_result(*one) for one in shapes])
    for number in range(PHOTOS, count):
        os.link(folder / f"{number % PHOTOS}.jpg", folder / f"{number}.jpg")
    return found


def _result(label: str, box: tuple[int, int, int, int]) -> dict[str, Any]:
    x0, y0, x1, y1 = (100 * side / SIDE for side in box)
    value = {"x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0, "rotation": 0, "rectanglelabels": [label]}
    told = {"id": f"{label}{box[0]}", "from_name": "label", "to_name": "image", "type": "rectanglelabels"}
    return {**told, "value": value, "original_width": SIDE, "original_height": SIDE}


def _data(number: int) -> dict[str, str]:
    return {"image": f"/data/local-files/?d={number}.jpg"}


def _number(data: dict[str, str]) -> int:
    return int(data["image"].rpartition("=")[2].removesuffix(".jpg"))


def _in_memory(photos: Path, drawn: list[list[dict[str, Any]]], count: int) -> Figures:
    """A worker of its own on a Label Studio in memory."""
    port = free_port()
    with tempfile.TemporaryDirectory() as home:
        given = {
            "home": home, "label_studio_url": f"http://127.0.0.1:{port}", "label_studio_api_key": "0" * 40,
            "ml_url": f"http://127.0.0.1:{port}", "local_files_root": str(photos),
        }  # fmt: skip
        settings = Settings(**given)  # type: ignore[arg-type]
        studio = ManyTasks([_data(n) for n in range(count)], CONFIG, lambda: served_version(settings, None, PROJECT))
        server = serve(studio, port)
        studio.title = studio.fields["model_version"] = studio.served()
        engine, door, figures = open_database(settings), LearningService(settings), Figures(count)
        _policy(settings, PROJECT)
        with _worker({f"LABELLOOP_{name}".upper(): value for name, value in given.items()}) as worker:
            time.sleep(5)  # it is up
            started = time.monotonic()
            connect_to_learning(Studio.from_settings(settings), PROJECT, settings, engine)
            until(lambda: bool(studio.imported), "a first order")
            figures.first_s = next(iter(studio.imported.values())) - started
            for number in range(1, SUBMITS + 1):
                task = studio.next_task()
                before, at = studio.requests, time.monotonic()
                door.enqueue(studio.annotate(task, drawn[_number(studio.tasks[task]["data"]) % PHOTOS]))
                if number < 2:
                    time.sleep(THINKS_S)
                    continue
                version = until(lambda n=number: _learned(studio.named, n), f"a version of {number} tasks")
                figures.named_s.append(studio.named[version] - at)
                figures.requests.append(studio.requests - before)
                time.sleep(THINKS_S)
            figures.memory_mb = peak_mb(worker.pid)
        server.shutdown()
        engine.dispose()
    return figures


def _stock(settings: Settings, drawn: list[list[dict[str, Any]]], count: int) -> Figures:
    """The whole loop, as users bring it up."""
    studio, figures = Studio.from_settings(settings), Figures(count, spent=Spent(settings.home))
    assert figures.spent is not None
    project = int(studio.create_project(title=f"{count} tasks", label_config=CONFIG)["id"])
    for start in range(0, count, BATCH):
        studio.import_tasks(project, [{"data": _data(n)} for n in range(start, min(start + BATCH, count))])
    _policy(settings, project)
    worker = _pid_of_worker(settings)
    Path(f"/proc/{worker}/clear_refs").write_text("5")  # the peak begins anew
    started = time.monotonic()
    connect(project, settings, studio=studio, on_change=lambda _change: None)
    until(lambda: sum(studio.model_versions(project).values()) >= HEAD, "a first order", pause_s=0.3)
    figures.first_s = time.monotonic() - started
    for number in range(1, SUBMITS + 1):
        task = studio.next_task(project)
        assert task is not None
        studio.add_annotation(task["id"], drawn[_number(task["data"]) % PHOTOS], lead_time=5.0)
        at = time.monotonic()
        if number < 2:
            time.sleep(THINKS_S)
            continue
        with figures.spent.watched():
            until(
                lambda n=number: _learned({_named(studio, project): 0.0}, n),
                f"a version of {number} tasks", pause_s=POLL_S,
            )  # fmt: skip
        figures.named_s.append(time.monotonic() - at)
        time.sleep(THINKS_S)
    figures.memory_mb = peak_mb(worker)
    studio.request("DELETE", f"api/projects/{project}/", timeout_s=WAIT_S)  # nobody looks at its photos any more
    return figures


def _named(studio: Studio, project: int) -> str:
    """What Label Studio names; asked so that the question itself costs it little."""
    return str(studio.project(project, only=["model_version"])["model_version"])


def _policy(settings: Settings, project: int) -> None:
    """Every task is learned from, so that each submit makes a version."""
    file = settings.home / "ml_backend" / str(project) / "learn.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("held_out = 0.0\ntolerance = 1.0\n")


def _learned(named: dict[str, float], tasks: int) -> str:
    return next((version for version in named if version.startswith(f"learned-{tasks}-")), "")


@contextlib.contextmanager
def _worker(environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "labelloop.cli.main", "worker"]
    with Path(environment["LABELLOOP_HOME"], "worker.log").open("wb") as log:
        process = subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(60)
            if kept := os.environ.get("BENCH_KEEP_LOG"):
                shutil.copy(log.name, kept)


def _pid_of_worker(settings: Settings) -> int:
    home = f"LABELLOOP_HOME={settings.home}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if b"worker" in words and home in (process / "environ").read_bytes():
                return int(process.name)
    raise RuntimeError("the worker is not running")


def peak_mb(pid: int) -> float:
    """The most memory that a process had."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def until(condition: Callable[[], Any], what: str, *, pause_s: float = 0.02) -> Any:
    """Waits for it; its value."""
    end = time.monotonic() + WAIT_S
    while not (found := condition()):
        if time.monotonic() > end:
            raise RuntimeError(f"{what} did not come within {WAIT_S:.0f} s")
        time.sleep(pause_s)
    return found
