"""Read one file of a foreign format with a referee, and print its objects as JSON; runs in the referees' environment.

    python bench/foreign_referee.py FORMAT FOLDER

An object is [stem of the image, label, kind, x_min, y_min, x_max, y_max, area], in pixels.
"""

import json
import sys
from pathlib import Path


def cvat(folder):
    import datumaro as dm

    rows = []
    for path in sorted(folder.glob("*.xml")):
        data = dm.Dataset.import_from(str(path), "cvat")
        labels = data.categories()[dm.AnnotationType.label]
        for item in data:
            for one in item.annotations:
                label = labels[one.label].name if one.label is not None else ""
                rows += _datumaro_rows(Path(item.id).name, label, one)
    return rows


def _datumaro_rows(stem, label, one):
    kind = one.type.name
    if kind == "points":
        points = zip(one.points[::2], one.points[1::2], strict=True)
        return [[stem, label, "keypoint", x, y, x, y, 0.0] for x, y in points]
    if kind == "label":
        return [[stem, label, "class", 0, 0, 0, 0, 0]]
    if kind == "rotated_bbox":
        import numpy as np

        corners = np.array(one.as_polygon()).reshape(-1, 2)
        return [[stem, label, "rectangle", *corners.min(axis=0).tolist(), *corners.max(axis=0).tolist(), one.w * one.h]]
    if kind == "polyline":
        xs, ys = one.points[::2], one.points[1::2]
        return [[stem, label, "vector", min(xs), min(ys), max(xs), max(ys), 0.0]]
    if kind == "mask":
        import numpy as np

        ys, xs = np.nonzero(one.image)
        return [[stem, label, "mask", *map(float, (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1, len(xs)))]]
    x, y, width, height = one.get_bbox()
    kinds = {"bbox": "rectangle", "polygon": "polygon"}
    return [[stem, label, kinds[kind], x, y, x + width, y + height, one.get_area()]]


def createml(folder):
    """Datumaro takes the centre of a box for its top left corner: its boxes are moved by half their size."""
    import datumaro as dm

    rows = []
    data = dm.Dataset.import_from(str(folder), "roboflow_create_ml")
    labels = data.categories()[dm.AnnotationType.label]
    for item in data:
        for one in item.annotations:
            x, y, width, height = one.get_bbox()
            x, y = x - width / 2, y - height / 2
            rows.append(
                [Path(item.id).name, labels[one.label].name, "rectangle", x, y, x + width, y + height, width * height]
            )
    return rows


def dota(folder):
    """Shapely's areas and bounds of the corners; datumaro gives the number of objects."""
    import datumaro as dm
    import shapely

    rows = []
    for path in sorted(folder.glob("train/labelTxt/*.txt")):
        for line in path.read_text().splitlines():
            cells = line.split()
            if len(cells) > 8:
                corners = [float(cell) for cell in cells[:8]]
                quad = shapely.Polygon(list(zip(corners[::2], corners[1::2], strict=True)))
                area = quad.area if quad.is_valid else quad.buffer(0).area
                rows.append([path.stem, cells[8], "quad", *quad.bounds, area])
    counted = sum(len(item.annotations) for item in dm.Dataset.import_from(str(folder), "dota"))
    if counted != len(rows):
        raise SystemExit(f"datumaro reads {counted} objects, shapely {len(rows)}")
    return rows


def open_images(folder):
    import globox

    rows = []
    for path in sorted(folder.glob(".referee/*.csv")):
        for image in globox.AnnotationSet.from_openimage(path, image_folder=folder / ".referee"):
            for box in image.boxes:
                edges = box.xmin, box.ymin, box.xmax, box.ymax
                rows.append([image.image_id, box.label, "rectangle", *edges, box.area])
    return rows


def labelme(folder):
    """Globox for rectangles; for the other shapes shapely, from the JSON."""
    import globox
    import shapely

    rows = []
    for path in sorted(folder.glob("*.json")):
        boxes = globox.Annotation.from_labelme(path).boxes
        rows += [[path.stem, one.label, "rectangle", one.xmin, one.ymin, one.xmax, one.ymax, one.area] for one in boxes]
        groups = {}
        for number, shape in enumerate(json.loads(path.read_text())["shapes"]):
            kind, points = shape["shape_type"], shape["points"]
            if kind == "circle":
                (x, y), edge = points
                radius = ((edge[0] - x) ** 2 + (edge[1] - y) ** 2) ** 0.5
                box = x - radius, y - radius, x + radius, y + radius
                rows.append([path.stem, shape["label"], "ellipse", *box, 3.141592653589793 * radius**2])
            elif kind in {"line", "linestrip"}:
                rows.append([path.stem, shape["label"], "vector", *shapely.LineString(points).bounds, 0.0])
            elif kind == "point":
                rows.append([path.stem, shape["label"], "keypoint", *points[0], *points[0], 0.0])
            elif kind == "polygon":
                group = shape.get("group_id")
                groups.setdefault((shape["label"], number if group is None else f"g{group}"), []).append(points)
        for (label, _), parts in groups.items():
            whole = shapely.union_all([shapely.Polygon(part).buffer(0) for part in parts])
            kind = "polygon" if whole.geom_type == "Polygon" and len(parts) == 1 else "mask"
            rows.append([path.stem, label, kind, *whole.bounds, whole.area])
        rows += _labelme_masks(path)
    return rows


def _labelme_masks(path):
    import base64
    import io

    import numpy as np
    from PIL import Image

    rows = []
    for shape in json.loads(path.read_text())["shapes"]:
        if shape["shape_type"] == "mask":
            pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(shape["mask"]))).convert("L")) > 0
            left, top = (int(value) for value in shape["points"][0])
            ys, xs = np.nonzero(pixels)
            box = xs.min() + left, ys.min() + top, xs.max() + left + 1, ys.max() + top + 1
            rows.append([path.stem, shape["label"], "mask", *map(float, box), float(len(xs))])
    return rows


def captions(folder):
    from pycocotools.coco import COCO

    rows = []
    for path in sorted(folder.glob("*.json")):
        data = COCO(str(path))
        for image in data.loadImgs(data.getImgIds()):
            texts = {" ".join(one["caption"].split()) for one in data.loadAnns(data.getAnnIds(imgIds=[image["id"]]))}
            rows += [[Path(image["file_name"]).stem, text, "text", 0, 0, 0, 0, 0] for text in texts]
    return rows


READERS = {
    "cvat": cvat,
    "createml": createml,
    "dota": dota,
    "open-images": open_images,
    "labelme": labelme,
    "coco-captions": captions,
}


if __name__ == "__main__":
    out = sys.stdout
    sys.stdout = sys.stderr  # pycocotools prints
    rows = READERS[sys.argv[1]](Path(sys.argv[2]))
    out.write(json.dumps([[*row[:3], *map(float, row[3:])] for row in rows]) + "\n")
