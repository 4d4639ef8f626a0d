"""Read a list of COCO results: the detections of a model. Format: https://cocodataset.org/#format-results."""

from collections.abc import Iterator

import msgspec

from labelloop.labeling.geometry.shapes import Geometry
from labelloop.labeling.studio.sniff import HEAD_BYTES, sniff_non_data_set
from labelloop.service.datasets.coco import coco_box
from labelloop.service.datasets.coco_records import CocoAnnotation, coco_id
from labelloop.service.datasets.errors import DatasetError, MalformedData, unreadable_error
from labelloop.service.datasets.model import DataSet, DatasetImage, DatasetProblem, LabelledObject
from labelloop.service.datasets.shapes import decode_rle, parse_number
from labelloop.service.datasets.text import decode_json

_decode_result = msgspec.json.Decoder(CocoAnnotation).decode


def read_results(data: bytes, location: str) -> DataSet:
    """Read a list of detections as ``COCO.loadRes`` takes it; ``image_id`` is the task id.

    `labelloop export` uses task ids as the image ids of a COCO data set, so the results of a model trained on it refer
    to tasks. Labels are ``#category_id``; `exporters.importing.class_ids` maps them to class names.

    Raises:
        DatasetError: The file is not a list of COCO results.
    """
    try:
        rows = decode_json(data, list[msgspec.Raw])
    except MalformedData as error:
        raise unreadable_error(data, location, default=f"it is not a list of COCO results ({error})") from None
    if (other := sniff_non_data_set(data[:HEAD_BYTES])) is not None:
        raise DatasetError(location, f"it is {other.what}", fix=other.fix)
    if rows and not any(bytes(raw).lstrip().startswith(b"{") for raw in rows):
        raise DatasetError(location, "it is a list without objects", fix="COCO results are a list of objects.")
    problems: list[DatasetProblem] = []
    results_by_image: dict[int, list[tuple[int, msgspec.Raw]]] = {}
    for index, raw in enumerate(rows):
        try:
            result = _decode_result(raw)
        except (msgspec.DecodeError, RecursionError):
            problems.append(DatasetProblem(f"result {index}", "not an object"))
            continue
        task_id = coco_id(result.image_id)
        if type(task_id) is not int or task_id < 1:
            problems.append(DatasetProblem(f"result {index}", f"image_id {result.image_id!r:.40} is not a task id"))
            continue
        results_by_image.setdefault(task_id, []).append((index, raw))

    def read() -> Iterator[DatasetImage | DatasetProblem]:
        yield from problems
        for task, results in results_by_image.items():
            objects = []
            for index, raw in results:
                result = _decode_result(raw)
                try:
                    objects.append(_result(result))
                except MalformedData as error:
                    yield DatasetProblem(f"result {index} (image {task})", str(error))
            yield DatasetImage(
                name=f"task {task}", objects=tuple(objects), task=task, unread=len(results) - len(objects)
            )

    return DataSet("coco-results", read)


def _result(result: CocoAnnotation) -> LabelledObject:
    category = coco_id(result.category_id)
    if type(category) is not int:
        raise MalformedData(f"category_id is {result.category_id!r:.40}")
    score = parse_number(result.score, "score")
    if result.segmentation:
        size = result.segmentation.get("size") if isinstance(result.segmentation, dict) else None
        if not (isinstance(size, list) and len(size) == 2 and all(type(edge) is int and edge > 0 for edge in size)):
            raise MalformedData("its segmentation is not an RLE with a size")
        shape: Geometry = decode_rle(result.segmentation, size[1], size[0])
    else:
        shape = coco_box(result.bbox)
    return LabelledObject(shape, f"#{category}", score)
