"""Charts of the dashboard: agreement and tasks over time, thresholds, intervals, confusion matrices."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from labelloop.service.charts import (
    Bar,
    Chart,
    ChartLine,
    DataPoint,
    LinearScale,
    count,
    nice_step,
    percent,
    polyline,
)
from qc_webhooks.annotators.reliability import LabelReliability
from qc_webhooks.dashboard.formatting import day, number_interval
from qc_webhooks.report.project_summary import Confusion, Day
from qc_webhooks.statistics import ABSENT, Estimate
from qc_webhooks.statistics.detection_alpha import DetectionAlpha

# Space at both ends of a time axis, so that the first and the last bar are not cut off.
_INSET = 9.0
# Space above the plot for the title of the vertical axis, below it for ticks and the title of the horizontal one.
_TOP, _BOTTOM = 24.0, 44.0


def agreement_chart(days: Sequence[Day], *, width: float = 760.0, height: float = 240.0) -> Chart | None:
    """Agreement by day with its interval; None with fewer than two days."""
    rated = [day_ for day_ in days if day_.agreement.value is not None]
    if len(rated) < 2:
        return None
    left, right, top, bottom = 46.0, width - 8, _TOP, height - 24
    lowest = min(day_.agreement.low or 0.0 for day_ in rated)
    floor = max(0.0, min(0.9, int(lowest * 10) / 10))
    x, y = _time_scale(rated, left, right), LinearScale(floor, 1, bottom, top)
    spots = tuple(
        DataPoint(
            x(day_.at),
            y(day_.agreement.value or 0.0),
            f"{day(day_.at, year=True)}: {percent(day_.agreement.value, 1)}, {count(day_.tasks)} tasks",
        )
        for day_ in rated
    )
    upper = [(x(day_.at), y(day_.agreement.high or 0.0)) for day_ in rated]
    lower = [(x(day_.at), y(day_.agreement.low or 0.0)) for day_ in reversed(rated)]
    line = ChartLine("agreement", polyline([(spot.x, spot.y) for spot in spots]), polyline([*upper, *lower]), spots)
    step = 0.1 if 1 - floor <= 0.5 else 0.2
    levels = [round(floor + step * index, 2) for index in range(int((1 - floor) / step + 1e-9) + 1)]
    stride = max(1, len(rated) // 7)
    first, last = rated[0], rated[-1]
    text = (
        f"Agreement from {day(first.at, year=True)} to {day(last.at, year=True)}: from"
        f" {percent(first.agreement.value)} to {percent(last.agreement.value)}."
    )
    return Chart(
        width, height, left, right, top, bottom, x.ticks([day_.at for day_ in rated[::stride]], day),
        y.ticks(levels, percent), "", "agreement", (line,), text=text,
    )  # fmt: skip


def task_count_chart(days: Sequence[Day], *, width: float = 760.0, height: float = 104.0) -> Chart | None:
    """Tasks by day, split into agreed and disputed, on the time axis of ``agreement_chart``; None without bars."""
    rated = [day_ for day_ in days if day_.agreement.value is not None]
    most_tasks = max((day_.tasks for day_ in rated), default=0)
    if len(rated) < 2 or not most_tasks:
        return None
    left, right, top, bottom = 46.0, width - 8, _TOP, height - 6
    step = min(after.at - before.at for before, after in pairwise(rated))
    bar_width = max(1.0, min(2 * _INSET, (right - left) * step / (rated[-1].at - rated[0].at) * 0.7))
    x = _time_scale(rated, left - bar_width / 2, right - bar_width / 2)
    y = LinearScale(0, most_tasks, bottom, top)
    bars: list[Bar] = []
    for day_ in rated:
        share = day_.disputed.value or 0.0
        text = f"{day(day_.at, year=True)}: {count(day_.tasks)} tasks, {percent(share)} disputed"
        segments = y.stack([day_.tasks * share, day_.tasks * (1 - share)])
        for kind, (bar_top, bar_height) in zip(("disputed", "agreed"), segments, strict=True):
            bars.append(Bar(x(day_.at), bar_top, round(bar_width, 1), bar_height, text, kind))
    return Chart(
        width, height, left, right, top, bottom, y=y.ticks([most_tasks, 0], count), y_title="tasks", bars=tuple(bars),
        text=f"Tasks by day; maximum {count(most_tasks)}.",
    )  # fmt: skip


def threshold_chart(
    thresholds: Sequence[float],
    series: Sequence[tuple[str, Sequence[int]]],
    *,
    mark: float,
    width: float = 760.0,
    height: float = 320.0,
) -> Chart:
    """Number of tasks by agreement threshold.

    Args:
        thresholds: Ascending thresholds, at least two.
        series: (name, number at each threshold).
        mark: The threshold to mark.
        width: Width of the chart.
        height: Height of the chart.
    """
    left, right, top, bottom = 56.0, width - 10, _TOP, height - _BOTTOM
    step = nice_step(max((max(values) for _, values in series if values), default=0) / 4)
    x, y = LinearScale(thresholds[0], thresholds[-1], left, right), LinearScale(0, 4 * step, bottom, top)
    lines = []
    for name, values in series:
        spots = tuple(
            DataPoint(x(threshold), y(value), f"at {threshold:.2f}: {count(value)} {name}")
            for threshold, value in zip(thresholds, values, strict=True)
        )
        lines.append(ChartLine(name, polyline([(spot.x, spot.y) for spot in spots]), spots=spots))
    tenths = [threshold for threshold in thresholds if round(100 * threshold) % 10 == 0]
    ends = ((thresholds[0], 0), (thresholds[-1], -1))
    said = "; ".join(
        ", ".join(f"{count(values[at])} {name} at {end:.2f}" for end, at in ends) for name, values in series
    )
    text = f"Tasks by agreement threshold: {said}."
    return Chart(
        width, height, left, right, top, bottom, x.ticks(tenths, "{:.1f}".format),
        y.ticks(range(0, 4 * step + 1, step), count), "agreement threshold", "tasks", tuple(lines),
        mark=x(mark), text=text,
    )  # fmt: skip


def alpha_chart(alpha: DetectionAlpha, *, width: float = 1180.0, height: float = 290.0) -> Chart | None:
    """Detection alpha by IoU threshold, of all images and as the mean over images, with intervals; None without data.

    The policy's threshold is marked.
    """
    if any(together.value is None for _, together, _ in alpha.curve):
        return None
    left, right, top, bottom = 40.0, width - 8, _TOP, height - _BOTTOM
    thresholds = [threshold for threshold, _, _ in alpha.curve]
    series = [("all images", [together for _, together, _ in alpha.curve]),
              ("mean over images", [mean for _, _, mean in alpha.curve])]  # fmt: skip
    lowest = min(estimate.low or 0.0 for _, estimates in series for estimate in estimates)
    floor = min(0.0, math.floor(lowest * 5) / 5)
    x, y = LinearScale(thresholds[0], thresholds[-1], left, right), LinearScale(floor, 1, bottom, top)
    lines = []
    for name, estimates in series:
        spots = tuple(
            DataPoint(x(at), y(one.value or 0.0), f"IoU {at:.2f}, {name}: {one.value:.3f} ({number_interval(one, 3)})")
            for at, one in zip(thresholds, estimates, strict=True)
        )
        upper = [(x(at), y(one.high or 0.0)) for at, one in zip(thresholds, estimates, strict=True)]
        lower = [(x(at), y(one.low or 0.0)) for at, one in zip(thresholds, estimates, strict=True)]
        line = polyline([(spot.x, spot.y) for spot in spots])
        lines.append(ChartLine(name, line, polyline([*upper, *reversed(lower)]), spots))
    levels = [round(floor + 0.2 * step, 1) for step in range(round((1 - floor) / 0.2) + 1)]
    tenths = [threshold for threshold in thresholds if round(100 * threshold) % 10 == 0]
    return Chart(
        width, height, left, right, top, bottom, x.ticks(tenths, "{:.1f}".format), y.ticks(levels, "{:.1f}".format),
        "IoU threshold", "alpha", tuple(lines), mark=x(min(max(alpha.match_iou, thresholds[0]), thresholds[-1])),
        text=f"Detection alpha by IoU threshold; {alpha.alpha.value:.2f} at the policy's {alpha.match_iou:.2f}.",
    )  # fmt: skip


def _time_scale(days: Sequence[Day], left: float, right: float) -> LinearScale:
    """The horizontal axis of a chart over time, from the first day to the last."""
    return LinearScale(days[0].at, days[-1].at, left + _INSET, right - _INSET)


@dataclass(frozen=True)
class Whisker:
    """Positions of an interval's ends and value, 0 to 100."""

    low: float
    high: float
    value: float


def whisker(estimate: Estimate, *, floor: float = 0.0, ceiling: float = 1.0) -> Whisker | None:
    """Positions of an estimate's interval on a scale; None without an interval."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return None
    scale = LinearScale(floor, ceiling, 0.0, 100.0)
    low, high, value = (min(max(scale(end), 0.0), 100.0) for end in (estimate.low, estimate.high, estimate.value))
    return Whisker(low, high, value)


@dataclass(frozen=True)
class Cell:
    """Cell of a confusion matrix: share of the row (0 to 1), color step (0 to 6), whether diagonal, tooltip."""

    share: float
    step: int
    same: bool
    text: str


def confusion_matrix(confusion: Confusion, most: int = 14) -> tuple[tuple[str, ...], list[tuple[str, int, list[Cell]]]]:
    """Confusion matrix of the most frequent labels: column names, and rows of (label, pairs, cells)."""
    totals = [sum(row) for row in confusion.pairs]
    order = sorted(
        range(len(totals)), key=lambda row_index: (confusion.labels[row_index] == ABSENT, -totals[row_index])
    )[:most]
    names = tuple(answer_label(confusion.labels[row_index]) for row_index in order)
    rows = []
    for row_index in order:
        if confusion.labels[row_index] == ABSENT:
            continue
        cells = []
        for column in order:
            number = confusion.pairs[row_index][column]
            share = number / totals[row_index] if totals[row_index] else 0.0
            text = (
                f"One annotator: {answer_label(confusion.labels[row_index])}; the other:"
                f" {answer_label(confusion.labels[column])}: {count(number)} times, {percent(share, 1)}"
            )
            cells.append(Cell(share, _step(share), row_index == column, text))
        rows.append((answer_label(confusion.labels[row_index]), totals[row_index], cells))
    return names, rows


def annotator_matrix(
    reliability: LabelReliability, most: int = 14
) -> tuple[tuple[str, ...], list[tuple[str, float, list[Cell]]]]:
    """An annotator's confusion matrix of the most frequent labels: columns, and rows of (truth, objects, cells)."""
    totals = {truth: sum(answers.values()) for truth, answers in reliability.confusion.items()}
    names = tuple(sorted(totals, key=lambda name: -totals[name])[:most])
    rows = []
    for truth in names:
        total, answers = max(totals[truth], 1e-9), reliability.confusion[truth]
        shares = {name: answers.get(name, 0.0) / total for name in names}
        cells = [
            Cell(share, _step(share), name == truth, f"Likely {truth}: answered {name} in {percent(share, 1)}")
            for name, share in shares.items()
        ]
        rows.append((truth, totals[truth], cells))
    return names, rows


def answer_label(answer: str) -> str:
    """Display name of an answer."""
    return "not marked" if answer == ABSENT else answer


def _step(share: float) -> int:
    return sum(share >= threshold for threshold in (0.005, 0.02, 0.05, 0.1, 0.3, 0.7))
