"""Charts as SVG, made here: bars, a histogram, a heat map. Texts are escaped; colours go by number."""

from collections.abc import Mapping, Sequence
from colorsys import hls_to_rgb
from typing import Any

from markupsafe import Markup, escape

SPLITS = {"train": "#3d6fb6", "val": "#e08a2e", "test": "#4f9d69"}
OTHER = "#8a6bb0"
_BAR, _GAP, _NAMES, _WIDTH = 18, 6, 190, 520


def colour(number: int) -> str:
    """A colour that is far from those of the numbers before it: hues by the golden ratio."""
    red, green, blue = hls_to_rgb(number * 0.618034 % 1, 0.45, 0.75)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


def split_colour(split: str) -> str:
    """The colour of a split."""
    return SPLITS.get(split, OTHER)


def bars(rows: Sequence[tuple[str, Mapping[str, int]]]) -> Markup:
    """A bar a row, its parts (splits) beside each other: (name, split -> number)."""
    largest = max((sum(parts.values()) for _, parts in rows), default=0) or 1
    drawn: list[Any] = []
    for place, (name, parts) in enumerate(rows):
        y = place * (_BAR + _GAP)
        short = name if len(name) <= 26 else f"{name[:25]}…"
        drawn.append(
            Markup('<text x="{}" y="{}" text-anchor="end">{}<title>{}</title></text>').format(
                _NAMES - 8, y + _BAR - 5, short, name
            )
        )
        x = float(_NAMES)
        for split, number in parts.items():
            width = number / largest * _WIDTH
            drawn.append(
                Markup(
                    '<rect x="{:.1f}" y="{}" width="{:.1f}" height="{}" fill="{}"><title>{}: {}</title></rect>'
                ).format(x, y, width, _BAR, split_colour(split), split, number)
            )
            x += width
        total = sum(parts.values())
        drawn.append(Markup('<text x="{:.1f}" y="{}">{:,}</text>').format(x + 6, y + _BAR - 5, total))
    return _svg(_NAMES + _WIDTH + 70, len(rows) * (_BAR + _GAP), drawn)


def histogram(steps: Sequence[tuple[str, int]], *, name: str) -> Markup:
    """Columns beside each other: (what the step is, how many)."""
    width = max(26, 7 * max((len(step) for step, _ in steps), default=0))
    height, foot = 130, 30
    largest = max((number for _, number in steps), default=0) or 1
    drawn: list[Any] = []
    for place, (step, number) in enumerate(steps):
        tall = number / largest * height
        drawn.append(
            Markup(
                '<rect x="{}" y="{:.1f}" width="{}" height="{:.1f}" fill="#3d6fb6"><title>{}: {}</title></rect>'
            ).format(place * width, height - tall, width - 3, tall, step, number)
        )
        drawn.append(
            Markup('<text x="{:.1f}" y="{}" text-anchor="middle" class="tick">{}</text>').format(
                place * width + width / 2 - 1.5, height + 12, step
            )
        )
    drawn.append(Markup('<text x="0" y="{}" class="tick">{}</text>').format(height + 27, name))
    return _svg(max(len(steps) * width, 6 * len(name)), height + foot, drawn)


def heat(places: Any) -> Markup:
    """A map of where objects are: (rows, columns) of numbers, darker for more."""
    size = 9
    largest = int(places.max()) or 1
    drawn: list[Any] = [
        Markup('<rect x="{}" y="{}" width="{}" height="{}" fill="#1f4e8c" fill-opacity="{:.3f}"/>').format(
            column * size, row * size, size, size, number / largest
        )
        for row, line in enumerate(places.tolist())
        for column, number in enumerate(line)
        if number
    ]
    rows, columns = places.shape
    frame = Markup('<rect x="0" y="0" width="{}" height="{}" fill="none" stroke="#bbb"/>').format(
        columns * size, rows * size
    )
    return _svg(columns * size, rows * size, [*drawn, frame])


def outline(rings: Sequence[Sequence[tuple[float, float]]]) -> Markup:
    """The path of an object's rings, for the even-odd rule."""
    parts = ("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in ring) + "Z" for ring in rings if ring)
    return Markup(escape(" ".join(parts)))  # noqa: S704 - digits, and escaped at that


def _svg(width: float, height: float, drawn: Sequence[Any]) -> Markup:
    head = Markup('<svg viewBox="0 0 {w:.0f} {h:.0f}" width="{w:.0f}" height="{h:.0f}" role="img">').format(
        w=width, h=max(1.0, height)
    )
    return head + Markup("").join(drawn) + Markup("</svg>")
