"""Which controls of a label config smart tools serve, and which ones draw the answer."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from labelloop.labeling.region import Region
from labelloop.labeling.studio.config import Control, LabelConfig

# Controls that send prompts in Label Studio 1.23.2; polygons, ellipses and brush strokes send none.
PROMPTS = ("RectangleLabels", "KeyPointLabels", "Rectangle", "KeyPoint")

# Controls that draw outlines; the first one in the config answers clicks where no control is reserved for that. Those
# without labels of their own draw those of a Labels control.
OUTLINES = ("BrushLabels", "PolygonLabels", "BitmaskLabels", "EllipseLabels")
BARE_OUTLINES = ("Brush", "Polygon", "Bitmask", "Ellipse")
BOXES = ("RectangleLabels", "Rectangle")


class Drawer(NamedTuple):
    """A control that can draw an answer.

    Attributes:
        control: Has the labels; None: the prompt's own.
        shape: Draws: `control` itself, or a shape for the labels of a `Labels` control; None: the prompt's own.
    """

    control: Control | None = None
    shape: Control | None = None


def is_smart(control: Control) -> bool:
    """Whether the label config enables smart tools for a control: `smart="true"` or `smartOnly="true"`.

    Label Studio treats controls without the attribute as smart; projects that did not ask for smart tools should not
    get them.
    """
    attributes = {name.lower(): value.lower() for name, value in control.attributes.items()}
    return attributes.get("smart") == "true" or attributes.get("smartonly") == "true"


def serves_smart_tools(config: LabelConfig) -> bool:
    """Whether any prompt of this label config can be answered."""
    images = {image.name for image in config.images}
    for control in config.controls_of(*PROMPTS):
        if not is_smart(control):
            continue
        for to_name in images & set(control.to_names):
            if _is_box(control):
                return True
            labelled = [control] if control.labels else _labels_of(config, to_name)
            if any(drawers(config, to_name, (label.stored,)) for one in labelled for label in one.labels):
                return True
    return False


def answering_controls(config: LabelConfig, last: Region) -> tuple[Drawer, ...]:
    """Controls that draw the answer to a prompt.

    A box is answered by a tighter one, and by an outline on each control with `smart="false"`. Clicks are answered by
    those controls, else by the first control that can.
    """
    able = drawers(config, last.to_name, last.labels)
    reserved = tuple(
        drawer
        for drawer in able
        if drawer.shape is not None and not _is_box(drawer.shape) and _is_reserved(drawer.shape)
    )
    if last.type in {"keypointlabels", "keypoint"}:
        return reserved or able[:1]
    own = (last.control, last.type)
    others = (one for one in reserved if one.control and one.shape and (one.control.name, one.shape.type) != own)
    return (Drawer(), *others)


def drawers(config: LabelConfig, to_name: str, labels: tuple[str, ...]) -> tuple[Drawer, ...]:
    """Controls of an image that can draw an object of these labels: outlines first, then boxes."""
    return tuple(_drawers(config, to_name, labels))


def _drawers(config: LabelConfig, to_name: str, labels: tuple[str, ...]) -> Iterator[Drawer]:
    for tags, bare_tags in ((OUTLINES, BARE_OUTLINES), (BOXES[:1], BOXES[1:])):
        for tag, bare in zip(tags, bare_tags, strict=True):
            for control in config.controls_of(tag):
                if _accepts(control, to_name, labels):
                    yield Drawer(control, control)
            for shape in config.controls_of(bare):
                labelled = [one for one in _labels_of(config, to_name) if _accepts(one, to_name, labels)]
                if labelled and to_name in shape.to_names:
                    yield Drawer(labelled[0], shape)


def _labels_of(config: LabelConfig, to_name: str) -> Sequence[Control]:
    """The `Labels` controls of an image."""
    return [control for control in config.controls_of("Labels") if to_name in control.to_names]


def _is_box(control: Control) -> bool:
    return control.type in {"rectanglelabels", "rectangle"}


def _is_reserved(control: Control) -> bool:
    return control.attributes.get("smart", "").lower() == "false"


def _accepts(control: Control, to_name: str, labels: tuple[str, ...]) -> bool:
    return to_name in control.to_names and bool(labels) and set(labels) <= {label.stored for label in control.labels}
