"""Create the label config of a new project, and find and add the labels that an existing one lacks."""

from collections.abc import Iterable, Mapping, Sequence
from colorsys import hls_to_rgb
from xml.etree.ElementTree import Element, SubElement, TreeBuilder, indent, tostring

import msgspec
from defusedxml.ElementTree import DefusedXMLParser

from exporters.importing.requirements import LabelConfigRequirements
from exporters.model.class_map import COCO_ID, SUPERCATEGORY
from exporters.model.keypoints import EDGES, HIDDEN
from labelloop.labeling.studio.config import Control, LabelConfig, ObjectTag
from labelloop.labeling.studio.region_attributes import flag_of, is_true

# Kind -> the control tags that draw it; the first one is used in a new label config.
CONTROL_TAGS = {
    "rectangle": ("RectangleLabels",),
    "polygon": ("PolygonLabels",),
    "mask": ("BrushLabels", "BitmaskLabels"),
    "ellipse": ("EllipseLabels",),
    "vector": ("VectorLabels",),
    "keypoint": ("KeyPointLabels",),
    "choice": ("Choices",),
    "text": ("TextArea",),
}

# Kind -> the tag that draws it together with a separate ``<Labels>``.
SHAPE_TAGS = {"rectangle": "Rectangle", "polygon": "Polygon", "mask": "Brush", "ellipse": "Ellipse", "vector": "Vector"}

_CONTROL_NAMES = {
    "rectangle": "box",
    "polygon": "outline",
    "mask": "mask",
    "ellipse": "ellipse",
    "vector": "line",
    "keypoint": "point",
    "choice": "class",
    "text": "caption",
    "hidden": "visibility",
}
_OCCLUDED = "occluded"


def new_label_config(requirements: LabelConfigRequirements) -> str:
    """The XML of a label config for a data set: a control for each kind of shape, each with every label.

    Labels keep the data set's order, so that an export gives them the same ids.
    """
    view = Element("View")
    SubElement(view, "Image", name="image", value="$image", zoom="true", zoomControl="true")
    for missing in missing_labels(requirements, None, "image"):
        _add_control(view, missing)
    indent(view)
    return tostring(view, encoding="unicode")


class MissingLabels(msgspec.Struct, frozen=True):
    """Labels that a label config lacks.

    Attributes:
        kind: A key of `CONTROL_TAGS` (``text``: a control without labels), or ``hidden``: the choice that marks an
            occluded key point.
        control: The control to add them to; empty if it does not exist yet.
        labels: The labels.
        attributes: XML attributes of the labels: COCO's category id and supercategory.
        edges: The edges between key points.
    """

    kind: str
    control: str
    labels: tuple[str, ...]
    attributes: Mapping[str, Mapping[str, str]] = {}
    edges: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        if self.kind == "hidden":
            return "a per-region choice for occluded key points"
        if self.kind == "text":
            return "a <TextArea> for texts about the image"
        more = f" and {len(self.labels) - 8} more" if len(self.labels) > 8 else ""
        named = ", ".join(repr(label) for label in self.labels[:8]) + more
        tag = CONTROL_TAGS[self.kind][0]
        return f"{named} in <{tag} name={self.control!r}>" if self.control else f"a <{tag}> with {named}"


def extend_label_config(xml: str, missing: Sequence[MissingLabels], image: str) -> str:
    """Add labels to a label config: at the end of their controls, new controls at the end of the view.

    Existing elements and comments are unchanged.
    """
    parser = DefusedXMLParser(target=TreeBuilder(insert_comments=True))
    parser.feed(xml)
    view = parser.close()
    for labels in missing:
        control = next(
            (element for element in view.iter() if labels.control and element.get("name") == labels.control), None
        )
        if control is None:
            _add_control(view, labels, to_name=image)
        else:
            _add_labels(control, labels)
    return tostring(view, encoding="unicode")


def controls_of(config: LabelConfig, kind: str, image: str) -> list[Control]:
    """The controls that draw a kind on an image tag, without per-region controls.

    A separate ``<Labels>`` counts if the shape tag (`SHAPE_TAGS`) exists too.
    """
    controls = [
        control
        for control in config.controls_of(*CONTROL_TAGS[kind])
        if image in control.to_names and not control.per_region
    ]
    shape_tags = (
        [tag for tag in config.controls_of(SHAPE_TAGS[kind]) if image in tag.to_names] if kind in SHAPE_TAGS else []
    )
    if shape_tags:
        controls += [control for control in config.controls_of("Labels") if image in control.to_names]
    return controls


def hidden_choice(config: LabelConfig, image: str) -> tuple[str, str] | None:
    """(control, choice) that marks an occluded key point; None if the label config has none."""
    for control in config.controls_of("Choices"):
        if control.per_region and image in control.to_names:
            for label in control.labels:
                if label.stored.casefold() in HIDDEN:
                    return control.name, label.stored
    return None


def flag_choices(config: LabelConfig, image: str) -> dict[str, tuple[Control, str]]:
    """Flag of a region, such as ``truncated`` -> (control, choice) that sets it.

    Either a choice with the name of the flag, or the "yes" of a control with its name.
    """
    choices: dict[str, tuple[Control, str]] = {}
    for control in config.controls_of("Choices"):
        if not control.per_region or image not in control.to_names:
            continue
        control_flag = flag_of(control.name)
        for label in control.labels:
            flag = flag_of(label.stored) or (control_flag if is_true(label.stored) else None)
            if flag:
                choices.setdefault(flag, (control, label.stored))
    return choices


def count_unkept_categories(requirements: LabelConfigRequirements, config: LabelConfig) -> int:
    """The number of categories whose id or supercategory is not in the label config."""
    labels = {label.stored: label.attributes for control in config.controls.values() for label in control.labels}
    return sum(
        name in labels and any(labels[name].get(key) != value for key, value in attributes.items())
        for name, attributes in _category_attributes(requirements).items()
    )


def image_tag(config: LabelConfig) -> ObjectTag | None:
    """The first image tag that shows a single image, not a list."""
    return next((tag for tag in config.images if not tag.is_list), None)


def missing_labels(
    requirements: LabelConfigRequirements, config: LabelConfig | None, image: str
) -> list[MissingLabels]:
    """The labels that a label config lacks for a data set on one of its image tags; without a config, all."""
    drawn = {shape: labels for shape, labels in requirements.shapes.items() if shape != "keypoint"}
    points = tuple(dict.fromkeys((*requirements.keypoint_names, *requirements.shapes.get("keypoint", ()))))
    required = [(shape, requirements.labels if config is None else labels) for shape, labels in drawn.items()]
    if not required and requirements.labels and not points:
        required.append(("rectangle", requirements.labels))
    required += [(kind, labels) for kind, labels in (("keypoint", points), ("choice", requirements.choices)) if labels]
    attributes = _category_attributes(requirements)
    missing = [
        msgspec.structs.replace(lacking, edges=requirements.skeleton)
        if kind == "keypoint"
        else msgspec.structs.replace(lacking, attributes=attributes)
        for kind, labels in required
        if (lacking := _missing_of_kind(kind, labels, config, image))
    ]
    if requirements.texts and not (config and controls_of(config, "text", image)):
        missing.append(MissingLabels("text", "", ()))
    if requirements.hidden and (config is None or hidden_choice(config, image) is None):
        missing.append(MissingLabels("hidden", "", (_OCCLUDED,)))
    return missing


def _category_attributes(requirements: LabelConfigRequirements) -> dict[str, dict[str, str]]:
    return {
        name: {COCO_ID: str(category.id)} | ({SUPERCATEGORY: category.supercategory} if category.supercategory else {})
        for name, category in requirements.categories.items()
    }


def _missing_of_kind(kind: str, labels: Iterable[str], config: LabelConfig | None, image: str) -> MissingLabels | None:
    if config is None:
        return MissingLabels(kind, "", tuple(labels))
    controls = controls_of(config, kind, image)
    missing = tuple(label for label in labels if all(control.label_for(label) is None for control in controls))
    return MissingLabels(kind, controls[0].name if controls else "", missing) if missing else None


def _add_control(view: Element, missing: MissingLabels, *, to_name: str = "image") -> None:
    kind = missing.kind
    used_names = {element.get("name") for element in view.iter()}
    name = next(
        name
        for name in (_CONTROL_NAMES[kind], *(f"{_CONTROL_NAMES[kind]}{n}" for n in range(2, 999)))
        if name not in used_names
    )
    tag = "Choices" if kind == "hidden" else CONTROL_TAGS[kind][0]
    control = SubElement(view, tag, name=name, toName=to_name)
    if kind == "text":
        control.set("editable", "true")
    if kind == "hidden":
        control.set("perRegion", "true")
        points = next((element.get("name", "") for element in view.iter("KeyPointLabels")), "")
        if points:
            control.set("whenTagName", points)
    _add_labels(control, missing)


def _add_labels(control: Element, missing: MissingLabels) -> None:
    """Add labels at the end of a control; key points get the next `model_index` if all others have one."""
    if missing.kind in {"choice", "hidden"}:
        for label in missing.labels:
            SubElement(control, "Choice", value=label)
        return
    if missing.edges and not control.get(EDGES):
        control.set(EDGES, msgspec.json.encode(missing.edges).decode())
    numbered = missing.kind == "keypoint" and all(element.get("model_index") for element in control.iter("Label"))
    for label in missing.labels:
        index = len(list(control.iter("Label")))
        element = SubElement(
            control, "Label", {"value": label, "background": _colour(index), **missing.attributes.get(label, {})}
        )
        if numbered:
            element.set("model_index", str(index))


def _colour(index: int) -> str:
    """A colour distinct from those of lower indices: hues by the golden ratio."""
    red, green, blue = hls_to_rgb(index * 0.618034 % 1, 0.5, 0.75)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"
