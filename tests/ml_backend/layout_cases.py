"""One random model per layout, and its detections decoded by a plain loop.

The loops are independent references for the vectorised decoders, written from each family's paper or code.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from onnx import TensorProto

HEIGHT, WIDTH = 64, 96
NAMES = ["a", "b", "c"]
STRIDES = (8, 16, 32)
FLOOR = 0.3


@dataclass(frozen=True)
class Case:
    """A model to build, and its detections: (box, score, class index), plus the layout's extra outputs."""

    outputs: Mapping[str, np.ndarray]
    expected: list[tuple]
    options: Mapping[str, object] = field(default_factory=dict)
    batched: bool = True


def cells(strides=STRIDES, per_cell=1):
    for stride in strides:
        for row in range(math.ceil(HEIGHT / stride)):
            for column in range(math.ceil(WIDTH / stride)):
                for _ in range(per_cell):
                    yield column, row, stride


def count(strides=STRIDES, per_cell=1):
    return len(list(cells(strides, per_cell)))


def logistic(value):
    return 1 / (1 + math.exp(-value))


def centred(cx, cy, w, h):
    return (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)


def best(scores):
    index = max(range(len(scores)), key=lambda position: scores[position])
    return index, scores[index]


def pixel_rows(rng, rows, strides=STRIDES, per_cell=1):
    """Rows (n, 4): centres near their own cells, sides of a few pixels."""
    boxes = np.zeros((rows, 4))
    for index, (column, row, stride) in enumerate(cells(strides, per_cell)):
        boxes[index, :2] = (np.array([column, row]) + rng.uniform(-0.5, 1.5, 2)) * stride
    boxes[:, 2:] = rng.uniform(4, 40, (rows, 2))
    return boxes


def few(rng, *shape):
    """Scores of which few are high."""
    return rng.uniform(0, 1, shape) ** 3


def labelloop():
    rng = np.random.default_rng(1)
    boxes = rng.uniform(0, 60, (7, 4))
    presence, scores = rng.uniform(0, 1, 7), rng.uniform(0, 1, (7, 3))
    expected = []
    for box, box_presence, score in zip(boxes.tolist(), presence.tolist(), scores.tolist(), strict=True):
        index, value = best(score)
        expected.append((box, box_presence * value, index))
    outputs = {"boxes": [boxes], "objectness": [presence], "scores": [scores], "embeddings": np.zeros((1, 7, 5))}
    return Case(outputs, expected, {"metadata": {"names": NAMES, "input": {"size": [HEIGHT, WIDTH]}}})


def objectness_rows(rows):
    expected = []
    for cx, cy, w, h, presence, *scores in rows.tolist():
        index, value = best(scores)
        expected.append((centred(cx, cy, w, h), presence * value, index))
    return expected


def yolov5():
    rng = np.random.default_rng(2)
    rows = np.concatenate([pixel_rows(rng, count(per_cell=3), per_cell=3), few(rng, count(per_cell=3), 4)], axis=1)
    return Case({"output0": [rows]}, objectness_rows(rows), {"metadata": {"names": "{0: 'a', 1: 'b', 2: 'c'}"}})


def yolov6():
    rng = np.random.default_rng(3)
    rows = np.concatenate([pixel_rows(rng, count()), np.ones((count(), 1)), few(rng, count(), 3)], axis=1)
    return Case({"outputs": [rows]}, objectness_rows(rows), {"metadata": {"names": NAMES}})


def yolox():
    rng = np.random.default_rng(4)
    raw = np.concatenate([rng.normal(0, 0.7, (count(), 4)), rng.uniform(0, 1, (count(), 4))], axis=1)
    expected = []
    for (column, row, stride), (x, y, w, h, presence, *scores) in zip(cells(), raw.tolist(), strict=True):
        index, value = best(scores)
        box = centred((x + column) * stride, (y + row) * stride, math.exp(w) * stride, math.exp(h) * stride)
        expected.append((box, presence * value, index))
    return Case({"output": [raw]}, expected, {"metadata": {"names": NAMES}})


def yolox_decoded():
    rng = np.random.default_rng(5)
    rows = np.concatenate([pixel_rows(rng, count()), few(rng, count(), 4)], axis=1)
    return Case({"output": [rows]}, objectness_rows(rows), {"metadata": {"names": NAMES}})


def yolov8(strides=STRIDES, **metadata):
    rng = np.random.default_rng(6)
    rows = np.concatenate([pixel_rows(rng, count(strides), strides), few(rng, count(strides), 3)], axis=1)
    expected = [(centred(*row[:4]), *reversed(best(row[4:]))) for row in rows.tolist()]
    return Case({"output0": [rows.T]}, expected, {"metadata": {"names": "{0: 'a', 1: 'b', 2: 'c'}", **metadata}})


def yolov8_segment():
    rng = np.random.default_rng(7)
    plain = yolov8(task="segment")
    weights = rng.normal(0, 1, (4, count()))
    protos = rng.normal(0, 1, (4, HEIGHT // 4, WIDTH // 4))
    rows = np.concatenate([plain.outputs["output0"][0], weights])
    expected = [
        (*entry, np.tensordot(weights[:, index], protos, 1)) for index, entry in enumerate(plain.expected)
    ]  # (box, score, class, logits over the input)
    return Case({"output0": [rows], "output1": [protos]}, expected, plain.options)


def yolov8_pose():
    rng = np.random.default_rng(8)
    rows = np.concatenate([pixel_rows(rng, count()), few(rng, count(), 1), rng.uniform(0, 60, (count(), 6))], axis=1)
    rows[:, 7::3] /= 60
    expected = []
    for row in rows.tolist():
        points = [row[5:8], row[8:11]]
        expected.append((centred(*row[:4]), row[4], 0, points))
    metadata = {"names": "{0: 'fish'}", "task": "pose", "kpt_shape": "[2, 3]"}
    return Case({"output0": [rows.T]}, expected, {"metadata": metadata})


def yolov8_obb():
    rng = np.random.default_rng(9)
    plain = yolov8(task="obb")
    angles = rng.uniform(-0.8, 2.3, count())
    rows = np.concatenate([plain.outputs["output0"][0], [angles]])
    expected = []
    for index, (box, score, index_) in enumerate(plain.expected):
        cx, cy, w, h = rows[:4, index].tolist()
        turn = float(angles[index])
        xs, ys = [], []
        for across, down in ((-w, -h), (w, -h), (w, h), (-w, h)):
            xs.append(cx + across / 2 * math.cos(turn) - down / 2 * math.sin(turn))
            ys.append(cy + across / 2 * math.sin(turn) + down / 2 * math.cos(turn))
        del box
        expected.append(((min(xs), min(ys), max(xs), max(ys)), score, index_, (cx, cy, w, h, turn)))
    return Case({"output0": [rows]}, expected, plain.options)


def end2end():
    rng = np.random.default_rng(10)
    low = rng.uniform(0, 40, (12, 2))
    rows = np.concatenate(
        [low, low + rng.uniform(5, 20, (12, 2)), rng.uniform(0, 1, (12, 1)), rng.integers(0, 3, (12, 1))], axis=1
    )
    expected = [(row[:4], row[4], int(row[5])) for row in rows.tolist()]
    return Case({"output0": [rows]}, expected, {"metadata": {"names": NAMES, "task": "detect"}})


def end2end_pose():
    rng = np.random.default_rng(20)
    plain = end2end()
    points = rng.uniform(0, 60, (12, 4))
    rows = np.concatenate([plain.outputs["output0"][0], points], axis=1)
    rows[:, 5] = 0
    expected = [
        (box, score, 0, [[*xy[:2], 1], [*xy[2:], 1]])
        for (box, score, _), xy in zip(plain.expected, points.tolist(), strict=True)
    ]
    metadata = {"names": ["fish"], "task": "pose", "kpt_shape": "[2, 2]"}
    return Case({"output0": [rows]}, expected, {"metadata": metadata})


def end2end_obb():
    plain = yolov8_obb()
    columns = plain.outputs["output0"][0]
    scores = columns[4:7]
    rows = np.stack(
        [*columns[:4], scores.max(axis=0), scores.argmax(axis=0).astype(float), columns[7]], axis=1
    )  # centre, sides, score, class, angle
    return Case({"output0": [rows[:60]]}, plain.expected[:60], plain.options)


def rt_detr_ultralytics():
    rng = np.random.default_rng(11)
    rows = np.concatenate([rng.uniform(0.2, 0.7, (10, 2)), rng.uniform(0.1, 0.3, (10, 2)), few(rng, 10, 3)], axis=1)
    expected = []
    for cx, cy, w, h, *scores in rows.tolist():
        index, value = best(scores)
        expected.append((centred(cx * WIDTH, cy * HEIGHT, w * WIDTH, h * HEIGHT), value, index))
    return Case({"output0": [rows]}, expected, {"metadata": {"names": NAMES}})


def classify():
    scores = [0.32, 0.6, 0.08]
    expected = [((0, 0, WIDTH, HEIGHT), score, index) for index, score in enumerate(scores)]
    return Case({"output0": [scores]}, expected, {"metadata": {"names": NAMES, "task": "classify"}})


def classifier():
    values = [0.4, 1.2, -1.0]
    powers = [math.exp(value) for value in values]
    expected = [((0, 0, WIDTH, HEIGHT), power / sum(powers), index) for index, power in enumerate(powers)]
    return Case({"logits": np.reshape(values, (1, 3, 1, 1))}, expected, {"metadata": {"names": NAMES}})


def distances(raw, column, row, stride, corner):
    """left, top, right, bottom as means of softmax distributions over 0..7 strides."""
    sides = []
    for side in range(4):
        exponentials = [math.exp(value) for value in raw[side * 8 : side * 8 + 8]]
        sides.append(sum(index * power for index, power in enumerate(exponentials)) / sum(exponentials) * stride)
    cx, cy = (column + corner) * stride, (row + corner) * stride
    return (cx - sides[0], cy - sides[1], cx + sides[2], cy + sides[3])


def gfl(strides, corner=0.5, *, logits=False):
    rng = np.random.default_rng(12)
    scores = rng.normal(-1, 2, (count(strides), 3)) if logits else few(rng, count(strides), 3)
    raw = rng.normal(0, 2, (count(strides), 32))
    expected = []
    for (column, row, stride), values, sides in zip(cells(strides), scores.tolist(), raw.tolist(), strict=True):
        index, value = best(values)
        score = logistic(value) if logits else value
        expected.append((distances(sides, column, row, stride, corner), score, index))
    return scores, raw, expected


def levels(scores, raw, strides, order):
    ends = np.cumsum([sum(1 for cell in cells((stride,))) for stride in strides])[:-1]
    parts = [*np.split(scores, ends), *np.split(raw, ends)]
    return {f"{700 + index}": [parts[index]] for index in order}


def nanodet(order=(0, 1, 2, 3, 4, 5), *, logits=False):
    scores, raw, expected = gfl(STRIDES, logits=logits)
    return Case(levels(scores, raw, STRIDES, order), expected, {"metadata": {"names": NAMES}})


def nanodet_single(strides=(8, 16, 32, 64), corner=0.0):
    scores, raw, expected = gfl(strides, corner)
    return Case({"output": [np.concatenate([scores, raw], axis=1)]}, expected, {"metadata": {"names": NAMES}})


def picodet(order=(4, 0, 5, 1, 6, 2, 7, 3)):
    strides = (8, 16, 32, 64)
    scores, raw, expected = gfl(strides)
    return Case(levels(scores, raw, strides, order), expected, {"metadata": {"names": NAMES}})


def fastestdet():
    rng = np.random.default_rng(13)
    rows, columns = HEIGHT // 16, WIDTH // 16
    planes = rng.normal(0, 1, (8, rows, columns))
    planes[0], planes[5:] = rng.uniform(0, 1, (rows, columns)), rng.uniform(0, 1, (3, rows, columns))
    expected = []
    for row in range(rows):
        for column in range(columns):
            presence, x, y, w, h, *scores = planes[:, row, column].tolist()
            index, value = best(scores)
            cx, cy = (column + math.tanh(x)) / columns * WIDTH, (row + math.tanh(y)) / rows * HEIGHT
            box = centred(cx, cy, logistic(w) * WIDTH, logistic(h) * HEIGHT)
            expected.append((box, presence**0.6 * value**0.4, index))
    return Case({"758": [planes]}, expected, {"metadata": {"names": NAMES}})


def queries(rng, classes):
    boxes = np.concatenate([rng.uniform(0.2, 0.7, (10, 2)), rng.uniform(0.1, 0.3, (10, 2))], axis=1)
    return boxes, rng.normal(-2, 2, (10, classes))


def scaled(box):
    return centred(box[0] * WIDTH, box[1] * HEIGHT, box[2] * WIDTH, box[3] * HEIGHT)


def detr_sigmoid():
    boxes, logits = queries(np.random.default_rng(14), 3)
    expected = []
    for box, row in zip(boxes.tolist(), logits.tolist(), strict=True):
        index, value = best(row)
        expected.append((scaled(box), logistic(value), index))
    return Case({"logits": [logits], "pred_boxes": [boxes]}, expected, {"metadata": {"names": NAMES}})


def detr_softmax():
    boxes, logits = queries(np.random.default_rng(15), 4)
    logits[4:, 3] = 5  # most queries predict no object, as on a grey image
    expected = []
    for box, row in zip(boxes.tolist(), logits.tolist(), strict=True):
        exponentials = [math.exp(value) for value in row]
        index, value = best([power / sum(exponentials) for power in exponentials[:3]])
        expected.append((scaled(box), value, index))
    return Case({"pred_boxes": [boxes], "logits": [logits]}, expected, {"metadata": {"names": NAMES}})


def rf_detr():
    plain = detr_sigmoid()
    logits = np.asarray(plain.outputs["logits"])
    with_spare = np.concatenate([logits, np.full((1, 10, 1), -9.0)], axis=2)
    return Case({"dets": plain.outputs["pred_boxes"], "labels": with_spare}, plain.expected, plain.options)


def finished(*, first=0, share=False, yxyx=False, batched=True, whole=np.int64):
    rng = np.random.default_rng(16)
    low = rng.uniform(0, 0.5, (9, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.1, 0.4, (9, 2))], axis=1)
    labels, scores = rng.integers(0, 3, 9), np.sort(rng.uniform(0, 1, 9))[::-1]
    pixels = [(x0 * WIDTH, y0 * HEIGHT, x1 * WIDTH, y1 * HEIGHT) for x0, y0, x1, y1 in boxes.tolist()]
    expected = [(box, score, int(label)) for box, score, label in zip(pixels, scores.tolist(), labels, strict=True)]
    corners = boxes if share else np.array(pixels)
    corners = corners[:, [1, 0, 3, 2]] if yxyx else corners
    arrays = [corners, (labels + first).astype(whole), scores]
    return [array[None] for array in arrays] if batched else arrays, expected


def rt_detr():
    (boxes, labels, scores), expected = finished()
    auxiliary = {"orig_target_sizes": (TensorProto.INT64, ["batch", 2])}
    outputs = {"labels": labels, "boxes": boxes, "scores": scores}
    return Case(outputs, expected, {"metadata": {"names": NAMES}, "extra_inputs": auxiliary})


def torchvision(order=("boxes", "labels", "scores")):
    arrays, expected = finished(first=1, batched=False)
    by_role = dict(zip(("boxes", "labels", "scores"), arrays, strict=True))
    outputs = {f"{index}": by_role[role] for index, role in enumerate(order)}
    return Case(outputs, expected, {"metadata": {"names": NAMES}}, batched=False)


def ssd():
    (boxes, labels, scores), expected = finished(first=1, share=True)
    return Case({"bboxes": boxes, "labels": labels, "scores": scores}, expected, {"metadata": {"names": NAMES}})


def tf_od():
    (boxes, labels, scores), expected = finished(first=1, share=True, yxyx=True, whole=np.float32)
    outputs = {
        "detection_scores": scores,
        "detection_classes": labels,
        "num_detections": np.array([9.0]),
        "detection_boxes": boxes,
        "raw_detection_boxes": np.zeros((1, 30, 4)),
        "detection_anchor_indices": np.arange(9.0)[None],
    }
    options = {"metadata": {"names": NAMES}, "shape": ("batch", HEIGHT, WIDTH, 3), "dtype": TensorProto.UINT8}
    return Case(outputs, expected, options)


def tflite_detection():
    (boxes, labels, scores), expected = finished(share=True, yxyx=True, whole=np.float32)
    names = [f"StatefulPartitionedCall:{number}" for number in (3, 2, 1, 0)]
    outputs = dict(zip(names, (boxes, labels, scores, np.array([9.0])), strict=True))
    return Case(outputs, expected, {"metadata": {"names": NAMES}, "shape": ("batch", HEIGHT, WIDTH, 3)})


def spelled_columns(name="batchno_classid_score_x1y1x2y2", *, points=0):
    arrays, expected = finished(batched=False)
    columns = [np.zeros((9, 1)), arrays[1][:, None], arrays[2][:, None], arrays[0], np.full((9, points), 7.0)]
    return Case({name: np.concatenate(columns, axis=1)}, expected, {"metadata": {"names": NAMES}}, batched=False)


def spelled_columns_normalised():
    (boxes, labels, scores), expected = finished(share=True)
    rows = np.concatenate([labels[..., None], boxes, scores[..., None]], axis=2)
    return Case({"label_xyxy_score": rows}, expected, {"metadata": {"names": NAMES}})


def yolo_nas():
    case = yolov7_end2end()
    return Case({"predictions": case.outputs["output"][:, [0, 1, 2, 3, 4, 6, 5]]}, case.expected, case.options, False)


def paddle():
    arrays, expected = finished(batched=False)
    rows = np.concatenate([arrays[1][:, None], arrays[2][:, None], arrays[0]], axis=1).astype(np.float32)
    auxiliary = {"im_shape": (TensorProto.FLOAT, ["batch", 2]), "scale_factor": (TensorProto.FLOAT, ["batch", 2])}
    outputs = {"rows": rows, "bbox_num": np.array([9], np.int32)}
    return Case(outputs, expected, {"metadata": {"names": NAMES}, "extra_inputs": auxiliary}, batched=False)


def yolov7_end2end():
    arrays, expected = finished(batched=False)
    rows = np.concatenate([np.zeros((9, 1)), arrays[0], arrays[1][:, None], arrays[2][:, None]], axis=1)
    return Case({"output": rows.astype(np.float32)}, expected, {"metadata": {"names": NAMES}}, batched=False)


def tensorrt_nms(names=("num_dets", "det_boxes", "det_scores", "det_classes"), *, share=False):
    """Rows after the number of detections are left over from other images."""
    (boxes, labels, scores), expected = finished(share=share)
    arrays = [np.array([[8]], np.int32), boxes[:, ::-1], scores[:, ::-1], labels[:, ::-1]]
    valid = expected[::-1][:8]
    return Case(dict(zip(names, arrays, strict=True)), valid, {"metadata": {"names": NAMES}})


YOLOV5_ANCHORS = {
    8: ((10, 13), (16, 30), (33, 23)),
    16: ((30, 61), (62, 45), (59, 119)),
    32: ((116, 90), (156, 198), (373, 326)),
}


def yolov5_heads(*, flat=False, anchors=YOLOV5_ANCHORS, **metadata):
    rng, outputs, expected = np.random.default_rng(31), {}, []
    for stride in (16, 8, 32):  # in no order
        rows, columns = math.ceil(HEIGHT / stride), math.ceil(WIDTH / stride)
        maps = rng.normal(0, 1.5, (1, 3, rows, columns, 8))
        maps[..., 4] -= 1
        outputs[f"map{stride}"] = maps
    for stride in STRIDES:
        maps = outputs[f"map{stride}"][0]
        for anchor_index, (wide, high) in enumerate(anchors[stride]):
            for row in range(maps.shape[1]):
                for column in range(maps.shape[2]):
                    x, y, w, h, objectness, *scores = (
                        logistic(value) for value in maps[anchor_index, row, column].tolist()
                    )
                    box = centred(
                        (2 * x - 0.5 + column) * stride, (2 * y - 0.5 + row) * stride,
                        (2 * w) ** 2 * wide, (2 * h) ** 2 * high,
                    )  # fmt: skip
                    index, value = best(scores)
                    expected.append((box, objectness * value, index))
    if flat:
        outputs = {
            name: maps.transpose(0, 1, 4, 2, 3).reshape(1, -1, *maps.shape[2:4]) for name, maps in outputs.items()
        }
    return Case(outputs, expected, {"metadata": {"names": NAMES, **metadata}})


def yolov7_heads():
    case = yolov5_heads(anchors=YOLOV7_ANCHORS)
    anchors = [[side for pair in YOLOV7_ANCHORS[stride] for side in pair] for stride in STRIDES]
    return Case(case.outputs, case.expected, {"metadata": {"names": NAMES, "anchors": anchors}})


YOLOV7_ANCHORS = {
    8: ((12, 16), (19, 36), (40, 28)),
    16: ((36, 75), (76, 55), (72, 146)),
    32: ((142, 110), (192, 243), (459, 401)),
}


def semantic(*, channels_last=False):
    """Five classes of pixels in blocks; the last one wins where it is hardly more certain than the others."""
    planes = np.zeros((5, HEIGHT // 4, WIDTH // 4))
    planes[0] = 1
    planes[1, 4:10, 4:12], planes[2, 2:6, 16:20], planes[4, 12:16, 0:8] = 6, 4, 1.01
    planes[:4, 12:16, 0:8] = 1
    found: dict[int, list] = {}
    for row in range(HEIGHT // 4):
        for column in range(WIDTH // 4):
            index, value = best(planes[:, row, column].tolist())
            total = sum(math.exp(other - value) for other in planes[:, row, column].tolist())
            found.setdefault(index, []).append((column, row, 1 / total))
    expected = []
    for index, pixels in found.items():
        columns, rows, scores = zip(*pixels, strict=True)
        box = 4 * min(columns), 4 * min(rows), 4 * (max(columns) + 1), 4 * (max(rows) + 1)
        expected.append((box, sum(scores) / len(scores), index))
    array = planes.transpose(1, 2, 0) if channels_last else planes
    names = ["floor", "wall", "door", "window", "lamp"]
    ordered = sorted(expected, key=lambda entry: -entry[1])
    return Case({"logits": array[None]}, ordered, {"metadata": {"names": names}})


def renamed(case, **names):
    return Case({names.get(name, name): array for name, array in case.outputs.items()}, case.expected, case.options)


# Layout -> builder of its model.
CASES: Mapping[str, Callable[[], Case]] = {
    "labelloop": labelloop, "classify": classify, "classifier": classifier, "end2end": end2end, "yolov8": yolov8,
    "yolov8-segment": yolov8_segment, "yolov8-pose": yolov8_pose, "yolov8-obb": yolov8_obb,
    "rt-detr-ultralytics": rt_detr_ultralytics, "yolov5": yolov5, "nanodet": nanodet,
    "nanodet-single": nanodet_single, "picodet": picodet, "yolox": yolox, "yolox-decoded": yolox_decoded,
    "fastestdet": fastestdet, "rf-detr": rf_detr, "detr-softmax": detr_softmax, "detr-sigmoid": detr_sigmoid,
    "rt-detr": rt_detr, "tf-od": tf_od, "tflite-detection": tflite_detection, "paddle": paddle, "ssd": ssd,
    "torchvision": torchvision, "spelled-columns": spelled_columns,
    "yolov7-end2end": yolov7_end2end, "tensorrt-nms": tensorrt_nms, "yolov5-heads": yolov5_heads,
    "semantic": semantic,
}  # fmt: skip

# Description of a variant -> its layout, and builder.
VARIANTS: Mapping[str, tuple[str, Callable[[], Case]]] = {
    "v6, whose objectness is always 1": ("yolov5", yolov6),
    "v8 with the task in the metadata": ("yolov8", lambda: yolov8(task="detect")),
    "v8 with four levels": ("yolov8", lambda: yolov8((4, 8, 16, 32))),
    "NanoDet with its outputs in another order": ("nanodet", lambda: nanodet((3, 1, 5, 0, 4, 2))),
    "NanoDet with logits": ("nanodet", lambda: nanodet(logits=True)),
    "NanoDet with one output and three levels": ("nanodet-single", lambda: nanodet_single(STRIDES, 0.5)),
    "PicoDet in the order of its levels": ("picodet", lambda: picodet(tuple(range(8)))),
    "end to end with keypoints of two values": ("end2end", end2end_pose),
    "end to end with rotated boxes": ("end2end", end2end_obb),
    "torchvision, scores before labels": ("torchvision", lambda: torchvision(("boxes", "scores", "labels"))),
    "TensorRT's BatchedNMS, normalised boxes": (
        "tensorrt-nms",
        lambda: tensorrt_nms(("num_detections", "nmsed_boxes", "nmsed_scores", "nmsed_classes"), share=True),
    ),
    "YOLO-NAS with a count": (
        "tensorrt-nms",
        lambda: tensorrt_nms(("num_predictions", "pred_boxes", "pred_scores", "pred_classes")),
    ),
    "YOLO-NAS, rows of seven with the class last": ("yolov7-end2end", yolo_nas),
    "columns spelled with points behind": (
        "spelled-columns",
        lambda: spelled_columns("batchno_classid_score_x1y1x2y2_landms", points=10),
    ),
    "columns spelled, class first, normalised": ("spelled-columns", spelled_columns_normalised),
    "DETR with the names of its paper's code": (
        "detr-softmax",
        lambda: renamed(detr_softmax(), logits="pred_logits"),
    ),
    "v5's heads with anchors as channels": ("yolov5-heads", lambda: yolov5_heads(flat=True)),
    "v7's heads, anchors in the metadata": ("yolov5-heads", yolov7_heads),
    "semantic, channels last": ("semantic", lambda: semantic(channels_last=True)),
    "torchvision, labels first": ("torchvision", lambda: torchvision(("labels", "scores", "boxes"))),
}
