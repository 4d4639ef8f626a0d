"""CONTROLS: what a model can fill and learn for each control tag of Label Studio.

`label_mapping` fills controls by this table, training learns by it, and `control_support` explains it. To support a
control, change its line.
"""

from collections.abc import Mapping
from dataclasses import dataclass

# The only object tag that is supported.
IMAGE = "Image"

# `draws` of a control that a classifier fills, or learned answers.
CHOICES = "Choices"

# `draws` of a control that only learned answers fill, see `ml_backend.heads`.
ANSWERS = "answers"

# `draws` of `Labels`: the shape control of the same object draws them.
PARTNER = "partner"

_FREE = "no model writes free answers"
_REGION = "it marks a part of a text, a sound or a series, and only images are read"


@dataclass(frozen=True)
class ControlKind:
    """What a model can do with a control tag.

    Attributes:
        tag: As Label Studio spells it.
        draws: Key of `SHAPES`, `CHOICES` or `PARTNER`; empty: no model fills it.
        learns: Whether models are trained from its annotations.
        reason: Why no model fills it or it is not learned from; completes "..., since".
    """

    tag: str
    draws: str = ""
    learns: bool = False
    reason: str = "learning takes boxes and ellipses on images only"


_BARE = "it draws without labels: use its form with labels, or add Labels for the same image"

# Control kind by lower-case tag.
CONTROLS: Mapping[str, ControlKind] = {
    kind.tag.lower(): kind
    for kind in (
        ControlKind("RectangleLabels", "Rectangle", learns=True),
        ControlKind("EllipseLabels", "Ellipse", learns=True),
        ControlKind("PolygonLabels", "Polygon", learns=True),
        ControlKind("BrushLabels", "Brush", learns=True),
        ControlKind("BitmaskLabels", "BitMask", learns=True),
        ControlKind("KeyPointLabels", "KeyPoint", learns=True),
        ControlKind("Labels", PARTNER, learns=True),
        ControlKind("Choices", CHOICES, learns=True),
        ControlKind("VectorLabels", reason="no model draws vectors"),
        ControlKind("Rectangle", reason=_BARE),
        ControlKind("Ellipse", reason=_BARE),
        ControlKind("Polygon", reason=_BARE),
        ControlKind("Brush", reason=_BARE),
        ControlKind("Bitmask", reason=_BARE),
        ControlKind("KeyPoint", reason=_BARE),
        ControlKind("Vector", reason=_BARE),
        ControlKind("MagicWand", reason=_BARE),
        ControlKind("Taxonomy", ANSWERS, learns=True),
        ControlKind("Rating", ANSWERS, learns=True),
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


def kind_of(tag: str) -> ControlKind:
    """The kind of a tag, case-insensitive; a tag without an entry is filled by no model."""
    return CONTROLS.get(tag.lower()) or ControlKind(tag, reason=f"no model fills a {tag}")
