"""Lays out a dispute as SVG panels: the disputed part of the image with the outlines of each group of annotators."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qc_webhooks.dashboard.task_images import WIDTHS
from qc_webhooks.decision.dispute_drawing import CONSENSUS, DisputeDrawing, GroupView, Points, RegionOutline

# Size of images whose size is unknown; outlines are relative to it.
_DEFAULT_SIZE = (1000, 750)
# Smallest crop as a share of the image, so that its surroundings stay visible.
_MIN_CROP = 0.3
_MARGIN = 0.06
# A crop above this share becomes the full image.
_FULL_IMAGE_SHARE = 0.8
# Maximum panel width in CSS pixels, and the device pixels per CSS pixel.
_PANEL_PX, _PIXEL_DENSITY = 420, 1.6
# The panels of the list in CSS pixels: their width together and their height, and the height of their labels.
_ROW_PX, _HEIGHT_PX, _TEXT_PX = 940, 195, 12


@dataclass(frozen=True)
class PanelShape:
    """One outline in pixels of the image.

    Attributes:
        path: SVG path data; empty for a point.
        dot: (x, y) of a point; None otherwise.
        open: Whether it is a line instead of an area.
        label: Its labels.
        x: Position of the label.
        y: The same.
        disputed: Whether it is part of a conflict.
        conflicts: Numbers of its conflicts, from 1.
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
    """Panel of one group of annotators with the same answer.

    Attributes:
        name: ``A``, ``B``, ... or ``consensus``.
        color: CSS class of its color: ``a`` to ``f``, ``consensus``.
        annotators: Members of the group.
        shapes: Undisputed outlines first, so that disputed ones are on top.
        answers: (control, answer) about the whole task.
    """

    name: str
    color: str
    annotators: tuple[int, ...]
    shapes: tuple[PanelShape, ...]
    answers: tuple[tuple[str, str], ...]

    @property
    def is_consensus(self) -> bool:
        """Whether this is the consensus."""
        return self.name == CONSENSUS


@dataclass(frozen=True)
class Panels:
    """A dispute on one image.

    Attributes:
        image: Index of the image in the task.
        image_count: Number of images of the task with regions.
        size: (width, height) of the image in pixels.
        box: (x, y, width, height) of the visible part in pixels.
        pixels: Width of the image to load; one of WIDTHS.
        text: Height of the labels in image pixels.
        panels: The groups, and last the consensus.
        has_image: Whether the task has an image.
    """

    image: int
    image_count: int
    size: tuple[int, int]
    box: tuple[float, float, float, float]
    pixels: int
    text: float
    panels: tuple[Panel, ...]
    has_image: bool = True

    @property
    def is_cut(self) -> bool:
        """Whether only a part of the image is visible."""
        return self.box[2] < self.size[0] or self.box[3] < self.size[1]


def build_panels(
    drawing: DisputeDrawing,
    *,
    full_image: bool = False,
    image_index: int | None = None,
    panel_px: int = _PANEL_PX,
    row_px: int = _ROW_PX,
    height_px: int = _HEIGHT_PX,
) -> Panels:
    """Build the panels of a dispute.

    Args:
        drawing: The dispute.
        full_image: Show the full image; otherwise the disputed part with its surroundings.
        image_index: Index of the image; None for the one with the most conflicts.
        panel_px: Maximum width of a panel in CSS pixels.
        row_px: Width of all panels together on a laptop's screen, in CSS pixels.
        height_px: Maximum height of a panel in CSS pixels.
    """
    image = drawing.busiest_image if image_index is None else image_index
    size = drawing.sizes[image] if image < len(drawing.sizes) and all(drawing.sizes[image]) else _DEFAULT_SIZE
    box = (0.0, 0.0, float(size[0]), float(size[1])) if full_image else _crop_box(drawing.views, image, size)
    min_width = panel_px * _PIXEL_DENSITY * size[0] / box[2]
    shown_px = min(panel_px, row_px / max(len(drawing.views), 1), height_px * box[2] / box[3])
    return Panels(
        image,
        max(len(drawing.sizes), 1),
        size,
        box,
        next((width for width in WIDTHS if width >= min_width), WIDTHS[-1]),
        round(box[2] * _TEXT_PX / shown_px, 2),
        tuple(_panel(view, image, size, box) for view in drawing.views),
        drawing.has_image,
    )


def _crop_box(views: Iterable[GroupView], image: int, size: tuple[int, int]) -> tuple[float, float, float, float]:
    points = [
        point
        for view in views
        for outline in view.outlines
        if outline.disputed and outline.item_index == image
        for ring in outline.rings
        for point in ring
    ]
    if not points:
        return 0.0, 0.0, float(size[0]), float(size[1])
    left, right = min(x for x, _ in points) - _MARGIN, max(x for x, _ in points) + _MARGIN
    top, bottom = min(y for _, y in points) - _MARGIN, max(y for _, y in points) + _MARGIN
    # The same share of both sides keeps the aspect ratio of the image.
    share = max(right - left, bottom - top, _MIN_CROP)
    if share > _FULL_IMAGE_SHARE:
        return 0.0, 0.0, float(size[0]), float(size[1])
    x = min(max((left + right - share) / 2, 0.0), 1.0 - share)
    y = min(max((top + bottom - share) / 2, 0.0), 1.0 - share)
    return round(x * size[0], 1), round(y * size[1], 1), round(share * size[0], 1), round(share * size[1], 1)


def _panel(view: GroupView, image: int, size: tuple[int, int], box: Sequence[float]) -> Panel:
    shapes = [_shape(outline, size, box) for outline in view.outlines if outline.item_index == image and outline.rings]
    color = CONSENSUS if view.name == CONSENSUS else "abcdef"[(ord(view.name[0]) - ord("A")) % 6]
    shapes.sort(key=lambda shape: shape.disputed)
    return Panel(view.name, color, view.annotators, tuple(shapes), view.answers)


def _shape(outline: RegionOutline, size: tuple[int, int], box: Sequence[float]) -> PanelShape:
    rings = [[(round(x * size[0], 1), round(y * size[1], 1)) for x, y in ring] for ring in outline.rings]
    first = rings[0]
    left, top = min(x for x, _ in first), min(y for _, y in first)
    # Keep the label inside the visible part.
    x = min(max(left, box[0] + 0.01 * box[2]), box[0] + 0.9 * box[2])
    y = min(max(top, box[1] + 0.05 * box[3]), box[1] + box[3])
    dot = first[0] if outline.open and len(first) == 1 else None
    path = "" if dot else " ".join(_path(ring, open_=outline.open) for ring in rings)
    numbers = tuple(conflict + 1 for conflict in outline.disputed)
    return PanelShape(path, dot, outline.open, outline.label, round(x, 1), round(y, 1), bool(numbers), numbers)


def _path(ring: Points | list[tuple[float, float]], *, open_: bool) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in ring) + ("" if open_ else "Z")
