"""Key points and rotated boxes learned from a few images of public data sets.

Key points: PCK@.1 on images that nothing was fitted on, beside the mean shape and a ridge regression of the positions
on pooled features of the crop. Rotated boxes: AP50 by rotated IoU (shapely) of labelloop's own learned detector:
upright, with the rotation of the segmenter's mask, and with the learned rotation.

The data sets are those of `bench/sources.toml`, read out of git mirrors in the folder LABELLOOP_MIRRORS.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import random
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import shapely

from bench.parts import Parts
from labelloop.labeling.geometry.mask_shapes import smallest_rotated_box
from labelloop.labeling.geometry.shapes import Rectangle
from labelloop.labeling.studio.config import LabelConfig
from ml_backend.detection.detections import Detections, corners_of
from ml_backend.detection.preprocess import prepare
from ml_backend.heads.angles import AnglesHead, apply_angles, fit_angles, hulls, rotated_iou
from ml_backend.heads.base import FitInput, HeadExample, ImagePrediction
from ml_backend.heads.keypoints import MIN_CORRECT, MIN_PRESENT, _objects_of, point_layout
from ml_backend.heads.point_model import PointExamples, correct_points, fit_points
from ml_backend.inference.detector import embedded_model
from ml_backend.segmentation.box_segmenter import BoxSegmenter
from ml_backend.training.backbone import FrozenBackbone, open_backbone
from ml_backend.training.examples import Example
from ml_backend.training.model_selection import select_and_fit

SOURCES = Path(__file__).parent / "sources.toml"
CONFIG = LabelConfig.parse(
    '<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">'
    '<Label value="0"/></RectangleLabels></View>'
)

# Longer side of the images that heads see.
MAX_SIDE = 1024

SIZES, SEEDS = (5, 20, 50), 3
MOST_IMAGES, TEST_IMAGES = 140, 60
ROTATED_SIZES, ROTATED_SEEDS, ROTATED_TEST, MOST_BOXES = (5, 20, 50), 2, 30, 30

Read = Callable[[str], bytes]
Listed = Sequence[tuple[str, np.ndarray, tuple[str, ...], tuple]]
"""Images as (path, boxes (m, 4), labels, key points); boxes may be (m, 5) rotated ones in degrees."""


def run() -> str:
    """Measure both kinds on every data set that is there, and give the tables."""
    parts = Parts("keypoints", ("ml_backend/heads",))
    points, rotated, missing = [], [], []
    for source in tomllib.loads(SOURCES.read_text())["source"]:
        if "keypoints" not in source["benches"]:
            continue
        read = _reader(source)
        if read is None:
            missing.append(source["repo"])
            continue
        rows = parts.rows(source["name"], lambda source=source, read=read: _rows(source, read))
        if source["kind"] == "points":
            points += rows
        else:
            rotated += rows
    if missing:
        missing = ["", f"Not there (set LABELLOOP_MIRRORS to a folder of git mirrors): {', '.join(missing)}."]
    return "\n".join([
        "## Key points", "",
        f"PCK@.1 on {TEST_IMAGES} other images at most, means of {SEEDS} seeds; distances relative to the longer side",
        "of the box; without boxes, of the extent of the labelled points. `filled in`: share of the labelled points",
        "that are pre-filled, and how many of those filled in are right. CPU seconds of a fit without features.", "",
        "| data set | images | mean shape | ridge on pooled features | heat maps | filled in | right | fit, s |",
        "|---|---|---|---|---|---|---|---|", *points, "",
        "## Rotated boxes", "",
        f"AP50 by rotated IoU (shapely) on {ROTATED_TEST} other images, means of {ROTATED_SEEDS} seeds, with the boxes",
        "of the embedded detector after learning from the same images. `IoU`: mean IoU of drawn boxes that are rotated",
        "by more than 5 degrees, each from the upright box around it: upright, and with the learned rotation.", "",
        "| data set | images | upright AP50 | box of the mask | learned | IoU upright | IoU learned | served |",
        "|---|---|---|---|---|---|---|---|", *rotated, *missing,
        *(["", parts.remark] if parts.remark else []),
    ])  # fmt: skip


def _rows(source: dict, read: Read) -> list[str]:
    listed = LAYOUTS[source["layout"]](read, _files(source))
    examples = [_example(read, number, *item) for number, item in enumerate(listed[:MOST_IMAGES])]
    examples = [example for example in examples if example is not None]
    return (_points if source["kind"] == "points" else _rotated)(source, examples)


def _points(source: dict, examples: list[HeadExample]) -> list[str]:
    layout = point_layout(examples)
    owner, labels = max(layout.labels.items(), key=lambda item: len(item[1]))
    objects = _objects_of(examples, owner, labels, limit=10**6)
    data = objects.examples
    tasks = np.unique(data.groups)
    rows = []
    for size in SIZES:
        if size + 15 > len(tasks):
            continue
        figures = []
        for seed in range(SEEDS):
            order = np.random.default_rng(seed).permutation(tasks)
            train = _subset(data, np.isin(data.groups, order[:size]))
            test = _subset(data, np.isin(data.groups, order[size : size + TEST_IMAGES]))
            started = time.process_time()
            fitted = fit_points(train, labels, objects.side)
            spent = time.process_time() - started
            located = fitted.model.locate(test.features, len(test))
            right, count = correct_points(located.points, test), int(test.labelled.sum())
            mean = correct_points(np.broadcast_to(fitted.model.mean, located.points.shape), test)
            present, correct = fitted.model.confidence(located)
            filled = (present >= MIN_PRESENT) & (correct >= MIN_CORRECT)
            ridge = correct_points(_pooled_ridge(train, test), test)
            figures.append([
                mean.sum() / count, ridge.sum() / count, right.sum() / count, (filled & test.labelled).sum() / count,
                (filled & right).sum() / max(1, filled.sum()), spent,
            ])  # fmt: skip
        told = np.mean(figures, axis=0)
        rows.append(
            f"| {source['name']} ({len(labels)} points, {'in boxes' if owner else 'on the image'}) | {size} | "
            + " | ".join(_short(value) for value in told[:5])
            + f" | {told[5]:.1f} |"
        )
    return rows


def _pooled_ridge(train: PointExamples, test: PointExamples) -> np.ndarray:
    """Positions by kernel ridge regression on the features of 4 x 4 cells, its penalty the best on the test."""
    rows = [_pooled(part.features) for part in (train, test)]
    mean, scale = rows[0].mean(0), rows[0].std(0) + 1e-6
    known, unknown = ((part - mean) / scale for part in rows)
    centre = np.nanmean(train.points, axis=0)
    offsets = np.nan_to_num(train.points - centre).reshape(len(train), -1)
    gram = known @ known.T
    best = []
    for penalty in (0.1, 1.0):
        solved = np.linalg.solve(gram + penalty * np.trace(gram) / len(gram) * np.eye(len(gram)), offsets)
        found = np.nan_to_num(centre) + (unknown @ known.T @ solved).reshape(len(test), *centre.shape)
        best.append((correct_points(found, test).sum(), found))
    return max(best, key=lambda pair: pair[0])[1]


def _pooled(features: np.ndarray) -> np.ndarray:
    grid = round(features.shape[1] ** 0.5)
    maps = features.astype(np.float32).reshape(len(features), 4, grid // 4, 4, grid // 4, -1)
    return maps.mean((2, 4)).reshape(len(features), -1).astype(np.float64)


def _rotated(source: dict, examples: list[HeadExample]) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        backbone = open_backbone(embedded_model(), folder=Path(folder), threads=1)
        seen = {example.task: _seen(backbone, example) for example in examples}
    segmenter = BoxSegmenter()
    rows = []
    for size in ROTATED_SIZES:
        figures = []
        for seed in range(ROTATED_SEEDS):
            order = np.random.default_rng(seed).permutation(len(examples))
            train = [examples[index] for index in order[:size]]
            test = [examples[index] for index in order[size : size + ROTATED_TEST]]
            fitted = select_and_fit([seen[example.task] for example in train], levels=backbone.levels)
            result = fit_angles(FitInput(CONFIG, train))
            head = result.head if result else None
            detections = [_best(fitted.head.detect(seen[one.task].candidates, floor=0.05)) for one in test]
            names = fitted.head.names
            upright = [_flat(one) for one in detections]
            masks = [_masked(segmenter, one, found) for one, found in zip(test, detections, strict=True)]
            learned = [_turned(head, one, found, names) for one, found in zip(test, detections, strict=True)]
            figures.append([
                *(rotated_ap50(test, detections, boxes, names) for boxes in (upright, masks, learned)),
                *_from_hulls(head, test), float(bool(result and result.passed)),
            ])  # fmt: skip
        told = np.mean(figures, axis=0)
        served = f"{round(told[5] * ROTATED_SEEDS)} of {ROTATED_SEEDS}"
        rows.append(f"| {source['name']} | {size} | " + " | ".join(map(_short, told[:5])) + f" | {served} |")
    return rows


def _best(detections: Detections) -> Detections:
    return detections[np.arange(min(MOST_BOXES, len(detections)))]


def _flat(detections: Detections) -> np.ndarray:
    boxes = detections.boxes.astype(np.float64)
    centre, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    return np.concatenate([centre, size, np.zeros((len(boxes), 1))], axis=1)


def _masked(segmenter: BoxSegmenter, example: HeadExample, detections: Detections) -> np.ndarray:
    """The smallest rotated box of the segmenter's mask of each box."""
    found = _flat(detections)
    boxes = [Rectangle(x0, y0, x1 - x0, y1 - y0) for x0, y0, x1, y1 in detections.boxes.tolist()]
    masks = segmenter.masks(example.pixels(), boxes, size=(example.width, example.height)).masks
    for index, mask in enumerate(masks):
        turned = smallest_rotated_box(*mask.crop(256)) if mask is not None else None
        if turned is not None:
            corners = np.array(turned.corners)
            found[index] = (*corners.mean(0), turned.width, turned.height, turned.rotation)
    return found


def _turned(head: AnglesHead | None, example: HeadExample, detections: Detections, names: Sequence[str]) -> np.ndarray:
    if head is None:
        return _flat(detections)
    prediction = ImagePrediction(detections, tuple(names), example.width, example.height, pixels=example.pixels)
    rotated = apply_angles(head, prediction).detections.rotated
    if rotated is None:
        return _flat(detections)
    return np.concatenate([rotated[:, :4], np.rad2deg(rotated[:, 4:])], axis=1).astype(np.float64)


def _from_hulls(head: AnglesHead | None, examples: Sequence[HeadExample]) -> tuple[float, float]:
    """Mean IoU of rotated boxes with the upright boxes around them, and with the learned ones made from these."""
    before, after = [], []
    for example in examples:
        drawn = np.array([box for box in example.rotated if box], np.float64).reshape(-1, 5)
        drawn = drawn[np.abs((drawn[:, 4] + 45) % 90 - 45) > 5]
        if not len(drawn):
            continue
        boxes = hulls(drawn).astype(np.float32)
        detections = Detections(boxes, np.ones(len(boxes), np.float32), np.zeros(len(boxes), np.int64))
        before += rotated_iou(_flat(detections), drawn).tolist()
        name = head.classes[0] if head else ""
        after += rotated_iou(_turned(head, example, detections, [name]), drawn).tolist()
    return float(np.mean(before)), float(np.mean(after))


def rotated_ap50(
    examples: Sequence[HeadExample],
    detections: Sequence[Detections],
    boxes: Sequence[np.ndarray],
    names: Sequence[str],
) -> float:
    """Mean AP50 over classes by pycocotools, with the IoU of rotated boxes (n, 5) by shapely."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    class Rotated(COCOeval):
        def computeIoU(self, image, category):  # noqa: N802 - its name in pycocotools
            drawn, found = self._gts[image, category], self._dts[image, category]
            if not drawn or not found:
                return []
            found = [found[index] for index in np.argsort([-one["score"] for one in found], kind="mergesort")]
            found = found[: self.params.maxDets[-1]]
            one, other = np.array([one["outline"] for one in found]), np.array([item["outline"] for item in drawn])
            shared = shapely.area(shapely.intersection(one[:, None], other[None]))
            return shared / (shapely.area(one)[:, None] + shapely.area(other)[None] - shared)

    classes = sorted({label for example in examples for label in example.labels})
    drawn, found = [], []
    for image, (example, one, turned) in enumerate(zip(examples, detections, boxes, strict=True), 1):
        for label, box, bounds in zip(example.labels, example.rotated, example.boxes.tolist(), strict=True):
            drawn.append(_entry(image, classes.index(label) + 1, _drawn(box, bounds)) | {"iscrowd": 0})
        for class_, score, box in zip(one.classes.tolist(), one.scores.tolist(), turned, strict=True):
            if names[class_] in classes:
                found.append(_entry(image, classes.index(names[class_]) + 1, box) | {"score": score})
    for number, entry in enumerate(drawn, 1):
        entry["id"] = number
    if not found:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": image} for image in range(1, len(examples) + 1)],
            "annotations": drawn,
            "categories": [{"id": number + 1, "name": name} for number, name in enumerate(classes)],
        }
        coco.createIndex()
        evaluator = Rotated(coco, coco.loadRes(found), "bbox")
        evaluator.params.iouThrs, evaluator.params.maxDets = np.array([0.5]), [100]
        evaluator.params.areaRng, evaluator.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluator.evaluate()
        evaluator.accumulate()
    precision = evaluator.eval["precision"][0, :, :, 0, 0]
    return float(np.maximum(precision.mean(0), 0).mean())


def _drawn(box: tuple[float, ...], bounds: list[float]) -> np.ndarray:
    x0, y0, x1, y1 = bounds
    return np.array(box) if box else np.array([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0, 0.0])


def _entry(image: int, category: int, box: np.ndarray) -> dict:
    radians = np.array([[*box[:4], np.deg2rad(box[4])]], np.float32)
    outline = shapely.Polygon(corners_of(radians)[0])
    x0, y0, x1, y1 = outline.bounds
    return {
        "image_id": image, "category_id": category, "bbox": [x0, y0, x1 - x0, y1 - y0], "area": outline.area,
        "outline": outline,
    }  # fmt: skip


def _seen(backbone: FrozenBackbone, example: HeadExample) -> Example:
    prepared = prepare(example.pixels(), backbone.spec, size=(example.width, example.height))
    return Example(backbone.extract_features([prepared])[0], example.boxes, example.labels)


def _subset(data: PointExamples, chosen: np.ndarray) -> PointExamples:
    return PointExamples(data.features[chosen], data.points[chosen], data.sizes[chosen], data.groups[chosen])


def _short(value: float) -> str:
    return f"{value:.2f}".lstrip("0") if value < 1 else f"{value:.2f}"


# Reading the data sets


@dataclass(frozen=True)
class _Pixels:
    """Decodes an image on each call, at most `MAX_SIDE` on the longer side."""

    read: Read
    path: str

    def __call__(self) -> np.ndarray:
        pixels = cv2.imdecode(np.frombuffer(self.read(self.path), np.uint8), cv2.IMREAD_COLOR)
        scale = MAX_SIDE / max(pixels.shape[:2])
        if scale < 1:
            pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        return np.ascontiguousarray(pixels[..., ::-1])


def _example(read: Read, number: int, path: str, boxes: np.ndarray, labels: tuple, points: tuple) -> HeadExample | None:
    pixels = cv2.imdecode(np.frombuffer(read(path), np.uint8), cv2.IMREAD_COLOR)
    if pixels is None:
        return None
    height, width = pixels.shape[:2]
    boxes = np.asarray(boxes, np.float64)
    rotated: tuple = ()
    if boxes.ndim == 2 and boxes.shape[1] == 5:
        boxes[:, :4] *= [width, height, width, height]  # shares of the image, as YOLO writes them
        rotated = tuple(tuple(box) if abs((box[4] + 45) % 90 - 45) >= 0.5 else () for box in boxes.tolist())
        boxes = hulls(boxes)
    return HeadExample(
        task=number, url=path, width=width, height=height, boxes=boxes.reshape(-1, 4).astype(np.float32), labels=labels,
        embeddings=np.zeros((len(labels), 1), np.float32), image_features=None, pixels=_Pixels(read, path),
        rotated=rotated, keypoints=points,
    )  # fmt: skip


def _git(source: dict) -> list[str]:
    mirrors = Path(os.environ.get("LABELLOOP_MIRRORS", ""))
    return ["git", f"--git-dir={mirrors / source['repo'].replace('/', '+') / 'repo'}"]


def _listing(source: dict) -> bytes:
    command = [*_git(source), "ls-tree", "-r", source["commit"], source["path"]]
    return subprocess.run(command, capture_output=True, check=False).stdout


def _files(source: dict) -> list[str]:
    return [line.partition("\t")[2] for line in _listing(source).decode().splitlines()]


def _reader(source: dict) -> Read | None:
    """Reads files of the source; None where its mirror is not there or has other files."""
    if hashlib.sha256(_listing(source)).hexdigest() != source["sha256"]:
        return None

    def read(path: str) -> bytes:
        command = [*_git(source), "show", f"{source['commit']}:{path}"]
        return subprocess.run(command, capture_output=True, check=True).stdout

    return read


def _deeplabcut(read: Read, files: list[str]) -> Listed:
    """CollectedData_*.csv: a row per image, x and y of each body part; no boxes."""
    table = next(file for file in files if file.endswith(".csv"))
    rows = list(csv.reader(io.StringIO(read(table).decode())))
    folder, names = table.rpartition("/")[0], rows[1][1::2]
    listed = []
    for row in rows[3:]:
        values = [float(value) if value else np.nan for value in row[1:]]
        points = zip(names, values[::2], values[1::2], strict=True)
        known = tuple((name, x, y, -1) for name, x, y in points if np.isfinite(x))
        listed.append((f"{folder}/{row[0].rpartition('/')[2]}", np.zeros((0, 4)), (), known))
    return listed


def _bees(read: Read, files: list[str]) -> Listed:
    """pose_dataset.json: numbered points; no boxes."""
    folder = next(file for file in files if file.endswith("pose_dataset.json")).rpartition("/")[0]
    listed = []
    for entry in json.loads(read(f"{folder}/pose_dataset.json")):
        points = tuple(
            (number, float(place[0]), float(place[1]), -1)
            for number, place in entry["keypoints"].items()
            if place and place[0] is not None and place[0] >= 0
        )
        if f"{folder}/{entry['path']}" in files:
            listed.append((f"{folder}/{entry['path']}", np.zeros((0, 4)), (), points))
    return _mixed(listed)


def _faces(read: Read, files: list[str]) -> Listed:
    """training_frames_keypoints.csv: 68 points of a face; the box is that of the points and a tenth around them."""
    table = next(file for file in files if file.endswith("training_frames_keypoints.csv"))
    folder = table.rpartition("/")[0]
    rows = _mixed(list(csv.reader(io.StringIO(read(table).decode())))[1:])
    listed, people, known = [], set(), set(files)
    for row in rows:
        person, path = row[0].rpartition("_")[0], f"{folder}/training/{row[0]}"
        if person in people or path not in known:
            continue
        people.add(person)
        points = np.array([float(value) for value in row[1:]]).reshape(-1, 2)
        margin = 0.1 * np.ptp(points, axis=0)
        box = np.maximum([*(points.min(0) - margin), *(points.max(0) + margin)], 0)
        drawn = tuple((str(number), float(x), float(y), 0) for number, (x, y) in enumerate(points))
        listed.append((path, box[None], ("face",), drawn))
    return listed


def _yolo_pose(read: Read, files: list[str]) -> Listed:
    """labels/*.txt: class, box and (x, y, visible) of each point, as shares of the image."""
    listed, known = [], set(files)
    for label in files:
        path = label.replace("/labels/", "/images/").rpartition(".")[0] + ".png"
        if not label.endswith(".txt") or path not in known:
            continue
        height, width = _size(read(path))
        boxes, points = [], []
        for line in read(label).decode().splitlines():
            values = [float(value) for value in line.split()]
            x, y, across, down = np.array(values[1:5]) * [width, height, width, height]
            for number, (px, py, visible) in enumerate(np.array(values[5:]).reshape(-1, 3)):
                if visible > 0:
                    points.append((str(number), px * width, py * height, len(boxes)))
            boxes.append([x - across / 2, y - down / 2, x + across / 2, y + down / 2])
        if boxes:
            listed.append((path, np.array(boxes), ("fish",) * len(boxes), tuple(points)))
    return _mixed(listed)


def _coco(read: Read, files: list[str]) -> Listed:
    """person_keypoints_*.json: persons with at least five points and 48 x 48 pixels."""
    listed, known = [], set(files)
    for part in ("train2017", "val2017"):
        data = json.loads(read(f"annotations/person_keypoints_{part}.json"))
        names = data["categories"][0]["keypoints"]
        images = {image["id"]: f"{part}/{image['file_name']}" for image in data["images"]}
        people: dict[str, list[dict]] = {}
        for person in data["annotations"]:
            if person["num_keypoints"] >= 5 and person["area"] >= 48**2 and not person["iscrowd"]:
                people.setdefault(images[person["image_id"]], []).append(person)
        for path, drawn in people.items():
            boxes = [[x, y, x + w, y + h] for x, y, w, h in (person["bbox"] for person in drawn)]
            points = tuple(
                (name, float(x), float(y), index)
                for index, person in enumerate(drawn)
                for name, (x, y, visible) in zip(names, np.reshape(person["keypoints"], (-1, 3)), strict=True)
                if visible
            )
            if path in known:
                listed.append((path, np.array(boxes), ("person",) * len(boxes), points))
    return listed


def _yolo_obb(read: Read, files: list[str]) -> Listed:
    """labels/*.txt: class and four corners of each box, as shares of the image; images by chance."""
    listed, known = [], set(files)
    for label in _mixed(files):
        if len(listed) == MOST_IMAGES:
            break
        path = label.replace("/labels/", "/images/").rpartition(".")[0]
        path = next((f"{path}{ending}" for ending in (".jpg", ".png") if f"{path}{ending}" in known), "")
        if not label.endswith(".txt") or not path:
            continue
        height, width = _size(read(path))
        boxes, labels = [], []
        for line in read(label).decode().splitlines():
            values = line.split()
            if len(values) != 9:
                continue
            corners = np.array([float(value) for value in values[1:]]).reshape(4, 2) * [width, height]
            (x, y), (across, down), degrees = cv2.minAreaRect(corners.astype(np.float32))
            if min(across, down) >= 4:
                boxes.append([x / width, y / height, across / width, down / height, degrees % 180])
                labels.append(values[0])
        if boxes:
            listed.append((path, np.array(boxes), tuple(labels), ()))
    return listed


def _size(data: bytes) -> tuple[int, int]:
    """Height and width of an encoded image."""
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED).shape[:2]


def _mixed(items: list) -> list:
    """In an order by chance, the same in each run."""
    items = list(items)
    random.Random(0).shuffle(items)
    return items


LAYOUTS = {
    "deeplabcut": _deeplabcut, "bees": _bees, "faces": _faces, "yolo-pose": _yolo_pose, "coco": _coco,
    "yolo-obb": _yolo_obb,
}  # fmt: skip


if __name__ == "__main__":
    print(run())
