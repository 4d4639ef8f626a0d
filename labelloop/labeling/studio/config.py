"""Label Studio's label config: the controls, the objects that they apply to, and their labels."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Self
from xml.etree.ElementTree import Element, ParseError

import msgspec

from labelloop.labeling.errors import MalformedConfig

_PATH_PARTS = re.compile(r"[^.\[\]]+")
# From this number on `data_with` takes a part of a path for a key, not for an index of a list.
_MAX_INDEX = 1000
_NO_CONTROLS = {"Filter"}  # refers to another control and writes no results


class Label(msgspec.Struct, frozen=True):
    """One label (or choice) that a control offers.

    Attributes:
        value: What Label Studio stores; a nested choice is its path, joined with ``/``.
        alias: The name that Label Studio stores instead of ``value``; None if not set.
        predicted_values: The model classes that map to this label.
        attributes: The tag's attributes as written.
    """

    value: str
    alias: str | None = None
    predicted_values: tuple[str, ...] = ()
    attributes: Mapping[str, str] = {}

    @property
    def stored(self) -> str:
        """The stored name of this label: its alias, or its value without one."""
        return self.alias or self.value


class Control(msgspec.Struct, frozen=True):
    """A control tag, such as ``RectangleLabels``.

    Attributes:
        name: The tag's name, ``from_name`` in results.
        tag: The tag itself, such as ``RectangleLabels``.
        to_names: Names of the object tags it applies to.
        labels: Its labels or choices, in document order.
        score_threshold: ``model_score_threshold``: predictions below it are hidden; None if not set.
        attributes: The tag's attributes as written.
    """

    name: str
    tag: str
    to_names: tuple[str, ...]
    labels: tuple[Label, ...] = ()
    score_threshold: float | None = None
    attributes: Mapping[str, str] = {}

    @property
    def type(self) -> str:
        """The type of its results, such as ``rectanglelabels``."""
        return self.tag.lower()

    @property
    def per_region(self) -> bool:
        """Whether it applies to a region instead of the whole task."""
        return self.attributes.get("perRegion", "").lower() == "true"

    @property
    def multiple(self) -> bool:
        """Whether several labels (or choices) may be selected at once."""
        return self.attributes.get("choice", "").lower() == "multiple"

    def label_for(self, model_class: str) -> str | None:
        """The label of a model class: by ``predicted_values``, then by name, then by name ignoring case.

        Returns:
            The name to store in a result; None if no label matches.
        """
        for label in self.labels:
            if model_class in label.predicted_values:
                return label.stored
        for label in self.labels:
            if model_class in (label.value, label.alias):
                return label.stored
        folded = model_class.strip().casefold()
        for label in self.labels:
            names = (label.value, label.alias or "", label.attributes.get("value", ""), *label.predicted_values)
            if folded in {name.casefold() for name in names if name}:
                return label.stored
        return None


class ObjectTag(msgspec.Struct, frozen=True):
    """An object tag, such as ``Image``.

    Attributes:
        name: The tag's name, ``to_name`` in results.
        tag: The tag itself, such as ``Image``.
        value: Its key in the task data, or a path in it, without the ``$``; see `data_value`.
        is_list: Whether the key holds a list (``valueList``: several images in one task).
        attributes: The tag's attributes as written.
    """

    name: str
    tag: str
    value: str
    is_list: bool = False
    attributes: Mapping[str, str] = {}


class LabelConfig(msgspec.Struct, frozen=True):
    """A label config: control and object tags by name, in document order."""

    controls: Mapping[str, Control]
    objects: Mapping[str, ObjectTag]

    @classmethod
    def parse(cls, xml: str) -> Self:
        """Parse the XML of Label Studio's ``label_config``.

        Raises:
            MalformedConfig: It is not XML, contains entities, or a control has no name or an invalid threshold.
        """
        root = _parse(xml)
        controls: dict[str, Control] = {}
        objects: dict[str, ObjectTag] = {}
        for element in root.iter():
            name = element.get("name", "")
            if element.get("toName") is not None and element.tag not in _NO_CONTROLS:
                control = _control(element, name)
                if name in controls:
                    raise MalformedConfig(f"two controls are named {name!r}")
                controls[name] = control
            elif name and _data_key(element):
                objects[name] = _object(element, name)
        return cls(controls, objects)

    def controls_of(self, *tags: str) -> tuple[Control, ...]:
        """The controls with these tags (any case), in document order."""
        wanted = {tag.lower() for tag in tags}
        return tuple(control for control in self.controls.values() if control.type in wanted)

    def control(self, from_name: str) -> Control | None:
        """The control with this ``from_name``; a name inside a ``Repeater`` (``box_{{idx}}``) matches any index."""
        exact = self.controls.get(from_name)
        if exact is not None:
            return exact
        for name, control in self.controls.items():
            if "{{" in name and re.fullmatch(re.sub(r"\\\{\\\{.*?\\\}\\\}", r"\\d+", re.escape(name)), from_name):
                return control
        return None

    @property
    def images(self) -> tuple[ObjectTag, ...]:
        """The image tags, in document order."""
        return tuple(tag for tag in self.objects.values() if tag.tag.lower() == "image")

    @property
    def image_keys(self) -> tuple[str, ...]:
        """The unique keys of the task data that hold an image or a list of images."""
        return tuple(dict.fromkeys(tag.value for tag in self.images))

    def data_key(self, to_name: str) -> str | None:
        """The task data key of an object tag; None if the config has no such tag."""
        object_tag = self.objects.get(to_name)
        return object_tag.value if object_tag else None


def data_value(data: Mapping[str, Any], key: str) -> Any:
    """The value of a task's data under a key of `ObjectTag`, or a path such as ``photo.url`` or ``pages[0].image``.

    As in Label Studio's editor: a key that has the name of the path comes first. None where there is no value.
    """
    if key in data or not ("." in key or "[" in key):
        return data.get(key)
    value: Any = data
    for part in _PATH_PARTS.findall(key):
        if isinstance(value, Mapping):
            value = value.get(part.strip("\"'"))
        elif isinstance(value, Sequence) and not isinstance(value, str) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def data_with(key: str, value: Any) -> dict[str, Any]:
    """The data of a task that has one value, under a key or path: see `data_value`."""
    if not ("." in key or "[" in key):
        return {key: value}
    name, *parts = _PATH_PARTS.findall(key) or [key]
    for part in reversed(parts):
        is_index = part.isdecimal() and int(part) < _MAX_INDEX
        value = [*[None] * int(part), value] if is_index else {part.strip("\"'"): value}
    return {name.strip("\"'"): value}


def _parse(xml: str) -> Element:
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import fromstring

    try:
        root: Any = fromstring(xml)
    except ParseError as error:
        raise MalformedConfig(f"not XML: {error}") from None
    except DefusedXmlException as error:
        raise MalformedConfig(f"refused: {type(error).__name__}") from None
    except (TypeError, ValueError) as error:
        raise MalformedConfig(f"not XML: {error}") from None
    element: Element = root
    return element


def _data_key(element: Element) -> str:
    source = element.get("valueList") or element.get("value") or ""
    return source[1:] if source.startswith("$") else ""


def _object(element: Element, name: str) -> ObjectTag:
    return ObjectTag(
        name=name,
        tag=element.tag,
        value=_data_key(element),
        is_list=bool(element.get("valueList")),
        attributes=dict(element.attrib),
    )


def _control(element: Element, name: str) -> Control:
    if not name:
        raise MalformedConfig(f"<{element.tag}> has no name")
    threshold = element.get("model_score_threshold")
    try:
        score_threshold = float(threshold) if threshold else None
    except ValueError:
        raise MalformedConfig(f"<{element.tag} name={name!r}>: model_score_threshold is {threshold!r}") from None
    return Control(
        name=name,
        tag=element.tag,
        to_names=tuple(part.strip() for part in element.get("toName", "").split(",") if part.strip()),
        labels=tuple(_labels(element, (), ())),
        score_threshold=score_threshold,
        attributes=dict(element.attrib),
    )


def _labels(parent: Element, path: tuple[str, ...], stored: tuple[str, ...]) -> list[Label]:
    """The labels below a control, depth first; tags such as ``View`` only group them."""
    labels: list[Label] = []
    for child in parent:
        text = child.get("value")
        if child.tag not in {"Label", "Choice"} or text is None:
            labels += _labels(child, path, stored)
            continue
        values, names = (*path, text), (*stored, child.get("alias") or text)
        predicted = child.get("predicted_values", "")
        label = Label(
            value="/".join(values),
            alias="/".join(names) if names != values else None,
            predicted_values=tuple(part.strip() for part in predicted.split(",") if part.strip()),
            attributes=dict(child.attrib),
        )
        labels += [label, *_labels(child, values, names)]
    return labels
