"""Charts of the learning report: the learning curves, and edits per task over time."""

from collections.abc import Sequence
from dataclasses import dataclass

from labelloop.service.charts import Bar, Chart, ChartLine, DataPoint, LinearScale, Tick, nice_step, polyline
from ml_backend.learning.report.prelabel_edits import PrelabelEdits
from ml_backend.learning.report.report import TaskEdits
from ml_backend.learning.store.runs import FINETUNED, TITLES, TrainingRun
from ml_backend.learning.store.train_jobs import TrainJob

# Above the plot is the title of the vertical axis, below it that of the horizontal axis.
LEFT, RIGHT, TOP, BOTTOM = 40, 10, 26, 40
# Space between the vertical axis and the first mark.
_INSET = 8
# Evaluations that are drawn, one line each. AP50 on images that a model may have been trained on is not drawn.
EVALUATIONS = ("cross-validation", "held-out")

# Most bars of the edits chart; with more tasks, neighbouring tasks share a bar.
COLUMNS = 40

# Submitted boxes, stacked upwards in this order; deleted pre-labels are drawn below the axis.
ABOVE = ("accepted", "moved", "relabelled", "added")


@dataclass(frozen=True)
class HeadCurve:
    """The learning curve of one kind of head: its title, its metric, and the chart."""

    title: str
    metric: str
    chart: Chart


@dataclass(frozen=True)
class _Evaluation:
    """One evaluated candidate: its place on the curve, and how it is drawn."""

    labels: int
    value: float
    judged_by: str
    published: bool
    kind: str
    text: str


def learning_curve(runs: Sequence[TrainingRun], *, width: float = 680.0, height: float = 300.0) -> Chart | None:
    """Return the chart of AP50 by labelled tasks; None without evaluated runs.

    Held-out and cross-validated AP50 are separate lines: they are measured on different images.
    """
    evaluated = [
        _Evaluation(
            labels, run.ap50, run.judged_by, run.verdict == "published", _kind(run), _point_text(run, run.ap50, labels)
        )
        for run, labels in zip(runs, _labels(runs), strict=True)
        if run.ap50 is not None and run.judged_by in EVALUATIONS
    ]
    return _curve(evaluated, "AP50", width, height)


def head_curves(runs: Sequence[TrainingRun], *, width: float = 680.0, height: float = 220.0) -> list[HeadCurve]:
    """Return the chart of each kind of head that was evaluated: its metric by labelled tasks."""
    kinds = dict.fromkeys(name for run in runs for name in run.metrics.heads)
    curves = []
    for kind in kinds:
        evaluated, metric = [], ""
        for run, labels in zip(runs, _labels(runs), strict=True):
            result = run.metrics.heads.get(kind)
            if result is None or result.value is None:
                continue
            metric = result.metric
            passed = result.passed and run.verdict == "published"
            before = "" if result.parent is None else f" (before: {result.parent:.3f})"
            text = (
                f"{run.version or run.base}, {labels} labelled tasks: {metric} {result.value:.3f}{before} by "
                f"{result.judged_by}, {'published' if passed else 'not published'}"
            )
            drawn_as = result.judged_by if passed else "refused"
            evaluated.append(_Evaluation(labels, result.value, result.judged_by, passed, drawn_as, text))
        chart = _curve(evaluated, metric, width, height)
        if chart is not None:
            curves.append(HeadCurve(TITLES.get(kind, kind).capitalize(), metric, chart))
    return curves


def _curve(evaluated: Sequence[_Evaluation], metric: str, width: float, height: float) -> Chart | None:
    if not evaluated:
        return None
    right, bottom = width - RIGHT, height - BOTTOM
    most = max(point.labels for point in evaluated)
    lowest = min(0.0, *(point.value for point in evaluated))
    x, y = LinearScale(0, max(most, 1), LEFT + _INSET, right - _INSET), LinearScale(lowest, 1.0, bottom, TOP)
    spots = tuple(DataPoint(x(point.labels), y(point.value), point.text, point.kind) for point in evaluated)
    lines = []
    for evaluation in EVALUATIONS:
        published = [point for point in evaluated if point.judged_by == evaluation and point.published]
        # The newest at each number of labelled tasks: the number falls where tasks become disputed.
        newest = {point.labels: point for point in published}
        points = [(x(labels), y(newest[labels].value)) for labels in sorted(newest)]
        if len(points) > 1:
            lines.append(ChartLine(evaluation, polyline(points)))
    first, last = evaluated[0], evaluated[-1]
    text = f"{metric} by labelled tasks: {first.value:.2f} at first, {last.value:.2f} at {last.labels} tasks."
    return Chart(
        width, height, LEFT, right, TOP, bottom, x.ticks(range(0, most + 1, nice_step(most / 6)), str),
        y.ticks([fifth / 5 for fifth in range(6)], "{:.1f}".format), "labelled tasks", metric, tuple(lines), spots,
        text=text,
    )  # fmt: skip


def edits_over_time(tasks: Sequence[TaskEdits], *, width: float = 680.0, height: float = 300.0) -> Chart | None:
    """Return the chart of edits per task, in order of annotation; None without tasks."""
    if not tasks:
        return None
    share = -(-len(tasks) // COLUMNS)
    groups = [tasks[start : start + share] for start in range(0, len(tasks), share)]
    sums = [sum((task.edits for task in group), PrelabelEdits()) for group in groups]
    high = max(1.0, *(edits.submitted / len(group) for edits, group in zip(sums, groups, strict=True)))
    low = max(edits.deleted / len(group) for edits, group in zip(sums, groups, strict=True))
    step = nice_step((high + low) / 5)
    top_value, low_value = int(-(-high // step)) * step, int(-(-low // step)) * step
    right, bottom = width - RIGHT, height - BOTTOM
    y = LinearScale(-low_value, top_value, bottom, TOP)
    pitch = (right - LEFT - _INSET) / max(len(groups), 12)
    bars: list[Bar] = []
    for index, (group, edits) in enumerate(zip(groups, sums, strict=True)):
        left, bar_width = round(LEFT + _INSET + index * pitch, 1), round(pitch * 0.8, 1)
        text = _bar_text(group, edits)
        above = y.stack([getattr(edits, name) / len(group) for name in ABOVE])
        below = y.stack([-edits.deleted / len(group)])
        for name, (bar_top, bar_height) in zip((*ABOVE, "deleted"), (*above, *below), strict=True):
            if getattr(edits, name):
                bars.append(Bar(left, bar_top, bar_width, bar_height, text, name))
    gap = max(1, -(-len(groups) // 8))
    marks = tuple(
        Tick(round(LEFT + _INSET + (index + 0.4) * pitch, 1), str(groups[index][0].place))
        for index in range(0, len(groups), gap)
    )
    total = sum(sums, PrelabelEdits())
    text = (
        f"Boxes per task over {len(tasks)} tasks: {total.accepted} accepted, {total.moved} moved, {total.relabelled}"
        f" relabelled, {total.added} added, {total.deleted} deleted."
    )
    return Chart(
        width, height, LEFT, right, TOP, bottom, marks,
        y.ticks(range(-low_value, top_value + 1, step), lambda boxes: str(abs(boxes))),
        "tasks in order of annotation", "boxes per task", bars=tuple(bars), zero=y(0), text=text,
    )  # fmt: skip


def training_curves(job: TrainJob) -> list[HeadCurve]:
    """Return the charts of a fine-tuning over its minutes: the loss, and AP50 on held-out images if there are any."""
    loss = [(minutes, value) for minutes, value, _ in job.progress.curve]
    ap50 = [(minutes, value) for minutes, _, value in job.progress.curve if value is not None]
    charts = []
    for title, points, top in (("Loss", loss, max((value for _, value in loss), default=0.0)), ("AP50", ap50, 1.0)):
        if len(points) > 1:
            charts.append(HeadCurve(title, title, _over_minutes(title, points, job.minutes, top)))
    return charts


def _over_minutes(
    title: str,
    points: Sequence[tuple[float, float]],
    minutes: float,
    top: float,
    *,
    width: float = 680.0,
    height: float = 190.0,
) -> Chart:
    right, bottom = width - RIGHT, height - BOTTOM
    x, y = (
        LinearScale(0, max(minutes, points[-1][0]), LEFT + _INSET, right - _INSET),
        LinearScale(0, top or 1, bottom, TOP),
    )
    marks = [minutes * part / 5 for part in range(6)]
    line = ChartLine("held-out", polyline([(x(at), y(value)) for at, value in points]))
    text = f"{title} over {points[-1][0]:.1f} minutes: {points[0][1]:.2f} at first, {points[-1][1]:.2f} last."
    spots = tuple(
        DataPoint(x(at), y(value), f"{title} {value:.3f} after {at:.1f} minutes", "held-out")
        for at, value in (points if title == "AP50" else points[-1:])
    )
    return Chart(
        width, height, LEFT, right, TOP, bottom, x.ticks(marks, "{:.3g}".format),
        y.ticks([(top or 1) * part / 4 for part in range(5)], "{:.2g}".format), "minutes", title, (line,), spots,
        text=text,
    )  # fmt: skip


def _kind(run: TrainingRun) -> str:
    if run.source == FINETUNED and run.verdict == "admitted":
        return "tuned"
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
