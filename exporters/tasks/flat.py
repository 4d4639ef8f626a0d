"""The flat form of an annotation: answers by control, regions with their own answers, relations; and the way back.

``flatten`` reads the ``result`` list of an annotation, ``rebuild`` makes that list again. A result that the flat form
does not hold exactly is kept unchanged in ``other``, so that nothing is lost. The keys are documented in
docs/reference/flat-form.md.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Self

import msgspec

from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.values import ANSWERS, GEOMETRIES

Json = dict[str, Any]

# Result type -> the field of the value with the answer.
ANSWER_FIELDS: Mapping[str, str] = {**ANSWERS, "pairwise": "selected", "ranker": "ranker"}
# Field of a result -> its name in the flat form. All other fields are in ``fields``.
FIELDS: Mapping[str, str] = {
    "to_name": "object",
    "item_index": "item",
    "parentID": "parent",
    "original_width": "image_width",
    "original_height": "image_height",
    "image_rotation": "image_rotation",
    "score": "score",
    "origin": "origin",
    "meta": "meta",
}
CHAT_MESSAGE, RELATION = "chatmessage", "relation"
_DRAWN = frozenset({*GEOMETRIES, "videorectangle", CHAT_MESSAGE})
# Result types whose labels are in ``labels``, not in a field named like the type.
_LABELS_IN_LABELS = frozenset({"videorectangle", "rectangle", "polygon", "ellipse", "keypoint", "brush", "vector"})


class FlatAnnotation(msgspec.Struct, frozen=True):
    """An annotation in the flat form.

    Attributes:
        answers: Control -> its answer about the task, in plain form (`PlainAnswers`).
        regions: What was marked, each with its labels, its shape as Label Studio stores it, and answers about it.
        relations: Links between regions, by their ids.
        item_answers: Answers about one item of a list (``perItem``).
        controls: Control -> the type of its results, and for answers about the task the other fields of the result.
        other: Results that the other keys do not hold exactly, as Label Studio stores them.
        replaced: Positions in the list that the other keys give: results that those in ``other`` replace.
    """

    answers: Mapping[str, Any] = {}
    regions: Sequence[Json] = ()
    relations: Sequence[Json] = ()
    item_answers: Sequence[Json] = ()
    controls: Mapping[str, Json] = {}
    other: Sequence[Json] = ()
    replaced: Sequence[int] = ()


class PlainAnswers:
    """Turns the value of an answer into its plain form: a text, a number or a list, the same for all of a control.

    Args:
        config: The label config. A control that takes one answer has a text instead of a list of one: ``Choices``
            without ``choice="multiple"``, ``TextArea`` with ``maxSubmissions="1"``. Without a config both have lists.
    """

    def __init__(self, config: LabelConfig | None) -> None:
        self._config = config
        self._single: dict[str, bool] = {}

    def is_single(self, control: str) -> bool:
        """Whether a control takes one answer."""
        single = self._single.get(control)
        if single is None:
            found = self._config.control(control) if self._config else None
            single = found is not None and (
                (found.type == "choices" and not found.multiple)
                or (found.type == "textarea" and found.attributes.get("maxSubmissions") == "1")
            )
            self._single[control] = single
        return single

    def plain(self, kind: str, control: str, value: Mapping[str, Any]) -> Any:
        """Return the plain form of the answer in a value."""
        field = ANSWER_FIELDS.get(kind)
        if field is None or field not in value:
            return dict(value)
        answer = value[field]
        is_listed = kind in {"choices", "textarea"} and isinstance(answer, list) and len(answer) == 1
        if is_listed and self.is_single(control):
            return answer[0]
        if kind == "ranker" and isinstance(answer, dict) and list(answer) == [control]:
            return answer[control]
        return answer


def stored_answer(kind: str, control: str, plain: Any) -> Json:
    """Return the value of which ``plain`` is the plain form."""
    field = ANSWER_FIELDS.get(kind)
    if field is None:
        return dict(plain) if isinstance(plain, Mapping) else {}
    if kind in {"choices", "textarea"} and isinstance(plain, str):
        return {field: [plain]}
    if kind == "ranker" and isinstance(plain, list):
        return {field: {control: plain}}
    return {field: plain}


def flatten(results: Sequence[Mapping[str, Any]], plain: PlainAnswers) -> FlatAnnotation:
    """Return the flat form of the results of an annotation."""
    flat = _Flattener(plain).add(results).flat()
    again: dict[str, deque[tuple[int, Json]]] = {}
    rebuilt = rebuild(flat)
    for position, result in enumerate(rebuilt):
        again.setdefault(_identity(result), deque()).append((position, result))
    exact: set[int] = set()
    other: list[Json] = []
    for raw in results:
        candidates = again.get(_identity(raw), deque())
        # the first is the one, but where results share an id and a control
        same = next((at for at, (_, one) in enumerate(islice(candidates, _MOST)) if _is_same(one, dict(raw))), -1)
        if same < 0:
            other.append(dict(raw))
        else:
            exact.add(candidates[same][0])
            del candidates[same]
    replaced = [position for position in range(len(rebuilt)) if position not in exact]
    return msgspec.structs.replace(flat, other=other, replaced=replaced) if other or replaced else flat


def count_regions(results: Iterable[Mapping[str, Any]]) -> int:
    """Return the number of regions that results mark, without reading their values."""
    return len({str(result.get("id", number)) for number, result in enumerate(results) if _is_drawn(result)})


def rebuild(flat: FlatAnnotation) -> list[Json]:
    """Return the results of which ``flat`` is the flat form, in its order; `FlatAnnotation.other` comes last."""
    replaced = frozenset(flat.replaced)
    results = [result for position, result in enumerate(_derived(flat)) if position not in replaced]
    return [*results, *map(dict, flat.other)]


def _derived(flat: FlatAnnotation) -> Iterator[Json]:
    for region in flat.regions:
        yield from _region_results(region, flat.controls)
    for control, answer in flat.answers.items():
        yield _answer_result(control, answer, flat.controls.get(control, {}))
    for entry in flat.item_answers:
        yield _answer_result(entry["control"], entry["answer"], entry)
    for relation in flat.relations:
        ends = {"from_id": relation["from"], "to_id": relation["to"], "type": RELATION}
        known: Json = {name: relation[name] for name in ("direction", "labels") if name in relation}
        yield {**ends, **known, **relation.get("fields", {})}


def _is_same(one: Any, other: Any) -> bool:
    """Whether two values are the same JSON: unlike ``==``, it tells 1 from true and from 1.0."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_is_same(item, other[key]) for key, item in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return bool(one == other)


class _Flattener:
    """Collects the flat form of one annotation."""

    def __init__(self, plain: PlainAnswers) -> None:
        self._plain = plain
        self._answers: dict[str, Any] = {}
        self._regions: list[Json] = []
        self._relations: list[Json] = []
        self._items: list[Json] = []
        self._controls: dict[str, Json] = {}

    def flat(self) -> FlatAnnotation:
        return FlatAnnotation(self._answers, self._regions, self._relations, self._items, self._controls)

    def add(self, results: Iterable[Mapping[str, Any]]) -> Self:
        groups: dict[Any, list[Mapping[str, Any]]] = {}
        for number, result in enumerate(results):
            if _kind(result) == RELATION:
                self._relation(result)
                continue
            name = result.get("id")
            # repr: an item that is no number may be a list
            key = (name, repr(result.get("item_index"))) if isinstance(name, str | int) else ("", number, "")
            groups.setdefault(key, []).append(result)
        for group in _bounded(groups.values()):
            if all(_is_task_answer(result) for result in group) and not any(map(_is_drawn, group)):
                for result in group:
                    self._task_answer(result)
            else:
                self._group(group)
        return self

    def _group(self, group: Sequence[Mapping[str, Any]]) -> None:
        """Add the regions of the results that share an id: their shapes, their labels, and the answers about them."""
        drawn = [result for result in group if _is_drawn(result)]
        leads = [result for result in drawn if _kind(result) != "labels"] or drawn[:1]
        regions: list[Json] = []
        for lead in leads:
            if not any(self._add_labels(region, lead) for region in regions):
                regions.append(self._region(lead))
        for result in drawn:
            if not any(result is lead for lead in leads) and not any(
                self._add_labels(region, result) for region in regions
            ):
                regions.append(self._region(result))
        answers = [result for result in group if not _is_drawn(result)]
        if answers and not regions:  # about a region that is not there
            first = answers[0]
            field = ANSWER_FIELDS.get(_kind(first), "")
            place = {key: item for key, item in _value(first).items() if key != field}
            regions.append(_named(first) | {"labels": [], "shape": place, "answers": {}})
        for result in answers:
            self._region_answer(regions[0], result)
        self._regions += regions

    def _region(self, result: Mapping[str, Any]) -> Json:
        kind, control, value = _kind(result), _control(result), _value(result)
        shape = value.get(CHAT_MESSAGE) if kind == CHAT_MESSAGE else None
        if not isinstance(shape, dict):
            shape = {key: item for key, item in value.items() if key != _labels_field(kind, value)}
        field = _labels_field(kind, value)
        labels = value.get(field)
        self._controls.setdefault(control, {"type": result.get("type")})
        return {
            **_named(result, "type"),
            "control": control,
            "labels": labels if isinstance(labels, list) else [],
            **({"label_field": field} if labels and field != _labels_field(kind) else {}),
            "shape": shape,
            "answers": {},
        }

    def _add_labels(self, region: Json, result: Mapping[str, Any]) -> bool:
        """Add the labels of a result that repeats the shape of a region; whether it does."""
        kind, control, value = _kind(result), _control(result), _value(result)
        field = _labels_field(kind)
        labels = value.get(field)
        if (
            not isinstance(labels, list)
            or {key: item for key, item in value.items() if key != field} != region["shape"]
        ):
            return False
        if control == region["control"] or control in region["answers"]:
            return False
        if "label_control" not in region and (not region["labels"] or region["labels"] == labels):
            region["labels"], region["label_control"] = labels, control
        else:
            region["answers"][control] = labels
        self._controls.setdefault(control, {"type": result.get("type")})
        return True

    def _region_answer(self, region: Json, result: Mapping[str, Any]) -> None:
        kind, control = _kind(result), _control(result)
        if control in region["answers"]:
            return  # a second answer to one question: it is kept in `other`
        value = _value(result)
        if kind not in ANSWER_FIELDS:
            value = {key: item for key, item in value.items() if region["shape"].get(key, _MISSING) != item}
        region["answers"][control] = self._plain.plain(kind, control, value)
        self._controls.setdefault(control, {"type": result.get("type")})

    def _task_answer(self, result: Mapping[str, Any]) -> None:
        kind, control = _kind(result), _control(result)
        answer = self._plain.plain(kind, control, _value(result))
        if result.get("item_index") is not None:
            self._items.append({"control": control, "answer": answer} | _named(result, "type"))
        elif control not in self._answers:
            self._answers[control] = answer
            self._controls[control] = _named(result, "type")

    def _relation(self, result: Mapping[str, Any]) -> None:
        fields = {key: item for key, item in result.items() if key not in _RELATION_FIELDS}
        known = {key: result[key] for key in ("direction", "labels") if key in result}
        ends = {"from": result.get("from_id"), "to": result.get("to_id")}
        self._relations.append({**ends, **known, **({"fields": fields} if fields else {})})


def _bounded(groups: Iterable[Sequence[Mapping[str, Any]]]) -> Iterator[Sequence[Mapping[str, Any]]]:
    """Yield groups of results with one id; where a program gave one id to very many, each result is a group."""
    for group in groups:
        yield from [group] if len(group) <= _MOST else [[result] for result in group]


_MISSING = object()
# Results of one region: shapes, labels, answers. More of one id are of several regions.
_MOST = 100
_RELATION_FIELDS = frozenset({"from_id", "to_id", "type", "direction", "labels"})


def _region_results(region: Mapping[str, Any], controls: Mapping[str, Mapping[str, Any]]) -> Iterator[Json]:
    shape, kind = region["shape"], str(region.get("type") or "").lower()
    common = _stored(region)
    if kind:
        value = {CHAT_MESSAGE: shape} if kind == CHAT_MESSAGE else shape
        # a video region repeats its labels; others leave them to their separate control
        is_labelled = region["labels"] and ("label_control" not in region or kind == "videorectangle")
        field = region.get("label_field") or _labels_field(kind)
        labels = {field: region["labels"]} if is_labelled else {}
        yield common | {"from_name": region["control"], "type": region["type"], "value": {**value, **labels}}
    place = {} if kind == CHAT_MESSAGE else shape
    if control := region.get("label_control"):
        its_type = controls.get(control, {}).get("type")
        value = {**place, _labels_field(str(its_type).lower()): region["labels"]}
        yield common | {"from_name": control, "type": its_type, "value": value}
    for control, answer in region["answers"].items():
        its_type = controls.get(control, {}).get("type")
        lowered = str(its_type).lower()
        if lowered in _DRAWN or lowered.endswith("labels"):
            stored = {_labels_field(lowered): answer}
        else:
            stored = stored_answer(lowered, control, answer)
        yield common | {"from_name": control, "type": its_type, "value": {**place, **stored}}


def _answer_result(control: str, answer: Any, fields: Mapping[str, Any]) -> Json:
    kind = str(fields.get("type") or "").lower()
    result = _stored(fields) | {"from_name": control, "value": stored_answer(kind, control, answer)}
    return result | ({"type": fields["type"]} if "type" in fields else {})


def _named(result: Mapping[str, Any], *more: str) -> Json:
    """Return the fields of a result other than its control and its value, by their names in the flat form."""
    named = {key: result[key] for key in ("id", *more) if key in result}
    named |= {name: result[key] for key, name in FIELDS.items() if key in result}
    left = {key: item for key, item in result.items() if key not in FIELDS and key not in _KNOWN}
    return named | ({"fields": left} if left else {})


_KNOWN = frozenset({"id", "type", "from_name", "value"})


def _stored(named: Mapping[str, Any]) -> Json:
    """Return the fields of which `_named` made ``named``."""
    stored: Json = {"id": named["id"]} if "id" in named else {}
    stored |= {key: named[name] for key, name in FIELDS.items() if name in named}
    return {**stored, **named.get("fields", {})}


def _is_drawn(result: Mapping[str, Any]) -> bool:
    """Whether a result marks something; an unknown type does if its value has a place and is no answer."""
    kind = _kind(result)
    if kind in _DRAWN or kind.endswith("labels"):
        return True
    return kind not in ANSWER_FIELDS and bool(_PLACES & _value(result).keys())


_PLACES = frozenset({"x", "points", "vertices", "sequence", "ranges", "start", "startOffset", "rle", "imageDataURL"})


def _is_task_answer(result: Mapping[str, Any]) -> bool:
    """Whether an answer is about the task: its value has nothing but the answer."""
    kind, value = _kind(result), _value(result)
    field = ANSWER_FIELDS.get(kind)
    return (value.keys() <= {field}) if field else not _PLACES & value.keys()


def _labels_field(kind: str, value: Mapping[str, Any] | None = None) -> str:
    """Return the field of a value with the labels: named like the type, or as other versions and programs name it."""
    field = "labels" if kind in _LABELS_IN_LABELS else kind
    if value is None or field in value or not kind.endswith("labels"):
        return field
    return next((key for key, item in value.items() if key.endswith("labels") and isinstance(item, list)), field)


def _kind(result: Mapping[str, Any]) -> str:
    kind = result.get("type")
    return kind.lower() if isinstance(kind, str) else ""


def _control(result: Mapping[str, Any]) -> str:
    name = result.get("from_name")
    return name if isinstance(name, str) else ""


def _value(result: Mapping[str, Any]) -> Mapping[str, Any]:
    value = result.get("value")
    return value if isinstance(value, dict) else {}


def _identity(result: Mapping[str, Any]) -> str:
    """Return what identifies a result within its annotation."""
    names = ("id", "from_name", "type", "item_index", "from_id", "to_id")
    return repr([result.get(name) for name in names])
