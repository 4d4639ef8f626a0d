"""The demo of `labelloop up`: ten submits in each of its projects, and what the learned versions pre-label then."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from bench.stack import running_stack
from labelloop.labeling.studio.task import Task
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio
from labelloop.stack.demo_images import toys_on
from labelloop.stack.demo_project import INTERFACES
from labelloop.stack.state import read_state
from ml_backend.learning.annotations import is_held_out

# Submits after which the pre-labels of the open tasks are judged.
JUDGED = (3, 6, 10)
HELD_OUT, GOOD_IOU = 0.1, 0.5
WAIT_S = 60.0
Points = Sequence[Sequence[float]]

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
EVERY_LABEL = frozenset(label for pair in SUBJECTS.values() for label in pair)


@dataclass(frozen=True)
class Drawn:
    """An object with its label; its outline in percent of the image."""

    label: str
    outline: Points


@dataclass(frozen=True)
class Seen:
    """What the pre-labels of the open tasks show.

    Attributes:
        version: Version of the model that Label Studio names.
        tasks: Open tasks.
        right: Tasks whose pre-label shows the subject of the image, and no other subject.
        toys: Toys on them.
        found: Toys with a pre-label of the right label and an IoU of at least `GOOD_IOU`.
        wrong: Pre-labels of toys that are none.
    """

    version: str
    tasks: int
    right: int
    toys: int = 0
    found: int = 0
    wrong: int = 0

    @property
    def cells(self) -> str:
        """Of a row of the table."""
        share = f"{self.found} of {self.toys}" if self.toys else "-"
        return f"{share} | {self.wrong if self.toys else '-'} | {self.right} of {self.tasks}"


def run() -> str:
    """The figures, in Markdown."""
    rows = [
        f"`labelloop up`, then {JUDGED[-1]} submits by one annotator in each project of the demo, in the order in",
        "which Label Studio serves the tasks. The annotator keeps the pre-labels of the image's subject, and draws the",
        "toys, which the embedded model does not know. Before the first submit, and after some of them,",
        "the pre-labels of the tasks that are open then: toys found with their label (IoU of .5 or more, of outlines",
        "that of the masks), pre-labels of toys where there is none, and tasks with the image's subject and no other.",
        "",
        "| project | submits | version | toys found | toys that are none | subject right |",
        "|---|---|---|---|---|---|",
    ]
    with running_stack() as settings:
        projects = read_state(settings.home).projects
        for interface in INTERFACES.values():
            key = "demo" if interface.name == "boxes" else f"demo-{interface.name}"
            judge = Annotator(settings, projects[key].id, interface.name)
            for submits, seen in judge.label():
                rows.append(f"| {interface.title} | {submits} | {seen.version or 'none'} | {seen.cells} |")
                print(rows[-1], flush=True)
    return "\n".join([*rows, "", f"{os.cpu_count()} cores; load average {os.getloadavg()[0]:.1f} at the end."])


class Annotator:
    """Submits tasks of one project, and judges the pre-labels of those that are open."""

    def __init__(self, settings: Settings, project: int, interface: str) -> None:
        self._studio = Studio.from_settings(settings)
        self._photos = Path(settings.home) / "photos"
        self._project, self._interface = project, interface
        self._taught: set[int] = set()

    def label(self) -> list[tuple[int, Seen]]:
        """(submits, what the pre-labels show then), before the first submit and after those of `JUDGED`."""
        seen = [(0, self._judge())]
        for number in range(1, JUDGED[-1] + 1):
            task = self._studio.next_task(self._project)
            assert task is not None
            full = self._studio.task(self._project, task["id"])
            assert full is not None
            self._studio.add_annotation(task["id"], self._annotation(full), lead_time=5.0)
            if not is_held_out(self._project, task["id"], HELD_OUT):
                self._taught.add(task["id"])
            time.sleep(1.0)
            if number in JUDGED:
                self._wait()
                seen.append((number, self._judge()))
        return seen

    def _wait(self) -> None:
        """Until a version that learned from every submit has pre-labelled the open tasks, or none comes."""
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            version = self._version()
            if version.startswith("learned-") and int(version.split("-")[1]) >= len(self._taught):
                tasks = self._open_tasks()
                if all(any(one.model_version == version for one in task.predictions) for task in tasks):
                    return
            time.sleep(1.0)

    def _version(self) -> str:
        return str(self._studio.project(self._project)["model_version"])

    def _open_tasks(self) -> list[Task]:
        return [task for task in self._studio.tasks(self._project) if not task.annotations]

    def _judge(self) -> Seen:
        tasks, version = self._open_tasks(), self._version()
        right = found = toys = wrong = 0
        for task in tasks:
            shown, answers = _prelabels(task, version)
            label, answer = SUBJECTS[_subject_of(task)]
            subjects = {one.label for one in shown} & EVERY_LABEL | answers
            right += bool(subjects) and subjects <= {label, answer}
            if self._interface == "subjects":
                continue
            truth = self._toys(task)
            names = {toy.label for toy in truth}
            hits = [any(_same(toy, one) for one in shown) for toy in truth]
            toys, found = toys + len(truth), found + sum(hits)
            wrong += sum(one.label in names and not any(_same(toy, one) for toy in truth) for one in shown)
        return Seen(version, len(tasks), right, toys, found, wrong)

    def _toys(self, task: Task) -> list[Drawn]:
        width, height = self._size(task)
        found = []
        for toy in toys_on(_name_of(task), (width, height)):
            points = toy.outline
            if self._interface == "boxes":
                left, top, right, bottom = toy.box
                points = ((left, top), (right, top), (right, bottom), (left, bottom))
            found.append(Drawn(toy.label, [[100 * x / width, 100 * y / height] for x, y in points]))
        return found

    def _size(self, task: Task) -> tuple[int, int]:
        with Image.open(self._photos / _name_of(task)) as image:
            return image.size

    def _annotation(self, task: Task) -> list[dict[str, Any]]:
        """What an annotator submits: the pre-labels that show the subject, and the toys; or an answer."""
        label, answer = SUBJECTS[_subject_of(task)]
        if self._interface == "subjects":
            value = {"choices": [answer]}
            return [{"id": "answer", "from_name": "subject", "to_name": "image", "type": "choices", "value": value}]
        kept = [
            result.raw
            for prediction in task.predictions[-1:]
            for result in prediction.results
            if result.value.get(result.type) == [label]
        ]
        width, height = self._size(task)
        size = {"original_width": width, "original_height": height, "image_rotation": 0, "to_name": "image"}
        drawn = [_value(toy, outline=self._interface == "outlines") for toy in self._toys(task)]
        toys = [
            {"id": f"toy{number}", "from_name": "objects", "type": kind, "value": value, **size}
            for number, (kind, value) in enumerate(drawn)
        ]
        return [*kept, *toys]


def _value(toy: Drawn, *, outline: bool) -> tuple[str, dict[str, Any]]:
    """Type and value of a result."""
    if outline:
        return "polygonlabels", {"points": toy.outline, "closed": True, "polygonlabels": [toy.label]}
    (x, y), (right, bottom) = toy.outline[0], toy.outline[2]
    value = {"x": x, "y": y, "width": right - x, "height": bottom - y, "rotation": 0, "rectanglelabels": [toy.label]}
    return "rectanglelabels", value


def _prelabels(task: Task, version: str) -> tuple[list[Drawn], set[str]]:
    """The regions, and the answers, of a task's newest pre-label of this version, else of its newest."""
    predictions = [one for one in task.predictions if one.model_version == version] or task.predictions
    shown, answers = [], set()
    for result in predictions[-1].results if predictions else ():
        value = result.value
        if result.type == "choices":
            answers.update(value["choices"])
        elif "points" in value:
            shown.append(Drawn(value[result.type][0], value["points"]))
        elif "width" in value:
            left, top = value["x"], value["y"]
            right, bottom = left + value["width"], top + value["height"]
            box = [[left, top], [right, top], [right, bottom], [left, bottom]]
            shown.append(Drawn(value[result.type][0], box))
    return shown, answers


def _same(truth: Drawn, shown: Drawn) -> bool:
    if truth.label != shown.label:
        return False
    one, other = (_mask(drawn.outline) for drawn in (truth, shown))
    return bool((one & other).sum() >= GOOD_IOU * (one | other).sum())


def _mask(outline: Points) -> np.ndarray:
    """Drawn on a square of 500 pixels."""
    mask = np.zeros((500, 500), np.uint8)
    cv2.fillPoly(mask, [np.round(5 * np.asarray(outline)).astype(np.int32)], 1)
    return mask


def _name_of(task: Task) -> str:
    """The file of a task: uploads are called `<hash>-<file>`."""
    return str(task.data["image"]).rpartition("/")[2].partition("-")[2]


def _subject_of(task: Task) -> str:
    return _name_of(task).rpartition("-")[0]
