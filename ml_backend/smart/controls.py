"""Which controls of a label config smart tools serve, and which ones draw the answer."""

from labelloop.labeling.region import Region
from labelloop.labeling.studio.config import Control, LabelConfig

# Controls that send prompts in Label Studio 1.23.2; polygons, ellipses and brush strokes send none.
PROMPTS = ("RectangleLabels", "KeyPointLabels", "Rectangle", "KeyPoint")

# Controls that draw outlines; the first one in the config answers clicks where no control is reserved for that.
OUTLINES = ("BrushLabels", "PolygonLabels", "BitmaskLabels", "EllipseLabels")


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
            labels: list[tuple[str, ...]] = [(label.stored,) for label in control.labels] or [()]
            if control.type in {"rectanglelabels", "rectangle"}:
                return True
            if any(_drawable_by(config, to_name, label_set) for label_set in labels):
                return True
    return False


def answering_controls(config: LabelConfig, last: Region) -> tuple[Control | None, ...]:
    """Controls that draw the answer to a prompt; None stands for the prompt's own.

    A box is answered by a tighter one, and by an outline on each control with `smart="false"`. Clicks are answered by
    those controls, else by the first control that can.
    """
    reserved = tuple(
        control
        for control in config.controls_of(*OUTLINES)
        if _accepts(control, last.to_name, last.labels) and control.attributes.get("smart", "").lower() == "false"
    )
    if last.type not in {"keypointlabels", "keypoint"}:
        return (None, *(control for control in reserved if control.name != last.control))
    return reserved or _drawable_by(config, last.to_name, last.labels)[:1]


def _drawable_by(config: LabelConfig, to_name: str, labels: tuple[str, ...]) -> tuple[Control, ...]:
    return tuple(
        control
        for tag in (*OUTLINES, "RectangleLabels")
        for control in config.controls_of(tag)
        if _accepts(control, to_name, labels)
    )


def _accepts(control: Control, to_name: str, labels: tuple[str, ...]) -> bool:
    return to_name in control.to_names and bool(labels) and set(labels) <= {label.stored for label in control.labels}
