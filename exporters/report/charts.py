"""Charts as inline SVG: stacked bars, a histogram, a heat map. All text is escaped; colours are derived from ids.

Marks are f-strings with `escape`: a report has hundreds, and `Markup.format` takes six times as long.
"""

from collections.abc import Mapping, Sequence
from colorsys import hls_to_rgb
from typing import Any
from unicodedata import east_asian_width

from markupsafe import Markup, escape

from labelloop.service.charts import Bar, LinearScale, count, nice_step

SPLIT_COLOURS = {"train": "#3d6fb6", "val": "#e08a2e", "test": "#4f9d69"}
OTHER_SPLIT_COLOUR = "#8a6bb0"
_BAR_HEIGHT, _BAR_GAP, _NAME_WIDTH, _CHART_WIDTH = 18, 6, 190, 520
_NAME_CHARACTERS = 26


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
    elements: list[str] = []
    for index, (name, segments) in enumerate(rows):
        y = index * (_BAR_HEIGHT + _BAR_GAP)
        elements.append(
            f'<text x="{_NAME_WIDTH - 8}" y="{y + _BAR_HEIGHT - 5}" text-anchor="end">{escape(_shortened(name))}'
            f"<title>{escape(name)}</title></text>"
        )
        for (split, number), (x, width) in zip(segments.items(), scale.stack(segments.values()), strict=True):
            if number:
                elements.append(_rect(Bar(x, y, width, _BAR_HEIGHT, f"{split}: {count(number)}"), split_colour(split)))
        total = sum(segments.values())
        elements.append(f'<text x="{scale(total) + 6:.1f}" y="{y + _BAR_HEIGHT - 5}">{count(total)}</text>')
    listed = ", ".join(f"{name} {count(sum(segments.values()))}" for name, segments in rows)
    return _svg(
        _NAME_WIDTH + _CHART_WIDTH + 70, len(rows) * (_BAR_HEIGHT + _BAR_GAP), elements,
        text=f"Objects by class: {listed}.",
    )  # fmt: skip


def histogram(bins: Sequence[tuple[str, int]], *, name: str, of: str = "boxes") -> Markup:
    """A histogram of bins (label, count).

    Args:
        bins: The bins.
        name: Title of the horizontal axis.
        of: What is counted, the title of the vertical axis.
    """
    width = max(30, 8 * max((len(label) for label, _ in bins), default=0))
    most = max((number for _, number in bins), default=0) or 1
    step = nice_step(most / 3)
    levels = range(0, most + step, step)
    top, bottom, left = 20, 150, 10 + 8 * len(count(levels[-1]))
    scale = LinearScale(0, levels[-1], bottom, top)
    right = left + max(len(bins) * width, 7 * len(name))
    elements = [
        f'<text x="0" y="11" class="tick">{escape(of)}</text>',
        *(
            f'<line class="grid" x1="{left}" x2="{right}" y1="{scale(level)}" y2="{scale(level)}"/>'
            f'<text x="{left - 5}" y="{scale(level) + 4}" text-anchor="end" class="tick">{count(level)}</text>'
            for level in levels
        ),
    ]
    for index, (label, number) in enumerate(bins):
        [(y, bar_height)] = scale.stack([number])
        x = left + index * width
        elements.append(_rect(Bar(x + 1.5, y, width - 3, bar_height, f"{label}: {count(number)}"), "#3d6fb6"))
        elements.append(
            f'<text x="{x + width / 2:.1f}" y="{bottom + 14}" text-anchor="middle" class="tick">{escape(label)}</text>'
        )
    elements.append(f'<text x="{left}" y="{bottom + 30}" class="tick">{escape(name)}</text>')
    filled = ", ".join(f"{label}: {count(number)}" for label, number in bins if number)
    return _svg(right, bottom + 34, elements, text=f"{of.capitalize()} by {name}. {filled or 'None'}.")


def heat_map(counts: Any) -> Markup:
    """A heat map of counts (rows, columns), a stronger colour for more."""
    size = 9
    largest = int(counts.max()) or 1
    elements = [
        _rect(
            Bar(column * size, row * size, size, size, count(number)), "#3d6fb6", opacity=0.15 + 0.85 * number / largest
        )
        for row, line in enumerate(counts.tolist())
        for column, number in enumerate(line)
        if number
    ]
    rows, columns = counts.shape
    frame = f'<rect class="frame" x="0" y="0" width="{columns * size}" height="{rows * size}" fill="none"/>'
    text = f"Box centres on the image, in {columns} by {rows} cells; the fullest has {count(int(counts.max()))}."
    return _svg(columns * size, rows * size, [*elements, frame], text=text, css="map")


def svg_path(rings: Sequence[Sequence[tuple[float, float]]]) -> Markup:
    """The path data of an object's closed rings of (x, y) in pixels, for the even-odd fill rule."""
    subpaths = ("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in ring) + "Z" for ring in rings if ring)
    return Markup(escape(" ".join(subpaths)))  # noqa: S704 - escaped, and only numbers


def _rect(bar: Bar, fill: str, *, opacity: float = 1.0) -> str:
    faded = f' fill-opacity="{opacity:.2f}"' if opacity < 1 else ""
    return (
        f'<rect x="{bar.x}" y="{bar.y}" width="{bar.width}" height="{bar.height}" fill="{fill}"{faded}>'
        f"<title>{escape(bar.text)}</title></rect>"
    )


def _shortened(name: str) -> str:
    """A name that fits next to the bars; East Asian wide characters take the place of two."""
    room = _NAME_CHARACTERS
    for index, character in enumerate(name):
        room -= 2 if east_asian_width(character) in "WF" else 1
        if room < 0:
            return f"{name[: index - 1]}…"
    return name


def _svg(width: float, height: float, elements: Sequence[str], *, text: str, css: str = "chart") -> Markup:
    """An SVG of escaped elements; `text` is what a screen reader says in its place."""
    height = max(1.0, height)
    head = (
        f'<svg class="{css}" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
        f' role="img" aria-label="{escape(text)}">'
    )
    return Markup("".join((head, *elements, "</svg>")))  # noqa: S704 - its texts are escaped
