"""Layout of the learning report's charts: coordinates of SVG marks, which the template draws."""

from collections.abc import Sequence
from dataclasses import dataclass

from labelloop.service.charts import Bar, DataPoint, Tick
from ml_backend.learning.report.prelabel_edits import PrelabelEdits
from ml_backend.learning.report.report import TaskEdits
from ml_backend.learning.store.runs import TrainingRun

LEFT, RIGHT, TOP = 40.0, 10.0, 12.0
# Evaluations that are drawn, one line each. AP50 on images that a model may have been trained on is not drawn.
EVALUATIONS = ("cross-validation", "held-out")

# Most bars of the edits chart; with more tasks, neighbouring tasks share a bar.
COLUMNS = 40

# Submitted boxes, stacked upwards in this order; deleted pre-labels are drawn below the axis.
ABOVE = ("accepted", "moved", "relabelled", "added")


@dataclass(frozen=True)
class Plot:
    """A chart of ``width`` x ``height`` SVG units; `zero` is the y coordinate of the horizontal axis.

    `lines` are (kind, points); `text` is the alternative text.
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


def learning_curve(runs: Sequence[TrainingRun], *, width: float = 680.0, height: float = 300.0) -> Plot | None:
    """Return the chart of AP50 by labelled tasks; None without evaluated runs.

    Held-out and cross-validated AP50 are separate lines: they are measured on different images.
    """
    evaluated = [
        (run, run.ap50, labels)
        for run, labels in zip(runs, _labels(runs), strict=True)
        if run.ap50 is not None and run.judged_by in EVALUATIONS
    ]
    if not evaluated:
        return None
    bottom, right = height - 40, width - RIGHT - 8
    most = max(labels for _, _, labels in evaluated)
    step = nice(most / 6)

    def x(labels: int) -> float:
        return round(LEFT + 8 + (right - LEFT - 8) * labels / max(most, 1), 1)

    def y(value: float) -> float:
        return round(bottom - (bottom - TOP) * value, 1)

    spots = tuple(
        DataPoint(x(labels), y(value), _point_text(run, value, labels), _kind(run)) for run, value, labels in evaluated
    )
    lines = []
    for evaluation in EVALUATIONS:
        points = [
            f"{x(labels)},{y(value)}"
            for run, value, labels in evaluated
            if run.judged_by == evaluation and run.verdict == "published"
        ]
        if len(points) > 1:
            lines.append((evaluation, " ".join(points)))
    _, value, labels = evaluated[-1]
    text = f"AP50 by labelled tasks: {evaluated[0][1]:.2f} at first, {value:.2f} at {labels} tasks."
    return Plot(
        width, height, bottom,
        tuple(Tick(x(at), str(at)) for at in range(0, most + 1, step)),
        tuple(Tick(y(at / 5), f"{at / 5:.1f}") for at in range(6)), text, tuple(lines), spots,
    )  # fmt: skip


def edits_over_time(tasks: Sequence[TaskEdits], *, width: float = 680.0, height: float = 300.0) -> Plot | None:
    """Return the chart of edits per task, in order of annotation; None without tasks."""
    if not tasks:
        return None
    share = -(-len(tasks) // COLUMNS)
    groups = [tasks[start : start + share] for start in range(0, len(tasks), share)]
    sums = [sum((task.edits for task in group), PrelabelEdits()) for group in groups]
    high = max(1.0, *(edits.submitted / len(group) for edits, group in zip(sums, groups, strict=True)))
    low = max(edits.deleted / len(group) for edits, group in zip(sums, groups, strict=True))
    step = nice((high + low) / 5)
    top_value, low_value = -(-high // step) * step, -(-low // step) * step
    bottom, right = height - 40, width - RIGHT

    def y(value: float) -> float:
        return round(bottom - (bottom - TOP) * (value + low_value) / (top_value + low_value), 1)

    pitch = (right - LEFT - 8) / max(len(groups), 12)
    bars: list[Bar] = []
    for index, (group, edits) in enumerate(zip(groups, sums, strict=True)):
        left = round(LEFT + 8 + index * pitch, 1)
        text_, level = _bar_text(group, edits), 0.0
        for name in ABOVE:
            value = getattr(edits, name) / len(group)
            if value:
                bars.append(Bar(left, y(level + value), round(pitch * 0.8, 1), round(y(level) - y(level + value), 1),
                                text_, name))  # fmt: skip
            level += value
        if edits.deleted:
            value = edits.deleted / len(group)
            bars.append(Bar(left, y(0), round(pitch * 0.8, 1), round(y(-value) - y(0), 1), text_, "deleted"))
    gap = max(1, -(-len(groups) // 8))
    marks = tuple(
        Tick(round(LEFT + 8 + (index + 0.4) * pitch, 1), str(groups[index][0].place))
        for index in range(0, len(groups), gap)
    )  # fmt: skip
    values = range(-int(low_value), int(top_value) + 1, step)
    total = sum(sums, PrelabelEdits())
    text = (
        f"Boxes per task over {len(tasks)} tasks: {total.accepted} accepted, {total.moved} moved, {total.relabelled}"
        f" relabelled, {total.added} added, {total.deleted} deleted."
    )
    return Plot(width, height, y(0), marks, tuple(Tick(y(at), str(abs(at))) for at in values), text, bars=tuple(bars))


def nice(least: float) -> int:
    """Return the smallest of 1, 2, 5, 10, 20, 50, ... that is at least `least`."""
    size = 1
    while True:
        for step in (size, 2 * size, 5 * size):
            if step >= least:
                return step
        size *= 10


def _kind(run: TrainingRun) -> str:
    return "refused" if run.verdict not in {"published", "admitted"} else run.judged_by


def _labels(runs: Sequence[TrainingRun]) -> list[int]:
    """Return the number of labelled tasks at each run; external models take that of the run before."""
    counts: list[int] = []
    for run in runs:
        is_external = run.version and not run.tasks and counts
        counts.append(counts[-1] if is_external else run.tasks + run.held_out)
    return counts


def _point_text(run: TrainingRun, value: float, labelled: int) -> str:
    before = "" if run.parent_ap50 is None else f" (before: {run.parent_ap50:.3f})"
    labels = f"{labelled} labelled tasks"
    return f"{run.version or run.base}, {labels}: AP50 {value:.3f}{before} by {run.judged_by}, {run.verdict}"


def _bar_text(group: Sequence[TaskEdits], edits: PrelabelEdits) -> str:
    several = f"{len(group)} tasks, {group[0].place} to {group[-1].place}"
    which = f"task {group[0].task}" if len(group) == 1 else several
    without_prelabel = sum(not task.prelabelled for task in group)
    counts = ", ".join(f"{getattr(edits, name)} {name}" for name in (*ABOVE, "deleted") if getattr(edits, name))
    return f"{which}: {counts or 'no boxes'}" + (
        f"; {without_prelabel} without a pre-label" if without_prelabel else ""
    )
