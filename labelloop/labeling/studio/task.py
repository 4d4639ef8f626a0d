"""Label Studio's own nouns - Task, Annotation, Prediction, Result - read from its JSON as frozen values."""

import json
from collections.abc import Mapping
from typing import Any
from zlib import crc32

import msgspec

from labelloop.labeling.errors import MalformedTask

UNNUMBERED = -1_000_000_000
"""Below it lie the numbers of annotations that have none, and of persons who are known by a name only."""
LARGEST = 1_000_000
"""Pixels along the edge of an image: what is stated beyond is no size."""


class Result(msgspec.Struct, frozen=True, gc=False):
    """One item of an annotation's ``result`` list. It holds the JSON as it came and reads a field when asked.

    Attributes:
        raw: The exact JSON object, unknown fields kept. Treat it as read-only.
    """

    raw: dict[str, Any]

    @property
    def id(self) -> str:
        """The region's id, which results of one region share; empty where there is none (relations have none)."""
        value = self.raw.get("id")
        return value if type(value) is str else _text(value)

    @property
    def from_name(self) -> str:
        """The name of the control tag it came from."""
        value = self.raw.get("from_name")
        return value if type(value) is str else _text(value)

    @property
    def to_name(self) -> str:
        """The name of the object tag it is about."""
        value = self.raw.get("to_name")
        return value if type(value) is str else _text(value)

    @property
    def type(self) -> str:
        """Label Studio's result type in lower case, such as ``rectanglelabels``."""
        value = self.raw.get("type")
        return value.lower() if type(value) is str else ""

    @property
    def value(self) -> dict[str, Any]:
        """The value object; empty where it is missing or no object."""
        value = self.raw.get("value")
        return value if isinstance(value, dict) else {}

    @property
    def original_width(self) -> int | None:
        """The image's width in pixels, where it is stated sensibly."""
        value = self.raw.get("original_width")
        return value if type(value) is int and 0 < value < LARGEST else _edge(value)

    @property
    def original_height(self) -> int | None:
        """The image's height in pixels, where it is stated sensibly."""
        value = self.raw.get("original_height")
        return value if type(value) is int and 0 < value < LARGEST else _edge(value)

    @property
    def image_rotation(self) -> float:
        """How far the viewer had turned the image, in degrees; coordinates stay in the image as it is stored."""
        return _number(self.raw.get("image_rotation")) or 0.0

    @property
    def item_index(self) -> int | None:
        """Which image of a multi-image task it is on, from 0; None where the task has one image."""
        value = self.raw.get("item_index")
        return None if value is None else _integer(value)

    @property
    def score(self) -> float | None:
        """The model's confidence, on predictions."""
        value = self.raw.get("score")
        return None if value is None else _number(value)

    @property
    def origin(self) -> str | None:
        """``manual``, ``prediction`` or ``prediction-changed``."""
        origin = self.raw.get("origin")
        return origin if isinstance(origin, str) else None

    @property
    def meta(self) -> dict[str, Any] | None:
        """What the annotator noted on the region, such as ``{"text": ["..."]}``."""
        meta = self.raw.get("meta")
        return meta if isinstance(meta, dict) else None

    @property
    def parent_id(self) -> str | None:
        """The id of the region it belongs to, such as the box of a skeleton's key points."""
        parent = self.raw.get("parentID")
        return parent if isinstance(parent, str) and parent else None


class Malformed(msgspec.Struct, frozen=True, gc=False):
    """A member of a list that is not the object it should be, kept so that nothing is lost.

    Attributes:
        field: Where it was, such as ``result[3]``.
        reason: What is wrong with it, in words.
        source: What was there instead.
    """

    field: str
    reason: str
    source: Any


class Annotation(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One annotator's work on one task. A skipped task has ``was_cancelled`` set, and may still hold results."""

    id: int | None = None
    results: tuple[Result, ...] = ()
    completed_by: int | None = None
    was_cancelled: bool = False
    ground_truth: bool = False
    created_at: str = ""
    updated_at: str = ""
    lead_time: float | None = None
    parent_prediction: int | None = None
    unique_id: str | None = None
    malformed: tuple[Malformed, ...] = ()


class Prediction(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One model's answer for one task."""

    id: int | None = None
    results: tuple[Result, ...] = ()
    model_version: str = ""
    score: float | None = None
    malformed: tuple[Malformed, ...] = ()


class Task(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What an annotator is shown (``data``) and everything people and models said about it.

    Attributes:
        prediction_ids: The bare ids that an export lists where it does not carry the predictions themselves.
        malformed: Members of ``annotations`` and ``predictions`` that are not objects.
    """

    id: int | None = None
    data: dict[str, Any]
    annotations: tuple[Annotation, ...] = ()
    predictions: tuple[Prediction, ...] = ()
    prediction_ids: tuple[int, ...] = ()
    project: int | None = None
    inner_id: int | None = None
    overlap: int | None = None
    is_labeled: bool | None = None
    total_annotations: int | None = None
    cancelled_annotations: int | None = None
    created_at: str = ""
    updated_at: str = ""
    meta: dict[str, Any] | None = None
    file_upload: str | None = None
    malformed: tuple[Malformed, ...] = ()


class _Wire(msgspec.Struct, gc=False):
    """A task as it travels: only what is read is decoded, and each field is judged by itself afterwards."""

    id: Any = None
    data: Any = None
    annotations: Any = None
    predictions: Any = None
    project: Any = None
    inner_id: Any = None
    overlap: Any = None
    is_labeled: Any = None
    total_annotations: Any = None
    cancelled_annotations: Any = None
    created_at: Any = None
    updated_at: Any = None
    meta: Any = None
    file_upload: Any = None


def read_task(source: bytes | Mapping[str, Any]) -> Task:
    """A task from its JSON text, or from the same already decoded.

    Annotations, predictions and results that are not objects are kept in ``malformed``; their siblings are read.

    Raises:
        MalformedTask: The text is not JSON, the task is not an object, or its ``data`` is none.
    """
    wire = _decode(source)
    if not isinstance(wire.data, dict):
        raise MalformedTask(wire.id, "data", _not_an("object", wire.data))
    malformed: list[Malformed] = []
    annotations = tuple(read_annotation_json(item) for item in _objects(wire.annotations, "annotations", malformed))
    ids: list[int] = []
    bodies: list[Any] = []
    if isinstance(wire.predictions, list):
        for item in wire.predictions:
            (ids if isinstance(item, int) else bodies).append(item)
    predictions = tuple(read_prediction_json(item) for item in _objects(bodies, "predictions", malformed))
    return Task(
        id=_number_of(wire.id),
        data=wire.data,
        annotations=annotations,
        predictions=predictions,
        prediction_ids=tuple(ids),
        project=_integer(wire.project),
        inner_id=_integer(wire.inner_id),
        overlap=_integer(wire.overlap),
        is_labeled=wire.is_labeled if isinstance(wire.is_labeled, bool) else None,
        total_annotations=_integer(wire.total_annotations),
        cancelled_annotations=_integer(wire.cancelled_annotations),
        created_at=_text(wire.created_at),
        updated_at=_text(wire.updated_at),
        meta=wire.meta if isinstance(wire.meta, dict) else None,
        file_upload=wire.file_upload if isinstance(wire.file_upload, str) else None,
        malformed=tuple(malformed),
    )


def read_annotation_json(source: Mapping[str, Any]) -> Annotation:
    """An annotation from its decoded JSON object, as tasks, webhooks and the API carry it."""
    malformed: list[Malformed] = []
    get = source.get
    if get("result") is None:
        malformed.append(Malformed("result", "is missing" if "result" not in source else _not_an("array", None), None))
    unique_id = get("unique_id")
    return Annotation(
        id=_number_of(get("id")),
        results=_results(get("result"), malformed),
        completed_by=_person(get("completed_by")),
        was_cancelled=_is_set(get("was_cancelled")),
        ground_truth=_is_set(get("ground_truth")),
        created_at=_text(get("created_at")),
        updated_at=_text(get("updated_at")),
        lead_time=_number(get("lead_time")),
        parent_prediction=_reference(get("parent_prediction")),
        unique_id=unique_id if isinstance(unique_id, str) else None,
        malformed=tuple(malformed),
    )


def read_prediction_json(source: Mapping[str, Any]) -> Prediction:
    """A prediction from its decoded JSON object."""
    malformed: list[Malformed] = []
    return Prediction(
        id=_integer(source.get("id")),
        results=_results(source.get("result"), malformed),
        model_version=_text(source.get("model_version")),
        score=_number(source.get("score")),
        malformed=tuple(malformed),
    )


def _decode(source: bytes | Mapping[str, Any]) -> _Wire:
    if isinstance(source, Mapping):
        known = _Wire.__struct_fields__
        return _Wire(**{name: source[name] for name in known if name in source})
    try:
        return msgspec.json.decode(source, type=_Wire)
    except msgspec.ValidationError:
        raise MalformedTask(None, "", "a task is a JSON object") from None
    except RecursionError:
        raise MalformedTask(None, "", "it is nested too deeply to be read") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return _decode_lenient(source, error)


def _decode_lenient(source: bytes, error: Exception) -> _Wire:
    # Python's own encoder writes NaN and Infinity, which are no JSON: one such number must not cost the whole task.
    try:
        decoded = json.loads(source)
    except (ValueError, RecursionError):
        raise MalformedTask(None, "", str(error)) from None
    if not isinstance(decoded, dict):
        raise MalformedTask(None, "", "a task is a JSON object")
    return _decode(decoded)


def _objects(items: object, field: str, malformed: list[Malformed]) -> list[dict[str, Any]]:
    if items is None:
        return []
    if not isinstance(items, list):
        malformed.append(Malformed(field, _not_an("array", items), items))
        return []
    for index, item in enumerate(items):
        if not isinstance(item, dict):
            malformed.append(Malformed(f"{field}[{index}]", _not_an("object", item), item))
    return [item for item in items if isinstance(item, dict)]


def _results(items: object, malformed: list[Malformed]) -> tuple[Result, ...]:
    return tuple([Result(item) for item in _objects(items, "result", malformed)])


def _not_an(expected: str, found: object) -> str:
    return f"expected an {expected}, found {'null' if found is None else type(found).__name__}"


def _text(value: object) -> str:
    if type(value) is str:
        return value
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else ""


def _integer(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    return int(value) if isinstance(value, float) and value.is_integer() else None


def _edge(value: object) -> int | None:
    number = _integer(value)
    return number if number is not None and 0 < number < LARGEST else None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) != float("inf") and value == value else None  # noqa: PLR0124 - NaN


def _reference(value: object) -> int | None:
    """An object by its id: a number, or ``{"id": number, ...}`` in snapshots."""
    return _number_of(value.get("id")) if isinstance(value, Mapping) else _number_of(value)


def _is_set(value: object) -> bool:
    """A flag, also where it is written as a text."""
    return value.strip().casefold() in {"true", "1"} if isinstance(value, str) else bool(value)


def _number_of(value: object) -> int | None:
    """A number, also where it is written as a text."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 16:
        return int(value)
    return _integer(value)


def _person(value: object) -> int | None:
    """Who annotated, by number; who has only a name gets the same number below ``UNNUMBERED`` wherever it stands."""
    number = _reference(value)
    if number is not None:
        return number
    names = [value.get(key) for key in ("email", "username")] if isinstance(value, Mapping) else [value]
    name = next((each.strip() for each in names if isinstance(each, str) and each.strip()), None)
    return None if name is None else UNNUMBERED - 1 - crc32(name.casefold().encode()) % 1_000_000_000
