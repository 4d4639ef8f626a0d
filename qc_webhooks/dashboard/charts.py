"""Charts as numbers: where each line, bar and mark of an SVG goes. The templates draw them, the style sheet colours."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from labelloop.service.charts import Bar, DataPoint, Tick
from qc_webhooks.annotators.reliability import LabelReliability
from qc_webhooks.dashboard.formatting import count, day, percent
from qc_webhooks.report.project_summary import Confusion, Day
from qc_webhooks.statistics import ABSENT, Estimate

# Space at both ends of an axis of time, so that the first and the last bar are whole.
_INSET = 9.0


@dataclass(frozen=True)
class Line:
    """One course: its name, the points of its line, of its band, and the marks on it."""

    name: str
    points: str
    band: str = ""
    spots: tuple[DataPoint, ...] = ()


@dataclass(frozen=True)
class Chart:
    """A chart in a box of ``width`` x ``height``.

    Attributes:
        width: Of the whole.
        height: Of the whole.
        left: Where the plot begins.
        right: Where it ends.
        top: Where it begins.
        bottom: Where it ends.
        x: The horizontal axis.
        y: The vertical axis.
        lines: Courses.
        bars: Bars.
        mark: Where a vertical line marks a value; None: nowhere.
        text: What it shows, in words, for who cannot see it.
    """

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    x: tuple[Tick, ...]
    y: tuple[Tick, ...]
    lines: tuple[Line, ...] = ()
    bars: tuple[Bar, ...] = ()
    mark: float | None = None
    text: str = ""


def over_time(days: Sequence[Day], *, width: float = 760.0, height: float = 240.0) -> Chart | None:
    """Agreement with its interval, day by day; None where there is nothing to draw yet."""
    known = [each for each in days if each.agreement.value is not None]
    if len(known) < 2:
        return None
    left, right, top, bottom = 40.0, width - 8, 10.0, height - 24
    first, last = known[0].at, known[-1].at
    low = min((each.agreement.low or 0.0) for each in known)
    floor = max(0.0, min(0.9, int(low * 10) / 10))

    def x(at: float) -> float:
        return round(left + _INSET + (right - left - 2 * _INSET) * (at - first) / (last - first), 1)

    def y(value: float | None) -> float:
        return round(bottom - (bottom - top) * ((value or 0.0) - floor) / (1 - floor), 1)

    upper = [f"{x(each.at)},{y(each.agreement.high)}" for each in known]
    lower = [f"{x(each.at)},{y(each.agreement.low)}" for each in reversed(known)]
    spots = tuple(
        DataPoint(
            x(each.at),
            y(each.agreement.value),
            f"{day(each.at, year=True)}: {percent(each.agreement.value, 1)}, {count(each.tasks)} tasks",
        )
        for each in known
    )
    line = Line("agreement", " ".join(f"{spot.x},{spot.y}" for spot in spots), " ".join([*upper, *lower]), spots)
    step = max(1, len(known) // 7)
    marks = tuple(Tick(x(each.at), day(each.at)) for each in known[::step])
    share = 0.1 if 1 - floor <= 0.5 else 0.2
    levels = [round(floor + share * place, 2) for place in range(int((1 - floor) / share + 1e-9) + 1)]
    text = (
        f"Agreement from {day(first, year=True)} to {day(last, year=True)}: at first"
        f" {percent(known[0].agreement.value)}, at last {percent(known[-1].agreement.value)}."
    )
    return Chart(
        width, height, left, right, top, bottom, marks, tuple(Tick(y(each), percent(each)) for each in levels), (line,),
        text=text,
    )  # fmt: skip


def volume(days: Sequence[Day], *, width: float = 760.0, height: float = 90.0) -> Chart | None:
    """How many tasks were annotated each day, and how many of them are disputed; on the axis of ``over_time``."""
    known = [each for each in days if each.agreement.value is not None]
    most = max((each.tasks for each in known), default=0)
    if len(known) < 2 or not most:
        return None
    left, right, top, bottom = 40.0, width - 8, 6.0, height - 6
    first, last = known[0].at, known[-1].at
    step = min(each.at - before.at for before, each in pairwise(known))
    thick = max(1.0, min(2 * _INSET, (right - left) * step / (last - first) * 0.7))
    bars = []
    for each in known:
        x = left + _INSET + (right - left - 2 * _INSET) * (each.at - first) / (last - first) - thick / 2
        share = each.disputed.value or 0.0
        whole, part = (bottom - top) * each.tasks / most, (bottom - top) * each.tasks * share / most
        says = f"{day(each.at, year=True)}: {count(each.tasks)} tasks, {percent(share)} disputed"
        bars.append(Bar(round(x, 1), round(bottom - whole, 1), round(thick, 1), round(whole - part, 1), says, "agreed"))
        bars.append(Bar(round(x, 1), round(bottom - part, 1), round(thick, 1), round(part, 1), says, "disputed"))
    text = f"Tasks by day, at most {count(most)}."
    return Chart(width, height, left, right, top, bottom, (), (Tick(top, count(most)), Tick(bottom, "0")),
                 bars=tuple(bars), text=text)  # fmt: skip


def curves(
    thresholds: Sequence[float],
    courses: Sequence[tuple[str, Sequence[int]]],
    *,
    mark: float,
    width: float = 760.0,
    height: float = 320.0,
) -> Chart:
    """Numbers of tasks against the threshold of agreement.

    Args:
        thresholds: Ascending, at least two.
        courses: (name, number at each threshold).
        mark: The threshold that is in force.
        width: Of the whole.
        height: Of the whole.
    """
    left, right, top, bottom = 56.0, width - 10, 10.0, height - 26
    step = _nice(max((max(values) for _, values in courses if values), default=0) / 4)
    most = 4 * step

    def x(value: float) -> float:
        return round(left + (right - left) * (value - thresholds[0]) / (thresholds[-1] - thresholds[0]), 1)

    def y(value: float) -> float:
        return round(bottom - (bottom - top) * value / most, 1)

    lines = tuple(
        Line(
            name,
            " ".join(f"{x(at)},{y(value)}" for at, value in zip(thresholds, values, strict=True)),
            spots=tuple(
                DataPoint(x(at), y(value), f"at {at:.2f}: {count(value)} {name}")
                for at, value in zip(thresholds, values, strict=True)
            ),
        )
        for name, values in courses
    )
    marks = tuple(Tick(x(value), f"{value:.1f}") for value in thresholds if round(100 * value) % 10 == 0)
    return Chart(
        width, height, left, right, top, bottom, marks,
        tuple(Tick(y(most * share), count(most * share)) for share in (0, 0.25, 0.5, 0.75, 1)), lines, mark=x(mark),
        text="Tasks by threshold of agreement.",
    )  # fmt: skip


def _nice(least: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50, ... that is at least so much."""
    size = 1
    while True:
        for step in (size, 2 * size, 5 * size):
            if step >= least:
                return step
        size *= 10


@dataclass(frozen=True)
class Range:
    """An interval in a box 100 wide: where it begins and ends, and where its value is."""

    low: float
    high: float
    value: float


def whisker(found: Estimate, *, floor: float = 0.0, ceiling: float = 1.0) -> Range | None:
    """An interval as a line with a dot; None without one."""
    if found.value is None or found.low is None or found.high is None:
        return None

    def place(value: float) -> float:
        return round(100 * min(max((value - floor) / (ceiling - floor), 0.0), 1.0), 1)

    return Range(place(found.low), place(found.high), place(found.value))


@dataclass(frozen=True)
class Cell:
    """A cell of a confusion matrix: its share of the row (0 to 1), a step of colour 0 to 6, and what it says."""

    share: float
    step: int
    same: bool
    text: str


def matrix(confusion: Confusion, most: int = 14) -> tuple[tuple[str, ...], list[tuple[str, int, list[Cell]]]]:
    """The confusion of the most frequent labels: the columns' names, and rows of (label, pairs, cells)."""
    totals = [sum(row) for row in confusion.pairs]
    order = sorted(range(len(totals)), key=lambda place: (confusion.labels[place] == ABSENT, -totals[place]))[:most]
    names = tuple(readable(confusion.labels[place]) for place in order)
    rows = []
    for place in order:
        if confusion.labels[place] == ABSENT:
            continue
        cells = []
        for other in order:
            number = confusion.pairs[place][other]
            share = number / totals[place] if totals[place] else 0.0
            says = (
                f"Where one says {readable(confusion.labels[place])}, the other says"
                f" {readable(confusion.labels[other])}: {count(number)} times, {percent(share, 1)}"
            )
            cells.append(Cell(share, _step(share), place == other, says))
        rows.append((readable(confusion.labels[place]), totals[place], cells))
    return names, rows


def own_matrix(found: LabelReliability, most: int = 14) -> tuple[tuple[str, ...], list[tuple[str, float, list[Cell]]]]:
    """An annotator's confusion of the most frequent labels: the columns' names, and rows of (truth, objects, cells)."""
    totals = {truth: sum(given.values()) for truth, given in found.confusion.items()}
    names = tuple(sorted(totals, key=lambda name: -totals[name])[:most])
    rows = []
    for truth in names:
        total, given = max(totals[truth], 1e-9), found.confusion[truth]
        shares = {name: given.get(name, 0.0) / total for name in names}
        cells = [
            Cell(share, _step(share), name == truth, f"Of what is likely {truth}: {name} in {percent(share, 1)}")
            for name, share in shares.items()
        ]
        rows.append((truth, totals[truth], cells))
    return names, rows


def readable(answer: str) -> str:
    """An answer's name on a page."""
    return "not marked" if answer == ABSENT else answer


def _step(share: float) -> int:
    return sum(share >= least for least in (0.005, 0.02, 0.05, 0.1, 0.3, 0.7))
