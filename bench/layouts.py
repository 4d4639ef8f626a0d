"""Each real model against its own reference decoding: AP50 on the same photos, and what decoding costs."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping

from bench.predict import SAMPLE, SHARED, _ap50, _coco, _iou, _plain_yolox, _prepared, _stats
from labelloop.service.media import load_image
from ml_backend.detection.detections import non_max_suppression
from ml_backend.inference.detector import Detector, load_detector
from ml_backend.inference.slicing import Slices, detect_sliced

FLOOR = 0.01
NAMES = SHARED / "models" / "coco80.txt"


def run() -> str:
    """The figures, in Markdown."""
    models = [file for file in (SHARED / "models" / name for name in REFERENCES) if file.is_file()]
    if not SAMPLE.is_dir() or not models:
        return "Nothing was measured: the COCO sample or the models are not on this machine."
    photos = sorted((SAMPLE / "images").glob("*.jpg"))
    return "\n".join(
        [
            f"AP50 by pycocotools on {len(photos)} photos of COCO over its 80 classes. Reference: the model's own",
            "decoding written out as a plain loop over cells, sides and boxes, on the same input. Shown: how the photo",
            "lies in the input, which decides more than anything else; the layout's choice is marked with *.",
            "Milliseconds a photo, p50: the run, and decoding with suppression from scores of 0.01 and of 0.3 on.",
            "",
            "| model | layout | AP50 | reference | shown: fit | shown: stretched | run | decode, .01 | decode, .3 |",
            "|---|---|---|---|---|---|---|---|---|",
            *(_row(load_detector(model, names=NAMES), photos) for model in models),
            "",
            "## Part by part",
            "",
            f"{models[0].name} on the same photos, whole and in overlapping parts. Small: less than 32 x 32 pixels,",
            "large: more than 96 x 96, average precision over overlaps of .5 to .95 as COCO defines it.",
            "",
            "| parts | AP50 | AP small | AP medium | AP large | ms a photo |",
            "|---|---|---|---|---|---|",
            *(_sliced(load_detector(models[0], names=NAMES), photos, slices) for slices in SLICES),
        ]
    )


SLICES = (Slices(), Slices(416, 0.2), Slices(320, 0.2), Slices(240, 0.25))


def _sliced(detector: Detector, photos, slices: Slices) -> str:
    found, clocks = [], []
    for number, photo in enumerate(photos):
        loaded = load_image(photo)
        started = time.perf_counter()
        seen = detect_sliced(detector, loaded.pixels, slices, floor=FLOOR)
        clocks.append(time.perf_counter() - started)
        found += _coco(number, seen.boxes, seen.scores, seen.classes.tolist())
    stats = _stats(photos, found, list(range(80)))
    parts = f"{slices.side} px, overlap {slices.overlap:.0%}" if slices.side else "the whole"
    precision = " | ".join(f"{stats[place]:.3f}" for place in (1, 3, 4, 5))
    return f"| {parts} | {precision} | {statistics.median(clocks) * 1000:.0f} |"


def _row(detector: Detector, photos) -> str:
    classes = list(range(80))
    reference = REFERENCES[detector.path.name]
    found, plain, clocks = [], [], []
    for number, photo in enumerate(photos):
        ready = _prepared(photo, detector.spec)
        [seen] = detector.detect([ready], floor=FLOOR)
        found += _coco(number, seen.boxes, seen.scores, seen.classes.tolist())
        plain += _coco(number, *reference(detector, ready))
        clocks.append(_clock(detector, ready))
    shown = {}
    for placement in ("top-left", "stretch"):
        spec = dataclasses.replace(detector.spec, placement=placement)
        other = []
        for number, photo in enumerate(photos):
            [seen] = detector.detect([_prepared(photo, spec)], floor=FLOOR)
            other += _coco(number, seen.boxes, seen.scores, seen.classes.tolist())
        mark = " *" if placement == detector.spec.placement else ""
        shown[placement] = f"{_ap50(photos, other, classes):.3f}{mark}"
    times = [f"{statistics.median(column):.1f}" for column in zip(*clocks, strict=True)]
    cells = [
        detector.path.name, detector.layout, f"{_ap50(photos, found, classes):.3f}",
        f"{_ap50(photos, plain, classes):.3f}", shown["top-left"], shown["stretch"], *times,
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _clock(detector: Detector, ready) -> tuple[float, ...]:
    started = time.perf_counter()
    seen = detector.engine.run([ready.tensor], detector.reader.outputs)
    spent = [time.perf_counter() - started]
    for floor in (FLOOR, 0.3):
        started = time.perf_counter()
        [found] = detector.reader.decode(seen, floor)
        non_max_suppression(found, iou=0.45)
        spent.append(time.perf_counter() - started)
    return tuple(one * 1000 for one in spent)


def _kept(candidates, fit):
    """Greedy suppression, box by box, and back to pixels of the photo."""
    kept: list = []
    for one in sorted(candidates, reverse=True):
        if all(one[1] != other[1] or _iou(one[2], other[2]) <= 0.45 for other in kept):
            kept.append(one)
    boxes = []
    for _, _, box in kept:
        left, top = max(0, box[0] / fit.scale_x), max(0, box[1] / fit.scale_y)
        boxes.append([left, top, min(fit.width, box[2] / fit.scale_x), min(fit.height, box[3] / fit.scale_y)])
    return boxes, [score for score, _, _ in kept], [class_ for _, class_, _ in kept]


def _plain_nanodet(detector: Detector, ready):
    """NanoDet by its head: each side of a box is the mean of a softmax over eight strides, from the cell's middle."""
    arrays = [array[0] for array in detector.engine.run([ready.tensor]).values()]
    candidates = []
    for stride in (8, 16, 32):
        columns = math.ceil(detector.spec.width / stride)
        rows = math.ceil(detector.spec.height / stride) * columns
        scores, sides = sorted((one for one in arrays if len(one) == rows), key=lambda one: -one.shape[1])
        for index, (row, raw) in enumerate(zip(scores.tolist(), sides.tolist(), strict=True)):
            best = max(range(len(row)), key=row.__getitem__)
            if row[best] < FLOOR:
                continue
            cx, cy = (index % columns + 0.5) * stride, (index // columns + 0.5) * stride
            far = []
            for side in range(4):
                powers = [math.exp(value) for value in raw[side * 8 : side * 8 + 8]]
                far.append(sum(place * power for place, power in enumerate(powers)) / sum(powers) * stride)
            candidates.append((row[best], best, (cx - far[0], cy - far[1], cx + far[2], cy + far[3])))
    return _kept(candidates, ready.fit)


def _plain_fastestdet(detector: Detector, ready):
    """FastestDet by its program: presence^0.6 x class^0.4, tanh from the cell, sigmoid for the sides."""
    [planes] = next(iter(detector.engine.run([ready.tensor]).values()))
    _, rows, columns = planes.shape
    candidates = []
    for row in range(rows):
        for column in range(columns):
            presence, x, y, w, h, *scores = planes[:, row, column].tolist()
            best = max(range(len(scores)), key=scores.__getitem__)
            score = presence**0.6 * scores[best] ** 0.4
            if score < FLOOR:
                continue
            cx, cy = (column + math.tanh(x)) / columns, (row + math.tanh(y)) / rows
            half_w, half_h = 0.5 / (1 + math.exp(-w)), 0.5 / (1 + math.exp(-h))
            box = (cx - half_w, cy - half_h, cx + half_w, cy + half_h)
            scale = (detector.spec.width, detector.spec.height) * 2
            candidates.append((score, best, tuple(side * by for side, by in zip(box, scale, strict=True))))
    return _kept(candidates, ready.fit)


REFERENCES: Mapping[str, Callable] = {
    "yolox_nano.onnx": _plain_yolox,
    "nanodet_m.onnx": _plain_nanodet,
    "fastestdet.onnx": _plain_fastestdet,
}
"""Model file -> its decoding by the book: (boxes, scores, classes) in pixels of the photo."""
