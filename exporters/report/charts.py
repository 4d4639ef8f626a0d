"""Charts as inline SVG: stacked bars, a histogram, a heat map. All text is escaped; colours are derived from ids."""

from collections.abc import Mapping, Sequence
from colorsys import hls_to_rgb
from typing import Any

from markupsafe import Markup, escape

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
    elements: list[Any] = []
    for index, (name, segments) in enumerate(rows):
        y = index * (_BAR_HEIGHT + _BAR_GAP)
        short = name if len(name) <= 26 else f"{name[:25]}…"
        elements.append(
            Markup('<text x="{}" y="{}" text-anchor="end">{}<title>{}</title></text>').format(
                _NAME_WIDTH - 8, y + _BAR_HEIGHT - 5, short, name
            )
        )
        x = float(_NAME_WIDTH)
        for split, number in segments.items():
            width = number / largest * _CHART_WIDTH
            elements.append(
                Markup(
                    '<rect x="{:.1f}" y="{}" width="{:.1f}" height="{}" fill="{}"><title>{}: {}</title></rect>'
                ).format(x, y, width, _BAR_HEIGHT, split_colour(split), split, number)
            )
            x += width
        total = sum(segments.values())
        elements.append(Markup('<text x="{:.1f}" y="{}">{:,}</text>').format(x + 6, y + _BAR_HEIGHT - 5, total))
    return _svg(_NAME_WIDTH + _CHART_WIDTH + 70, len(rows) * (_BAR_HEIGHT + _BAR_GAP), elements)


def histogram(bins: Sequence[tuple[str, int]], *, name: str) -> Markup:
    """A histogram of bins (label, count); `name` is the label of the x axis."""
    width = max(26, 7 * max((len(label) for label, _ in bins), default=0))
    height, foot = 130, 30
    largest = max((count for _, count in bins), default=0) or 1
    elements: list[Any] = []
    for index, (label, count) in enumerate(bins):
        bar_height = count / largest * height
        elements.append(
            Markup(
                '<rect x="{}" y="{:.1f}" width="{}" height="{:.1f}" fill="#3d6fb6"><title>{}: {}</title></rect>'
            ).format(index * width, height - bar_height, width - 3, bar_height, label, count)
        )
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
    elements: list[Any] = [
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


def _svg(width: float, height: float, elements: Sequence[Any]) -> Markup:
    head = Markup('<svg viewBox="0 0 {w:.0f} {h:.0f}" width="{w:.0f}" height="{h:.0f}" role="img">').format(
        w=width, h=max(1.0, height)
    )
    return head + Markup("").join(elements) + Markup("</svg>")
