"""Smart tools on the objects of COCO: how well they cover each, from a loose box or one click, and how fast."""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from labelloop.labeling.geometry.shapes import Polygon
from labelloop.labeling.result import Result
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.reading import read_regions
from labelloop.labeling.studio.task import ModelPrediction
from labelloop.service.media import image_size, load_image
from ml_backend.smart import SmartTools

SAMPLE = Path(__file__).parents[2] / "shared" / "data" / "coco_sample"
CONFIG = LabelConfig.parse(
    """<View><Image name="image" value="$image"/>
    <KeyPointLabels name="kp" toName="image" smartOnly="true"><Label value="x"/></KeyPointLabels>
    <RectangleLabels name="box" toName="image" smart="true"><Label value="x"/></RectangleLabels>
    <BrushLabels name="brush" toName="image" smart="false"><Label value="x"/></BrushLabels></View>"""
)
CROSS_VALIDATED = Path(__file__).parent / "results" / "smart_cross_validated.md"
"""Written by `python -m bench.fit_outline`."""

SMALL, LARGE = 32**2, 96**2  # COCO's own bounds


class Files:
    """Photos straight from files: the network is no part of what is measured."""

    def photo(self, url, *, task_id=None, max_side=None, **_):
        del task_id
        return load_image(Path(url), max_side=max_side)


@dataclass(frozen=True)
class Thing:
    """An object of the sample.

    Attributes:
        photo: The file; number: which of the sample's it is.
        mask: (h, w) bool.
        tight: x_min, y_min, x_max, y_max; loose: enlarged.
    """

    photo: Path
    number: int
    mask: np.ndarray
    tight: tuple[float, float, float, float]
    loose: tuple[float, float, float, float]


def read_objects() -> list[Thing]:
    """Every object of the COCO sample that covers a pixel."""
    chance, found = random.Random(0), []
    for number, photo in enumerate(sorted((SAMPLE / "images").glob("*.jpg"))):
        labels = SAMPLE / "labels_segment" / f"{photo.stem}.txt"
        width, height = image_size(photo)
        for line in labels.read_text().splitlines() if labels.is_file() else ():
            points = np.array(line.split()[1:], float).reshape(-1, 2) * [width, height]
            mask = np.asarray(Polygon(tuple(map(tuple, points.tolist()))).mask(width, height))
            if mask.any():
                tight = (*points.min(0).tolist(), *points.max(0).tolist())
                found.append(Thing(photo, number, mask, tight, loosen(tight, width, height, chance)))
    return found


def run() -> str:
    """The figures, in Markdown."""
    if not SAMPLE.is_dir():
        return "Not measured: the COCO sample is not on this machine."
    tools = SmartTools(Files())
    kept = [_measure(tools, thing, number=number) for number, thing in enumerate(read_objects())]
    areas = np.array([row[0] for row in kept])
    parts = {
        "all": areas > 0,
        "small (under 32 x 32)": areas < SMALL,
        "medium": (areas >= SMALL) & (areas < LARGE),
        "large (over 96 x 96)": areas >= LARGE,
    }
    table = [
        f"| {name} | {some.sum()} | "
        + " | ".join(f"{_mean(kept, column, some):.3f}" for column in (1, 2, 3, 4, 5))
        + " |"
        for name, some in parts.items()
    ]
    spent = np.array([row[6:] for row in kept]) * 1000  # (objects, box or click, wall or processor)
    times = [" / ".join(f"{np.percentile(spent[:, kind, clock], share):.0f}" for share in (50, 95)) for kind, clock in
             ((0, 0), (0, 1), (1, 0), (1, 1))]  # fmt: skip
    return "\n".join(
        [
            f"{len(kept)} objects of COCO. Loose box: its own, width and height each enlarged by 10 to 20 %,",
            "shared at random between the two sides. Click: one, at the point farthest from the object's edge.",
            "IoU with the object's mask; for boxes with its tight box. The loose box itself is the floor.",
            "**The network was fitted on these very objects: what it does on others is below, cross-validated.**",
            "",
            "| objects | n | mask, loose box itself | mask found | box, loose itself | box found | mask from a click |",
            "|---|---|---|---|---|---|---|",
            *table,
            "",
            "Warm answers (photo decoded before; tight box and brush written as JSON), p50 / p95 ms, by the clock and",
            "of the processor (which other programs on the machine disturb less):",
            "",
            "| prompt | by the wall | of the processor |",
            "|---|---|---|",
            f"| box | {times[0]} | {times[1]} |",
            f"| click | {times[2]} | {times[3]} |",
            "",
            f"Load average: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.",
            "",
            CROSS_VALIDATED.read_text().strip() if CROSS_VALIDATED.is_file() else "",
        ]
    )


def _mean(rows, column: int, some) -> float:
    return float(np.mean([row[column] for row, chosen in zip(rows, some, strict=True) if chosen]))


def _measure(tools: SmartTools, thing: Thing, *, number: int):
    """(area, 5 overlaps, seconds of a box and of a click: by the wall, of the processor) of one object."""
    truth, tight, loose = thing.mask, thing.tight, thing.loose
    height, width = truth.shape
    column, row = deepest(truth)
    task = {"id": number, "data": {"image": str(thing.photo)}}
    base = {"to_name": "image", "original_width": width, "original_height": height, "id": "p"}
    box = {
        **base, "from_name": "box", "type": "rectanglelabels",
        "value": {
            "x": loose[0] * 100 / width, "y": loose[1] * 100 / height, "width": (loose[2] - loose[0]) * 100 / width,
            "height": (loose[3] - loose[1]) * 100 / height, "rotation": 0, "rectanglelabels": ["x"],
        },
    }  # fmt: skip
    click = {
        **base, "from_name": "kp", "type": "keypointlabels", "is_positive": True,
        "value": {
            "x": column * 100 / width, "y": row * 100 / height, "keypointlabels": ["x"],
        },
    }  # fmt: skip
    tools.answer(task, CONFIG, {"result": [box]})  # warm
    found, spent = [], []
    for prompt in (box, click):
        started = np.array([time.perf_counter(), time.process_time()])
        results = tools.answer(task, CONFIG, {"result": [prompt]}).result
        spent.append(np.array([time.perf_counter(), time.process_time()]) - started)
        found.append({one.type: one for one in read_regions(ModelPrediction(results=tuple(map(Result, results))))})
    drawn = found[0]["rectanglelabels"].geometry.bounds
    masks = [one["brushlabels"].geometry.array() if "brushlabels" in one else np.zeros_like(truth) for one in found]
    plain = np.zeros_like(truth)
    plain[int(loose[1]) : int(np.ceil(loose[3])), int(loose[0]) : int(np.ceil(loose[2]))] = True
    overlaps = (mask_iou(plain, truth), mask_iou(masks[0], truth), _box_iou(loose, tight), _box_iou(drawn, tight))
    return (int(truth.sum()), *overlaps, mask_iou(masks[1], truth), *spent)


def deepest(mask: np.ndarray) -> tuple[float, float]:
    """x, y of the point of an object that is farthest from its edge: where one would click."""
    import cv2

    depth = cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    row, column = np.unravel_index(depth.argmax(), depth.shape)
    return float(column) + 0.5, float(row) + 0.5


def loosen(box, width: int, height: int, chance: random.Random, *, least: float = 0.1, most: float = 0.2):
    """A box enlarged by a share of its sides, shared at random between left and right, top and bottom."""
    left, top, right, bottom = box
    across, down = chance.uniform(least, most) * (right - left), chance.uniform(least, most) * (bottom - top)
    x, y = chance.random(), chance.random()
    return (
        max(0, left - across * x), max(0, top - down * y),
        min(width, right + across * (1 - x)), min(height, bottom + down * (1 - y)),
    )  # fmt: skip


def mask_iou(a, b) -> float:
    """Intersection over union of two masks."""
    return float((a & b).sum() / max(1, (a | b).sum()))


def _box_iou(a, b) -> float:
    across, down = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0, across) * max(0, down)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)
