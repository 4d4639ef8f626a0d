"""A project of 250 tasks pre-labelled by `labelloop prelabel`, and by Label Studio's own "Retrieve Predictions"."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from bench.stack import environment, running_stack
from labelloop.connect import connect
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio
from labelloop.stack.demo_project import LABEL_CONFIG

TASKS = 250


def run() -> str:
    """Bring a stack up, pre-label the same photos both ways, and give the table."""
    with running_stack() as settings:
        return _measure(Studio.from_settings(settings), settings, environment(settings.home))


def _measure(studio: Studio, settings: Settings, env: dict[str, str]) -> str:
    demo = int(studio.projects()[0]["id"])
    photos = [task.data for task in studio.tasks(demo)]
    rows = []
    for name, way in (("`labelloop prelabel`", _bulk), ('"Retrieve Predictions", all at once', _retrieve)):
        project = int(studio.create_project(title="bench", label_config=LABEL_CONFIG)["id"])
        studio.import_tasks(project, [{"data": photos[n % len(photos)]} for n in range(TASKS)])
        connect(project, settings, studio=studio, on_change=lambda _change: None)
        started = time.perf_counter()
        said = way(studio, project, env)
        seconds = time.perf_counter() - started
        stored = sum(studio.model_versions(project).values())
        rows.append(f"| {name} | {seconds:.1f} | {1000 * seconds / TASKS:.0f} | {stored} of {TASKS} | {said} |")
    return "\n".join(
        [
            f"{TASKS} tasks on {len(photos)} photos in stock Label Studio 1.23.2 on SQLite, the embedded detector.",
            f"Load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores. The command's time includes starting",
            "Python and opening the model.",
            "",
            "| way | wall s | ms a task | predictions stored | |",
            "|---|---|---|---|---|",
            *rows,
        ]
    )


def _bulk(_studio: Studio, project: int, env: dict[str, str]) -> str:
    command = [sys.executable, "-m", "labelloop.cli.main", "prelabel", str(project)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return done.stdout.splitlines()[1]


def _retrieve(studio: Studio, project: int, _env: dict[str, str]) -> str:
    action = {"id": "retrieve_tasks_predictions", "project": project}
    everything = {"selectedItems": {"all": True, "excluded": []}}
    try:
        studio.request("POST", "api/dm/actions", params=action, json=everything, timeout_s=300)
    except Exception as error:  # noqa: BLE001 - what it says is part of the figures
        return type(error).__name__
    return "one request to the backend"
