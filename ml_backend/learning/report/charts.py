"""Owns the plots of a learning report as numbers: where each mark of an SVG goes; the template draws them."""

from collections.abc import Sequence
from dataclasses import dataclass

from labelloop.service.charts import Bar, DataPoint, Tick
from ml_backend.learning.report.prelabel_edits import Edits
from ml_backend.learning.report.report import TaskEdits
from ml_backend.learning.store.runs import Run

LEFT, RIGHT, TOP = 40.0, 10.0, 12.0
JUDGES = ("cross-validation", "held-out")
"""Whose figures are drawn, a line each. What a model finds on photos that it may have learned from is neither."""

COLUMNS = 40
"""Most columns of the edits; neighbouring tasks share one where there are more tasks."""

ABOVE = ("accepted", "moved", "relabelled", "added")
"""Stacked upwards in this order: the submitted boxes. Deleted pre-labels hang below the axis."""


@dataclass(frozen=True)
class Plot:
    """A plot in a box of ``width`` x ``height``; `zero` is where the horizontal axis lies.

    `lines` are (kind, points); `text` says in words what is shown, for who cannot see it.
    """

    width: float
    height: float
    zero: float
    x: tuple[Tick, ...]
    y: tuple[Tick, ...]
    text: str
    lines: tuple[tuple[str, str], ...] = ()
    spots: tuple[DataPoint, ...] = ()
    bars: tuple[Bar, ...] = ()


def learning_curve(runs: Sequence[Run], *, width: float = 680.0, height: float = 300.0) -> Plot | None:
    """AP50 of each judged run by labelled tasks; None where none was judged.

    What held-out tasks say and what cross-validation says are two lines: the figures are of different photos.
    """
    judged = [
        (run, run.ap50, labels)
        for run, labels in zip(runs, _labels(runs), strict=True)
        if run.ap50 is not None and run.judged_by in JUDGES
    ]
    if not judged:
        return None
    bottom, right = height - 40, width - RIGHT - 8
    most = max(labels for _, _, labels in judged)
    step = nice(most / 6)

    def x(labels: int) -> float:
        return round(LEFT + 8 + (right - LEFT - 8) * labels / max(most, 1), 1)

    def y(value: float) -> float:
        return round(bottom - (bottom - TOP) * value, 1)

    spots = tuple(
        DataPoint(x(labels), y(value), _told(run, value, labels), _kind(run)) for run, value, labels in judged
    )
    lines = []
    for judge in JUDGES:
        course = [
            f"{x(labels)},{y(value)}"
            for run, value, labels in judged
            if run.judged_by == judge and run.verdict == "published"
        ]
        if len(course) > 1:
            lines.append((judge, " ".join(course)))
    _, value, labels = judged[-1]
    text = f"AP50 by labelled tasks: {judged[0][1]:.2f} at first, {value:.2f} at {labels} tasks."
    return Plot(
        width, height, bottom,
        tuple(Tick(x(at), str(at)) for at in range(0, most + 1, step)),
        tuple(Tick(y(at / 5), f"{at / 5:.1f}") for at in range(6)), text, tuple(lines), spots,
    )  # fmt: skip


def edits_over_time(tasks: Sequence[TaskEdits], *, width: float = 680.0, height: float = 300.0) -> Plot | None:
    """Boxes per task by what became of them, in the order of drawing; None where nothing was drawn."""
    if not tasks:
        return None
    share = -(-len(tasks) // COLUMNS)
    groups = [tasks[start : start + share] for start in range(0, len(tasks), share)]
    sums = [sum((one.edits for one in group), Edits()) for group in groups]
    high = max(1.0, *(one.drawn / len(group) for one, group in zip(sums, groups, strict=True)))
    low = max(one.deleted / len(group) for one, group in zip(sums, groups, strict=True))
    step = nice((high + low) / 5)
    top_value, low_value = -(-high // step) * step, -(-low // step) * step
    bottom, right = height - 40, width - RIGHT

    def y(value: float) -> float:
        return round(bottom - (bottom - TOP) * (value + low_value) / (top_value + low_value), 1)

    pitch = (right - LEFT - 8) / max(len(groups), 12)
    bars: list[Bar] = []
    for place, (group, one) in enumerate(zip(groups, sums, strict=True)):
        left = round(LEFT + 8 + place * pitch, 1)
        says, level = _said(group, one), 0.0
        for name in ABOVE:
            value = getattr(one, name) / len(group)
            if value:
                bars.append(Bar(left, y(level + value), round(pitch * 0.8, 1), round(y(level) - y(level + value), 1),
                                says, name))  # fmt: skip
            level += value
        if one.deleted:
            value = one.deleted / len(group)
            bars.append(Bar(left, y(0), round(pitch * 0.8, 1), round(y(-value) - y(0), 1), says, "deleted"))
    gap = max(1, -(-len(groups) // 8))
    marks = tuple(
        Tick(round(LEFT + 8 + (place + 0.4) * pitch, 1), str(groups[place][0].place))
        for place in range(0, len(groups), gap)
    )  # fmt: skip
    values = range(-int(low_value), int(top_value) + 1, step)
    total = sum(sums, Edits())
    text = (
        f"Boxes per task over {len(tasks)} tasks: {total.accepted} accepted, {total.moved} moved, {total.relabelled}"
        f" relabelled, {total.added} added, {total.deleted} deleted."
    )
    return Plot(width, height, y(0), marks, tuple(Tick(y(at), str(abs(at))) for at in values), text, bars=tuple(bars))


def nice(least: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50, ... that is at least so much."""
    size = 1
    while True:
        for step in (size, 2 * size, 5 * size):
            if step >= least:
                return step
        size *= 10


def _kind(run: Run) -> str:
    return "refused" if run.verdict not in {"published", "admitted"} else run.judged_by


def _labels(runs: Sequence[Run]) -> list[int]:
    """Labelled tasks when each run came; a model that was made elsewhere learned from none of them."""
    found: list[int] = []
    for run in runs:
        elsewhere = run.version and not run.tasks and found
        found.append(found[-1] if elsewhere else run.tasks + run.held_out)
    return found


def _told(run: Run, value: float, labelled: int) -> str:
    before = "" if run.parent_ap50 is None else f" (before: {run.parent_ap50:.3f})"
    labels = f"{labelled} labelled tasks"
    return f"{run.version or run.base}, {labels}: AP50 {value:.3f}{before} by {run.judged_by}, {run.verdict}"


def _said(group: Sequence[TaskEdits], edits: Edits) -> str:
    several = f"{len(group)} tasks, {group[0].place} to {group[-1].place}"
    which = f"task {group[0].task}" if len(group) == 1 else several
    bare = sum(not one.prelabelled for one in group)
    counts = ", ".join(f"{getattr(edits, name)} {name}" for name in (*ABOVE, "deleted") if getattr(edits, name))
    return f"{which}: {counts or 'no boxes'}" + (f"; {bare} without a pre-label" if bare else "")
