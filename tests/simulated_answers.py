"""Three annotators' answers to any label config of Label Studio: a true answer to each control, and their errors.

Every control of a config is answered: two objects for a control that draws, one answer about the task or about each
object for the others. Annotators 1 and 2 differ from the truth by a careful person's jitter; annotator 3 gives another
answer and marks something that is not there. The values are those that the editor writes (its `serialize` functions).
"""

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np
from defusedxml.ElementTree import fromstring

from labelloop.labeling.geometry.brush_codec import encode_rle
from labelloop.labeling.geometry.png_codec import encode_data_url
from labelloop.labeling.geometry.shapes import Ellipse
from labelloop.labeling.studio.config import Control, LabelConfig

SIDE = 200
TEXT = "The cat sat on the mat while seven silver birds sang about old rivers and distant mountains."
# Two true spans of the text, and one that only annotator 3 marks.
SPANS = ((4, 7), (31, 43), (61, 67))
# Left ends of the true objects on an image, percent, and of the one that only annotator 3 draws.
LEFT = (10.0, 55.0, 34.0)
ANNOTATORS = (1, 2, 3)
CARELESS = 3

Json = dict[str, Any]
_DRAWERS = frozenset(
    f"{shape}{suffix}"
    for shape in ("rectangle", "polygon", "ellipse", "keypoint", "brush", "bitmask", "vector")
    for suffix in ("", "labels")
)
_SPAN_TYPES = frozenset({"hypertextlabels", "paragraphlabels", "timeserieslabels", "timelinelabels"})
_ITEMS = ("first", "second", "third", "fourth", "fifth")
# What each annotator types; the first two are the same text to a reader.
_TYPED = ("seven silver birds", "seven silver birds", "a rusty old lorry")


@dataclass(frozen=True)
class Simulated:
    """A task of a config with its annotations.

    Attributes:
        data: The task's data.
        results: The results of each of `ANNOTATORS`.
        truth: Control -> its true results: of the whole task, or of each true object.
    """

    data: Json
    results: Mapping[int, list[Json]]
    truth: Mapping[str, list[Json]]

    def task(self, number: int = 1) -> Json:
        """The task as Label Studio exports it."""
        return {
            "id": number,
            "project": 1,
            "data": self.data,
            "annotations": [
                {
                    "id": 100 * number + who, "completed_by": who, "result": results,
                    "created_at": f"2026-01-01T00:00:0{who}Z", "updated_at": f"2026-01-01T00:00:0{who}Z",
                }
                for who, results in self.results.items()
            ],
        }  # fmt: skip


def simulate(xml: str, data: Json | None = None) -> Simulated:
    """Answer every control of a label config.

    Args:
        xml: The label config.
        data: The task's data; None: made up for the config's object tags.
    """
    root = fromstring(xml)
    data = made_up_data(root) if data is None else data
    crowd = _Crowd(LabelConfig.parse(xml), root, data)
    return Simulated(
        data,
        {who: crowd.answers(who) for who in ANNOTATORS},
        crowd.truth(),
    )


def made_up_data(root: Element) -> Json:
    """Data for every ``$key`` of a config, by the tag that uses it."""
    data: Json = {}
    for element in root.iter():
        for name in ("value", "valueList", "content", "items"):
            text = element.get(name, "")
            if text.startswith("$") and text[1:] not in data:
                data[text[1:]] = _value_for(element, name)
        for text in element.attrib.values():
            for key in re.findall(r"^\$(\w+)$", text):
                data.setdefault(key, TEXT)
    return data


def _value_for(element: Element, attribute: str) -> Any:
    if attribute == "valueList":
        return [f"https://example.com/{page}.png" for page in (1, 2)]
    kind = element.tag.lower()
    if element.get("toName") is not None:
        return [{"value": f"option {name}"} for name in _ITEMS[:3]]
    name, text = element.get("nameKey", "author"), element.get("textKey", "text")
    values: Mapping[str, Any] = {
        "image": "https://example.com/1.png",
        "audio": "https://example.com/1.wav",
        "video": "https://example.com/1.mp4",
        "pdf": "https://example.com/1.pdf",
        "timeseries": "https://example.com/1.csv",
        "hypertext": f"<p>{TEXT}</p>",
        "paragraphs": [{name: who, text: TEXT} for who in ("Anna", "Ben")],
        "list": [{"id": item, "title": item, "body": item} for item in _ITEMS],
        "table": {"colour": "red", "size": "large"},
        "chat": [{"role": "user", "content": "Hello"}],
    }
    return values.get(kind, TEXT)


class _Crowd:
    """Answers to the controls of one config."""

    def __init__(self, config: LabelConfig, root: Element, data: Json) -> None:
        self._config = config
        self._data = data
        self._elements = {element.get("name", ""): element for element in root.iter()}
        self._buckets = {
            element.get("name", ""): [child.get("name", "") for child in element if child.tag == "Bucket"]
            for element in root.iter("Ranker")
        }
        self._chats = [element.get("name", "") for element in root.iter("Chat")]

    def truth(self) -> dict[str, list[Json]]:
        """Control -> its true results."""
        truth: dict[str, list[Json]] = {}
        for result in self._results(0):
            truth.setdefault(result["from_name"], []).append(result)
        return truth

    def answers(self, who: int) -> list[Json]:
        """The results of an annotator."""
        results = self._results(who)
        if self._has_relations() and len(ids := [one["id"] for one in results if _is_drawn(one)]) > 1:
            results.append({"type": "relation", "from_id": ids[0], "to_id": ids[1], "direction": "right"})
        return results

    def _has_relations(self) -> bool:
        return any(element.tag == "Relations" for element in self._elements.values())

    def _results(self, who: int) -> list[Json]:
        controls = self._config.controls.values()
        drawers = [control for control in controls if self._draws(control)]
        partners = {
            control.name: [
                other
                for other in drawers
                if other.type in _DRAWERS | {"videorectangle"}
                and not other.type.endswith("labels")
                and set(other.to_names) & set(control.to_names)
            ]
            for control in drawers
            if control.type == "labels"
        }
        shapes_with_labels = {other.name for others in partners.values() for other in others}
        results: list[Json] = []
        objects: list[tuple[Json, int]] = []
        for order, control in enumerate(drawers):
            if control.name in shapes_with_labels:
                continue
            for index in (0, 1, 2) if who == CARELESS else (0, 1):
                drawn = self._drawn(control, partners.get(control.name, ()), order, index, who)
                results += drawn
                objects.append((drawn[0], index))
        for chat in self._chats:
            drawn_messages = self._messages(chat, who)
            results += drawn_messages
            objects += [(message, index) for index, message in enumerate(drawn_messages)]
        for control in controls:
            if self._draws(control) or control.name in self._chats:
                continue
            if not control.per_region:
                results += self._about_task(control, who)
                continue
            for drawn, index in objects:
                if drawn["to_name"] in control.to_names and index < 2:
                    shared = {name: drawn[name] for name in drawn if name not in {"from_name", "type", "value"}}
                    labels = {drawn["type"], "labels"} if drawn["type"] != "chatmessage" else set(drawn["value"])
                    place = {name: value for name, value in drawn["value"].items() if name not in labels}
                    answer = self._answer(control, who)
                    results.append(
                        {**shared, "from_name": control.name, "type": control.type, "value": {**place, **answer}}
                    )
        return results

    def _draws(self, control: Control) -> bool:
        return control.type in _DRAWERS | _SPAN_TYPES | {"labels", "videorectangle", "ocrlabels", "magicwand"}

    def _labels(self, control: Control, index: int, who: int) -> list[str]:
        names = self._options(control)
        if not names:
            return []
        return [names[(index + (who == CARELESS and index == 1)) % len(names)]]

    def _options(self, control: Control) -> list[str]:
        names = [label.stored for label in control.labels if not _is_branch(label.stored, control)]
        source = control.attributes.get("value", "")
        listed = self._data.get(source[1:]) if source.startswith("$") else None
        items = listed if isinstance(listed, list) else []
        return [*names, *(item.get("value", "") if isinstance(item, dict) else str(item) for item in items)]

    def _drawn(self, control: Control, partners: Sequence[Control], order: int, index: int, who: int) -> list[Json]:
        """The results of one object: its shape and, with a separate control, its labels."""
        jitter = _jitter(control.name, index, who)
        to_name = control.to_names[0]
        element = self._elements[to_name]
        labels = self._labels(control, index, who)
        base: Json = {"id": f"{control.name}-{index}-{who}", "to_name": to_name, "origin": "manual"}
        kind = element.tag.lower()
        if kind in {"image", "pdf"}:
            base |= {"original_width": SIDE, "original_height": SIDE, "image_rotation": 0}
            if element.get("valueList"):
                base["item_index"] = index % 2
        if partners:
            partner = partners[index % len(partners)]
            value = _SHAPES[partner.type](index, order, jitter)
            if partner.type == "videorectangle":
                value |= {"labels": labels}
            first = {**base, "from_name": partner.name, "type": partner.type, "value": value}
            return [first, {**base, "from_name": control.name, "type": "labels", "value": {**value, "labels": labels}}]
        if control.type in _SHAPES:
            value = _SHAPES[control.type](index, order, jitter)
        else:
            value = _span(kind, element, index, jitter, control.type)
        if control.type.endswith("labels"):
            value[control.type] = labels
        return [{**base, "from_name": control.name, "type": control.type, "value": value}]

    def _messages(self, chat: str, who: int) -> list[Json]:
        return [
            {
                "id": f"{chat}-{role}-{who}", "from_name": chat, "to_name": chat, "type": "chatmessage",
                "value": {"chatmessage": {"role": role, "content": f"{role} {_TYPED[max(who - 1, 0)]}"}},
            }
            for role in ("user", "assistant")
        ]  # fmt: skip

    def _about_task(self, control: Control, who: int) -> list[Json]:
        answer = self._answer(control, who)
        result = {"id": f"{control.name}-{who}", "from_name": control.name, "type": control.type, "value": answer}
        first, element = control.to_names[0], self._elements.get(control.to_names[0])
        if control.type == "pairwise":
            return [{**result, "to_name": control.name}]  # as its editor does
        if control.attributes.get("perItem", "").lower() == "true" and element is not None and element.get("valueList"):
            return [{**result, "id": f"{result['id']}-{item}", "to_name": first, "item_index": item} for item in (0, 1)]
        return [{**result, "to_name": first}]

    def _answer(self, control: Control, who: int) -> Json:
        options = self._options(control)
        other = who == CARELESS
        picked = options[-1 if other else 0 : None if other else 1]
        if control.type == "choices":
            return {"choices": options[:2] if control.multiple and not other else picked}
        if control.type == "taxonomy":
            paths = [path.split("/") for path in options]
            return {"taxonomy": paths[-1:] if other else paths[:2]}
        if control.type == "ranker":
            return {"ranker": self._ranking(control, who)}
        answers: Mapping[str, Json] = {
            "textarea": {"text": [_TYPED[max(who - 1, 0)]]},
            "rating": {"rating": 1 if other else 4},
            "number": {"number": 90 if other else 12},
            "datetime": {"datetime": "2020-05-01" if other else "2026-01-02"},
            "pairwise": {"selected": "right" if other else "left"},
        }
        return answers[control.type]

    def _ranking(self, control: Control, who: int) -> dict[str, list[str]]:
        source = self._elements[control.to_names[0]].get("value", "")[1:]
        items = [str(item["id"]) for item in self._data[source]]
        order = items[::-1] if who == CARELESS else items
        buckets = self._buckets.get(control.name)
        if not buckets:
            return {control.name: order}
        half = len(order) // 2
        return {"_": [], buckets[0]: order[:half], buckets[-1]: order[half:]}


def _is_branch(path: str, control: Control) -> bool:
    return any(label.stored.startswith(f"{path}/") for label in control.labels)


def _is_drawn(result: Json) -> bool:
    return result["type"] in _DRAWERS | _SPAN_TYPES | {"labels", "videorectangle", "ocrlabels"}


def _jitter(name: str, index: int, who: int) -> float:
    """A careful person's offset, -0.5 to 0.5 percent; 0 of the truth."""
    return 0.0 if who == 0 else (zlib.crc32(f"{name} {index} {who}".encode()) % 101 - 50) / 100


def _box(index: int, order: int, jitter: float) -> Json:
    return {"x": LEFT[index] + jitter, "y": 12 + 8 * order, "width": 20 + jitter, "height": 24, "rotation": 0}


def _polygon(index: int, order: int, jitter: float) -> Json:
    left, top = LEFT[index] + jitter, 12 + 8 * order
    return {"points": [[left, top], [left + 20, top], [left + 20, top + 24], [left, top + 30]], "closed": True}


def _ellipse(index: int, order: int, jitter: float) -> Json:
    return {"x": LEFT[index] + 9, "y": 30 + 8 * order + jitter, "radiusX": 8, "radiusY": 14 + jitter, "rotation": 0}


def _point(index: int, order: int, jitter: float) -> Json:
    return {"x": LEFT[index] + jitter, "y": 20 + 8 * order + jitter, "width": 0.75}


def _pixels(index: int, order: int, jitter: float) -> Any:
    centre = SIDE * (LEFT[index] + 8) / 100 + 4 * jitter
    return Ellipse(centre, SIDE * (30 + 8 * order) / 100, SIDE * 0.07, SIDE * 0.12).mask(SIDE, SIDE)


def _mask(index: int, order: int, jitter: float) -> Json:
    return {"format": "rle", "rle": encode_rle(_pixels(index, order, jitter))}


def _bitmask(index: int, order: int, jitter: float) -> Json:
    return {"imageDataURL": encode_data_url(_pixels(index, order, jitter))}


def _vector(index: int, order: int, jitter: float) -> Json:
    points = _polygon(index, order, jitter)["points"]
    vertices = [
        {"x": x, "y": y, "id": f"v{at}", "prevPointId": f"v{at - 1}" if at else None, "isBezier": False}
        for at, (x, y) in enumerate(points)
    ]
    return {"vertices": vertices, "closed": True}


def _track(index: int, order: int, jitter: float) -> Json:
    frames = [{"frame": frame, "enabled": True, "time": frame / 24, **_box(index, order, jitter)} for frame in (1, 20)]
    return {"framesCount": 48, "duration": 2.0, "sequence": frames}


_SHAPES: Mapping[str, Any] = {
    **dict.fromkeys(("rectangle", "rectanglelabels", "ocrlabels"), _box),
    **dict.fromkeys(("polygon", "polygonlabels"), _polygon),
    **dict.fromkeys(("ellipse", "ellipselabels"), _ellipse),
    **dict.fromkeys(("keypoint", "keypointlabels"), _point),
    **dict.fromkeys(("brush", "brushlabels", "magicwand"), _mask),
    **dict.fromkeys(("bitmask", "bitmasklabels"), _bitmask),
    **dict.fromkeys(("vector", "vectorlabels"), _vector),
    "videorectangle": _track,
}


def _span(kind: str, element: Element, index: int, jitter: float, control: str) -> Json:
    start, end = SPANS[index]
    if control == "timelinelabels":
        return {"ranges": [{"start": start, "end": end + round(jitter)}]}
    if kind == "timeseries":
        return _series_span(element, start, end, jitter)
    if kind in {"audio", "video"}:
        return {"start": start / 10 + jitter / 10, "end": end / 10 + jitter / 10, "channel": 0}
    value: Json = {"start": start, "end": end, "text": TEXT[start:end]}
    if kind == "text":
        return value
    offsets = {"startOffset": start, "endOffset": end, "globalOffsets": {"start": start, "end": end}}
    place = (
        {"start": "/p[1]/text()[1]", "end": "/p[1]/text()[1]"} if kind == "hypertext" else {"start": "0", "end": "0"}
    )
    return {**value, **offsets, **place}


def _series_span(element: Element, start: int, end: int, jitter: float) -> Json:
    if not element.get("timeFormat"):
        return {"start": start + jitter, "end": end + jitter, "instant": False}
    written = (np.datetime64("2026-01-01T00:00:00") + np.array([start, end]) * np.timedelta64(1, "h")).tolist()
    first, last = (moment.strftime(element.get("timeFormat", "")) for moment in written)
    return {"start": first, "end": last, "instant": False}
