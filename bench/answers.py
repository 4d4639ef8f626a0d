"""Choices of whole images on stock Label Studio: from Submit until every worker serves what was learned.

Photos of three kinds (blood cells, raccoons, street scenes of COCO) are told apart; takes about two minutes.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from bench.learning import ANSWERS, LIMIT_S, _tasks_of, _until
from bench.stack import ROOT, running_stack
from labelloop.connect import connect
from labelloop.service.db.engine import open_database
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio
from ml_backend.learning.annotations import is_held_out
from ml_backend.learning.store.runs import RunStore

DATA = ROOT.parent / "shared" / "data"
KINDS = {
    "cells": DATA / "bccd" / "images",
    "raccoon": DATA / "raccoon" / "images",
    "other": DATA / "coco_sample" / "images",
}
CHOICES = "".join(f'<Choice value="{kind}"/>' for kind in KINDS)
CONFIG = f'<View><Image name="image" value="$image"/><Choices name="kind" toName="image">{CHOICES}</Choices></View>'
EACH, LABELLED, WARM_UP = 16, 36, 8
ALLOWED_S = 3.0
PAUSE_S = 2.0


def run() -> str:
    """Label the tasks in the order of Label Studio, and give the latencies."""
    if not all(folder.is_dir() for folder in KINDS.values()):
        return "Not measured: the data sets are not on this machine."
    with running_stack() as settings:
        return _measure(settings)


def _measure(settings: Settings) -> str:
    studio, runs = Studio.from_settings(settings), RunStore(open_database(settings))
    rng = random.Random(0)
    files = [(kind, file) for kind, folder in KINDS.items() for file in rng.sample(_images(folder), EACH)]
    rng.shuffle(files)
    project = int(studio.create_project(title="Kinds of photos", label_config=CONFIG)["id"])
    numbers = studio.upload_images(project, [file for _, file in files])
    kinds = dict(zip(numbers, (kind for kind, _ in files), strict=True))
    connect(project, settings, studio=studio, on_change=lambda _change: None)
    _until(lambda: sum(studio.model_versions(project).values()) >= len(files))
    user, password = settings.basic_auth_user, settings.basic_auth_password.get_secret_value()
    http = httpx.Client(
        timeout=30, trust_env=False, headers={"Connection": "close"}, auth=(user, password) if user else None
    )
    taught, refused = 0, 0
    latencies: list[float] = []
    filled: list[bool] = []
    for number in range(1, LABELLED + 1):
        task = studio.next_task(project)
        assert task is not None
        kind = kinds[task["id"]]
        filled += [value == kind for value in _filled(task)] if number > WARM_UP else []
        started = time.monotonic()
        result = {"from_name": "kind", "to_name": "image", "type": "choices", "value": {"choices": [kind]}}
        studio.add_annotation(task["id"], [result], lead_time=3.0)
        taught += not is_held_out(project, task["id"], 0.1)
        if number <= WARM_UP or is_held_out(project, task["id"], 0.1):
            continue
        at = _served(http, settings, runs, project, taught)
        if at is None:
            refused += 1
        else:
            latencies.append(at - started)
        time.sleep(PAUSE_S)  # the annotator looks at the next photo
    p50, p95 = np.percentile(latencies, [50, 95]) if latencies else (float("nan"), float("nan"))
    right = f"{np.mean(filled):.0%} of {len(filled)}" if filled else "none"
    verdict = "met" if p95 <= ALLOWED_S else "not met"
    return "\n".join(
        [
            "| Submit until every worker serves it | |", "|---|---|",
            f"| median, s | {p50:.2f} |", f"| p95, s (allowed {ALLOWED_S:.0f}: {verdict}) | {p95:.2f} |",
            f"| submits timed | {len(latencies)} |", f"| refused by the gate | {refused} |",
            f"| pre-filled answers that were right | {right} |", f"| load of the machine | {os.getloadavg()[0]:.1f} |",
        ]
    )  # fmt: skip


def _images(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in {".jpg", ".jpeg", ".png"})


def _filled(task: dict[str, Any]) -> list[str]:
    predictions = task.get("predictions") or []
    results = predictions[0]["result"] if predictions else []
    return [choice for result in results for choice in result["value"].get("choices", [])]


def _served(http: httpx.Client, settings: Settings, runs: RunStore, project: int, tasks: int) -> float | None:
    """When every worker served what was learned from so many tasks; None where the gate refused it."""
    end, first, row = time.monotonic() + LIMIT_S, 0.0, 0
    while time.monotonic() < end:
        at = time.monotonic()
        answer = http.post(f"{settings.ml_url}/setup", json={"project": f"{project}.1", "schema": CONFIG}).json()
        if "model_version" not in answer:
            raise RuntimeError(f"/setup answers {answer}")
        row = row + 1 if _tasks_of(str(answer["model_version"])) >= tasks else 0
        first = at if row == 1 else first
        if row == ANSWERS:
            return first
        last = next(iter(runs.last(project, 1)), None) if not row else None
        if last is not None and last.verdict == "refused" and last.tasks >= tasks:
            return None
        time.sleep(0.01 if row else 0.1)
    raise RuntimeError(f"nothing is served that was learned from {tasks} tasks after {LIMIT_S:.0f} s")


if __name__ == "__main__":
    print(run())
