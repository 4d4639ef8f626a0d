"""Layout of charts in SVG units: scales, ticks, marks and number formats. Templates draw the marks."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

# Shown in place of a number that is not known.
EN_DASH = "\u2013"


@dataclass(frozen=True)
class Tick:
    """An axis tick: its position along the axis, and its label."""

    at: float
    text: str


@dataclass(frozen=True)
class DataPoint:
    """A data point: centre, tooltip text, and kind (for the CSS class)."""

    x: float
    y: float
    text: str
    kind: str = ""


@dataclass(frozen=True)
class Bar:
    """A bar or a segment of one: rectangle, tooltip text, and kind (for the CSS class)."""

    x: float
    y: float
    width: float
    height: float
    text: str
    kind: str = ""


@dataclass(frozen=True)
class ChartLine:
    """A series: name (for the CSS class or the legend), points of the line, points of the interval band, data points.

    `points` and `band` are written as in SVG's ``points`` attribute (see `polyline`).
    """

    name: str
    points: str
    band: str = ""
    spots: tuple[DataPoint, ...] = ()


@dataclass(frozen=True)
class Chart:
    """A chart of ``width`` x ``height`` SVG units. The y axis points down, as in SVG.

    Attributes:
        width: Width of the chart.
        height: Height of the chart.
        left: Left edge of the plot.
        right: Right edge of the plot.
        top: Top edge of the plot.
        bottom: Bottom edge of the plot.
        x: Ticks of the horizontal axis.
        y: Ticks of the vertical axis.
        x_title: What the horizontal axis shows; empty where its ticks say so.
        y_title: What the vertical axis shows; drawn above it.
        lines: Series.
        spots: Data points that belong to no series.
        bars: Bars.
        mark: X coordinate of a vertical marker; None without one.
        zero: Y coordinate of the value 0; None if it is not drawn.
        text: Description for screen readers.
    """

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    x: tuple[Tick, ...] = ()
    y: tuple[Tick, ...] = ()
    x_title: str = ""
    y_title: str = ""
    lines: tuple[ChartLine, ...] = ()
    spots: tuple[DataPoint, ...] = ()
    bars: tuple[Bar, ...] = ()
    mark: float | None = None
    zero: float | None = None
    text: str = ""


@dataclass(frozen=True)
class LinearScale:
    """Maps the values `low` to `high` onto the positions `start` to `end` of an axis, rounded to 0.1.

    A vertical axis has `start` below `end`: ``LinearScale(0, 1, bottom, top)``.
    """

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the position of a value; values outside the range are extrapolated."""
        return round(self.start + (self.end - self.start) * (value - self.low) / (self.high - self.low), 1)

    def ticks(self, values: Iterable[float], label: Callable[[float], str]) -> tuple[Tick, ...]:
        """Return a labelled tick at each value."""
        return tuple(Tick(self(value), label(value)) for value in values)

    def stack(self, sizes: Iterable[float]) -> Iterator[tuple[float, float]]:
        """Yield the (lowest coordinate, length) of each segment of a stacked bar from 0.

        Both ends of a segment are rounded before they are subtracted, so that neighbouring segments meet exactly.
        """
        total = 0.0
        for size in sizes:
            first, last = sorted((self(total), self(total + size)))
            yield first, round(last - first, 1)
            total += size


def nice_step(minimum: float) -> int:
    """Return the smallest of 1, 2, 5, 10, 20, 50, ... that is at least `minimum`."""
    size = 1
    while True:
        for step in (size, 2 * size, 5 * size):
            if step >= minimum:
                return step
        size *= 10


def polyline(points: Sequence[tuple[float, float]]) -> str:
    """Return points as SVG's ``points`` attribute: "x,y x,y"."""
    return " ".join(f"{x},{y}" for x, y in points)


def count(number: float) -> str:
    """12345 -> "12,345"."""
    return f"{number:,.0f}"


def pluralize(number: int, noun: str) -> str:
    """A number with its noun: "1 task", "1,200 tasks"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def decimal(value: float | None, digits: int = 2) -> str:
    """0.8264 -> "0.83"; None -> a dash."""
    return EN_DASH if value is None else f"{value:.{digits}f}"


def percent(part: float | None, digits: int = 0, *, of: float = 1.0) -> str:
    """0.934 -> "93 %"; None, NaN and a share of 0 -> a dash.

    Args:
        part: The share, or a part of `of`.
        digits: Decimal digits.
        of: The whole.
    """
    return EN_DASH if part is None or math.isnan(part) or not of else f"{100 * part / of:.{digits}f} %"
