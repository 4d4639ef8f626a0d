"""Owns the report of a project's learning: what the memory of runs and lessons says, as one value."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

import msgspec
import sqlalchemy as sa

from ml_backend.learning.annotations import is_held_out, with_boxes
from ml_backend.learning.report.prelabel_edits import Edits, edits_by_class, together
from ml_backend.learning.store.annotations import AnnotatedTask, TrainingDataStore
from ml_backend.learning.store.label_errors import Opinion, OpinionStore
from ml_backend.learning.store.runs import Run, Runs
from ml_backend.learning.store.tasks import PhotoVectorStore, Waiting
from ml_backend.learning.task_order import HEAD, REST_FROM, STEP
from ml_backend.policy import LearningPolicy

RUNS = 2000
"""Of the last runs that a report is made from."""

NEXT = 12
"""Tasks that are listed as the next."""

DOUBTS = 10
"""Tasks of which the model says that something is wrong, that are listed."""

MOST_EDITED = 600
"""Tasks whose edits a page counts, evenly over time where there are more: somebody waits for the page."""

RECENT = 20
"""Tasks at either end that "at first" and "lately" are about; half of all where there are fewer."""


class TaskEdits(msgspec.Struct, frozen=True, kw_only=True):
    """What an annotator did on one task.

    Attributes:
        task: Its number.
        place: In the order of drawing, from 1.
        drawn_at: Seconds since 1970; None where Label Studio did not say.
        version: Model version of the pre-label; empty: the annotator began with none.
        prelabelled: Whether there was a pre-label to begin with.
        lead_time: Seconds that it took, as Label Studio measured.
        edits: What was done.
        by_class: The same by class.
    """

    task: int
    place: int
    drawn_at: float | None
    version: str
    prelabelled: bool
    lead_time: float | None
    edits: Edits
    by_class: Mapping[str, Edits]


class ClassQuality(msgspec.Struct, frozen=True, kw_only=True):
    """How well a class is known.

    Attributes:
        name: The class.
        boxes: Drawn so far.
        ap50: Of what is served, where the run that made it gave a figure by class; `before`: of what it replaced.
        edits: What became of its pre-labels in the recent tasks.
        threshold: From which score on what is served shows it; None: as the settings say.
    """

    name: str
    boxes: int
    ap50: float | None
    before: float | None
    edits: Edits
    threshold: float | None = None


class Next(msgspec.Struct, frozen=True, kw_only=True):
    """A task that is about to be served, and why."""

    task: int
    score: float
    why: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """How learning of a project went and stands.

    Attributes:
        project: Its number.
        made_at: Seconds since 1970.
        served: The version that is served now.
        counts: Tasks by state; see the table `learn_tasks`.
        runs: The oldest first.
        tasks: Tasks of one annotator in the order of drawing; of very many as many as were asked for.
        drawn: How many there are.
        several: Tasks that several people annotated: what each of them did to the pre-label is not counted.
        first: Edits of the first pre-labelled tasks, and how many tasks these are; `lately`: of the last.
        classes: The most drawn first.
        next: What is served next, the first first.
        waiting: Open tasks that the served version has looked at.
        course: What comes next and why, in words.
        doubts: Tasks of which the model says that something is wrong, the surest first; `doubted`: how many in all.
    """

    project: int
    made_at: float
    served: str
    counts: Mapping[str, int]
    runs: Sequence[Run]
    tasks: Sequence[TaskEdits]
    drawn: int
    several: int
    first: tuple[Edits, int]
    lately: tuple[Edits, int]
    classes: Sequence[ClassQuality]
    next: Sequence[Next]
    waiting: int
    course: Sequence[str]
    doubts: Sequence[Opinion] = ()
    doubted: int = 0


def make_report(
    project: int,
    *,
    engine: sa.Engine,
    policy: LearningPolicy,
    served: str,
    clock: Callable[[], float],
    most: int | None = None,
    unlearned: str = "",
) -> Report:
    """The report of a project, from the database alone.

    Args:
        project: Its number.
        engine: The migrated database.
        policy: The project's.
        served: The version that is served to it.
        clock: Seconds since 1970.
        most: Tasks whose edits are counted, evenly over time where there are more; None: all.
        unlearned: Why no version can be learned; empty where one can.
    """
    lessons = TrainingDataStore(engine)
    runs = list(reversed(Runs(engine).last(project, RUNS)))
    worked = lessons.worked(project)
    alone = [one for one in worked if one.annotator is not None]
    tasks = [_edited(alone[place], place + 1) for place in _chosen(len(alone), most)]
    prelabelled = [one for one in tasks if one.prelabelled]
    span = min(RECENT, (len(prelabelled) + 1) // 2)
    lately = prelabelled[len(prelabelled) - span :]
    drawn = _drawn(worked)
    counts = lessons.counts(project)
    open_now = PhotoVectorStore(engine).waiting(project, served, limit=NEXT)
    doubts = OpinionStore(engine).all(project)
    return Report(
        project=project,
        made_at=clock(),
        served=served,
        counts=counts,
        runs=runs,
        tasks=tasks,
        drawn=len(alone),
        several=len(worked) - len(alone),
        first=(_sum(prelabelled[:span]), span),
        lately=(_sum(lately), span),
        classes=_classes(runs, served, drawn, lately),
        next=[
            Next(task=one.task, score=one.score, why=_why(one, project, policy)) for one in open_now
        ],
        waiting=PhotoVectorStore(engine).count_waiting(project, served),
        course=[unlearned] if unlearned else _course(
            policy, counts | {"teaches": with_boxes(lessons.training_tasks(project, "teaches"))}, runs, drawn, open_now
        ),
        doubts=doubts[:DOUBTS],
        doubted=len(doubts),
    )  # fmt: skip


def moment(text: str) -> float | None:
    """Label Studio's spelling of a time as seconds since 1970; None where it is none."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def _chosen(count: int, most: int | None) -> list[int]:
    """At most so many places, evenly, and all that "at first" and "lately" are about."""
    if most is None or count <= most:
        return list(range(count))
    between = range(RECENT, count - RECENT)
    step = len(between) / max(most - 2 * RECENT, 1)
    inner = sorted({between[int(number * step)] for number in range(max(most - 2 * RECENT, 0))})
    return [*range(RECENT), *inner, *range(count - RECENT, count)]


def _edited(one: AnnotatedTask, place: int) -> TaskEdits:
    by_class = edits_by_class(one.shown or (), one.photos)
    return TaskEdits(
        task=one.task, place=place, drawn_at=moment(one.drawn_at), version=one.shown_version,
        prelabelled=one.shown is not None, lead_time=one.lead_time, edits=sum(by_class.values(), Edits()),
        by_class=by_class,
    )  # fmt: skip


def _sum(tasks: Sequence[TaskEdits]) -> Edits:
    return sum((one.edits for one in tasks), Edits())


def _drawn(worked: Sequence[AnnotatedTask]) -> dict[str, int]:
    found: dict[str, int] = {}
    for label in (label for one in worked for photo in one.photos for label in photo.labels):
        found[label] = found.get(label, 0) + 1
    return found


def _classes(
    runs: Sequence[Run], served: str, drawn: Mapping[str, int], lately: Sequence[TaskEdits]
) -> list[ClassQuality]:
    made = [one for one in runs if one.version == served and one.verdict in {"published", "admitted"}]
    metrics = made[-1].metrics if made else None
    after, before = (metrics.by_class, metrics.parent_by_class) if metrics else ({}, {})
    edits = together(one.by_class for one in lately)
    names = sorted(drawn.keys() | edits.keys(), key=lambda name: (-drawn.get(name, 0), name))
    return [
        ClassQuality(
            name=name, boxes=drawn.get(name, 0), ap50=after.get(name), before=before.get(name),
            edits=edits.get(name, Edits()), threshold=metrics.thresholds.get(name) if metrics else None,
        )
        for name in names
    ]  # fmt: skip


def _why(one: Waiting, project: int, policy: LearningPolicy) -> str:
    """Why a task has its place; the scores are those of `order.py`."""
    if one.score < REST_FROM and is_held_out(project, one.task, policy.held_out):
        return "it is kept for judging, and such tasks take their share of the places whatever is on them"
    if one.score < HEAD * STEP:
        if one.doubt is None:
            return "nothing is found on it: such photos take a fifth of the places, so that misses come to light"
        return f"it promises most (gain {one.doubt:.2g}), and is no twin of another"
    if one.doubt is None:
        return "nothing is found on it"
    return f"it is behind the head by what it promises (gain {one.doubt:.2g})"


def _course(
    policy: LearningPolicy,
    counts: Mapping[str, int],
    runs: Sequence[Run],
    drawn: Mapping[str, int],
    waiting: Sequence[Waiting],
) -> list[str]:
    """What comes next and why, in sentences."""
    if not policy.learn:
        return ["The project does not learn: its learn.toml says so."]
    said = []
    teaches, held = counts.get("teaches", 0), counts.get("held_out", 0)
    if teaches < policy.first:
        said.append(f"The first fit comes with {policy.first} labelled tasks; {teaches} are there.")
    else:
        said.append("The next fit follows the next Submit, change or deletion of an annotation.")
    if runs and runs[-1].judged_by != "held-out":
        said.append(
            f"Versions are judged by held-out tasks once 5 of them with 10 boxes are labelled (so far: {held}); until"
            " then by cross-validation."
        )
    if len(drawn) > 1:
        rare = sorted(drawn, key=lambda name: (drawn[name], name))[: max(1, len(drawn) // 3)]
        told = ", ".join(f"{name} ({drawn[name]})" for name in rare[:4])
        said.append(f"Photos that promise classes drawn seldom go first: above all {told}.")
    if not policy.queue:
        said.append("The order of tasks is yours: the learning policy has queue = false.")
    elif not waiting:
        said.append(
            "No open task was looked at by the served version yet; before that, a fair sample of the photos is served."
            if teaches or not runs
            else "No open task is left."
        )
    return said
