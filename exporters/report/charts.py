"""Charts as inline SVG: stacked bars, a histogram, a heat map. All text is escaped; colours are derived from ids."""

from collections.abc import Mapping, Sequence
from colorsys import hls_to_rgb
from typing import Any

from markupsafe import Markup, escape

from labelloop.service.charts import Bar, LinearScale, count

SPLIT_COLOURS = {"train": "#3d6fb6", "val": "#e08a2e", "test": "#4f9d69"}
OTHER_SPLIT_COLOUR = "#8a6bb0"
_BAR_HEIGHT, _BAR_GAP, _NAME_WIDTH, _CHART_WIDTH = 18, 6, 190, 520


def class_colour(class_id: int) -> str:
    """A hex colour for a class; hues advance by the golden ratio, so that neighbouring ids differ clearly."""
    red, green, blue = hls_to_rgb(class_id * 0.618034 % 1, 0.45, 0.75)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


def split_colour(split: str) -> str:
    """The hex colour of a split."""
    return SPLIT_COLOURS.get(split, OTHER_SPLIT_COLOUR)


def stacked_bar_chart(rows: Sequence[tuple[str, Mapping[str, int]]]) -> Markup:
    """A horizontal bar per row (name, number by split), with one segment per split."""
    largest = max((sum(segments.values()) for _, segments in rows), default=0) or 1
    scale = LinearScale(0, largest, _NAME_WIDTH, _NAME_WIDTH + _CHART_WIDTH)
    elements: list[Markup] = []
    for index, (name, segments) in enumerate(rows):
        y = index * (_BAR_HEIGHT + _BAR_GAP)
        short = name if len(name) <= 26 else f"{name[:25]}…"
        elements.append(
            Markup('<text x="{}" y="{}" text-anchor="end">{}<title>{}</title></text>').format(
                _NAME_WIDTH - 8, y + _BAR_HEIGHT - 5, short, name
            )
        )
        for (split, number), (x, width) in zip(segments.items(), scale.stack(segments.values()), strict=True):
            elements.append(_rect(Bar(x, y, width, _BAR_HEIGHT, f"{split}: {number}"), split_colour(split)))
        total = sum(segments.values())
        elements.append(
            Markup('<text x="{:.1f}" y="{}">{}</text>').format(scale(total) + 6, y + _BAR_HEIGHT - 5, count(total))
        )
    return _svg(_NAME_WIDTH + _CHART_WIDTH + 70, len(rows) * (_BAR_HEIGHT + _BAR_GAP), elements)


def histogram(bins: Sequence[tuple[str, int]], *, name: str) -> Markup:
    """A histogram of bins (label, count); `name` is the label of the x axis."""
    width = max(26, 7 * max((len(label) for label, _ in bins), default=0))
    height, foot = 130, 30
    scale = LinearScale(0, max((number for _, number in bins), default=0) or 1, height, 0)
    elements: list[Markup] = []
    for index, (label, number) in enumerate(bins):
        [(y, bar_height)] = scale.stack([number])
        elements.append(_rect(Bar(index * width, y, width - 3, bar_height, f"{label}: {number}"), "#3d6fb6"))
        elements.append(
            Markup('<text x="{:.1f}" y="{}" text-anchor="middle" class="tick">{}</text>').format(
                index * width + width / 2 - 1.5, height + 12, label
            )
        )
    elements.append(Markup('<text x="0" y="{}" class="tick">{}</text>').format(height + 27, name))
    return _svg(max(len(bins) * width, 6 * len(name)), height + foot, elements)


def heat_map(counts: Any) -> Markup:
    """A heat map of counts (rows, columns), darker for more."""
    size = 9
    largest = int(counts.max()) or 1
    elements = [
        Markup('<rect x="{}" y="{}" width="{}" height="{}" fill="#1f4e8c" fill-opacity="{:.3f}"/>').format(
            column * size, row * size, size, size, number / largest
        )
        for row, line in enumerate(counts.tolist())
        for column, number in enumerate(line)
        if number
    ]
    rows, columns = counts.shape
    frame = Markup('<rect x="0" y="0" width="{}" height="{}" fill="none" stroke="#bbb"/>').format(
        columns * size, rows * size
    )
    return _svg(columns * size, rows * size, [*elements, frame])


def svg_path(rings: Sequence[Sequence[tuple[float, float]]]) -> Markup:
    """The path data of an object's closed rings of (x, y) in pixels, for the even-odd fill rule."""
    subpaths = ("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in ring) + "Z" for ring in rings if ring)
    return Markup(escape(" ".join(subpaths)))  # noqa: S704 - escaped, and only numbers


def _rect(bar: Bar, fill: str) -> Markup:
    return Markup('<rect x="{}" y="{}" width="{}" height="{}" fill="{}"><title>{}</title></rect>').format(
        bar.x, bar.y, bar.width, bar.height, fill, bar.text
    )


def _svg(width: float, height: float, elements: Sequence[Markup]) -> Markup:
    head = Markup('<svg viewBox="0 0 {w:.0f} {h:.0f}" width="{w:.0f}" height="{h:.0f}" role="img">').format(
        w=width, h=max(1.0, height)
    )
    return head + Markup("").join(elements) + Markup("</svg>")
