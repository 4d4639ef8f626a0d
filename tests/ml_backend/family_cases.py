"""Random models of face, text and other families, and their detections decoded by plain loops; see `layout_cases`."""

import math
from collections.abc import Callable, Mapping

import numpy as np

from tests.ml_backend.layout_cases import HEIGHT, NAMES, WIDTH, Case, best, cells, centred, count, few, logistic

# Points of a face, in units of half its width: eyes, nose, corners of the mouth.
FACE = np.array([[-0.5, -0.5], [0.5, -0.5], [0, 0], [-0.4, 0.6], [0.4, 0.6]])


def faces(rng, rows):
    """Points (rows, 5, 2) that lie like faces."""
    return FACE + rng.uniform(-0.15, 0.15, (rows, 5, 2))


def sized_cells(sizes):
    """(column, row, stride, width, height) of each anchor: stride -> sides of the anchors of a cell."""
    for stride, sides in sizes.items():
        for column, row, _ in cells((stride,)):
            for side in sides:
                width, height = side if isinstance(side, tuple) else (side, side)
                yield column, row, stride, width, height


ULTRA = {8: (10, 16, 24), 16: (32, 48), 32: (64, 96), 64: (128, 192, 256)}


def shares(corners):
    return [corners[0] / WIDTH, corners[1] / HEIGHT, corners[2] / WIDTH, corners[3] / HEIGHT]


def ssd_box(anchor, raw):
    column, row, stride, width, height = anchor
    cx, cy = (column + 0.5) * stride + raw[0] * 0.1 * width, (row + 0.5) * stride + raw[1] * 0.1 * height
    return centred(cx, cy, width * math.exp(raw[2] * 0.2), height * math.exp(raw[3] * 0.2))


def ultraface(*, decoded=True):
    rng = np.random.default_rng(41)
    anchors = list(sized_cells(ULTRA))
    raw = rng.normal(0, 1, (len(anchors), 4))
    face = few(rng, len(anchors))
    boxes = [ssd_box(anchor, row) for anchor, row in zip(anchors, raw.tolist(), strict=True)]
    expected = [(box, score, 0) for box, score in zip(boxes, face.tolist(), strict=True)]
    scores = np.stack([1 - face, face], axis=1)
    outputs = {"scores": [scores], "boxes": [[shares(box) for box in boxes] if decoded else raw]}
    return Case(outputs, expected, {"metadata": {"names": ["face"]}})


def retinaface():
    rng = np.random.default_rng(42)
    anchors = list(sized_cells({8: (16, 32), 16: (64, 128), 32: (256, 512)}))
    raw, face, points = rng.normal(0, 1, (len(anchors), 4)), few(rng, len(anchors)), faces(rng, len(anchors)) * 5
    expected = []
    for anchor, row, score, marks in zip(anchors, raw.tolist(), face.tolist(), points.tolist(), strict=True):
        column, line, stride, side, _ = anchor
        drawn = [
            [(column + 0.5) * stride + x * 0.1 * side, (line + 0.5) * stride + y * 0.1 * side, 1] for x, y in marks
        ]
        expected.append((ssd_box(anchor, row), score, 0, drawn))
    outputs = {"0": [raw], "1": [np.stack([1 - face, face], axis=1)], "2": [points.reshape(len(anchors), 10)]}
    return Case(outputs, expected, {"metadata": {"names": ["face"]}})


def scrfd(*, points=True, batched=True):
    rng = np.random.default_rng(43)
    outputs, expected = {}, []
    for stride in (16, 8, 32):
        rows = 2 * count((stride,))
        outputs[f"bbox{stride}"] = rng.uniform(0.2, 3, (rows, 4))
        outputs[f"score{stride}"] = few(rng, rows, 1)
        if points:
            outputs[f"kps{stride}"] = faces(rng, rows).reshape(rows, 10)
    for stride in (8, 16, 32):
        places = [(column, row) for column, row, _ in cells((stride,)) for _ in range(2)]
        for index, (column, row) in enumerate(places):
            left, top, right, bottom = outputs[f"bbox{stride}"][index] * stride
            x, y = column * stride, row * stride
            entry = ((x - left, y - top, x + right, y + bottom), float(outputs[f"score{stride}"][index, 0]), 0)
            if points:
                marks = outputs[f"kps{stride}"][index].reshape(5, 2) * stride
                entry = (*entry, [[x + dx, y + dy, 1] for dx, dy in marks.tolist()])
            expected.append(entry)
    arrays = {name: array[None] if batched else array for name, array in outputs.items()}
    return Case(arrays, expected, {"metadata": {"names": ["face"]}}, batched=batched)


def yunet():
    rng = np.random.default_rng(44)
    outputs, expected = {}, []
    for stride in (8, 16, 32):
        rows = count((stride,))
        outputs[f"cls_{stride}"], outputs[f"obj_{stride}"] = few(rng, rows, 1), rng.uniform(0, 1, (rows, 1))
        outputs[f"bbox_{stride}"] = rng.normal(0, 0.5, (rows, 4))
        outputs[f"kps_{stride}"] = faces(rng, rows).reshape(rows, 10)
        for index, (column, row, _) in enumerate(cells((stride,))):
            x, y, w, h = outputs[f"bbox_{stride}"][index].tolist()
            box = centred((x + column) * stride, (y + row) * stride, math.exp(w) * stride, math.exp(h) * stride)
            score = math.sqrt(outputs[f"cls_{stride}"][index, 0] * outputs[f"obj_{stride}"][index, 0])
            marks = outputs[f"kps_{stride}"][index].reshape(5, 2).tolist()
            expected.append((box, score, 0, [[(column + dx) * stride, (row + dy) * stride, 1] for dx, dy in marks]))
    return Case({name: array[None] for name, array in outputs.items()}, expected, {"metadata": {"names": ["face"]}})


def mediapipe(points, seed):
    rng = np.random.default_rng(seed)
    anchors = list(sized_cells({8: (1,) * 2, 16: (1,) * 6}))
    offsets, sides = rng.uniform(-6, 6, (len(anchors), 2)), rng.uniform(10, 40, (len(anchors), 2))
    marks, logits = rng.uniform(-10, 10, (len(anchors), points, 2)), rng.normal(-2, 2, len(anchors))
    expected = []
    for index, (column, row, stride, _, _) in enumerate(anchors):
        x, y = (column + 0.5) * stride, (row + 0.5) * stride
        box = centred(x + offsets[index, 0], y + offsets[index, 1], *sides[index].tolist())
        drawn = [[x + dx, y + dy, 1] for dx, dy in marks[index].tolist()]
        expected.append((box, logistic(logits[index]), 0, drawn))
    rows = np.concatenate([offsets, sides, marks.reshape(len(anchors), -1)], axis=1)
    outputs = {"regressors": [rows], "classificators": [logits[:, None]]}
    return Case(outputs, expected, {"metadata": {"names": ["face" if points == 6 else "palm"]}})


YOLOV5_FACE = {8: ((4, 5), (8, 10), (13, 16)), 16: ((23, 29), (43, 55), (73, 105)),
               32: ((146, 217), (231, 300), (335, 433))}  # fmt: skip


def yolov5_face():
    rng, outputs, expected = np.random.default_rng(45), {}, []
    for stride, anchors in YOLOV5_FACE.items():
        rows, columns = math.ceil(HEIGHT / stride), math.ceil(WIDTH / stride)
        maps = rng.normal(0, 1.5, (1, 3, rows, columns, 16))
        maps[..., 5:15] = faces(rng, 3 * rows * columns).reshape(3, rows, columns, 10)
        outputs[f"stride_{stride}"] = maps
        for row in range(rows):
            for column in range(columns):
                for index, (wide, high) in enumerate(anchors):
                    values = maps[0, index, row, column].tolist()
                    x, y, w, h, objectness = (logistic(value) for value in values[:5])
                    box = centred(
                        (2 * x - 0.5 + column) * stride, (2 * y - 0.5 + row) * stride,
                        (2 * w) ** 2 * wide, (2 * h) ** 2 * high,
                    )  # fmt: skip
                    marks = [
                        [column * stride + values[at] * wide, row * stride + values[at + 1] * high, 1]
                        for at in range(5, 15, 2)
                    ]
                    expected.append((box, objectness * logistic(values[15]), 0, marks))
    return Case(outputs, expected, {"metadata": {"names": ["face"]}})


def yolov8_heads():
    rng, outputs, expected = np.random.default_rng(46), {}, []
    for stride in (8, 16, 32):
        rows, columns = math.ceil(HEIGHT / stride), math.ceil(WIDTH / stride)
        maps = rng.normal(0, 1.5, (1, 64 + 3 + 6, rows, columns))
        maps[:, 64:67] -= 1
        outputs[f"map{stride}"] = maps
        for row in range(rows):
            for column in range(columns):
                values = maps[0, :, row, column].tolist()
                sides = []
                for side in range(4):
                    powers = [math.exp(value) for value in values[side * 16 : side * 16 + 16]]
                    sides.append(sum(index * power for index, power in enumerate(powers)) / sum(powers) * stride)
                x, y = (column + 0.5) * stride, (row + 0.5) * stride
                index, logit = best(values[64:67])
                marks = [
                    [(column + 2 * values[at]) * stride, (row + 2 * values[at + 1]) * stride, logistic(values[at + 2])]
                    for at in (67, 70)
                ]
                box = (x - sides[0], y - sides[1], x + sides[2], y + sides[3])
                expected.append((box, logistic(logit), index, marks))
    return Case(outputs, expected, {"metadata": {"names": NAMES, "kpt_shape": "[2, 3]"}})


FASTEST = {16: ((12, 19), (37, 51), (55, 138)), 32: ((126, 78), (131, 214), (279, 258))}


def yolo_fastestv2():
    rng, outputs, expected = np.random.default_rng(47), {}, []
    for stride, anchors in FASTEST.items():
        rows, columns = math.ceil(HEIGHT / stride), math.ceil(WIDTH / stride)
        maps = rng.uniform(0, 1, (rows, columns, 15 + 3))
        maps[..., 15:] /= maps[..., 15:].sum(axis=-1, keepdims=True)
        outputs[f"map{stride}"] = maps[None]
        for row in range(rows):
            for column in range(columns):
                values = maps[row, column].tolist()
                index, score = best(values[15:])
                for at, (wide, high) in enumerate(anchors):
                    x, y, w, h = values[4 * at : 4 * at + 4]
                    box = centred(
                        (2 * x - 0.5 + column) * stride, (2 * y - 0.5 + row) * stride,
                        (2 * w) ** 2 * wide, (2 * h) ** 2 * high,
                    )  # fmt: skip
                    expected.append((box, values[12 + at] * score, index))
    anchors = [[side for pair in FASTEST[stride] for side in pair] for stride in FASTEST]
    return Case(outputs, expected, {"metadata": {"names": NAMES, "anchors": anchors}})


def dbnet():
    """Two upright lines of text and a faint one; logits, since the graph ends in a sigmoid."""
    logits = np.full((HEIGHT, WIDTH), -6.0)
    lines = [((8, 40, 60, 52), 2.0), ((30, 10, 80, 20), 1.0), ((4, 22, 24, 30), -1.1)]
    expected = []
    for (left, top, right, bottom), logit in lines:
        logits[top:bottom, left:right] = logit
        width, height = right - 1 - left, bottom - 1 - top  # between the centres of the outermost pixels
        grow = 2 * 1.5 * width * height / (2 * (width + height))
        cx, cy = (left + right - 1) / 2, (top + bottom - 1) / 2
        upright = (cx, cy, width + grow, height + grow, 0)
        score = logistic(logit)
        expected.append((centred(*upright[:4]), score, 0, upright))
    return Case({"maps": logits[None, None]}, expected, {"metadata": {"names": ["text"]}, "text_head": True})


def mmdeploy(*, masks=False):
    rng = np.random.default_rng(48)
    low = rng.uniform(0, 40, (9, 2))
    boxes = np.concatenate([low, low + rng.uniform(5, 20, (9, 2))], axis=1)
    labels, scores = rng.integers(0, 3, 9), np.sort(rng.uniform(0, 1, 9))[::-1]
    expected = [
        (box, score, int(label)) for box, score, label in zip(boxes.tolist(), scores.tolist(), labels, strict=True)
    ]
    outputs = {"dets": [np.concatenate([boxes, scores[:, None]], axis=1)], "labels": labels[None]}
    if masks:
        outputs["masks"] = rng.uniform(0, 1, (1, 9, HEIGHT, WIDTH))
    return Case(outputs, expected, {"metadata": {"names": NAMES}})


# Layout -> builder of its model.
FAMILY_CASES: Mapping[str, Callable[[], Case]] = {
    "ultraface": ultraface, "retinaface": retinaface, "scrfd": scrfd, "yunet": yunet,
    "blazeface": lambda: mediapipe(6, 49), "mediapipe-palm": lambda: mediapipe(7, 50), "yolov5-face": yolov5_face,
    "yolov8-heads": yolov8_heads, "yolo-fastestv2": yolo_fastestv2, "dbnet": dbnet, "mmdeploy": mmdeploy,
}  # fmt: skip

# Description of a variant -> its layout, and builder.
FAMILY_VARIANTS: Mapping[str, tuple[str, Callable[[], Case]]] = {
    "UltraFace without its decoding": ("ultraface", lambda: ultraface(decoded=False)),
    "SCRFD without points": ("scrfd", lambda: scrfd(points=False)),
    "SCRFD without a batch axis": ("scrfd", lambda: scrfd(batched=False)),
    "MMDeploy with masks": ("mmdeploy", lambda: mmdeploy(masks=True)),
}
