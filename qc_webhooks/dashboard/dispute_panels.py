"""A dispute as panels: for every stance the part of the photo that matters, with its outlines, ready for an SVG."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qc_webhooks.dashboard.photos import WIDTHS
from qc_webhooks.decision.dispute_drawing import CONSENSUS, Drawing, Outline, Points, View

# Where nobody recorded a photo's size it is taken for this; outlines are shares of it either way.
_UNKNOWN = (1000, 750)
# A cut-out is never less than this share of the photo, or nobody would know where it is.
_LEAST_CUT = 0.3
_MARGIN = 0.06
# A cut-out of more than this share is the whole photo.
_WHOLE = 0.8
# Pixels that a panel is wide on the screen, at most; sharp screens want twice as many.
_PANEL_PX, _SHARP = 420, 1.6


@dataclass(frozen=True)
class Shape:
    """One outline in the coordinates of the photo.

    Attributes:
        path: The data of an SVG path; empty for a point.
        dot: Where a point is; None otherwise.
        open: Whether it encloses nothing.
        label: Its labels.
        x: Where the label is written.
        y: The same.
        disputed: Whether a conflict is about it.
        conflicts: Which ones, from 1.
    """

    path: str
    dot: tuple[float, float] | None
    open: bool
    label: str
    x: float
    y: float
    disputed: bool
    conflicts: tuple[int, ...]


@dataclass(frozen=True)
class Panel:
    """One stance.

    Attributes:
        name: ``A``, ``B``, ... or ``consensus``.
        colour: The class that colours it: ``a`` to ``f``, ``consensus``.
        annotators: Who holds it.
        shapes: The undisputed outlines first, so that disputed ones lie on top.
        said: (control, answer) about the whole task.
    """

    name: str
    colour: str
    annotators: tuple[int, ...]
    shapes: tuple[Shape, ...]
    said: tuple[tuple[str, str], ...]

    @property
    def is_consensus(self) -> bool:
        """Whether it is what all say together."""
        return self.name == CONSENSUS


@dataclass(frozen=True)
class Panels:
    """A dispute on one photo.

    Attributes:
        photo: Which photo of the task.
        photos: How many photos the task has with something drawn.
        size: (width, height) of the photo.
        box: (x, y, width, height) of the part that is shown.
        pixels: How wide the photo must be to look sharp; one of WIDTHS.
        text: Height of written labels.
        panels: The stances, and last the consensus.
    """

    photo: int
    photos: int
    size: tuple[int, int]
    box: tuple[float, float, float, float]
    pixels: int
    text: float
    panels: tuple[Panel, ...]

    @property
    def is_cut(self) -> bool:
        """Whether only a part of the photo is shown."""
        return self.box[2] < self.size[0] or self.box[3] < self.size[1]


def lay_out(drawing: Drawing, *, whole: bool = False, photo: int | None = None, panel_px: int = _PANEL_PX) -> Panels:
    """The panels of a dispute.

    Args:
        drawing: The dispute.
        whole: Show the whole photo; otherwise what is disputed, with its surroundings.
        photo: Which photo; None: the one with most conflicts.
        panel_px: How wide a panel is on the screen.
    """
    place = drawing.photo if photo is None else photo
    size = drawing.sizes[place] if place < len(drawing.sizes) and all(drawing.sizes[place]) else _UNKNOWN
    box = (0.0, 0.0, float(size[0]), float(size[1])) if whole else _cut(drawing.views, place, size)
    wanted = panel_px * _SHARP * size[0] / box[2]
    return Panels(
        place,
        max((outline.photo for view in drawing.views for outline in view.outlines), default=0) + 1,
        size,
        box,
        next((width for width in WIDTHS if width >= wanted), WIDTHS[-1]),
        round(box[2] * 13 / panel_px, 2),
        tuple(_panel(view, place, size, box) for view in drawing.views),
    )


def _cut(views: Iterable[View], photo: int, size: tuple[int, int]) -> tuple[float, float, float, float]:
    points = [
        point
        for view in views
        for outline in view.outlines
        if outline.disputed and outline.photo == photo
        for ring in outline.rings
        for point in ring
    ]
    if not points:
        return 0.0, 0.0, float(size[0]), float(size[1])
    left, right = min(x for x, _ in points) - _MARGIN, max(x for x, _ in points) + _MARGIN
    top, bottom = min(y for _, y in points) - _MARGIN, max(y for _, y in points) + _MARGIN
    # One share of both sides, so that every cut-out has the shape of its photo.
    share = max(right - left, bottom - top, _LEAST_CUT)
    if share > _WHOLE:
        return 0.0, 0.0, float(size[0]), float(size[1])
    x = min(max((left + right - share) / 2, 0.0), 1.0 - share)
    y = min(max((top + bottom - share) / 2, 0.0), 1.0 - share)
    return round(x * size[0], 1), round(y * size[1], 1), round(share * size[0], 1), round(share * size[1], 1)


def _panel(view: View, photo: int, size: tuple[int, int], box: Sequence[float]) -> Panel:
    shapes = [_shape(each, size, box) for each in view.outlines if each.photo == photo and each.rings]
    colour = CONSENSUS if view.name == CONSENSUS else "abcdef"[(ord(view.name[0]) - ord("A")) % 6]
    shapes.sort(key=lambda shape: shape.disputed)
    return Panel(view.name, colour, view.annotators, tuple(shapes), view.said)


def _shape(outline: Outline, size: tuple[int, int], box: Sequence[float]) -> Shape:
    rings = [[(round(x * size[0], 1), round(y * size[1], 1)) for x, y in ring] for ring in outline.rings]
    first = rings[0]
    left, top = min(x for x, _ in first), min(y for _, y in first)
    # A label stays inside what is shown.
    x = min(max(left, box[0] + 0.01 * box[2]), box[0] + 0.9 * box[2])
    y = min(max(top, box[1] + 0.05 * box[3]), box[1] + box[3])
    dot = first[0] if outline.open and len(first) == 1 else None
    path = "" if dot else " ".join(_path(ring, open_=outline.open) for ring in rings)
    numbers = tuple(place + 1 for place in outline.disputed)
    return Shape(path, dot, outline.open, outline.label, round(x, 1), round(y, 1), bool(numbers), numbers)


def _path(ring: Points | list[tuple[float, float]], *, open_: bool) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in ring) + ("" if open_ else "Z")
