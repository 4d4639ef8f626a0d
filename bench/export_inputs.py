"""Synthetic Label Studio exports for the benches of exports, one a shape of task, each with its label config.

The files have Label Studio's whole envelope, as users export them: with drafts, counters and dates.
"""

import json
import math
import random
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from labelloop.labeling.geometry.brush_codec import encode_rle

LABELS = [f"label-{n:02d}" for n in range(20)]
SIZES = [(1920, 1080), (1280, 720), (640, 480), (4000, 3000), (800, 800)]
POINTS = [
    "nose", "left eye", "right eye", "left ear", "right ear", "left shoulder", "right shoulder", "left elbow",
    "right elbow", "left wrist", "right wrist", "left hip", "right hip", "left knee", "right knee", "left ankle",
    "right ankle",
]  # fmt: skip
WEATHER = ["parked", "moving", "occluded", "not clear"]
WORDS = ["Invoice", "Total", "Net", "VAT", "Date", "2024-03-17", "12.50", "EUR", "Nº", "4711", "Straße", "Amount due"]
BRUSH_SIZE = (1920, 1080)
# Distinct drawn masks of a file: making one takes longer than exporting it.
MASKS = 48

Result = dict[str, Any]


class Shape(msgspec.Struct, frozen=True):
    """One shape of task.

    Attributes:
        name: Its name in the tables.
        words: What a task of it holds.
        config: Its label config.
        pairs: Our format -> the format of label-studio-sdk's converter that it is compared with; empty: none.
        results: Returns the results of a task from a random generator and the size of its image.
        share: The tasks of its files, as a share of those of the others: a mask takes longer than a box.
        size: The size of all images; None: those of `SIZES`.
        annotators: How many annotate each task.
        annotation: `--annotation` of our export; for ``consensus`` the annotators draw the same boxes, a little apart.
    """

    name: str
    words: str
    config: str
    pairs: Mapping[str, str]
    results: Callable[[random.Random, int, int], list[Result]]
    share: float = 1.0
    size: tuple[int, int] | None = None
    annotators: int = 1
    annotation: str = "latest"


def _labels(names: list[str], more: str = "") -> str:
    return "".join(f'<Label value="{name}"{more.format(number)}/>' for number, name in enumerate(names))


def _config(*controls: str) -> str:
    return f'<View><Image name="image" value="$image"/>{"".join(controls)}</View>'


_BOXES = f'<RectangleLabels name="box" toName="image">{_labels(LABELS)}</RectangleLabels>'
_POLYGONS = f'<PolygonLabels name="shape" toName="image">{_labels(LABELS)}</PolygonLabels>'
_ELLIPSES = f'<EllipseLabels name="round" toName="image">{_labels(LABELS)}</EllipseLabels>'
_BRUSH = f'<BrushLabels name="brush" toName="image">{_labels(LABELS)}</BrushLabels>'
_PER_REGION = ' perRegion="true"'
_CHOICES = (
    f'<Choices name="state" toName="image"{_PER_REGION}>'
    + "".join(f'<Choice value="{answer}"/>' for answer in WEATHER)
    + "</Choices>"
)
_TEXT = '<TextArea name="text" toName="image" perRegion="true" editable="true"/>'
_PERSON = '<RectangleLabels name="person" toName="image"><Label value="person"/></RectangleLabels>'
_MODEL_INDEX = ' model_index="{}"'
_KEYPOINTS = f'<KeyPointLabels name="point" toName="image">{_labels(POINTS, _MODEL_INDEX)}</KeyPointLabels>'
_OCR = (
    f'<Labels name="kind" toName="image">{_labels(LABELS)}</Labels><Rectangle name="bbox" toName="image"/>'
    '<Polygon name="poly" toName="image"/><TextArea name="transcription" toName="image" perRegion="true"/>'
)


def _box(rng: random.Random, index: int, width: int, height: int, *, rotation: float = 0.0) -> Result:
    x, y = rng.uniform(0, 80), rng.uniform(0, 80)
    value = {"x": x, "y": y, "width": rng.uniform(1, 99 - x), "height": rng.uniform(1, 99 - y), "rotation": rotation}
    return result(f"b{index}", "box", "rectanglelabels", value, rng.choice(LABELS), width, height)


def _boxes_and_polygons(rng: random.Random, width: int, height: int) -> list[Result]:
    results = [_box(rng, index, width, height) for index in range(max(0, round(rng.gauss(8, 2))))]
    for index in range(rng.randrange(3)):
        value = {"points": _outline(rng), "closed": True}
        results.append(result(f"p{index}", "shape", "polygonlabels", value, rng.choice(LABELS), width, height))
    return results


def _answer(rng: random.Random, width: int, height: int) -> list[Result]:
    """One answer about the image, which states no size."""
    del width, height
    value = {"choices": [rng.choice(WEATHER)]}
    return [{"id": "a", "type": "choices", "from_name": "state", "to_name": "image", "value": value}]


def _outline(rng: random.Random) -> list[list[float]]:
    """6 to 16 points around a centre: an outline as people draw it, which does not cross itself."""
    x, y, reach = rng.uniform(20, 80), rng.uniform(20, 80), rng.uniform(4, 18)
    turns = sorted(rng.uniform(0, math.tau) for _ in range(rng.randrange(6, 17)))
    radii = [reach * rng.uniform(0.5, 1) for _ in turns]
    return [[x + r * math.cos(turn), y + r * math.sin(turn)] for r, turn in zip(radii, turns, strict=True)]


def _mixed(rng: random.Random, width: int, height: int) -> list[Result]:
    """Boxes and polygons; one has two labels; an ellipse, a relation and a caption of the image."""
    results = [_box(rng, index, width, height) for index in range(2, 5)] + _boxes_and_polygons(rng, width, height)
    results = list({drawn["id"]: drawn for drawn in results}.values())
    results[0]["value"][results[0]["type"]] = rng.sample(LABELS, 2)
    value = {"x": rng.uniform(20, 80), "y": rng.uniform(20, 80), "radiusX": 9.5, "radiusY": 4.25, "rotation": 0}
    results.append(result("e0", "round", "ellipselabels", value, rng.choice(LABELS), width, height))
    link = {"from_id": results[0]["id"], "to_id": results[1]["id"], "type": "relation", "direction": "right"}
    caption = {"id": "c0", "from_name": "caption", "to_name": "image", "type": "textarea", "value": {"text": ["a"]}}
    return [*results, link, caption]


def _boxes(rng: random.Random, width: int, height: int) -> list[Result]:
    return [_box(rng, index, width, height) for index in range(max(1, round(rng.gauss(8, 2))))]


def _with_choices(rng: random.Random, width: int, height: int) -> list[Result]:
    results = []
    for drawn in _boxes_and_polygons(rng, width, height):
        shape = {key: value for key, value in drawn["value"].items() if not key.endswith("labels")}
        answer = shape | {"choices": [rng.choice(WEATHER)]}
        results += [drawn, drawn | {"value": answer, "from_name": "state", "type": "choices"}]
    return results


def _rotated(rng: random.Random, width: int, height: int) -> list[Result]:
    """8 rotated boxes, of which some 40 % reach over the edge of the image."""
    results = []
    for index in range(max(1, round(rng.gauss(8, 2)))):
        drawn = _box(rng, index, width, height, rotation=rng.uniform(0, 360))
        drawn["value"] |= {"width": rng.uniform(2, 25), "height": rng.uniform(2, 25)}
        if rng.random() < 0.25:
            drawn["value"] |= {"x": rng.choice([rng.uniform(-4, 4), rng.uniform(94, 102)])}
        results.append(drawn)
    return results


def _people(rng: random.Random, width: int, height: int) -> list[Result]:
    """1 to 3 persons: a box, and 12 to 17 key points in it."""
    results = []
    for person in range(rng.randrange(1, 4)):
        x, y, w, h = rng.uniform(0, 60), rng.uniform(0, 40), rng.uniform(10, 35), rng.uniform(20, 55)
        value = {"x": x, "y": y, "width": w, "height": h, "rotation": 0}
        name = f"person{person}"
        results.append(result(name, "person", "rectanglelabels", value, "person", width, height))
        for index in sorted(rng.sample(range(len(POINTS)), rng.randrange(12, 18))):
            at = {"x": x + rng.random() * w, "y": y + rng.random() * h, "width": 0.5}
            point = result(f"{name}-{index}", "point", "keypointlabels", at, POINTS[index], width, height)
            results.append(point | {"parentID": name})
    return results


def _masks(rng: random.Random, width: int, height: int) -> list[Result]:
    """1 to 3 brush strokes."""
    return [
        result(
            f"m{index}", "brush", "brushlabels",
            {"format": "rle", "rle": _stroke(rng.randrange(MASKS), width, height)}, rng.choice(LABELS), width, height,
        )
        for index in range(rng.randrange(1, 4))
    ]  # fmt: skip


@cache
def _stroke(seed: int, width: int, height: int) -> list[int]:
    """A brush stroke: discs along a random walk."""
    rng = random.Random(seed)
    pixels = np.zeros((height, width), np.bool_)
    radius = rng.randrange(15, 90)
    x, y, turn = rng.uniform(100, width - 100), rng.uniform(100, height - 100), rng.uniform(0, math.tau)
    rows, columns = np.ogrid[:height, :width]
    for _ in range(rng.randrange(6, 40)):
        turn += rng.uniform(-0.6, 0.6)
        x, y = x + radius / 2 * math.cos(turn), y + radius / 2 * math.sin(turn)
        pixels |= (columns - x) ** 2 + (rows - y) ** 2 <= radius**2
    return encode_rle(pixels)


def _documents(rng: random.Random, width: int, height: int) -> list[Result]:
    """20 to 60 words of a page, each in a box with its kind and its text: three results of one id."""
    results = []
    for index in range(rng.randrange(20, 61)):
        x, y = rng.uniform(2, 85), rng.uniform(2, 95)
        shape = {"x": x, "y": y, "width": rng.uniform(2, 14), "height": rng.uniform(1, 3), "rotation": 0}
        drawn = result(f"w{index}", "bbox", "rectangle", shape, "", width, height)
        results += [
            drawn,
            drawn | {"value": shape | {"labels": [rng.choice(LABELS)]}, "from_name": "kind", "type": "labels"},
            drawn | {"value": shape | {"text": [_text(rng)]}, "from_name": "transcription", "type": "textarea"},
        ]
    return results


def _transcribed(rng: random.Random, width: int, height: int) -> list[Result]:
    """Boxes, each with a text."""
    results = []
    for index in range(rng.randrange(4, 13)):
        drawn = _box(rng, index, width, height)
        shape = {key: value for key, value in drawn["value"].items() if not key.endswith("labels")}
        results += [drawn, drawn | {"value": shape | {"text": [_text(rng)]}, "from_name": "text", "type": "textarea"}]
    return results


def _text(rng: random.Random) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randrange(1, 4)))


SHAPES: Mapping[str, Shape] = {
    shape.name: shape
    for shape in (
        Shape(
            "plain", "some 8 boxes and 1 polygon", _config(_BOXES, _POLYGONS),
            {"coco": "COCO", "voc": "VOC", "yolo-detect": "YOLO"}, _boxes_and_polygons,
        ),
        Shape("boxes", "some 8 boxes", _config(_BOXES), {}, _boxes),
        Shape(
            "choices", "the same, each with a choice", _config(_BOXES, _POLYGONS, _CHOICES), {"coco": "COCO"},
            _with_choices,
        ),
        Shape(
            "annotators", "some 8 boxes and 1 polygon by each of 2 annotators", _config(_BOXES, _POLYGONS),
            {"coco": "COCO"}, _boxes_and_polygons, share=0.5, annotators=2,
        ),
        Shape(
            "mixed", "the same of 1, one with 2 labels, an ellipse, a relation, a caption",
            _config(_BOXES, _POLYGONS, _ELLIPSES, '<TextArea name="caption" toName="image"/>'), {"coco": "COCO"},
            _mixed, share=0.5,
        ),
        Shape(
            "rotated", "some 8 rotated boxes, many over the edge", _config(_BOXES),
            {"yolo-obb": "YOLO_OBB", "coco": "COCO"}, _rotated,
        ),
        Shape("points", "1 to 3 persons with 12 to 17 key points", _config(_PERSON, _KEYPOINTS), {"coco": "COCO"},
              _people),
        Shape("masks", "1 to 3 brush masks, 1920 x 1080", _config(_BRUSH), {"coco": "BRUSH_TO_COCO"}, _masks,
              share=0.02, size=BRUSH_SIZE),
        Shape("ocr", "20 to 60 words: box, kind and text", _config(_OCR), {"coco": "COCO"}, _documents, share=0.25),
        Shape("texts", "some 8 boxes, each with a text", _config(_BOXES, _TEXT), {"coco": "COCO"}, _transcribed),
        Shape(
            "consensus", "some 8 boxes by each of 3 annotators: their consensus", _config(_BOXES),
            {"coco": ""}, _boxes, share=0.1, annotators=3, annotation="consensus",
        ),
        Shape(
            "classes", "one answer about the image (the converter: CSV)", _config(_CHOICES.replace(_PER_REGION, "")),
            {"yolo-classify": "CSV"}, _answer,
        ),
    )
}  # fmt: skip


def write_export(path: Path, tasks: int, shape: Shape = SHAPES["plain"]) -> None:
    """Write an export of ``tasks`` tasks."""
    with path.open("w") as file:
        for number, task in enumerate(make_tasks(tasks, shape), 1):
            file.write("[" if number == 1 else ",\n")
            json.dump(task, file)
        file.write("]")


def make_tasks(tasks: int, shape: Shape) -> Iterator[dict[str, Any]]:
    """Yield tasks, the same ones each time."""
    rng = random.Random(0)
    for number in range(1, tasks + 1):
        width, height = shape.size or rng.choice(SIZES)
        drawn = [shape.results(rng, width, height) for _ in range(shape.annotators)]
        if shape.annotation == "consensus":
            drawn = [[_redrawn(rng, box) for box in drawn[0]] for _ in drawn]
        yield _task(number, drawn)


def _redrawn(rng: random.Random, box: Result) -> Result:
    moved = {side: box["value"][side] + rng.uniform(0, 0.3) for side in ("x", "y")}
    return box | {"value": box["value"] | moved}


def _annotation(number: int, user: int, results: list[Result]) -> dict[str, Any]:
    day = f"2026-01-01T1{user % 10}:00:00.000000Z"
    return {
        "id": number + (user - 1) * 10_000_000,
        "completed_by": user,
        "result": results,
        "was_cancelled": False,
        "ground_truth": False,
        "created_at": day,
        "updated_at": day,
        "draft_created_at": None,
        "lead_time": 12.3,
        "prediction": {},
        "result_count": len(results),
        "unique_id": f"{number:032x}",
        "import_id": None,
        "last_action": None,
        "bulk_created": False,
        "task": number,
        "project": 1,
        "updated_by": 1,
        "parent_prediction": None,
        "parent_annotation": None,
        "last_created_by": None,
    }


def _task(number: int, by_annotator: list[list[Result]]) -> dict[str, Any]:
    day = "2026-01-01T10:00:00.000000Z"
    return {
        "id": number,
        "annotations": [_annotation(number, user, results) for user, results in enumerate(by_annotator, 1)],
        "drafts": [],
        "predictions": [],
        "meta": {},
        "inner_id": number,
        "data": {"image": f"s3://bucket/photos/{number:06d}.jpg"},
        "created_at": day,
        "updated_at": day,
        "total_annotations": len(by_annotator),
        "cancelled_annotations": 0,
        "total_predictions": 0,
        "comment_count": 0,
        "unresolved_comment_count": 0,
        "last_comment_updated_at": None,
        "project": 1,
        "updated_by": 1,
        "comment_authors": [],
    }


def result(name: str, control: str, kind: str, value: Result, label: str, width: int, height: int) -> Result:
    """A result as Label Studio writes it, with its label if it has one."""
    return {
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": value | ({kind: [label]} if label else {}),
        "id": name,
        "from_name": control,
        "to_name": "image",
        "type": kind,
        "origin": "manual",
    }
