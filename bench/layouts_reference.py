"""Decoders of public detectors written after their own repositories' post-processing, independent of labelloop's.

Each takes an ONNX Runtime session and the pixels that the network sees, (h, w, 3) RGB 0..255 float32, normalises them
by constants of its own, and gives (boxes (n, 4) x_min, y_min, x_max, y_max in pixels of the input, scores (n,), classes
(n,)) before suppression, or after it where the graph suppresses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from itertools import product
from typing import Any

import cv2
import numpy as np

Result = tuple[np.ndarray, np.ndarray, np.ndarray]


def sigmoid(x):
    return 1 / (1 + np.exp(-np.clip(x, -80, 80)))


def softmax(x, axis=-1):
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def blob(pixels, *, bgr=False, mean=0.0, std=1.0, scale=1.0, last=False):
    image = pixels[..., ::-1] if bgr else pixels
    image = ((image * scale - np.array(mean)) / np.array(std)).astype(np.float32)
    return image[None] if last else np.ascontiguousarray(image.transpose(2, 0, 1)[None])


def run(session, tensor, **more) -> list[np.ndarray]:
    return session.run(None, {session.get_inputs()[0].name: tensor, **more})


def named(session, tensor) -> dict[str, np.ndarray]:
    return dict(zip([one.name for one in session.get_outputs()], run(session, tensor), strict=True))


def xywh(rows):
    return np.stack([rows[:, 0] - rows[:, 2] / 2, rows[:, 1] - rows[:, 3] / 2,
                     rows[:, 0] + rows[:, 2] / 2, rows[:, 1] + rows[:, 3] / 2], axis=1)  # fmt: skip


def best(boxes, table) -> Result:
    return boxes, table.max(axis=1), table.argmax(axis=1)


def grid(height, width, stride):
    y, x = np.meshgrid(range(math.ceil(height / stride)), range(math.ceil(width / stride)), indexing="ij")
    return np.stack([x.ravel(), y.ravel()], axis=1).astype(float)


def yolov8(session, pixels, classes=None) -> Result:
    rows = run(session, blob(pixels, scale=1 / 255))[0][0].T
    return best(xywh(rows[:, :4]), rows[:, 4 : 4 + classes if classes else None])


def yolov5(session, pixels) -> Result:
    rows = run(session, blob(pixels, scale=1 / 255))[0][0]
    return best(xywh(rows[:, :4]), rows[:, 4:5] * rows[:, 5:])


def end2end(session, pixels) -> Result:
    rows = run(session, blob(pixels, scale=1 / 255))[0][0]
    return rows[:, :4], rows[:, 4], rows[:, 5].astype(int)


def yolox(session, pixels) -> Result:
    height, width = pixels.shape[:2]
    rows = run(session, blob(pixels, bgr=True))[0][0]
    at, found = 0, []
    for stride in (8, 16, 32):
        cells = grid(height, width, stride)
        part = rows[at : at + len(cells)]
        found.append(np.concatenate([(part[:, :2] + cells) * stride, np.exp(part[:, 2:4]) * stride], axis=1))
        at += len(cells)
    return best(xywh(np.concatenate(found)), rows[:, 4:5] * rows[:, 5:])


def classifier(session, pixels, *, gray=False, mean=0.0, std=1.0, scale=1 / 255) -> Result:
    """One box of the whole input per class: the softmax of its logit."""
    if gray:
        pixels = cv2.cvtColor(pixels.astype(np.uint8), cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32)
    scores = softmax(run(session, blob(pixels, mean=mean, std=std, scale=scale))[0].reshape(-1))
    height, width = pixels.shape[:2]
    return np.tile([0.0, 0.0, width, height], (len(scores), 1)), scores, np.arange(len(scores))


def fastestdet(session, pixels) -> Result:
    height, width = pixels.shape[:2]
    maps = run(session, blob(pixels, bgr=True, scale=1 / 255))[0][0]
    _, rows, columns = maps.shape
    boxes, scores, classes = [], [], []
    for y, x in product(range(rows), range(columns)):
        cell = maps[:, y, x]
        number = int(cell[5:].argmax())
        scores.append(cell[0] ** 0.6 * cell[5 + number] ** 0.4)
        classes.append(number)
        cx, cy = (math.tanh(cell[1]) + x) / columns, (math.tanh(cell[2]) + y) / rows
        w, h = sigmoid(cell[3]), sigmoid(cell[4])
        boxes.append([(cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height])
    return np.array(boxes), np.array(scores), np.array(classes)


def distribution(session, pixels, strides, mean, std, bgr, scale=1.0, offset=0.5, bins=8) -> Result:
    """NanoDet and PicoDet: scores and distributions of each level in outputs of their own, or one output of all."""
    height, width = pixels.shape[:2]
    outputs = [
        array[0] if array.ndim == 3 else array
        for array in run(session, blob(pixels, bgr=bgr, mean=mean, std=std, scale=scale))
    ]
    if len(outputs) == 1:
        split, at = [], 0
        classes = outputs[0].shape[1] - 4 * bins
        for stride in strides:
            count = len(grid(height, width, stride))
            split += [outputs[0][at : at + count, :classes], outputs[0][at : at + count, classes:]]
            at += count
        outputs = split
    boxes, tables = [], []
    for stride in strides:
        cells = grid(height, width, stride)
        level = [array for array in outputs if len(array) == len(cells)]
        scores, raw = sorted(level, key=lambda array: array.shape[1] == 4 * bins)
        far = softmax(raw.reshape(-1, 4, bins)) @ np.arange(bins) * stride
        centre = (cells + offset) * stride
        boxes.append(np.concatenate([centre - far[:, :2], centre + far[:, 2:]], axis=1))
        tables.append(scores)
    return best(np.concatenate(boxes), np.concatenate(tables))


_NANODET = {"mean": (103.53, 116.28, 123.675), "std": (57.375, 57.12, 58.395), "bgr": True}
nanodet = partial(distribution, strides=(8, 16, 32), **_NANODET)
nanodet_plus = partial(distribution, strides=(8, 16, 32, 64), offset=0.0, bins=3, **_NANODET)
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "scale": 1 / 255}
picodet = partial(distribution, strides=(8, 16, 32, 64), bgr=False, **_IMAGENET)


def deim(session, pixels) -> Result:
    height, width = pixels.shape[:2]
    size = np.array([[width, height]], np.int64)
    labels, boxes, scores = run(session, blob(pixels, scale=1 / 255), orig_target_sizes=size)
    return boxes, scores, labels


def rtmdet(session, pixels) -> Result:
    dets, labels = run(session, blob(pixels, bgr=True, mean=(103.53, 116.28, 123.675), std=(57.375, 57.12, 58.395)))
    return dets[0, :, :4], dets[0, :, 4], labels[0]


def priors(height, width, sizes):
    """Centre x, centre y, width, height relative to the input: stride -> sides."""
    rows = []
    for stride, sides in sizes.items():
        for y, x in product(range(math.ceil(height / stride)), range(math.ceil(width / stride))):
            rows += [
                [(x + 0.5) * stride / width, (y + 0.5) * stride / height, side / width, side / height] for side in sides
            ]
    return np.array(rows)


def ssd(location, anchors, height, width):
    centre = anchors[:, :2] + location[:, :2] * 0.1 * anchors[:, 2:]
    side = anchors[:, 2:] * np.exp(location[:, 2:] * 0.2)
    return xywh(np.concatenate([centre, side], axis=1)) * [width, height, width, height]


def ultraface(session, pixels, raw=False) -> Result:
    height, width = pixels.shape[:2]
    outputs = named(session, blob(pixels, mean=127, std=128))
    boxes = outputs["boxes"][0]
    if raw:
        anchors = priors(height, width, {8: (10, 16, 24), 16: (32, 48), 32: (64, 96), 64: (128, 192, 256)})
        boxes = ssd(boxes, anchors, height, width)
    else:
        boxes = boxes * [width, height, width, height]
    return best(boxes, outputs["scores"][0][:, 1:])


def retinaface(session, pixels, sizes=None) -> Result:
    height, width = pixels.shape[:2]
    outputs = run(session, blob(pixels, bgr=True, mean=(104, 117, 123)))
    outputs = [array.reshape(-1, array.shape[-1]) for array in outputs]
    location, scores = (next(array for array in outputs if array.shape[1] == columns) for columns in (4, 2))
    anchors = priors(height, width, sizes or {8: (16, 32), 16: (64, 128), 32: (256, 512)})
    return best(ssd(location, anchors, height, width), scores[:, 1:])


plate = partial(retinaface, sizes={8: (24, 48), 16: (96, 192), 32: (384, 768)})


def scrfd(session, pixels) -> Result:
    height, width = pixels.shape[:2]
    outputs = run(session, blob(pixels, mean=127.5, std=128))
    outputs = [array.reshape(-1, array.shape[-1]) for array in outputs]
    boxes, scores = [], []
    for level, stride in enumerate((8, 16, 32)):
        score, far = outputs[level], outputs[level + 3] * stride
        centre = np.repeat(grid(height, width, stride) * stride, 2, axis=0)
        boxes.append(np.concatenate([centre - far[:, :2], centre + far[:, 2:]], axis=1))
        scores.append(score)
    return best(np.concatenate(boxes), np.concatenate(scores))


def yunet(session, pixels, path=None) -> Result:
    """OpenCV's own implementation, with its own suppression."""
    height, width = pixels.shape[:2]
    del session
    detector = cv2.FaceDetectorYN.create(str(path), "", (width, height), 0.1, 0.3, 5000)
    _, faces = detector.detect(np.ascontiguousarray(pixels[..., ::-1]).astype(np.uint8))
    faces = np.zeros((0, 15)) if faces is None else faces
    boxes = np.concatenate([faces[:, :2], faces[:, :2] + faces[:, 2:4]], axis=1)
    return boxes, faces[:, 14], np.zeros(len(faces), int)


def mediapipe(session, pixels, strides=(8, 16, 16, 16), mean=1.0, scale=1 / 127.5, last=False) -> Result:
    """SsdAnchorsCalculator with two anchors a layer, and TensorsToDetectionsCalculator."""
    height, width = pixels.shape[:2]
    outputs = run(session, blob(pixels, mean=mean, scale=scale, last=last))
    raw = next(array[0] for array in outputs if array.shape[-1] > 1)
    scores = next(array[0] for array in outputs if array.shape[-1] == 1)
    anchors, layer = [], 0
    while layer < len(strides):
        same = [one for one in strides[layer:] if one == strides[layer]]
        rows, columns = math.ceil(height / strides[layer]), math.ceil(width / strides[layer])
        for y, x in product(range(rows), range(columns)):
            anchors += [[(x + 0.5) / columns, (y + 0.5) / rows]] * (2 * len(same))
        layer += len(same)
    centre = np.array(anchors) + raw[:, :2] / [width, height]
    boxes = xywh(np.concatenate([centre, raw[:, 2:4] / [width, height]], axis=1)) * [width, height, width, height]
    return best(boxes, sigmoid(scores))


def yolov5_face(session, pixels) -> Result:
    anchors = {8: ((4, 5), (8, 10), (13, 16)), 16: ((23, 29), (43, 55), (73, 105)),
               32: ((146, 217), (231, 300), (335, 433))}  # fmt: skip
    boxes, scores = [], []
    for maps, (stride, sides) in zip(run(session, blob(pixels, scale=1 / 255)), anchors.items(), strict=True):
        for index, side in enumerate(sides):
            rows, columns = maps.shape[2:4]
            y, x = np.meshgrid(range(rows), range(columns), indexing="ij")
            values = maps[0, index]
            centre = (sigmoid(values[..., :2]) * 2 - 0.5 + np.stack([x, y], axis=-1)) * stride
            size = (sigmoid(values[..., 2:4]) * 2) ** 2 * np.array(side)
            boxes.append(xywh(np.concatenate([centre, size], axis=-1).reshape(-1, 4)))
            scores.append((sigmoid(values[..., 4]) * sigmoid(values[..., 15])).reshape(-1, 1))
    return best(np.concatenate(boxes), np.concatenate(scores))


def yolov8_face(session, pixels) -> Result:
    boxes, scores = [], []
    for maps, stride in zip(run(session, blob(pixels, scale=1 / 255)), (8, 16, 32), strict=True):
        values = maps[0].reshape(maps.shape[1], -1).T
        far = softmax(values[:, :64].reshape(-1, 4, 16)) @ np.arange(16)
        rows, columns = maps.shape[2:]
        centre = grid(rows * stride, columns * stride, stride) + 0.5
        boxes.append(np.concatenate([centre - far[:, :2], centre + far[:, 2:]], axis=1) * stride)
        scores.append(sigmoid(values[:, 64:65]))
    return best(np.concatenate(boxes), np.concatenate(scores))


_FASTEST = {16: ((12.64, 19.39), (37.88, 51.48), (55.71, 138.31)),
            32: ((126.91, 78.23), (131.57, 214.55), (279.92, 258.87))}  # fmt: skip


def yolo_fastestv2(session, pixels) -> Result:
    height, width = pixels.shape[:2]
    outputs = run(session, blob(pixels, bgr=True, scale=1 / 255))
    if len(outputs) == 6:  # raw maps of boxes, objectnesses and scores a level
        maps = []
        for at in (0, 3):
            box, presence, scores = (array[0].reshape(array.shape[1], -1).T for array in outputs[at : at + 3])
            maps.append(np.concatenate([sigmoid(box), sigmoid(presence), softmax(scores)], axis=1))
        rows = np.concatenate(maps)
    else:
        rows = np.concatenate([array.reshape(-1, array.shape[-1]) for array in outputs])
    boxes, tables, at = [], [], 0
    for stride, anchors in _FASTEST.items():
        cells = grid(height, width, stride)
        part = rows[at : at + len(cells)]
        at += len(cells)
        for index, side in enumerate(anchors):
            values = part[:, 4 * index : 4 * index + 4]
            centre = (values[:, :2] * 2 - 0.5 + cells) * stride
            size = (values[:, 2:] * 2) ** 2 * np.array(side)
            boxes.append(xywh(np.concatenate([centre, size], axis=1)))
            tables.append(part[:, 12 + index : 13 + index] * part[:, 15:])
    return best(np.concatenate(boxes), np.concatenate(tables))


def yolov5_lite(session, pixels) -> Result:
    """Rows after the sigmoid, level by level, anchor by anchor, cell by cell (ppogg/YOLOv5-Lite, python_demo)."""
    height, width = pixels.shape[:2]
    rows = run(session, blob(pixels, scale=1 / 255))[0][0]
    anchors = {8: ((10, 13), (16, 30), (33, 23)), 16: ((30, 61), (62, 45), (59, 119)),
               32: ((116, 90), (156, 198), (373, 326))}  # fmt: skip
    boxes, at = [], 0
    for stride, sides in anchors.items():
        cells = grid(height, width, stride)
        for side in sides:
            part = rows[at : at + len(cells)]
            at += len(cells)
            centre = (part[:, :2] * 2 - 0.5 + cells) * stride
            boxes.append(xywh(np.concatenate([centre, (part[:, 2:4] * 2) ** 2 * np.array(side)], axis=1)))
    return best(np.concatenate(boxes), rows[:, 4:5] * rows[:, 5:])


def seetaface(session, pixels) -> Result:
    """After common/face_detector_util.py of zjd1988/seetaface6_onnx_model."""
    height, width = pixels.shape[:2]
    location, scores, dimension = run(session, blob(pixels, mean=(123, 117, 104)))
    rows = []
    for level, sides in enumerate(((32, 64, 128), (256,), (512,))):
        step = (32, 64, 128)[level]
        for y, x in product(range(int(dimension[level][0])), range(int(dimension[level][1]))):
            for side in sides:
                dense = {32: (0, 0.25, 0.5, 0.75), 64: (0, 0.5)}.get(side, (0.5,))
                for dy, dx in product(dense, dense):
                    rows.append([(x + dx) * step / width, (y + dy) * step / height, side / width, side / height])
    return best(ssd(location[0], np.array(rows), height, width), scores[:, 1:])


def dbnet(session, pixels) -> Result:
    """PaddleOCR's DBPostProcess (box_type quad, score_mode fast), with shapely's buffer for pyclipper's offset."""
    import shapely

    scale, mean, std = 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    plane = run(session, blob(pixels, bgr=True, scale=scale, mean=mean, std=std))[0][0, 0]
    contours, _ = cv2.findContours(((plane > 0.3) * 255).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    boxes, scores = [], []
    for contour in contours[:1000]:
        rectangle = cv2.minAreaRect(contour)
        if min(rectangle[1]) < 3:
            continue
        corners = cv2.boxPoints(rectangle)
        mask = np.zeros(plane.shape, np.uint8)
        cv2.fillPoly(mask, [corners.astype(np.int32)], 1)
        polygon = shapely.Polygon(corners)
        grown = polygon.buffer(polygon.area * 1.5 / polygon.length)
        outline = np.array(grown.minimum_rotated_rectangle.exterior.coords)
        boxes.append([*outline.min(axis=0), *outline.max(axis=0)])
        scores.append(plane[mask > 0].mean() if mask.any() else 0)
    return np.array(boxes).reshape(-1, 4), np.array(scores), np.zeros(len(scores), int)


# Name in `sources.toml` -> decoder.
REFERENCES: Mapping[str, Callable[..., Result]] = {
    "yolov8": yolov8, "yolov8-segment": partial(yolov8, classes=80), "yolov5": yolov5, "end2end": end2end,
    "classifier": partial(classifier, mean=0.5, std=0.5), "classifier-gray": partial(classifier, gray=True),
    "classifier-gray-raw": partial(classifier, gray=True, scale=1.0),
    "yolox": yolox, "fastestdet": fastestdet, "nanodet": nanodet, "nanodet-plus": nanodet_plus, "picodet": picodet,
    "deim": deim, "rtmdet": rtmdet, "ultraface": ultraface, "ultraface-raw": partial(ultraface, raw=True),
    "retinaface": retinaface, "plate": plate, "scrfd": scrfd, "yunet": yunet,
    "blazeface": mediapipe, "blazeface-nhwc": partial(mediapipe, last=True),
    "blazeface-back": partial(mediapipe, strides=(16, 32, 32, 32)),
    "blazeface-0..1": partial(mediapipe, mean=0.0, scale=1 / 255),
    "palm": partial(mediapipe, mean=0.0, scale=1 / 255, last=True),
    "yolov5-face": yolov5_face, "yolov8-face": yolov8_face, "yolo-fastestv2": yolo_fastestv2,
    "yolov5-lite": yolov5_lite, "seetaface": seetaface, "dbnet": dbnet,
}  # fmt: skip


def suppress(result: Result, iou: float, floor: float) -> list[tuple[float, int, tuple[float, ...]]]:
    """Greedy suppression per class, box by box: (score, class, box), best first."""
    boxes, scores, classes = result
    keep: list[Any] = []
    for index in np.argsort(-scores, kind="stable"):
        if scores[index] < floor:
            break
        box = tuple(float(side) for side in boxes[index])
        if all(one[1] != classes[index] or overlap(one[2], box) <= iou for one in keep):
            keep.append((float(scores[index]), int(classes[index]), box))
    return keep


def overlap(one, other) -> float:
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0.0, wide) * max(0.0, high)
    areas = (one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1])
    return shared / (areas - shared) if areas > shared else 0.0
