"""CONTROLS: what each control tag of Label Studio can be given by a model, and whether it is learned from. The table.

`mapping` fills controls by it, learning learns by it, and `support` says what it says to people. A control that a model
learns to fill is a change of its line.
"""

from collections.abc import Mapping
from dataclasses import dataclass

IMAGE = "Image"
"""The only object tag that is read."""

CHOICES = "Choices"
"""What a classifier fills, as `draws`."""

PARTNER = "partner"
"""As `draws`: `Labels` are drawn by the shape control of the same object."""

_FREE = "no model writes free answers"
_REGION = "it marks a part of a text, a sound or a series, and only images are read"


@dataclass(frozen=True)
class ControlKind:
    """What a control tag can be given.

    Attributes:
        tag: As Label Studio spells it.
        draws: Key of `SHAPES`, `CHOICES` or `PARTNER`; empty: no model fills it.
        learns: Whether versions are learned from what annotators do with it.
        reason: Why no model fills it, or why it is not learned from; completes "..., since".
    """

    tag: str
    draws: str = ""
    learns: bool = False
    reason: str = "learning takes boxes and ellipses on images only"


_BARE = "it draws without labels: use its form with labels, or add Labels for the same image"

CONTROLS: Mapping[str, ControlKind] = {
    kind.tag.lower(): kind
    for kind in (
        ControlKind("RectangleLabels", "Rectangle", learns=True),
        ControlKind("EllipseLabels", "Ellipse", learns=True),
        ControlKind("PolygonLabels", "Polygon"),
        ControlKind("BrushLabels", "Brush"),
        ControlKind("BitmaskLabels", "BitMask"),
        ControlKind("KeyPointLabels", "KeyPoint"),
        ControlKind("Labels", PARTNER, learns=True),
        ControlKind("Choices", CHOICES),
        ControlKind("VectorLabels", reason="no model draws vectors"),
        ControlKind("Rectangle", reason=_BARE),
        ControlKind("Ellipse", reason=_BARE),
        ControlKind("Polygon", reason=_BARE),
        ControlKind("Brush", reason=_BARE),
        ControlKind("Bitmask", reason=_BARE),
        ControlKind("KeyPoint", reason=_BARE),
        ControlKind("Vector", reason=_BARE),
        ControlKind("MagicWand", reason=_BARE),
        ControlKind("Taxonomy", reason="no model fills taxonomies"),
        ControlKind("Rating", reason="no model gives ratings"),
        ControlKind("Number", reason="no model gives numbers"),
        ControlKind("DateTime", reason=_FREE),
        ControlKind("TextArea", reason=_FREE),
        ControlKind("Chat", reason=_FREE),
        ControlKind("Pairwise", reason="no model compares items"),
        ControlKind("Ranker", reason="no model ranks items"),
        ControlKind("List", reason="no model ranks items"),
        ControlKind("HyperTextLabels", reason=_REGION),
        ControlKind("ParagraphLabels", reason=_REGION),
        ControlKind("TimeSeriesLabels", reason=_REGION),
        ControlKind("OcrLabels", reason="it marks a part of a document, and only images are read"),
        ControlKind("TimelineLabels", reason=_REGION),
        ControlKind("VideoRectangle", reason=_REGION.replace("a text, a sound or a series", "a video")),
    )
}
"""Control by its tag in lower case."""


def kind_of(tag: str) -> ControlKind:
    """The kind of a tag in any case; a tag that the table does not have is filled by no model."""
    return CONTROLS.get(tag.lower()) or ControlKind(tag, reason=f"no model fills a {tag}")
