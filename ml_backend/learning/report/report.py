"""The learning report of a project: runs, edits, quality by class and next tasks, from the database."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

import msgspec
import sqlalchemy as sa

from ml_backend.learning.annotations import count_labelled, is_held_out
from ml_backend.learning.report.prelabel_edits import PrelabelEdits, edits_by_class, merged_by_class
from ml_backend.learning.store.annotations import AnnotatedTask, TrainingDataStore
from ml_backend.learning.store.label_errors import LabelErrorNote, LabelErrorStore
from ml_backend.learning.store.runs import FINETUNED, RunStore, TrainingRun
from ml_backend.learning.store.tasks import QueuedTask, TaskVectorStore
from ml_backend.learning.store.train_jobs import TrainJob, TrainJobStore
from ml_backend.learning.task_order import HEAD, REST_FROM, STEP
from ml_backend.learning.train_schedule import state_in_words
from ml_backend.policy import LearningPolicy

# Most runs in a report, newest first.
MAX_RUNS = 2000

# Most next tasks in a report.
MAX_NEXT = 12

# Most label error notes in a report.
MAX_NOTES = 10

# Most fine-tunings in a report.
MAX_TRAININGS = 5

# Most tasks whose edits the web page counts, evenly sampled over time, to keep the page fast.
MAX_EDITED = 600

# Tasks at either end that `first` and `lately` cover; half of all if there are fewer.
RECENT = 20


class TaskEdits(msgspec.Struct, frozen=True, kw_only=True):
    """An annotator's edits on one task.

    Attributes:
        task: The task id.
        place: Position in order of annotation, from 1.
        drawn_at: Time of annotation, seconds since 1970; None if unknown.
        version: Model version of the pre-label; empty without one.
        prelabelled: Whether the annotator started from a pre-label.
        lead_time: Annotation time in seconds, as measured by Label Studio.
        edits: Number of edits.
        by_class: Number of edits by class.
    """

    task: int
    place: int
    drawn_at: float | None
    version: str
    prelabelled: bool
    lead_time: float | None
    edits: PrelabelEdits
    by_class: Mapping[str, PrelabelEdits]


class ClassQuality(msgspec.Struct, frozen=True, kw_only=True):
    """Quality of one class.

    Attributes:
        name: The class.
        boxes: Labelled boxes.
        ap50: AP50 of the served version, if its run measured it by class.
        before: AP50 of the version it replaced.
        edits: Edits of its pre-labels in the recent tasks.
        threshold: Lowest score of its pre-labels; None: the default of the settings.
    """

    name: str
    boxes: int
    ap50: float | None
    before: float | None
    edits: PrelabelEdits
    threshold: float | None = None


class Next(msgspec.Struct, frozen=True, kw_only=True):
    """A task near the head of the queue, and the reason for its rank."""

    task: int
    score: float
    why: str


class LearningReport(msgspec.Struct, frozen=True, kw_only=True):
    """The learning report of a project; its fields are the keys of the JSON report.

    Attributes:
        project: The project id.
        made_at: Time of the report, seconds since 1970.
        served: The served version.
        counts: Number of tasks by state; see the table `learn_tasks`.
        runs: Training runs, oldest first.
        tasks: Edits of the annotated tasks, in order of annotation; sampled if a maximum was given.
        drawn: Number of annotated tasks.
        several: Number of them with several annotators: what these agree on is compared with the pre-label.
        first: Edits of the first pre-labelled tasks, and the number of these tasks.
        lately: Edits of the last pre-labelled tasks, and the number of these tasks.
        classes: Quality by class, most labelled first.
        next: Next tasks, in the order they are served.
        waiting: Number of open tasks ranked by the served version.
        course: Next steps, in sentences.
        doubts: Label error notes, most confident first.
        doubted: Number of tasks with a note.
        withheld: Label issues that are not raised and why, in words; empty without any.
        finetuning: What fine-tuning does now, in words, with the fix where it cannot go on.
        trainings: The last fine-tunings, newest first.
    """

    project: int
    made_at: float
    served: str
    counts: Mapping[str, int]
    runs: Sequence[TrainingRun]
    tasks: Sequence[TaskEdits]
    drawn: int
    several: int
    first: tuple[PrelabelEdits, int]
    lately: tuple[PrelabelEdits, int]
    classes: Sequence[ClassQuality]
    next: Sequence[Next]
    waiting: int
    course: Sequence[str]
    doubts: Sequence[LabelErrorNote] = ()
    doubted: int = 0
    withheld: str = ""
    finetuning: str = ""
    trainings: Sequence[TrainJob] = ()


def make_report(
    project: int,
    *,
    engine: sa.Engine,
    policy: LearningPolicy,
    served: str,
    clock: Callable[[], float],
    most: int | None = None,
    unlearned: str = "",
) -> LearningReport:
    """Return the report of a project, from the database alone.

    Args:
        project: The project id.
        engine: The migrated database.
        policy: The project's learning policy.
        served: The version served to it.
        clock: Returns seconds since 1970.
        most: Most tasks whose edits are counted, evenly sampled over time; None: all.
        unlearned: Why no version can be trained; empty if one can.
    """
    training_data = TrainingDataStore(engine)
    runs = list(reversed(RunStore(engine).last(project, MAX_RUNS)))
    annotated = training_data.annotated_tasks(project)
    tasks = [_task_edits(annotated[index], index + 1) for index in sampled_positions(len(annotated), most)]
    prelabelled = [task for task in tasks if task.prelabelled]
    span = min(RECENT, (len(prelabelled) + 1) // 2)
    lately = prelabelled[len(prelabelled) - span :]
    box_counts = _box_counts(annotated)
    counts = training_data.counts(project)
    open_now = TaskVectorStore(engine).queued(project, served, limit=MAX_NEXT)
    doubts = LabelErrorStore(engine).all(project)
    store = TrainJobStore(engine)
    trainings = [msgspec.structs.replace(job, token="") for job in store.last(project, MAX_TRAININGS)]
    labelled = counts.get("teaches", 0) + counts.get("held_out", 0)
    return LearningReport(
        project=project,
        made_at=clock(),
        served=served,
        counts=counts,
        runs=runs,
        tasks=tasks,
        drawn=len(annotated),
        several=sum(task.annotator is None for task in annotated),
        first=(_sum(prelabelled[:span]), span),
        lately=(_sum(lately), span),
        classes=_classes(runs, served, box_counts, lately),
        next=[Next(task=task.task, score=task.score, why=_why(task, project, policy)) for task in open_now],
        waiting=TaskVectorStore(engine).count_queued(project, served),
        course=[unlearned]
        if unlearned
        else _next_steps(
            policy,
            counts | {"teaches": count_labelled(training_data.training_tasks(project, "teaches"))},
            runs,
            box_counts,
            open_now,
        ),
        doubts=doubts[:MAX_NOTES],
        doubted=len(doubts),
        finetuning=state_in_words(
            policy.train,
            next(iter(trainings), None),
            labelled=labelled,
            known=store.trainers(),
            now=store.now(),
        )
        if policy.learn
        else "",
        trainings=trainings,
        withheld=(state.withheld if (state := training_data.project(project)) is not None else None) or "",
    )


def moment(text: str) -> float | None:
    """Parse an ISO 8601 time to seconds since 1970; None if it is invalid."""
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()


def sampled_positions(count: int, most: int | None) -> list[int]:
    """Return at most `most` evenly spaced positions, including the first and last `RECENT` ones."""
    if most is None or count <= most:
        return list(range(count))
    between = range(RECENT, count - RECENT)
    step = len(between) / max(most - 2 * RECENT, 1)
    inner = sorted({between[int(number * step)] for number in range(max(most - 2 * RECENT, 0))})
    return [*range(RECENT), *inner, *range(count - RECENT, count)]


def _task_edits(task: AnnotatedTask, position: int) -> TaskEdits:
    by_class = edits_by_class(task.prelabels or (), task.photos)
    return TaskEdits(
        task=task.task, place=position, drawn_at=moment(task.drawn_at), version=task.prelabel_version,
        prelabelled=task.prelabels is not None, lead_time=task.lead_time, edits=sum(by_class.values(), PrelabelEdits()),
        by_class=by_class,
    )  # fmt: skip


def _sum(tasks: Sequence[TaskEdits]) -> PrelabelEdits:
    return sum((task.edits for task in tasks), PrelabelEdits())


def _box_counts(tasks: Sequence[AnnotatedTask]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for label in (label for task in tasks for photo in task.photos for label in photo.labels):
        counts[label] = counts.get(label, 0) + 1
    return counts


def _classes(
    runs: Sequence[TrainingRun], served: str, drawn: Mapping[str, int], lately: Sequence[TaskEdits]
) -> list[ClassQuality]:
    run_of_served = [run for run in runs if run.version == served and run.verdict in {"published", "admitted"}]
    metrics = run_of_served[-1].metrics if run_of_served else None
    after, before = (metrics.by_class, metrics.parent_by_class) if metrics else ({}, {})
    edits = merged_by_class(task.by_class for task in lately)
    names = sorted(drawn.keys() | edits.keys(), key=lambda name: (-drawn.get(name, 0), name))
    return [
        ClassQuality(
            name=name, boxes=drawn.get(name, 0), ap50=after.get(name), before=before.get(name),
            edits=edits.get(name, PrelabelEdits()), threshold=metrics.thresholds.get(name) if metrics else None,
        )
        for name in names
    ]  # fmt: skip


def _why(task: QueuedTask, project: int, policy: LearningPolicy) -> str:
    """Return the reason for a task's rank; see `task_order` for the scores."""
    if task.score < REST_FROM and is_held_out(project, task.task, policy.held_out):
        return "held out for evaluation"
    if task.score < HEAD * STEP:
        if task.uncertainty is None:
            return "no detections: such images get a fifth of the ranks, to reveal missed objects"
        return f"expected gain {task.uncertainty:.2g}; no near-duplicate labelled"
    if task.uncertainty is None:
        return "no detections"
    return f"expected gain {task.uncertainty:.2g}"


def _next_steps(
    policy: LearningPolicy,
    counts: Mapping[str, int],
    runs: Sequence[TrainingRun],
    drawn: Mapping[str, int],
    waiting: Sequence[QueuedTask],
) -> list[str]:
    """Return the next steps, in sentences."""
    if not policy.learn:
        return ["Learning is off for this project (`learn = false` in learn.toml)."]
    lines = []
    teaches, held = counts.get("teaches", 0), counts.get("held_out", 0)
    if teaches < policy.first:
        lines.append(f"Training starts with {policy.first} labelled tasks; {teaches} so far.")
    else:
        lines.append("Training runs again after the next submitted, changed or deleted annotation.")
    refits = [run for run in runs if run.source != FINETUNED]
    if refits and refits[-1].judged_by != "held-out":
        lines.append(
            f"Versions are evaluated on held-out tasks once 5 of them with 10 boxes are labelled (so far: {held}), and"
            " by cross-validation until then."
        )
    if len(drawn) > 1:
        rare = sorted(drawn, key=lambda name: (drawn[name], name))[: max(1, len(drawn) // 3)]
        names = ", ".join(f"{name} ({drawn[name]})" for name in rare[:4])
        lines.append(f"Images likely to show rare classes come first: {names}.")
    if not policy.queue:
        lines.append("Tasks keep the project's own order (`queue = false` in learn.toml).")
    elif not waiting:
        lines.append(
            "No open task is ranked by the served version yet; until then tasks are a random sample of the images."
            if teaches or not runs
            else "No open task is left."
        )
    return lines
