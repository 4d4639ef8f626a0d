"""Shapes from boxes: segm AP50 on COCO photos, vertices of polygons, and what `/predict` takes against boxes alone.

    python -m bench shapes            # accuracy
    python -m bench.shapes latency    # p50 of /predict; alone on the machine, under two minutes

The included segmenter was trained on no photo of the sample, so its figures need no cross-validation.
"""

from __future__ import annotations

import contextlib
import io
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from bench.smart import LARGE, SAMPLE, SMALL, Files
from labelloop.labeling.geometry.mask_shapes import outline_polygon
from labelloop.labeling.geometry.shapes import Mask, Polygon, Rectangle
from labelloop.labeling.studio.config import LabelConfig
from labelloop.service.media import image_size, load_image
from ml_backend.detection.class_names import COCO_GAPS
from ml_backend.detection.masks import OUTLINE_SIDE
from ml_backend.detection.preprocess import prepare
from ml_backend.inference.detector import Detector, load_detector
from ml_backend.predict.label_mapping import find_targets
from ml_backend.predict.predictor import Predictor
from ml_backend.segmentation.box_segmenter import BoxSegmenter

MODELS = Path(__file__).parents[2] / "shared" / "models"
LATENCY = Path(__file__).parent / "results" / "shapes_latency.md"
TAGS = ("RectangleLabels", "PolygonLabels", "BrushLabels", "BitmaskLabels", "EllipseLabels")
ROUNDS = 4
CLASS_OF = {number: index for index, number in enumerate(n for n in range(91) if n not in COCO_GAPS)}
"""Of COCO's category ids, which the sample has, to the numbers of its 80 classes."""


@dataclass(frozen=True)
class Truth:
    """The objects of one photo: masks as COCO RLE, boxes (x_min, y_min, x_max, y_max), class numbers."""

    path: Path
    width: int
    height: int
    masks: list[Mask]
    boxes: list[tuple[float, float, float, float]]
    classes: list[int]


def read_sample() -> list[Truth]:
    """The COCO sample's photos with their masks."""
    found = []
    for path in sorted((SAMPLE / "images").glob("*.jpg")):
        labels = SAMPLE / "labels_segment" / f"{path.stem}.txt"
        width, height = image_size(path)
        masks, boxes, classes = [], [], []
        for line in labels.read_text().splitlines() if labels.is_file() else ():
            number, *numbers = line.split()
            points = np.array(numbers, float).reshape(-1, 2) * [width, height]
            mask = Mask.from_array(Polygon(tuple(map(tuple, points.tolist()))).mask(width, height))
            if mask.area:
                masks.append(mask)
                boxes.append((*points.min(0).tolist(), *points.max(0).tolist()))
                classes.append(CLASS_OF[int(number)])
        found.append(Truth(path, width, height, masks, boxes, classes))
    return found


def run() -> str:
    """The accuracy, in Markdown."""
    if not SAMPLE.is_dir():
        return "Not measured: the COCO sample is not on this machine."
    sample, segmenter = read_sample(), BoxSegmenter()
    true_rows, overlaps, vertices, losses, areas = [], [], [], [], []
    for number, photo in enumerate(sample):
        pixels = load_image(photo.path, max_side=1280).pixels
        boxes = [Rectangle(x, y, max(1.0, right - x), max(1.0, bottom - y)) for x, y, right, bottom in photo.boxes]
        drawn = segmenter.masks(pixels, boxes, size=(photo.width, photo.height)).masks
        for mask, truth, class_ in zip(drawn, photo.masks, photo.classes, strict=True):
            if mask is None:
                continue
            whole = mask.mask(photo.width, photo.height)
            true_rows.append((number, class_, 1.0, whole))
            overlaps.append(_iou(whole, truth))
            areas.append(truth.area)
            polygon = outline_polygon(*mask.crop(OUTLINE_SIDE, enlarge=True))
            if polygon is not None:
                vertices.append(len(polygon.points))
                losses.append(overlaps[-1] - _iou(Mask.from_array(polygon.mask(photo.width, photo.height)), truth))
    box_rows = [
        (number, class_, 1.0, Mask.from_array(Rectangle(x, y, right - x, bottom - y).mask(photo.width, photo.height)))
        for number, photo in enumerate(sample)
        for (x, y, right, bottom), class_ in zip(photo.boxes, photo.classes, strict=True)
    ]
    rows = [
        "| masks | segm AP50 | segm AP |",
        "|---|---|---|",
        "| the true boxes themselves | {:.3f} | {:.3f} |".format(*average_precision(sample, box_rows)),
        "| segmenter, from the true boxes | {:.3f} | {:.3f} |".format(*average_precision(sample, true_rows)),
    ]
    model = MODELS / "yolox_nano.onnx"
    if model.is_file():
        detector = load_detector(model)
        boxes_alone, segmented, box_ap = _detected(sample, detector, segmenter)
        rows += [
            f"| boxes of YOLOX-nano themselves (bbox AP50 {box_ap:.3f}) | {{:.3f}} | {{:.3f}} |".format(
                *average_precision(sample, boxes_alone)
            ),
            "| segmenter, from the boxes of YOLOX-nano | {:.3f} | {:.3f} |".format(
                *average_precision(sample, segmented)
            ),
        ]
    overlap, area = np.array(overlaps), np.array(areas)
    sizes = {"all": area > 0, "small": area < SMALL, "medium": (area >= SMALL) & (area < LARGE), "large": area >= LARGE}
    return "\n".join(
        [
            f"{len(overlap)} objects of {len(sample)} COCO photos, on none of which the segmenter was trained.",
            "AP by pycocotools; true boxes have no score, so every one counts as certain.",
            "",
            *rows,
            "",
            "Mean IoU with the object's mask, from its true box: "
            + ", ".join(f"{name} {overlap[part].mean():.3f} ({part.sum()})" for name, part in sizes.items())
            + ".",
            "",
            f"Polygons of them: vertices p50 {np.median(vertices):.0f}, p95 {np.percentile(vertices, 95):.0f}, at",
            f"most {max(vertices)}; mean IoU with the object lost against the mask {np.mean(losses):.4f}.",
            "",
            LATENCY.read_text() if LATENCY.is_file() else "Latency: `python -m bench.shapes latency`.",
        ]
    )


def _detected(sample: list[Truth], detector: Detector, segmenter: BoxSegmenter) -> tuple[list, list, float]:
    """(rows with the boxes as masks, rows with segmented masks, bbox AP50) of a detector's boxes."""
    as_boxes, segmented = [], []
    for number, photo in enumerate(sample):
        image = load_image(photo.path, max_side=1280)
        size = photo.width, photo.height
        [found] = detector.detect([prepare(image.pixels, detector.spec, size=size)], floor=0.05)
        boxes = [Rectangle(x, y, right - x, bottom - y) for x, y, right, bottom in found.boxes.tolist()]
        masks = segmenter.masks(image.pixels, boxes, size=size).masks
        for box, mask, score, class_ in zip(boxes, masks, found.scores, found.classes, strict=True):
            as_boxes.append((number, int(class_), float(score), Mask.from_array(box.mask(*size))))
            if mask is not None:
                segmented.append((number, int(class_), float(score), mask.mask(*size)))
    return as_boxes, segmented, average_precision(sample, as_boxes, kind="bbox")[0]


def _iou(first: Mask, second: Mask) -> float:
    return float(coco_mask.iou([first.coco], [second.coco], [0])[0, 0])


def average_precision(
    sample: list[Truth], rows: list[tuple[int, int, float, Mask]], *, kind: str = "segm"
) -> tuple[float, float]:
    """(AP50, AP) by pycocotools of rows (photo, class, score, mask)."""
    truth = COCO()
    annotations = [
        {
            "id": 0, "image_id": number, "category_id": class_, "iscrowd": 0, "area": mask.area,
            "segmentation": mask.coco, "bbox": _xywh(mask),
        }
        for number, photo in enumerate(sample)
        for mask, class_ in zip(photo.masks, photo.classes, strict=True)
    ]  # fmt: skip
    for index, annotation in enumerate(annotations):
        annotation["id"] = index + 1
    truth.dataset = {
        "info": {},
        "images": [{"id": number, "width": p.width, "height": p.height} for number, p in enumerate(sample)],
        "categories": [{"id": number, "name": str(number)} for number in range(80)],
        "annotations": annotations,
    }
    results = [
        {"image_id": number, "category_id": class_, "score": score, "segmentation": mask.coco, "bbox": _xywh(mask)}
        for number, class_, score, mask in rows
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        found = COCO()
        found.dataset = {
            **{key: truth.dataset[key] for key in ("info", "images", "categories")},
            "annotations": [
                {**row, "id": index + 1, "iscrowd": 0, "area": float(coco_mask.area(row["segmentation"]))}
                for index, row in enumerate(results)
            ],
        }
        found.createIndex()
        evaluation = COCOeval(truth, found, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[1]), float(evaluation.stats[0])


def _xywh(mask: Mask) -> list[float]:
    x_min, y_min, x_max, y_max = mask.bounds
    return [x_min, y_min, x_max - x_min, y_max - y_min]


def latency() -> str:
    """p50 of one task per request, images decoded each time, by control and model, in Markdown."""
    rows = [
        "Latency of `Predictor.predict`, one task a request, photo decoded each time: p50 ms by the wall / of the",
        "processor, and the ratio to boxes alone (`python -m bench.shapes latency`):",
        "",
        "| model, objects a photo | " + " | ".join(TAGS) + " |",
        "|---|" + "---|" * len(TAGS),
    ]
    paths = sorted((SAMPLE / "images").glob("*.jpg"))[:24]
    for model in _models():
        detector = load_detector(model)
        labels = "".join(f'<Label value="{name}"/>' for name in detector.names.names)
        predictors = {}
        for tag in TAGS:
            drawn = f'<{tag} name="c" toName="image">{labels}</{tag}>'
            config = LabelConfig.parse(f'<View><Image name="image" value="$image"/>{drawn}</View>')
            predictors[tag] = find_targets(config, detector.names.names, provides=detector.provides)
        predictor = Predictor(Files(), score_threshold=0.3)
        times: dict[str, list[tuple[float, float]]] = {tag: [] for tag in TAGS}
        objects = 0
        for turn in range(ROUNDS + 1):
            for path in paths:
                for tag, targets in predictors.items():
                    task = {"id": 1, "data": {"image": str(path)}}
                    wall, cpu = time.perf_counter(), time.process_time()
                    [entry] = predictor.predict([task], detector=detector, targets=targets)
                    if turn:
                        times[tag].append((1000 * (time.perf_counter() - wall), 1000 * (time.process_time() - cpu)))
                    objects += len(entry.result) if tag == TAGS[0] and not turn else 0
        base = [statistics.median(column) for column in zip(*times[TAGS[0]], strict=True)]
        cells = []
        for tag in TAGS:
            wall, cpu = (statistics.median(column) for column in zip(*times[tag], strict=True))
            cells.append(f"{wall:.0f} / {cpu:.0f}, {wall / base[0]:.2f} / {cpu / base[1]:.2f}")
        rows.append(f"| {model.stem}, {objects / len(paths):.1f} | " + " | ".join(cells) + " |")
    return "\n".join([*rows, ""])


def _models() -> Iterator[Path]:
    from ml_backend.inference.detector import embedded_model

    yield embedded_model()
    if (MODELS / "yolox_nano.onnx").is_file():
        yield MODELS / "yolox_nano.onnx"


if __name__ == "__main__":
    if sys.argv[1:] != ["latency"]:
        raise SystemExit("python -m bench.shapes latency; accuracy: python -m bench shapes")
    text = latency()
    LATENCY.write_text(text)
    print(text)
