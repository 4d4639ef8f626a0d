"""Owns telling the model's second opinion on tasks: the keys `qc_model_note` and `qc_model_score` of their data.

Heads that did not learn from a photo judge what was drawn on it (`training.label_errors`). Where they differ with
confidence, the task says so, for people and for quality control; where that no longer holds, the keys are taken back.
No other key of the data is touched, and a change of these keys teaches nothing, so nothing learns from its own remark.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import structlog

from labelloop.service.media import MediaError
from labelloop.service.studio import NotFound
from ml_backend.errors import ModelError
from ml_backend.learning.annotations import TRUTH, task_checksum
from ml_backend.learning.context import LearningContext
from ml_backend.learning.evaluation.evaluator import known_classes
from ml_backend.learning.store.annotations import AnnotatedTask
from ml_backend.learning.store.label_errors import Opinion
from ml_backend.learning.training_set import MOST_PHOTOS
from ml_backend.policy import read_learning_policy
from ml_backend.training.examples import Example
from ml_backend.training.label_errors import LabelIssue, second_opinions

KEYS = ("qc_model_note", "qc_model_score")

CALM_S = 20.0
"""Since the last run, before what was drawn is judged: that takes a core for a while, and an annotator goes first."""

LATEST_S = 300.0
"""Where it never gets calm, it is judged after so long all the same."""

MODEST = 15
"""How far it steps back behind a fit for the processor's time ("nice")."""

LEAST_PHOTOS = 10
"""Labelled photos from which the model has an opinion: heads learned from fewer differ from everybody."""

MOST_SAID = 5
"""Remarks in a note; more are counted."""

log = structlog.get_logger(__name__)

Stop = Callable[[], bool]
Done = TypeVar("Done")
Remarked = tuple[int, LabelIssue]
"""(which photo of its task, from 0; a remark)."""

SAYINGS: Mapping[str, str] = {
    "missing": "perhaps a {label} is missing {place}",
    "class": "{drawn} {place} looks like {label}",
    "spurious": "the model sees no {drawn} {place}",
    "loose": "{drawn} is loose: the model would draw it {place}",
}
"""Each kind of remark in words; `place` is in pixels of the photo."""


@dataclass(frozen=True)
class Opined:
    """What was done: tasks with an opinion, how many of them are new or changed, and how many were taken back."""

    told: int = 0
    changed: int = 0
    taken_back: int = 0
    stopped: bool = False


def in_background(work: Callable[[], Done]) -> Done:
    """Does work in a thread that gives way to others where the system can tell threads apart.

    Raises:
        Whatever the work raises.
    """

    def modestly() -> Done:
        with contextlib.suppress(OSError, AttributeError):  # a thread cannot take that back: hence one of its own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), MODEST)
        return work()

    with ThreadPoolExecutor(1, thread_name_prefix="opinion") as pool:
        return pool.submit(modestly).result()


def opine(kit: LearningContext, project: int, *, stop: Stop) -> Opined | None:
    """Judges what was drawn in a project, and tells it on the tasks.

    Args:
        kit: What learning works with.
        project: The project.
        stop: Asked between photos; True where something newer is coming: nothing is told then.

    Returns:
        None where the project does not learn, or its model cannot be learned on.

    Raises:
        StudioError, StoreError: Label Studio or the store cannot be asked.
    """
    policy = read_learning_policy(kit.settings.home, project)
    if not policy.learn:
        return None
    found: dict[int, Opinion] = {}
    seen: dict[int, str] = {}
    judged: set[int] = set()
    if policy.opinion < 1:
        lessons = kit.lessons.worked(project)
        seen = {one.task: one.seen for one in lessons if one.reason != TRUTH}
        try:
            remarks = _remarks(kit, project, lessons, stop)
        except ModelError as error:
            log.info("no_second_opinion", project=project, reason=str(error))
            return None
        if remarks is None:
            return Opined(stopped=True)
        judged = remarks.keys() & seen.keys()
        drawn = {one.task: [photo.labels for photo in one.photos] for one in lessons}
        said = (opinion_of(task, remarks[task], drawn[task], least=policy.opinion) for task in judged)
        found = {one.task: one for one in said if one is not None}
    done = _Teller(kit, project, seen).tell(found, judged=judged)
    log.info("second_opinion", project=project, told=done.told, changed=done.changed, taken_back=done.taken_back)
    return done


def opinion_of(
    task: int, remarks: Sequence[Remarked], drawn: Sequence[Sequence[str]], *, least: float
) -> Opinion | None:
    """What a task is told, surest first; None where the model is nowhere sure enough.

    Args:
        task: Its number.
        remarks: Of all its photos.
        drawn: Class of each drawn box, by photo.
        least: Confidence from which on a remark counts.
    """
    sure = sorted((one for one in remarks if one[1].confidence >= least), key=lambda one: -one[1].confidence)
    if not sure:
        return None
    said = [_said(photo, one, drawn, several=len(drawn) > 1) for photo, one in sure[:MOST_SAID]]
    more = f", and {len(sure) - MOST_SAID} more" if len(sure) > MOST_SAID else ""
    note = "; ".join(said)
    return Opinion(task, f"{note[0].upper()}{note[1:]}{more}.", round(sure[0][1].confidence, 2))


def _said(photo: int, one: LabelIssue, drawn: Sequence[Sequence[str]], *, several: bool) -> str:
    left, top, right, bottom = one.box
    place = f"at {left:.0f}, {top:.0f} ({right - left:.0f} x {bottom - top:.0f} px)"
    mine = drawn[photo][one.drawn] if one.drawn is not None else one.label
    where = f" on photo {photo + 1}" if several else ""
    said = SAYINGS[one.kind].format(label=one.label, drawn=mine, place=place + where)
    return f"{said} [{100 * one.confidence:.0f} %]"


def _remarks(
    kit: LearningContext, project: int, lessons: Sequence[AnnotatedTask], stop: Stop
) -> dict[int, list[Remarked]] | None:
    """The remarks on each task that was judged, the newest of all; None where it was told to stop."""
    config = kit.studio.label_config(project)
    backbone = kit.bases.backbone(kit.bases.served(project))
    newest = [(one.task, *each) for one in reversed(lessons) for each in enumerate(one.photos) if each[1].complete]
    examples: list[Example] = []
    places: list[tuple[int, int]] = []
    for task, number, photo in newest[:MOST_PHOTOS]:
        if stop():
            return None
        try:
            examples.append(kit.album.example(backbone, photo, task=task))
            places.append((task, number))
        except MediaError as error:
            log.warning("photo_not_judged", project=project, task=task, reason=str(error))
    if sum(bool(one.labels) for one in examples) < LEAST_PHOTOS:
        return {}
    found: dict[int, list[Remarked]] = {}
    known = known_classes(config, backbone.names, {label for one in examples for label in one.labels})
    for index, remarks in second_opinions(examples, levels=backbone.levels, known=known):
        if stop():
            return None
        task, number = places[index]
        found.setdefault(task, []).extend((number, remark) for remark in remarks)
    return found


class _Teller:
    """Makes the keys on tasks what they are to be."""

    def __init__(self, kit: LearningContext, project: int, seen: Mapping[int, str]) -> None:
        self._kit, self._project, self._seen = kit, project, seen
        learner = kit.lessons.project(project)
        self._sign = learner.config if learner is not None else ""

    def tell(self, wanted: Mapping[int, Opinion], *, judged: AbstractSet[int]) -> Opined:
        """Writes what is new or changed, and takes back what no longer holds.

        Args:
            wanted: What tasks are to say.
            judged: Tasks that were judged; what others were told stays, as long as they are lessons.
        """
        there = {one.task: one for one in self._kit.opinions.all(self._project)}
        changed = [one for task, one in wanted.items() if there.get(task) != one and self._write(one)]
        over = [task for task in there if task not in wanted and (task in judged or task not in self._seen)]
        for task in over:
            self._take_back(task)
        return Opined(len(wanted), len(changed), len(over))

    def _write(self, one: Opinion) -> bool:
        task = self._kit.studio.task(self._project, one.task)
        if task is None or task_checksum(task, self._sign) != self._seen[one.task]:
            return False  # it changed meanwhile: an event tells so, and it will be judged again
        keys = {"qc_model_note": one.note, "qc_model_score": one.score}
        # First a row that equals nothing: a worker that is ended now leaves no key that nobody would take back.
        self._kit.opinions.keep(self._project, Opinion(one.task, "", 0.0))
        if {key: task.data.get(key) for key in KEYS} != keys:
            self._kit.studio.update_task(one.task, data={**task.data, **keys})
        self._kit.opinions.keep(self._project, one)
        return True

    def _take_back(self, number: int) -> None:
        task = self._kit.studio.task(self._project, number)
        if task is not None and any(key in task.data for key in KEYS):
            try:
                data = {key: value for key, value in task.data.items() if key not in KEYS}
                self._kit.studio.update_task(number, data=data)
            except NotFound:
                log.info("task_gone", project=self._project, task=number)
        self._kit.opinions.drop(self._project, number)
