"""Owns which controls of a label config smart tools serve, and which of them a found object is drawn with."""

from labelloop.labeling.region import Region
from labelloop.labeling.studio.config import Control, LabelConfig

PROMPTS = ("RectangleLabels", "KeyPointLabels", "Rectangle", "KeyPoint")
"""What reaches a backend from Label Studio 1.23.2; polygons, ellipses and brush strokes send nothing."""

OUTLINES = ("BrushLabels", "PolygonLabels", "BitmaskLabels", "EllipseLabels")
"""What shows a found object besides a box; the first that a config has is taken where clicks have no outlet named."""


def is_smart(control: Control) -> bool:
    """Whether the label config says so: `smart="true"` or `smartOnly="true"`.

    Label Studio takes every control for smart that does not say otherwise; a project that never asked for smart tools
    shall not get a switch for them.
    """
    told = {name.lower(): value.lower() for name, value in control.attributes.items()}
    return told.get("smart") == "true" or told.get("smartonly") == "true"


def serves_smart_tools(config: LabelConfig) -> bool:
    """Whether some prompt of this label config can be answered with a shape."""
    images = {image.name for image in config.images}
    for control in config.controls_of(*PROMPTS):
        if not is_smart(control):
            continue
        for to_name in images & set(control.to_names):
            labels: list[tuple[str, ...]] = [(label.stored,) for label in control.labels] or [()]
            if control.type in {"rectanglelabels", "rectangle"}:
                return True
            if any(_shown_by(config, to_name, one) for one in labels):
                return True
    return False


def outlets(config: LabelConfig, last: Region) -> tuple[Control | None, ...]:
    """The controls that draw the answer to a prompt; None stands for the prompt's own.

    A box is answered by a tighter one, and by an outline on each control that the config keeps for that
    (`smart="false"`). Clicks are answered by those alone; without any, by the first control that can.
    """
    kept = tuple(
        control
        for control in config.controls_of(*OUTLINES)
        if _takes(control, last.to_name, last.labels) and control.attributes.get("smart", "").lower() == "false"
    )
    if last.type not in {"keypointlabels", "keypoint"}:
        return (None, *(control for control in kept if control.name != last.control))
    return kept or _shown_by(config, last.to_name, last.labels)[:1]


def _shown_by(config: LabelConfig, to_name: str, labels: tuple[str, ...]) -> tuple[Control, ...]:
    return tuple(
        control
        for tag in (*OUTLINES, "RectangleLabels")
        for control in config.controls_of(tag)
        if _takes(control, to_name, labels)
    )


def _takes(control: Control, to_name: str, labels: tuple[str, ...]) -> bool:
    return to_name in control.to_names and bool(labels) and set(labels) <= {label.stored for label in control.labels}
