"""Find label errors and note them on tasks: the keys `qc_model_note` and `qc_model_score` of the task data.

Heads that were not trained on an image review its annotation (`training.label_errors`). Confident differences are
noted on the task for reviewers and quality control, and removed when they no longer hold. No other key of the data is
changed, and these keys do not affect training data.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import structlog

from labelloop.labeling.studio.config import LabelConfig
from labelloop.service.media import MediaError
from labelloop.service.studio import StudioNotFound
from ml_backend.errors import ModelError
from ml_backend.heads.answers import AnsweredExamples, LearnedControl, WrongAnswer, find_wrong_answers, questions
from ml_backend.heads.base import HeadExample, Pixels
from ml_backend.heads.image_labels import answered_images
from ml_backend.heads.region_labels import answered_regions
from ml_backend.learning.annotations import GROUND_TRUTH, LabelledImage, task_checksum
from ml_backend.learning.context import LearningContext
from ml_backend.learning.evaluator import known_classes
from ml_backend.learning.features import boxes_on_image
from ml_backend.learning.store.annotations import AnnotatedTask
from ml_backend.learning.store.label_errors import LabelErrorNote
from ml_backend.learning.training_set import MAX_IMAGES
from ml_backend.policy import read_learning_policy
from ml_backend.training.backbone import FrozenBackbone
from ml_backend.training.examples import Example
from ml_backend.training.label_errors import Kind, LabelCheck, LabelIssue, cross_validated_issues, rate_issues
from ml_backend.training.region_features import region_embeddings

KEYS = ("qc_model_note", "qc_model_score")

# Seconds after the last training run before labels are reviewed: the review takes a core, and annotators go first.
QUIET_S = 20.0

# Longest delay in seconds of a review while training runs keep coming.
MAX_DELAY_S = 300.0

# Niceness of the review thread, so that training takes precedence.
NICENESS = 15

# Labelled images that a review needs: heads trained on fewer disagree with most labels.
MIN_IMAGES = 10

# Images whose answers are reviewed at most, and the lowest confidence of a remark on one.
MAX_ANSWERED, MIN_CONFIDENCE = 600, 0.02

# Most remarks in a note; further ones are counted.
MAX_REMARKS = 5

log = structlog.get_logger(__name__)

Stop = Callable[[], bool]
Done = TypeVar("Done")
# (index of the image in its task, label issue of a box or of an answer).
Remark = tuple[int, LabelIssue | WrongAnswer]

# Sentence of each kind of label issue; `place` is in pixels of the image.
SENTENCES: Mapping[str, str] = {
    "missing": "perhaps a {label} is missing {place}",
    "class": "{drawn} {place} looks like {label}",
    "spurious": "the model sees no {drawn} {place}",
    "loose": "{drawn} is loose: the model would draw it {place}",
}


# Sentence about an answer, by whether a given value is wrong and whether another one fits better.
ANSWER_SENTENCES: Mapping[tuple[bool, bool], str] = {
    (True, True): "{control} is perhaps {suggested}, not {given}",
    (True, False): "{given} is perhaps wrong in {control}",
    (False, True): "perhaps {suggested} is missing in {control}",
}


@dataclass(frozen=True)
class LabelErrorUpdate:
    """Result of a review: tasks with a note, new or changed notes, and removed notes."""

    noted: int = 0
    changed: int = 0
    removed: int = 0
    stopped: bool = False


def run_at_low_priority(work: Callable[[], Done]) -> Done:
    """Run `work` in a thread of low scheduling priority, where the system supports it per thread.

    Returns:
        The result of `work`; its exceptions propagate.
    """

    def run() -> Done:
        with contextlib.suppress(
            OSError, AttributeError
        ):  # a thread cannot raise its priority again, so it takes a new one
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        return work()

    with ThreadPoolExecutor(1, thread_name_prefix="opinion") as pool:
        return pool.submit(run).result()


def review_labels(context: LearningContext, project: int, *, stop: Stop) -> LabelErrorUpdate | None:
    """Review the labels of a project and update the notes on its tasks.

    Args:
        context: Dependencies of learning.
        project: The project.
        stop: Called between images; True ends the review without changing notes.

    Returns:
        None if the project does not learn or its model cannot be trained.

    Raises:
        StudioError, StoreError: Label Studio or the store cannot be reached.
    """
    policy = read_learning_policy(context.settings.home, project)
    if not policy.learn:
        return None
    notes: dict[int, LabelErrorNote] = {}
    checksums: dict[int, str] = {}
    reviewed: set[int] = set()
    if policy.opinion < 1:
        tasks = context.training_data.annotated_tasks(project)
        checksums = {task.task: task.checksum for task in tasks if task.reason != GROUND_TRUTH}
        try:
            remarks = _remarks(context, project, tasks, stop, least=policy.opinion)
        except ModelError as error:
            log.info("no_second_opinion", project=project, reason=str(error))
            return None
        if remarks is None:
            return LabelErrorUpdate(stopped=True)
        reviewed = remarks.keys() & checksums.keys()
        drawn = {task.task: [photo.labels for photo in task.photos] for task in tasks}
        candidates = (note_of(task, remarks[task], drawn[task], least=policy.opinion) for task in reviewed)
        notes = {note.task: note for note in candidates if note is not None}
    done = _NoteWriter(context, project, checksums).update(notes, reviewed=reviewed)
    log.info("second_opinion", project=project, told=done.noted, changed=done.changed, taken_back=done.removed)
    return done


def note_of(
    task: int, remarks: Sequence[Remark], drawn: Sequence[Sequence[str]], *, least: float
) -> LabelErrorNote | None:
    """Return the note of a task, most confident remark first; None if no remark is confident enough.

    Args:
        task: The task id.
        remarks: Remarks on all its images.
        drawn: Class of each labelled box, by image.
        least: Lowest confidence of a remark, 0 to 1.
    """
    sure = sorted(
        (remark for remark in remarks if remark[1].confidence >= least), key=lambda remark: -remark[1].confidence
    )
    if not sure:
        return None
    sentences = [_sentence(photo, remark, drawn, several=len(drawn) > 1) for photo, remark in sure[:MAX_REMARKS]]
    more = f", and {len(sure) - MAX_REMARKS} more" if len(sure) > MAX_REMARKS else ""
    note = "; ".join(sentences)
    return LabelErrorNote(task, f"{note[0].upper()}{note[1:]}{more}.", round(sure[0][1].confidence, 2))


def _sentence(photo: int, issue: LabelIssue | WrongAnswer, drawn: Sequence[Sequence[str]], *, several: bool) -> str:
    where = f" on photo {photo + 1}" if several else ""
    if isinstance(issue, WrongAnswer):
        form = ANSWER_SENTENCES[bool(issue.given), bool(issue.suggested)]
        sentence = form.format(control=issue.control, given=issue.given, suggested=issue.suggested)
        place = f" for the object {_location(issue.box)}" if issue.box is not None else ""
        return f"{sentence}{place}{where} [{100 * issue.confidence:.0f} %]"
    location = _location(issue.box)
    drawn_label = drawn[photo][issue.drawn] if issue.drawn is not None else issue.label
    sentence = SENTENCES[issue.kind].format(label=issue.label, drawn=drawn_label, place=location + where)
    return f"{sentence} [{100 * issue.confidence:.0f} %]"


def _location(box: tuple[float, float, float, float]) -> str:
    left, top, right, bottom = box
    return f"at {left:.0f}, {top:.0f} ({right - left:.0f} x {bottom - top:.0f} px)"


def _remarks(
    context: LearningContext, project: int, tasks: Sequence[AnnotatedTask], stop: Stop, *, least: float
) -> dict[int, list[Remark]] | None:
    """Return the remarks on each reviewed task, newest tasks only; None if stopped."""
    config = context.studio.label_config(project)
    backbone = context.base_models.backbone(context.base_models.served(project))
    newest = [
        (annotated.task, *indexed)
        for annotated in reversed(tasks)
        for indexed in enumerate(annotated.photos)
        if indexed[1].complete
    ]
    kinds: list[Callable[[], dict[int, list[Remark]] | None]] = [
        lambda: _answer_remarks(context, project, backbone, config, newest, kind=IMAGE_ANSWERS, stop=stop),
    ]
    if backbone.levels:
        kinds += [
            lambda: _answer_remarks(context, project, backbone, config, newest, kind=OBJECT_ANSWERS, stop=stop),
            lambda: _box_remarks(context, project, backbone, config, newest, stop=stop, least=least),
        ]
    remarks: dict[int, list[Remark]] = {}
    for kind in kinds:
        found = kind()
        if found is None:
            return None
        for task, issues in found.items():
            remarks.setdefault(task, []).extend(issues)
    return remarks


@dataclass(frozen=True)
class _AnswerKind:
    """Answers about whole images, or about objects on them.

    Attributes:
        per_region: Whether they are about objects.
        choices: The answers of an image: one mapping of controls for the image, or one for each object.
        example: Makes the example of an image from the context, the backbone, the task, its number and the image.
        table: The examples that answer a question.
    """

    per_region: bool
    choices: Callable[[LabelledImage | HeadExample], Sequence[Mapping[str, tuple[str, ...]]]]
    example: Callable[[LearningContext, FrozenBackbone, int, int, LabelledImage], HeadExample]
    table: Callable[[LearnedControl, Sequence[HeadExample]], AnsweredExamples]


def _whole_image(
    context: LearningContext, backbone: FrozenBackbone, task: int, number: int, image: LabelledImage
) -> HeadExample:
    features, width, height = context.features.image_features(backbone, image.url, task=task)
    nothing = np.zeros((0, 4), np.float32)
    return HeadExample(
        number, image.url, width, height, nothing, (), nothing, features, _no_pixels, choices=image.choices
    )


def _objects(
    context: LearningContext, backbone: FrozenBackbone, task: int, number: int, image: LabelledImage
) -> HeadExample:
    features = context.features.features(backbone, image.url, task=task)
    width, height = features.fit.width, features.fit.height
    boxes = boxes_on_image(image, width, height)
    return HeadExample(
        number, image.url, width, height, boxes, image.labels, region_embeddings(features, boxes), None, _no_pixels,
        region_choices=image.region_choices,
    )  # fmt: skip


def _answered_objects(question: LearnedControl, examples: Sequence[HeadExample]) -> AnsweredExamples:
    return answered_regions(question, examples, tuple(sorted({label for one in examples for label in one.labels})))


IMAGE_ANSWERS = _AnswerKind(False, lambda one: (one.choices,) if one.choices else (), _whole_image, answered_images)
OBJECT_ANSWERS = _AnswerKind(True, lambda one: one.region_choices, _objects, _answered_objects)


def _answer_remarks(
    context: LearningContext,
    project: int,
    backbone: FrozenBackbone,
    config: LabelConfig,
    images: Sequence[tuple[int, int, LabelledImage]],
    *,
    kind: _AnswerKind,
    stop: Stop,
) -> dict[int, list[Remark]] | None:
    """Return the remarks on answers of a kind, of images given as (task, index in it, image); None if stopped."""
    controls = questions(config, per_region=kind.per_region)
    answered = [entry for entry in images if kind.choices(entry[2])][:MAX_ANSWERED] if controls else []
    if sum(len(kind.choices(image)) for _, _, image in answered) < MIN_IMAGES:
        return {}
    examples: list[HeadExample] = []
    places: list[tuple[int, int]] = []
    for task, number, image in reversed(answered):
        if stop():
            return None
        try:
            # Each example is a task of its own: its number leads back to its place.
            examples.append(kind.example(context, backbone, task, len(places), image))
        except MediaError as error:
            log.warning("photo_not_judged", project=project, task=task, reason=str(error))
            continue
        places.append((task, number))
    remarks: dict[int, list[Remark]] = {task: [] for task, _ in places}
    for control in controls:
        answers = [
            choices[control.name] for one in examples for choices in kind.choices(one) if control.name in choices
        ]
        if stop():
            return None
        if len(answers) < MIN_IMAGES:
            continue
        question = LearnedControl.of(control, answers)
        table = kind.table(question, examples)
        for issue in find_wrong_answers(question, table, least=MIN_CONFIDENCE):
            index = table.tasks[issue.example]
            task, number = places[index]
            box = examples[index].boxes[table.regions[issue.example]].tolist() if kind.per_region else None
            remarks[task].append((number, replace(issue, box=tuple(box)) if box else issue))
    return remarks


def _no_pixels() -> Pixels:
    return np.zeros((0, 0, 3), np.uint8)


def _box_remarks(
    context: LearningContext,
    project: int,
    backbone: FrozenBackbone,
    config: LabelConfig,
    newest: Sequence[tuple[int, int, LabelledImage]],
    *,
    stop: Stop,
    least: float,
) -> dict[int, list[Remark]] | None:
    """Return the remarks on boxes of images, given as (task, index in it, image); None if stopped."""
    examples: list[Example] = []
    places: list[tuple[int, int]] = []
    for task, number, photo in newest[:MAX_IMAGES]:
        if stop():
            return None
        try:
            examples.append(context.features.example(backbone, photo, task=task))
            places.append((task, number))
        except MediaError as error:
            log.warning("photo_not_judged", project=project, task=task, reason=str(error))
    if sum(bool(example.labels) for example in examples) < MIN_IMAGES:
        return {}
    remarks_by_task: dict[int, list[Remark]] = {}
    classes = known_classes(config, backbone.names, {label for example in examples for label in example.labels})
    checks: dict[int, LabelCheck] = {}
    for index, check in cross_validated_issues(examples, levels=backbone.levels, backbone_classes=classes):
        if stop():
            return None
        checks[index] = check
    rated, withheld = rate_issues(list(checks.values()), least=least)
    sentence = withheld_sentence(withheld)
    context.training_data.update_project(project, withheld=sentence)
    if sentence:
        log.info("label_issues_withheld", project=project, reason=sentence)
    for index, issues in zip(checks, rated, strict=True):
        task, number = places[index]
        remarks_by_task.setdefault(task, []).extend((number, issue) for issue in issues)
    return remarks_by_task


def withheld_sentence(withheld: Mapping[tuple[Kind, str], int]) -> str:
    """Which label issues are not raised and why; empty without any."""
    if not withheld:
        return ""
    most = sorted(withheld.items(), key=lambda item: (-item[1], item[0]))
    named = ", ".join(f"{kind} {label} ({count})" for (kind, label), count in most[:MAX_REMARKS])
    more = f" and {len(most) - MAX_REMARKS} more" if len(most) > MAX_REMARKS else ""
    return f"Label issues that are not raised, because the model errs more often than annotators: {named}{more}."


class _NoteWriter:
    """Updates the notes on tasks."""

    def __init__(self, context: LearningContext, project: int, checksums: Mapping[int, str]) -> None:
        self._context, self._project, self._checksums = context, project, checksums
        state = context.training_data.project(project)
        self._sign = state.config if state is not None else ""

    def update(self, wanted: Mapping[int, LabelErrorNote], *, reviewed: AbstractSet[int]) -> LabelErrorUpdate:
        """Write new and changed notes, and remove notes that no longer hold.

        Args:
            wanted: Note of each task.
            reviewed: Reviewed tasks; notes on other tasks are kept while they are training data.
        """
        stored = {note.task: note for note in self._context.label_errors.all(self._project)}
        changed = [note for task, note in wanted.items() if stored.get(task) != note and self._write(note)]
        stale = [task for task in stored if task not in wanted and (task in reviewed or task not in self._checksums)]
        for task in stale:
            self._remove(task)
        return LabelErrorUpdate(len(wanted), len(changed), len(stale))

    def _write(self, note: LabelErrorNote) -> bool:
        task = self._context.studio.task(self._project, note.task)
        if task is None or task_checksum(task, self._sign) != self._checksums[note.task]:
            return False  # it changed meanwhile; its event triggers another review
        keys = {"qc_model_note": note.note, "qc_model_score": note.score}
        # Store an empty note first: if the worker is killed now, the keys on the task are still removed later.
        self._context.label_errors.save(self._project, LabelErrorNote(note.task, "", 0.0))
        if {key: task.data.get(key) for key in KEYS} != keys:
            self._context.studio.update_task(note.task, data={**task.data, **keys})
        self._context.label_errors.save(self._project, note)
        return True

    def _remove(self, number: int) -> None:
        task = self._context.studio.task(self._project, number)
        if task is not None and any(key in task.data for key in KEYS):
            try:
                data = {key: value for key, value in task.data.items() if key not in KEYS}
                self._context.studio.update_task(number, data=data)
            except StudioNotFound:
                log.info("task_gone", project=self._project, task=number)
        self._context.label_errors.drop(self._project, number)
