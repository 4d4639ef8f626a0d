"""Computes the coordinates of the SVG charts; the templates draw them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from labelloop.service.charts import Bar, DataPoint, Tick
from qc_webhooks.annotators.reliability import LabelReliability
from qc_webhooks.dashboard.formatting import count, day, percent
from qc_webhooks.report.project_summary import Confusion, Day
from qc_webhooks.statistics import ABSENT, Estimate

# Space at both ends of a time axis, so that the first and the last bar are not cut off.
_INSET = 9.0


@dataclass(frozen=True)
class ChartLine:
    """A series: name, points of the line, points of the interval band, data points."""

    name: str
    points: str
    band: str = ""
    spots: tuple[DataPoint, ...] = ()


@dataclass(frozen=True)
class Chart:
    """A chart of ``width`` x ``height`` SVG units.

    Attributes:
        width: Width of the chart.
        height: Height of the chart.
        left: Left edge of the plot.
        right: Right edge of the plot.
        top: Top edge of the plot.
        bottom: Bottom edge of the plot.
        x: Ticks of the horizontal axis.
        y: Ticks of the vertical axis.
        lines: Series.
        bars: Bars.
        mark: X coordinate of a vertical marker; None without one.
        text: Description for screen readers.
    """

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    x: tuple[Tick, ...]
    y: tuple[Tick, ...]
    lines: tuple[ChartLine, ...] = ()
    bars: tuple[Bar, ...] = ()
    mark: float | None = None
    text: str = ""


def agreement_chart(days: Sequence[Day], *, width: float = 760.0, height: float = 240.0) -> Chart | None:
    """Agreement by day with its interval; None with fewer than two days."""
    days_with_agreement = [day_ for day_ in days if day_.agreement.value is not None]
    if len(days_with_agreement) < 2:
        return None
    left, right, top, bottom = 40.0, width - 8, 10.0, height - 24
    first, last = days_with_agreement[0].at, days_with_agreement[-1].at
    low = min((day_.agreement.low or 0.0) for day_ in days_with_agreement)
    floor = max(0.0, min(0.9, int(low * 10) / 10))

    def x(at: float) -> float:
        return round(left + _INSET + (right - left - 2 * _INSET) * (at - first) / (last - first), 1)

    def y(value: float | None) -> float:
        return round(bottom - (bottom - top) * ((value or 0.0) - floor) / (1 - floor), 1)

    upper = [f"{x(day_.at)},{y(day_.agreement.high)}" for day_ in days_with_agreement]
    lower = [f"{x(day_.at)},{y(day_.agreement.low)}" for day_ in reversed(days_with_agreement)]
    points = tuple(
        DataPoint(
            x(day_.at),
            y(day_.agreement.value),
            f"{day(day_.at, year=True)}: {percent(day_.agreement.value, 1)}, {count(day_.tasks)} tasks",
        )
        for day_ in days_with_agreement
    )
    line = ChartLine("agreement", " ".join(f"{spot.x},{spot.y}" for spot in points), " ".join([*upper, *lower]), points)
    stride = max(1, len(days_with_agreement) // 7)
    ticks = tuple(Tick(x(day_.at), day(day_.at)) for day_ in days_with_agreement[::stride])
    step_share = 0.1 if 1 - floor <= 0.5 else 0.2
    levels = [round(floor + step_share * index, 2) for index in range(int((1 - floor) / step_share + 1e-9) + 1)]
    text = (
        f"Agreement from {day(first, year=True)} to {day(last, year=True)}: from"
        f" {percent(days_with_agreement[0].agreement.value)} to {percent(days_with_agreement[-1].agreement.value)}."
    )
    return Chart(
        width, height, left, right, top, bottom, ticks, tuple(Tick(y(day_), percent(day_)) for day_ in levels), (line,),
        text=text,
    )  # fmt: skip


def task_count_chart(days: Sequence[Day], *, width: float = 760.0, height: float = 90.0) -> Chart | None:
    """Tasks by day, split into agreed and disputed, on the time axis of ``agreement_chart``; None without bars."""
    days_with_agreement = [day_ for day_ in days if day_.agreement.value is not None]
    max_tasks = max((day_.tasks for day_ in days_with_agreement), default=0)
    if len(days_with_agreement) < 2 or not max_tasks:
        return None
    left, right, top, bottom = 40.0, width - 8, 6.0, height - 6
    first, last = days_with_agreement[0].at, days_with_agreement[-1].at
    step = min(day_.at - before.at for before, day_ in pairwise(days_with_agreement))
    bar_width = max(1.0, min(2 * _INSET, (right - left) * step / (last - first) * 0.7))
    bars = []
    for day_ in days_with_agreement:
        x = left + _INSET + (right - left - 2 * _INSET) * (day_.at - first) / (last - first) - bar_width / 2
        share = day_.disputed.value or 0.0
        total_height, disputed_height = (
            (bottom - top) * day_.tasks / max_tasks,
            (bottom - top) * day_.tasks * share / max_tasks,
        )
        says = f"{day(day_.at, year=True)}: {count(day_.tasks)} tasks, {percent(share)} disputed"
        bars.append(
            Bar(
                round(x, 1),
                round(bottom - total_height, 1),
                round(bar_width, 1),
                round(total_height - disputed_height, 1),
                says,
                "agreed",
            )
        )
        bars.append(
            Bar(
                round(x, 1),
                round(bottom - disputed_height, 1),
                round(bar_width, 1),
                round(disputed_height, 1),
                says,
                "disputed",
            )
        )
    text = f"Tasks by day; maximum {count(max_tasks)}."
    return Chart(width, height, left, right, top, bottom, (), (Tick(top, count(max_tasks)), Tick(bottom, "0")),
                 bars=tuple(bars), text=text)  # fmt: skip


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
    left, right, top, bottom = 56.0, width - 10, 10.0, height - 26
    step = _nice_step(max((max(values) for _, values in series if values), default=0) / 4)
    top_value = 4 * step

    def x(value: float) -> float:
        return round(left + (right - left) * (value - thresholds[0]) / (thresholds[-1] - thresholds[0]), 1)

    def y(value: float) -> float:
        return round(bottom - (bottom - top) * value / top_value, 1)

    lines = tuple(
        ChartLine(
            name,
            " ".join(f"{x(at)},{y(value)}" for at, value in zip(thresholds, values, strict=True)),
            spots=tuple(
                DataPoint(x(at), y(value), f"at {at:.2f}: {count(value)} {name}")
                for at, value in zip(thresholds, values, strict=True)
            ),
        )
        for name, values in series
    )
    ticks = tuple(Tick(x(value), f"{value:.1f}") for value in thresholds if round(100 * value) % 10 == 0)
    return Chart(
        width, height, left, right, top, bottom, ticks,
        tuple(Tick(y(top_value * share), count(top_value * share)) for share in (0, 0.25, 0.5, 0.75, 1)), lines,
        mark=x(mark), text="Tasks by agreement threshold.",
    )  # fmt: skip


def _nice_step(minimum: float) -> int:
    """Smallest of 1, 2, 5, 10, 20, 50, ... that is at least ``minimum``."""
    size = 1
    while True:
        for step in (size, 2 * size, 5 * size):
            if step >= minimum:
                return step
        size *= 10


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

    def position(value: float) -> float:
        return round(100 * min(max((value - floor) / (ceiling - floor), 0.0), 1.0), 1)

    return Whisker(position(estimate.low), position(estimate.high), position(estimate.value))


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
