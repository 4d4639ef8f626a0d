"""The demo of `labelloop up`: ten submits in each of its projects, and what the learned versions pre-label then."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.stack import running_stack
from labelloop.labeling.studio.task import Task
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio
from labelloop.stack.demo_project import INTERFACES
from labelloop.stack.state import read_state

SUBMITS = 10
WAIT_S = 180.0

# Sample image -> its label in the projects of boxes and outlines, and its answer in that of image labels.
SUBJECTS: Mapping[str, tuple[str, str]] = {
    "astronaut": ("Person", "Person"),
    "cameraman": ("Person", "Person"),
    "officer": ("Person", "Person"),
    "cat": ("Cat", "Cat"),
    "kittens": ("Cat", "Cat"),
    "motorcycle": ("Motorbike", "Motorbike"),
    "motorcycle2": ("Motorbike", "Motorbike"),
    "flower": ("Plant", "Flower"),
}


@dataclass(frozen=True)
class Learned:
    """What ten submits to a project made.

    Attributes:
        version: The version that Label Studio names; empty: none was learned.
        open_tasks: Tasks without an annotation.
        prelabelled: Of those, the ones with a pre-label of that version.
        right: Of those, the ones whose pre-label has the subject of the image, and nothing else.
        right_before: Of the open tasks, those of which the embedded model's pre-label was so.
    """

    version: str
    open_tasks: int
    prelabelled: int
    right: int
    right_before: int = 0


def run() -> str:
    """The figures, in Markdown."""
    rows = [
        f"`labelloop up`, then {SUBMITS} submits by one annotator in each project of the demo, in the order in",
        "which Label Studio serves the tasks. Boxes and outlines are the pre-labels of the image's",
        "subject, or one drawn around the middle where there is none. Then the open tasks: how many have a",
        "pre-label of the learned version, and of how many it shows the image's subject and nothing else;",
        "beside it the same of the embedded model.",
        "",
        "| project | version after ten submits | open tasks | pre-labelled by it | right | right before |",
        "|---|---|---|---|---|---|",
    ]
    with running_stack() as settings:
        projects = read_state(settings.home).projects
        for interface in INTERFACES.values():
            key = "demo" if interface.name == "boxes" else f"demo-{interface.name}"
            learned = submit_ten(settings, projects[key].id, interface.name)
            rows.append(
                f"| {interface.title} | {learned.version or 'none'} | {learned.open_tasks} | {learned.prelabelled} | "
                f"{learned.right} | {learned.right_before} |"
            )
            print(rows[-1], flush=True)
            if not learned.prelabelled:
                rows[-1] += " **nothing was learned**"
    return "\n".join([*rows, "", f"{os.cpu_count()} cores; load average {os.getloadavg()[0]:.1f} at the end."])


def submit_ten(settings: Settings, project: int, interface: str) -> Learned:
    """Submit ten tasks, and wait for a version that learned from most of them."""
    studio = Studio.from_settings(settings)
    for _ in range(SUBMITS):
        task = studio.next_task(project)
        assert task is not None
        full = studio.task(project, task["id"])
        assert full is not None
        studio.add_annotation(task["id"], annotation(full, interface), lead_time=5.0)
        time.sleep(1.0)
    end = time.monotonic() + WAIT_S
    result = Learned("", 0, 0, 0)
    while time.monotonic() < end:
        result = learned_so_far(studio, project)
        # Some of the submits are held out for evaluation.
        if result.version and 2 * tasks_of(result.version) >= SUBMITS and result.prelabelled == result.open_tasks:
            break
        time.sleep(2.0)
    return result


def learned_so_far(studio: Studio, project: int) -> Learned:
    """The state of a project's open tasks."""
    version = str(studio.project(project)["model_version"])
    tasks = [task for task in studio.tasks(project) if not task.annotations]
    if not version.startswith("learned-"):
        return Learned("", len(tasks), 0, 0)
    shown = [(task, chosen_labels(task, version)) for task in tasks]
    made = [(task, labels) for task, labels in shown if labels is not None]
    right = sum(is_right(task, labels) for task, labels in made)
    return Learned(
        version, len(tasks), len(made), right, sum(is_right(task, chosen_labels(task, "")) for task in tasks)
    )


def is_right(task: Task, labels: set[str] | None) -> bool:
    """Whether a pre-label shows the subject of the image, and nothing else."""
    return bool(labels) and labels <= set(SUBJECTS[subject_of(task)])


def tasks_of(version: str) -> int:
    """The number of tasks that a version learned from, which is part of its name."""
    return int(version.split("-")[1])


def chosen_labels(task: Task, version: str) -> set[str] | None:
    """The labels and answers of a task's pre-label of this version; None without a region or an answer.

    Without a version: of the version before all learned ones.
    """
    for prediction in task.predictions:
        name = prediction.model_version
        wanted = name == version if version else not name.startswith("learned-")
        if wanted and prediction.results:
            values = [value for result in prediction.results for value in result.value.values()]
            return {name for value in values if isinstance(value, list) for name in value if isinstance(name, str)}
    return None


def subject_of(task: Task) -> str:
    """The sample image of a task: uploads are called `<hash>-<name>-<crop>.jpg`."""
    name = str(task.data["image"]).rpartition("/")[2].removesuffix(".jpg")
    return next(part for part in name.split("-") if part in SUBJECTS)


def annotation(task: Task, interface: str) -> list[dict[str, Any]]:
    """What an annotator submits: the pre-labels that show the subject, or a shape around the middle; or an answer."""
    label, answer = SUBJECTS[subject_of(task)]
    if interface == "subjects":
        return [_result("subject", "choices", {"choices": [answer]})]
    kept = [
        result.raw
        for prediction in task.predictions[-1:]
        for result in prediction.results
        if result.value.get(result.type) == [label]
    ]
    return kept or [_around(label, outline=interface == "outlines")]


def _around(label: str, *, outline: bool) -> dict[str, Any]:
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    points = np.column_stack((50 + 40 * np.cos(angles), 50 + 40 * np.sin(angles))).tolist()
    if outline:
        value = {"points": points, "closed": True, "polygonlabels": [label]}
        return _result("objects", "polygonlabels", value)
    box = {"x": 10, "y": 10, "width": 80, "height": 80, "rotation": 0, "rectanglelabels": [label]}
    return _result("objects", "rectanglelabels", box)


def _result(control: str, kind: str, value: dict[str, Any]) -> dict[str, Any]:
    size = {"original_width": 800, "original_height": 600, "image_rotation": 0}
    return {"id": "drawn", "from_name": control, "to_name": "image", "type": kind, "value": value, **size}
