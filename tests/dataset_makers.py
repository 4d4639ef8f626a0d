"""Small data sets on the disk, as other tools write them, all from one truth in pixels."""

import json
import math
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as masks

SIZES = {"a.jpg": (640, 360), "sub/b.png": (200, 320), "empty.jpg": (160, 120), "ünï côde.jpg": (333, 251)}
LABELS = ("car", "unused", "person")
JOINTS = ("nose", "left eye", "right eye")


def make_photos(folder: Path, names=tuple(SIZES)) -> Path:
    rng = np.random.default_rng(3)
    for name in names:
        width, height = SIZES[name]
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)).resize(
            (width, height)
        ).save(path)
    return folder


def ring_of(x, y, width, height, degrees):
    """The corners of a rectangle turned clockwise about its top left one."""
    turn = math.radians(degrees)
    cos, sin = math.cos(turn), math.sin(turn)
    corners = [(0, 0), (width, 0), (width, height), (0, height)]
    return [(x + u * cos - v * sin, y + u * sin + v * cos) for u, v in corners]


def holed_mask(width: int, height: int) -> np.ndarray:
    """Two parts, one with a hole, touching the edge."""
    pixels = np.zeros((height, width), dtype=np.uint8)
    pixels[20:120, 30:150] = 1
    pixels[50:90, 60:100] = 0
    pixels[height - 40 :, width - 25 :] = 1
    return pixels


def compressed(pixels: np.ndarray) -> dict:
    found = masks.encode(np.asfortranarray(pixels))
    return {"size": found["size"], "counts": found["counts"].decode()}


def uncompressed(pixels: np.ndarray) -> dict:
    flat = pixels.flatten(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    return {"size": list(pixels.shape), "counts": ([0] if flat[0] else []) + counts}


def coco_sheet() -> dict:
    """Boxes, polygons, a turned rectangle, masks with holes, several rings, key points; an image without objects."""
    images = [
        {"id": number, "file_name": name, "width": width, "height": height}
        for number, (name, (width, height)) in enumerate(SIZES.items(), start=11)
    ]
    turned = [round(value, 3) for point in ring_of(300.5, 40.25, 120, 64, 33) for value in point]
    drawn = [
        (11, 3, [10.5, 20.25, 100, 50.5], None),
        (11, 3, None, [[400.5, 100, 500, 120.25, 470, 300, 390.75, 250.5]]),
        (11, 7, None, [turned]),
        (11, 3, None, compressed(holed_mask(640, 360))),
        (12, 7, None, uncompressed(holed_mask(200, 320))),
        (12, 3, None, [[10, 10, 60, 10, 60, 70], [90, 90, 150, 95, 140, 160, 95, 150]]),
        (14, 3, [0, 0, 333, 251], None),
    ]
    sheet = {
        "images": images,
        "categories": [
            {"id": 3, "name": LABELS[0]},
            {"id": 5, "name": LABELS[1]},
            {"id": 7, "name": LABELS[2], "keypoints": list(JOINTS), "skeleton": []},
        ],
        "annotations": [
            {"id": number, "image_id": image, "category_id": kind, "iscrowd": 0, "segmentation": shape or []}
            | {"bbox": box or bounds(shape), "area": area(box, shape)}
            for number, (image, kind, box, shape) in enumerate(drawn, start=101)
        ],
    }
    sheet["annotations"][2] |= {"keypoints": [320.5, 60, 2, 0, 0, 0, 350, 90.25, 1], "num_keypoints": 2}
    return sheet


def bounds(shape) -> list[float]:
    if isinstance(shape, list):
        xs = [x for ring in shape for x in ring[::2]]
        ys = [y for ring in shape for y in ring[1::2]]
        return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    rle = masks.frPyObjects(shape, *shape["size"]) if isinstance(shape["counts"], list) else shape
    return masks.toBbox(rle).tolist()


def area(box, shape) -> float:
    if box:
        return box[2] * box[3]
    if isinstance(shape, dict):
        return float(
            masks.area(masks.frPyObjects(shape, *shape["size"]) if isinstance(shape["counts"], list) else shape)
        )
    total = 0.0
    for ring in shape:
        xs, ys = np.array(ring[::2]), np.array(ring[1::2])
        total += abs(float(np.dot(xs, np.roll(ys, 1)) - np.dot(ys, np.roll(xs, 1)))) / 2
    return total


def make_coco(folder: Path, sheet: dict | None = None) -> Path:
    make_photos(folder / "images")
    file = folder / "instances.json"
    file.write_text(json.dumps(sheet or coco_sheet()))
    return file


# task: photo -> rows after the class, in shares, and the class
YOLO = {
    "detect": {"a.jpg": [(0, 0.5, 0.5, 0.25, 0.125), (2, 0.1, 0.2, 0.2, 0.4)], "sub/b.png": [(2, 0.5, 0.5, 1.0, 1.0)]},
    "segment": {"a.jpg": [(0, 0.1, 0.1, 0.5, 0.2, 0.4, 0.9), (2, 0.6, 0.6, 0.9, 0.6, 0.95, 0.9, 0.7, 0.95, 0.55, 0.8)]},
    "obb": {
        "a.jpg": [
            (0, *(v / s for p in ring_of(320.5, 60.25, 180, 70, 25) for v, s in zip(p, (640, 360), strict=True)))
        ],
        "sub/b.png": [
            (2, *(v / s for p in ring_of(100, 80, 60, 30, 210) for v, s in zip(p, (200, 320), strict=True))),
            (0, 0.1, 0.1, 0.3, 0.1, 0.3, 0.2, 0.1, 0.2),
        ],
    },
    "pose": {
        "a.jpg": [(0, 0.5, 0.5, 0.4, 0.6, 0.4, 0.3, 2, 0, 0, 0, 0.55, 0.35, 1), (0, 0.2, 0.2, 0.2, 0.2, *[0] * 9)],
        "sub/b.png": [(2, 0.5, 0.5, 0.5, 0.5, 0.4, 0.4, 2, 0.45, 0.4, 2, 0.5, 0.4, 2)],
    },
}


def make_yolo(folder: Path, task: str) -> Path:
    make_photos(folder / "images")
    for name in SIZES:
        path = (folder / "labels" / name).with_suffix(".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = YOLO[task].get(name, ())
        path.write_text("".join(f"{kind} {' '.join(f'{v:.9g}' for v in row)}\n" for kind, *row in rows))
    (folder / "data.yaml").write_text(make_yolo_sheet(task))
    return folder


def make_yolo_sheet(task: str) -> str:
    sheet = ["path: .", "train: images", "names:", *(f"  {n}: {label}" for n, label in enumerate(LABELS))]
    if task == "pose":
        sheet += ["kpt_shape: [3, 3]", f"kpt_names: {{0: {json.dumps(JOINTS)}}}"]
    return "\n".join(sheet) + "\n"


VOC = {
    "a.jpg": [("car", 1, 1, 640, 360), ("person", 11, 21, 110, 70)],
    "sub/b.png": [("car", 5, 6, 7, 8)],
    "empty.jpg": [],
}


def make_voc(folder: Path, first: int = 1) -> Path:
    make_photos(folder / "JPEGImages", tuple(VOC))
    (folder / "Annotations").mkdir()
    for name, drawn in VOC.items():
        width, height = SIZES[name]
        objects = "".join(
            f"<object><name>{label}</name><difficult>1</difficult><bndbox><xmin>{left - 1 + first}</xmin>"
            f"<ymin>{top - 1 + first}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
            for label, left, top, right, bottom in drawn
        )
        size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        page = f"<annotation><filename>{Path(name).name}</filename>{size}{objects}</annotation>"
        (folder / f"Annotations/{Path(name).stem}.xml").write_text(page)
    return folder


def make_classes(folder: Path) -> Path:
    for split, kind, name in (("train", "cat", "a.jpg"), ("train", "dog", "empty.jpg"), ("val", "cat", "ünï côde.jpg")):
        make_photos(folder / split / kind, (name,))
    return folder
