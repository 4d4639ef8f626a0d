"""Task, Annotation and ModelPrediction, read from Label Studio's JSON as frozen values."""

import json
from collections.abc import Mapping
from typing import Any
from zlib import crc32

import msgspec

from labelloop.labeling.errors import MalformedTask
from labelloop.labeling.result import Result, integer_or_none, number_or_none, text_or_empty

# Ids below this are synthetic: of annotations without an id, and of users known only by name.
MAX_SYNTHETIC_ID = -1_000_000_000


class MalformedItem(msgspec.Struct, frozen=True, gc=False):
    """A list item that is not an object, kept for error reports.

    Attributes:
        field: Its location, such as ``result[3]``.
        reason: What is wrong with it.
        source: The value.
    """

    field: str
    reason: str
    source: Any


class Annotation(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One annotator's annotation of a task. ``was_cancelled``: the task was skipped; results may exist anyway."""

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
    malformed: tuple[MalformedItem, ...] = ()


class ModelPrediction(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One model's prediction for a task."""

    id: int | None = None
    results: tuple[Result, ...] = ()
    model_version: str = ""
    score: float | None = None
    created_at: str = ""
    malformed: tuple[MalformedItem, ...] = ()


class Task(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A task: the data to annotate, with its annotations and predictions.

    Attributes:
        prediction_ids: Ids of predictions, if an export lists only these.
        malformed: Items of ``annotations`` and ``predictions`` that are not objects.
    """

    id: int | None = None
    data: dict[str, Any]
    annotations: tuple[Annotation, ...] = ()
    predictions: tuple[ModelPrediction, ...] = ()
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
    malformed: tuple[MalformedItem, ...] = ()


class _RawTask(msgspec.Struct, gc=False):
    """The undecoded fields of a task; each is validated separately."""

    id: Any = None
    data: Any = None
    annotations: Any = None
    completions: Any = None  # what Label Studio before 1.0 called annotations
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
    """Read a task from JSON text, or from a decoded object.

    Annotations, predictions and results that are not objects go to ``malformed``; the others are read.

    Raises:
        MalformedTask: The text is not JSON, or the task or its ``data`` is not an object.
    """
    wire = _decode(source)
    if not isinstance(wire.data, dict):
        raise MalformedTask(wire.id, "data", _not_an("object", wire.data))
    malformed: list[MalformedItem] = []
    written = wire.completions if wire.annotations is None else wire.annotations
    annotations = tuple(read_annotation_json(item) for item in _objects(written, "annotations", malformed))
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
        project=integer_or_none(wire.project),
        inner_id=integer_or_none(wire.inner_id),
        overlap=integer_or_none(wire.overlap),
        is_labeled=wire.is_labeled if isinstance(wire.is_labeled, bool) else None,
        total_annotations=integer_or_none(wire.total_annotations),
        cancelled_annotations=integer_or_none(wire.cancelled_annotations),
        created_at=text_or_empty(wire.created_at),
        updated_at=text_or_empty(wire.updated_at),
        meta=wire.meta if isinstance(wire.meta, dict) else None,
        file_upload=wire.file_upload if isinstance(wire.file_upload, str) else None,
        malformed=tuple(malformed),
    )


def read_annotation_json(source: Mapping[str, Any]) -> Annotation:
    """Read an annotation from its decoded JSON object, as in tasks, webhooks and the API."""
    malformed: list[MalformedItem] = []
    get = source.get
    if get("result") is None:
        malformed.append(
            MalformedItem("result", "is missing" if "result" not in source else _not_an("array", None), None)
        )
    unique_id = get("unique_id")
    return Annotation(
        id=_number_of(get("id")),
        results=_results(get("result"), malformed),
        completed_by=person_id(get("completed_by")),
        was_cancelled=_is_set(get("was_cancelled")) or _is_set(get("skipped")),
        ground_truth=_is_set(get("ground_truth")),
        created_at=text_or_empty(get("created_at")),
        updated_at=text_or_empty(get("updated_at")),
        lead_time=number_or_none(get("lead_time")),
        parent_prediction=_reference(get("parent_prediction")),
        unique_id=unique_id if isinstance(unique_id, str) else None,
        malformed=tuple(malformed),
    )


def read_prediction_json(source: Mapping[str, Any]) -> ModelPrediction:
    """Read a prediction from its decoded JSON object."""
    malformed: list[MalformedItem] = []
    return ModelPrediction(
        id=integer_or_none(source.get("id")),
        results=_results(source.get("result"), malformed),
        model_version=text_or_empty(source.get("model_version")),
        score=number_or_none(source.get("score")),
        created_at=text_or_empty(source.get("created_at")),
        malformed=tuple(malformed),
    )


def _decode(source: bytes | Mapping[str, Any]) -> _RawTask:
    if isinstance(source, Mapping):
        fields = _RawTask.__struct_fields__
        return _RawTask(**{name: source[name] for name in fields if name in source})
    try:
        return msgspec.json.decode(source, type=_RawTask)
    except msgspec.ValidationError:
        raise MalformedTask(None, "", "a task is a JSON object") from None
    except RecursionError:
        raise MalformedTask(None, "", "it is nested too deeply to be read") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return _decode_lenient(source, error)


def _decode_lenient(source: bytes, error: Exception) -> _RawTask:
    # Python's encoder writes NaN and Infinity, which are not JSON: such a number must not invalidate the whole task.
    try:
        decoded = json.loads(source)
    except (ValueError, RecursionError):
        raise MalformedTask(None, "", str(error)) from None
    if not isinstance(decoded, dict):
        raise MalformedTask(None, "", "a task is a JSON object")
    return _decode(decoded)


def _objects(items: object, field: str, malformed: list[MalformedItem]) -> list[dict[str, Any]]:
    if items is None:
        return []
    if not isinstance(items, list):
        malformed.append(MalformedItem(field, _not_an("array", items), items))
        return []
    for index, item in enumerate(items):
        if not isinstance(item, dict):
            malformed.append(MalformedItem(f"{field}[{index}]", _not_an("object", item), item))
    return [item for item in items if isinstance(item, dict)]


def _results(items: object, malformed: list[MalformedItem]) -> tuple[Result, ...]:
    return tuple([Result(item) for item in _objects(items, "result", malformed)])


def _not_an(expected: str, value: object) -> str:
    return f"expected an {expected}, found {'null' if value is None else type(value).__name__}"


def _reference(value: object) -> int | None:
    """The id of a referenced object: a number, or ``{"id": number, ...}`` in snapshots."""
    return _number_of(value.get("id")) if isinstance(value, Mapping) else _number_of(value)


def _is_set(value: object) -> bool:
    """A flag, also one written as a string."""
    return value.strip().casefold() in {"true", "1"} if isinstance(value, str) else bool(value)


def _number_of(value: object) -> int | None:
    """An integer, also one written as a string of digits."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 16:
        return int(value)
    return integer_or_none(value)


def person_id(value: object) -> int | None:
    """The annotator's id; a user known only by name gets a stable id below ``MAX_SYNTHETIC_ID``."""
    number = _reference(value)
    if number is not None:
        return number
    names = [value.get(key) for key in ("email", "username")] if isinstance(value, Mapping) else [value]
    name = next((candidate.strip() for candidate in names if isinstance(candidate, str) and candidate.strip()), None)
    return None if name is None else MAX_SYNTHETIC_ID - 1 - crc32(name.casefold().encode()) % 1_000_000_000
