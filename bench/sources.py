"""A project of stock Label Studio read in pages, as a snapshot, and again after 1 % of its tasks changed."""

from __future__ import annotations

import os
import random
import secrets
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from exporters.sources import open_source
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio
from labelloop.stack.accounts import Account
from labelloop.stack.label_studio import LabelStudioInstallation
from labelloop.stack.label_studio_server import label_studio_service, wait_until_healthy
from labelloop.stack.ports import free_port
from labelloop.stack.process import Child
from labelloop.stack.progress import Steps

ROOT = Path(__file__).parents[1]
TASKS = 2000
ROUNDS = 3
CONFIG = """<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">
<Label value="car"/><Label value="bus"/></RectangleLabels></View>"""


def run() -> str:
    """Fill a project, read it each way in turn, and give the table."""
    shared = Path(os.environ.get("LABELLOOP_HOME", str(ROOT / ".labelloop")))
    installation = LabelStudioInstallation(shared / "label-studio")
    installation.prepare(Steps())
    with tempfile.TemporaryDirectory() as folder:
        home, token = Path(folder), secrets.token_hex(20)
        part = label_studio_service(
            installation,
            data=home / "data",
            port=free_port(),
            log=home / "label-studio.log",
            admin=Account("admin@example.com", secrets.token_hex(8)),
            env={"LABEL_STUDIO_USER_TOKEN": token, "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true"},
        )
        child = Child(part, home)
        try:
            wait_until_healthy(child)
            settings = Settings(home=home / "home", label_studio_url=part.url, label_studio_api_key=token)
            return _measure(settings, Studio.from_settings(settings), child)
        finally:
            child.stop()


def _measure(settings: Settings, studio: Studio, child: Child) -> str:
    rng = random.Random(0)
    project = int(studio.create_project(title="bench", label_config=CONFIG)["id"])
    for _ in range(0, TASKS, 500):
        studio.import_tasks(project, [_task(rng) for _ in range(500)])
    ways: dict[str, Callable[[], int]] = {
        "pages of 100, all annotations": lambda: sum(1 for _ in studio.raw_tasks(project)),
        "a first reading (snapshot)": lambda: _read(settings, studio, project, fresh=True),
        "again, nothing changed": lambda: _read(settings, studio, project),
        "again, 1 % of the tasks changed": lambda: _read(settings, studio, project),
    }
    _read(settings, studio, project)
    best: dict[str, tuple[float, float, int]] = {}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            if "1 %" in name:
                for task in rng.sample(range(TASKS), TASKS // 100):
                    studio.update_task(task + 1, meta={"seen": rng.random()})
            started, cpu = time.perf_counter(), _server_cpu_s(child)
            tasks = way()
            found = (_server_cpu_s(child) - cpu, time.perf_counter() - started, tasks)
            best[name] = min(best.get(name, found), found)
            if "first" in name or "1 %" in name:  # no overlap in what follows
                _read(settings, studio, project)
    rows = [
        f"| {name} | {tasks} | {cpu:.2f} | {1000 * cpu / TASKS:.2f} | {wall:.1f} |"
        for name, (cpu, wall, tasks) in best.items()
    ]
    return "\n".join(
        [
            f"{TASKS:,} tasks of 10 rectangles in stock Label Studio 1.23.2 on SQLite; the best of {ROUNDS} rounds,",
            f"the ways in turn. Load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores: the CPU seconds,",
            "Label Studio's own, are the numbers to compare.",
            "",
            "| way | tasks sent whole | Label Studio's CPU s | ms a task of the project | wall s |",
            "|---|---|---|---|---|",
            *rows,
        ]
    )


def _read(settings: Settings, studio: Studio, project: int, *, fresh: bool = False) -> int:
    source: Any = open_source(project, settings=settings, studio=studio, fresh=fresh)
    try:
        for _ in source.raw():
            pass
        return int(source.origin["read"])
    finally:
        source.close()


def _task(rng: random.Random) -> dict[str, Any]:
    result = [
        {
            "id": f"r{n}",
            "from_name": "label",
            "to_name": "image",
            "type": "rectanglelabels",
            "original_width": 1920,
            "original_height": 1080,
            "image_rotation": 0,
            "value": {
                "x": rng.uniform(0, 80),
                "y": rng.uniform(0, 80),
                "width": rng.uniform(1, 20),
                "height": rng.uniform(1, 20),
                "rotation": 0,
                "rectanglelabels": [rng.choice(["car", "bus"])],
            },
        }
        for n in range(10)
    ]
    annotations = [{"result": result, "ground_truth": False}]
    return {"data": {"image": f"s3://bucket/{rng.random()}.jpg"}, "annotations": annotations}


def _server_cpu_s(child: Child) -> float:
    """CPU seconds of Label Studio's processes, its children included (Linux)."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # a process that ended
            fields = stat.read_text().rpartition(") ")[2].split()
            if int(fields[2]) == child.pid:
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
