"""Write regions as Label Studio's JSON; unchanged fields keep the exact numbers that they were read from."""

from typing import Any

from labelloop.labeling.errors import LabelingError
from labelloop.labeling.geometry.shapes import Geometry, Interval
from labelloop.labeling.region import Region
from labelloop.labeling.result import Result
from labelloop.labeling.studio.config import Control, LabelConfig
from labelloop.labeling.studio.reading import region_from_results
from labelloop.labeling.studio.values import ANSWERS, GEOMETRIES, ValueCodec, codec_for_value


def to_results(region: Region, *, config: LabelConfig | None = None) -> list[dict[str, Any]]:
    """The results of a region.

    A region that was read gives its original JSON, unknown fields included, with the changed fields
    (``msgspec.structs.replace``) updated. A new region is written from its fields.

    Args:
        region: The region.
        config: Required only for controls that the region does not name: that of the shape of a new region with a
            separate ``Labels`` control, and those of new attributes.

    Raises:
        LabelingError: Neither the region nor ``config`` names a required control, or the geometry does not match the
            region's type.
    """
    if isinstance(region.geometry, Interval):
        return [_changed_span(region, region.geometry, result) for result in region.result]
    shape = _codec(region)
    if not isinstance(region.geometry, shape.geometry):
        raise LabelingError(f"{region.type} draws a {shape.geometry.__name__}, not a {type(region.geometry).__name__}")
    if region.result:
        return _changed_results(region, shape, config)
    return _new_results(region, shape, config)


def detection_result(
    geometry: Geometry,
    label: str | None,
    *,
    control: Control,
    width: int,
    height: int,
    score: float | None,
    id: str,  # noqa: A002 - Label Studio's own name for it
    item_index: int | None = None,
) -> dict[str, Any]:
    """The result of one detection, for a prediction.

    Args:
        geometry: The shape, in pixels.
        label: The stored name of the label (`Control.label_for`); None for a control without labels.
        control: The control of the result, such as a ``RectangleLabels``.
        width: The image's width in pixels.
        height: The image's height in pixels.
        score: The model's confidence.
        id: The region's id, unique within the prediction.
        item_index: Index of the image in a multi-image task; None if the task has one image.

    Raises:
        LabelingError: The control does not draw this shape. (For ``Labels`` with a separate shape see `to_results`.)
    """
    shape = GEOMETRIES.get(control.type)
    if shape is None or not isinstance(geometry, shape.geometry):
        raise LabelingError(f"<{control.tag} name={control.name!r}> draws no {type(geometry).__name__}")
    region = Region(
        geometry,
        () if label is None else (label,),
        id,
        control.name,
        control.to_names[0] if control.to_names else "",
        control.type,
        score,
        item_index or 0,
        width,
        height,
    )
    return _shape_result(region, shape, control.name, item_index)


def _codec(region: Region) -> ValueCodec:
    shape = GEOMETRIES.get(region.type)
    if shape is None and region.result:
        shape = codec_for_value(region.result[0].value)
    if shape is None:
        raise LabelingError(f"{region.type!r} draws no shape on an image")
    return shape


def _envelope(region: Region, control: str, kind: str, item_index: int | None) -> dict[str, Any]:
    result: dict[str, Any] = {
        "id": region.id,
        "from_name": control,
        "to_name": region.to_name,
        "type": kind,
        "original_width": region.width,
        "original_height": region.height,
        "image_rotation": 0,
    }
    if item_index is not None:
        result["item_index"] = item_index
    return result


def _changed_results(region: Region, shape: ValueCodec, config: LabelConfig | None) -> list[dict[str, Any]]:
    first, *others = region.result
    before = region_from_results(first, others, region.width, region.height)
    changed_fields: dict[str, Any] = {}
    if region.geometry != before.geometry:
        old_value = shape.write(before.geometry, region.width, region.height)
        new_value = shape.write(region.geometry, region.width, region.height)
        changed_fields = {
            field: value for field, value in new_value.items() if field not in old_value or value != old_value[field]
        }
    results = []
    for result in region.result:
        control = result.from_name
        if control in before.attributes and control not in region.attributes:
            continue
        raw, value = dict(result.raw), dict(result.value)
        if changed_fields and (result is first or shape.key in value):
            value |= changed_fields
        if region.labels != before.labels and control == before.control:
            value[_label_field(value, result.type)] = list(region.labels)
        if control in before.attributes and region.attributes[control] != before.attributes[control]:
            value[_answer_field(value, result.type)] = _answer(region.attributes[control], result.type)
        if region.score != before.score and result is first:
            raw["score"] = region.score
        results.append(raw | {"value": value})
    new = [control for control in region.attributes if control not in before.attributes]
    return results + [_attribute_result(region, shape, control, config) for control in new]


def _changed_span(region: Region, interval: Interval, result: Result) -> dict[str, Any]:
    """One result of a span with the region's labels and answers and, for a recording, a series or a video, its ends.

    The ends of a span of text stay those that its annotator marked: its text and its place in the page go with them.
    So do those of a series with formatted times.
    """
    value = dict(result.value)
    if result.type in value and result.type not in ANSWERS:
        value[result.type] = list(region.labels)
    elif result.type in ANSWERS and result.from_name in region.attributes:
        value[ANSWERS[result.type]] = _answer(region.attributes[result.from_name], result.type)
    value |= _ends(value, interval)
    score = {} if region.score is None or "score" not in result.raw else {"score": region.score}
    return {**result.raw, **score, "value": value}


def _ends(value: dict[str, Any], interval: Interval) -> dict[str, Any]:
    """The fields of a value with the ends of a span; empty where they stay as they are."""
    ranges = value.get("ranges")
    if isinstance(ranges, list) and len(ranges) == 1:  # frames of a video, both included
        start, end = round(interval.start), round(interval.end) - 1
        return {"ranges": [{**ranges[0], "start": start, "end": max(start, end)}]}
    is_measured = all(
        isinstance(value.get(end), int | float) and not isinstance(value.get(end), bool) for end in ("start", "end")
    )
    if not is_measured or not {"channel", "instant"} & value.keys():
        return {}
    middle = (interval.start + interval.end) / 2
    ends = (middle, middle) if value["start"] == value["end"] else (interval.start, interval.end)
    # an unchanged end stays the integer that it may be
    return {name: end for name, end in zip(("start", "end"), ends, strict=True) if value[name] != end}


def _new_results(region: Region, shape: ValueCodec, config: LabelConfig | None) -> list[dict[str, Any]]:
    item_index = _item_index(region, config)
    if region.labels and not region.type.endswith("labels"):
        first = _shape_result(region, shape, _shape_control(region, config), item_index)
        second = _envelope(region, region.control, "labels", item_index)
        results = [first, second | {"value": first["value"] | {"labels": list(region.labels)}}]
    else:
        results = [_shape_result(region, shape, region.control, item_index)]
    return results + [_attribute_result(region, shape, control, config) for control in region.attributes]


def _shape_result(region: Region, shape: ValueCodec, control: str, item_index: int | None) -> dict[str, Any]:
    value = shape.write(region.geometry, region.width, region.height)
    if region.labels and region.type.endswith("labels"):
        value[region.type] = list(region.labels)
    result = _envelope(region, control, region.type, item_index) | {"value": value}
    return result if region.score is None else result | {"score": region.score}


def _shape_control(region: Region, config: LabelConfig | None) -> str:
    for control in config.controls_of(region.type) if config else ():
        if region.to_name in control.to_names:
            return control.name
    raise LabelingError(f"no <{region.type}> control on {region.to_name!r} is configured to draw region {region.id!r}")


def _attribute_result(region: Region, shape: ValueCodec, name: str, config: LabelConfig | None) -> dict[str, Any]:
    control = config.control(name) if config else None
    if control is None:
        raise LabelingError(f"no control named {name!r} is configured to describe region {region.id!r}")
    result = _envelope(region, name, control.type, _item_index(region, config))
    value = shape.write(region.geometry, region.width, region.height)
    value[_answer_field(value, control.type)] = _answer(region.attributes[name], control.type)
    return result | {"value": value}


def _item_index(region: Region, config: LabelConfig | None) -> int | None:
    """The index of the image; None on tasks with one image, as Label Studio writes it."""
    object_tag = config.objects.get(region.to_name) if config else None
    return region.item_index if object_tag is not None and object_tag.is_list else region.item_index or None


def _label_field(value: dict[str, Any], kind: str) -> str:
    if kind in value or ("labels" not in value and kind.endswith("labels")):
        return kind
    return "labels"


def _answer_field(value: dict[str, Any], kind: str) -> str:
    return ANSWERS[kind] if kind in ANSWERS else _label_field(value, kind)


def _answer(answers: tuple[Any, ...], kind: str) -> Any:
    if kind in {"rating", "number", "datetime"}:
        return answers[0]
    if kind == "taxonomy":
        return [path.split("/") for path in answers]
    return list(answers)
