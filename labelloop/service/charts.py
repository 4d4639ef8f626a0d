"""Geometry of chart elements in SVG pixels, shared by the report pages."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tick:
    """An axis tick: its position in pixels along the axis, and its label."""

    at: float
    text: str


@dataclass(frozen=True)
class DataPoint:
    """A data point: centre in pixels, tooltip text, and kind (for the CSS class)."""

    x: float
    y: float
    text: str
    kind: str = ""


@dataclass(frozen=True)
class Bar:
    """A bar or a segment of one: rectangle in pixels, tooltip text, and kind (for the CSS class)."""

    x: float
    y: float
    width: float
    height: float
    text: str
    kind: str = ""
