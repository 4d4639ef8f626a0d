"""The labelling interface (label config) of a new project, and what another one lacks for a data set."""

from collections.abc import Iterable, Mapping, Sequence
from colorsys import hls_to_rgb
from xml.etree.ElementTree import Element, SubElement, TreeBuilder, indent, tostring

import msgspec
from defusedxml.ElementTree import DefusedXMLParser

from exporters.importing.requirements import LabelConfigRequirements
from exporters.model.class_map import COCO_ID, SUPERCATEGORY
from exporters.model.keypoints import EDGES, HIDDEN
from labelloop.labeling.studio.config import Control, LabelConfig, ObjectTag
from labelloop.labeling.studio.region_attributes import flag_of, is_yes

CONTROLS = {
    "rectangle": ("RectangleLabels",),
    "polygon": ("PolygonLabels",),
    "mask": ("BrushLabels", "BitmaskLabels"),
    "joint": ("KeyPointLabels",),
    "choice": ("Choices",),
}
"""What is drawn -> the control tags that draw it, the first of which is written into a new interface."""

PARTS = {"rectangle": "Rectangle", "polygon": "Polygon", "mask": "Brush"}
"""What is drawn -> the tag that draws it beside a separate ``<Labels>``."""

_NAMES = {
    "rectangle": "box",
    "polygon": "outline",
    "mask": "mask",
    "joint": "point",
    "choice": "class",
    "hidden": "visibility",
}
_OCCLUDED = "occluded"


def new_interface(needs: LabelConfigRequirements) -> str:
    """The XML of a project that can hold a data set: a control for each kind of shape, each with every label.

    Labels are in the data set's order, so that an export numbers them as the data set does.
    """
    view = Element("View")
    SubElement(view, "Image", name="image", value="$image", zoom="true", zoomControl="true")
    for lack in _lacks(needs, None, "image"):
        _add(view, lack)
    indent(view)
    return tostring(view, encoding="unicode")


class Lack(msgspec.Struct, frozen=True):
    """Labels that an interface does not have.

    Attributes:
        kind: What is drawn, as `CONTROLS` names it; ``hidden``: the choice that a key point is out of sight.
        control: The control that they belong to; empty where there is none yet.
        labels: The labels.
        told: Attributes that labels get: COCO's number and supercategory.
        edges: The pairs of key points with a line between them.
    """

    kind: str
    control: str
    labels: tuple[str, ...]
    told: Mapping[str, Mapping[str, str]] = {}
    edges: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        if self.kind == "hidden":
            return "a per-region choice that says that a key point is occluded"
        more = f" and {len(self.labels) - 8} more" if len(self.labels) > 8 else ""
        named = ", ".join(repr(label) for label in self.labels[:8]) + more
        tag = CONTROLS[self.kind][0]
        return f"{named} in <{tag} name={self.control!r}>" if self.control else f"a <{tag}> with {named}"


def lacks(needs: LabelConfigRequirements, config: LabelConfig, image: str) -> list[Lack]:
    """What an interface lacks to hold a data set on one of its images."""
    return _lacks(needs, config, image)


def extended(xml: str, missing: Sequence[Lack], image: str) -> str:
    """An interface with what it lacked: labels at the end of their control, new controls at the end of it all.

    Nothing that is there moves or goes, comments included.
    """
    parser = DefusedXMLParser(target=TreeBuilder(insert_comments=True))
    parser.feed(xml)
    view = parser.close()
    for lack in missing:
        control = next((each for each in view.iter() if lack.control and each.get("name") == lack.control), None)
        if control is None:
            _add(view, lack, to_name=image)
        else:
            _offer(control, lack)
    return tostring(view, encoding="unicode")


def controls_of(config: LabelConfig, kind: str, image: str) -> list[Control]:
    """The controls that draw this kind on an image, those that ask about a region or a frame left out.

    A separate ``<Labels>`` counts where the tag that draws the shape (`PARTS`) is there too.
    """
    found = [
        control
        for control in config.controls_of(*CONTROLS[kind])
        if image in control.to_names and not control.per_region
    ]
    parts = [part for part in config.controls_of(PARTS[kind]) if image in part.to_names] if kind in PARTS else []
    if parts:
        found += [each for each in config.controls_of("Labels") if image in each.to_names]
    return found


def hidden_choice(config: LabelConfig, image: str) -> tuple[str, str] | None:
    """(control, choice) by which an annotator says that a key point is out of sight; None where there is none."""
    for control in config.controls_of("Choices"):
        if control.per_region and image in control.to_names:
            for label in control.labels:
                if label.stored.casefold() in HIDDEN:
                    return control.name, label.stored
    return None


def flag_choices(config: LabelConfig, image: str) -> dict[str, tuple[Control, str]]:
    """By which control and choice an annotator says that a flag of a region is so, such as ``truncated``.

    A choice of the flag's name, or the yes of a control of its name.
    """
    found: dict[str, tuple[Control, str]] = {}
    for control in config.controls_of("Choices"):
        if not control.per_region or image not in control.to_names:
            continue
        asked = flag_of(control.name)
        for label in control.labels:
            flag = flag_of(label.stored) or (asked if is_yes(label.stored) else None)
            if flag:
                found.setdefault(flag, (control, label.stored))
    return found


def unkept(needs: LabelConfigRequirements, config: LabelConfig) -> int:
    """How many categories have a number or a supercategory that the interface does not say."""
    labels = {label.stored: label.attributes for control in config.controls.values() for label in control.labels}
    return sum(
        name in labels and any(labels[name].get(key) != value for key, value in told.items())
        for name, told in _category_attributes(needs).items()
    )


def the_image(config: LabelConfig) -> ObjectTag | None:
    """The image tag that photos are shown in: the first one that holds one image, not a list."""
    return next((tag for tag in config.images if not tag.is_list), None)


def _lacks(needs: LabelConfigRequirements, config: LabelConfig | None, image: str) -> list[Lack]:
    wanted = [(shape, needs.labels if config is None else labels) for shape, labels in needs.shapes.items()]
    if not wanted and needs.labels:
        wanted.append(("rectangle", needs.labels))
    wanted += [(kind, labels) for kind, labels in (("joint", needs.joints), ("choice", needs.choices)) if labels]
    told = _category_attributes(needs)
    found = [
        msgspec.structs.replace(lack, edges=needs.skeleton)
        if kind == "joint"
        else msgspec.structs.replace(lack, told=told)
        for kind, labels in wanted
        if (lack := _lack(kind, labels, config, image))
    ]
    if needs.hidden and (config is None or hidden_choice(config, image) is None):
        found.append(Lack("hidden", "", (_OCCLUDED,)))
    return found


def _category_attributes(needs: LabelConfigRequirements) -> dict[str, dict[str, str]]:
    return {
        name: {COCO_ID: str(each.id)} | ({SUPERCATEGORY: each.supercategory} if each.supercategory else {})
        for name, each in needs.categories.items()
    }


def _lack(kind: str, labels: Iterable[str], config: LabelConfig | None, image: str) -> Lack | None:
    if config is None:
        return Lack(kind, "", tuple(labels))
    there = controls_of(config, kind, image)
    missing = tuple(label for label in labels if all(control.label_for(label) is None for control in there))
    return Lack(kind, there[0].name if there else "", missing) if missing else None


def _add(view: Element, lack: Lack, *, to_name: str = "image") -> None:
    kind = lack.kind
    taken = {each.get("name") for each in view.iter()}
    name = next(name for name in (_NAMES[kind], *(f"{_NAMES[kind]}{n}" for n in range(2, 999))) if name not in taken)
    tag = "Choices" if kind == "hidden" else CONTROLS[kind][0]
    control = SubElement(view, tag, name=name, toName=to_name)
    if kind == "hidden":
        control.set("perRegion", "true")
        points = next((each.get("name", "") for each in view.iter("KeyPointLabels")), "")
        if points:
            control.set("whenTagName", points)
    _offer(control, lack)


def _offer(control: Element, lack: Lack) -> None:
    """Adds labels at the end of a control; key points get the number at which a model knows them."""
    if lack.kind in {"choice", "hidden"}:
        for label in lack.labels:
            SubElement(control, "Choice", value=label)
        return
    if lack.edges and not control.get(EDGES):
        control.set(EDGES, msgspec.json.encode(lack.edges).decode())
    numbered = lack.kind == "joint" and all(each.get("model_index") for each in control.iter("Label"))
    for label in lack.labels:
        number = len(list(control.iter("Label")))
        one = SubElement(control, "Label", {"value": label, "background": _colour(number), **lack.told.get(label, {})})
        if numbered:
            one.set("model_index", str(number))


def _colour(number: int) -> str:
    """A colour that is far from those of the numbers before it: hues by the golden ratio."""
    red, green, blue = hls_to_rgb(number * 0.618034 % 1, 0.5, 0.75)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"
