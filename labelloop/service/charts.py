"""Marks of a chart as numbers, in pixels of its SVG: what the pages of several programs draw alike."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tick:
    """A mark of an axis: where, and what it says."""

    at: float
    text: str


@dataclass(frozen=True)
class DataPoint:
    """A point of a chart: where, what it says when pointed at, and of which kind it is."""

    x: float
    y: float
    text: str
    kind: str = ""


@dataclass(frozen=True)
class Bar:
    """A bar, or a part of one: where, what it says when pointed at, and of which kind it is."""

    x: float
    y: float
    width: float
    height: float
    text: str
    kind: str = ""
