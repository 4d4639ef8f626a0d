"""Real files of LabelMe, CVAT, Create ML, DOTA, Open Images and COCO captions, read beside datumaro, globox and others.

The files are those of `bench/sources.toml`, out of git mirrors in the folder LABELLOOP_MIRRORS, each at
`OWNER+NAME/repo`. BENCH_FORMATS_PYTHON is a Python with datumaro, globox, shapely and pycocotools. Images are not
read: each label file gets blank images of the size that it states, or of 1,600 x 1,200 pixels.
"""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import tempfile
import textwrap
import tomllib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from labelloop.labeling.geometry.shapes import Vector
from labelloop.service.datasets import DatasetProblem, open_source, read_dataset, shape_of
from labelloop.service.settings import Settings

SOURCES = Path(__file__).parent / "sources.toml"
SCRIPT = Path(__file__).with_name("foreign_referee.py")
VARIABLE = "BENCH_FORMATS_PYTHON"
SIZE = (1600, 1200)
# Its images, exported by Roboflow, have 416 x 416 pixels.
ROBOFLOW = "xrwalsh27/ANPR_XavierW"
# Images of Open Images that are in the folder; rows of others are passed over.
OPEN_IMAGES = 300
REFEREES = {
    "labelme": "globox (boxes), shapely, Pillow",
    "cvat": "datumaro",
    "createml": "datumaro",
    "dota": "datumaro (count), shapely",
    "open-images": "globox",
    "coco-captions": "pycocotools",
}

# [stem of the image, label, kind, x_min, y_min, x_max, y_max, area]
Row = Sequence[Any]


class Outcome(NamedTuple):
    """The comparison of one file."""

    images: int
    ours: int
    theirs: int | str
    unmatched: int
    edge: float
    area: float
    problems: Sequence[DatasetProblem]


def run() -> str:
    """Read every file both ways; a table with a line for each."""
    lines, missing = [], []
    outside: Mapping[str, str] = {"corner": "-", "centre": "-"}
    for source in _sources():
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            if not _lay_out(source, root):
                missing.append(f"{source['repo']}: {source['path']}")
                continue
            lines.append(_line(source, _compare(source["format"], root)))
            if source["repo"] == ROBOFLOW:
                outside = _outside(root)
    referees = "; ".join(f"{name} by {who}" for name, who in REFEREES.items())
    text = textwrap.fill(_TEXT.format(referees=referees, **outside), 99, break_on_hyphens=False)
    text = _PAGE.format(text=text, rows="\n".join(lines))
    return text + (f"\nNot there (set LABELLOOP_MIRRORS): {', '.join(missing)}.\n" if missing else "")


def _outside(root: Path) -> dict[str, str]:
    """The share of Create ML boxes that exceed an image of 416 pixels, by both readings of x and y."""
    [path] = root.glob("train/*.json")
    boxes = [one["coordinates"] for entry in json.loads(path.read_text()) for one in entry["annotations"]]
    share = {}
    for name, half in (("corner", 0.0), ("centre", 0.5)):
        starts = [(box["x"] - half * box["width"], box["y"] - half * box["height"]) for box in boxes]
        ends = [(x + box["width"], y + box["height"]) for (x, y), box in zip(starts, boxes, strict=True)]
        exceeding = sum(min(start) < -1 or max(end) > 417 for start, end in zip(starts, ends, strict=True))
        share[name] = f"{exceeding / len(boxes):.0%}"
    return share


def _sources() -> list[dict[str, str]]:
    entries = tomllib.loads(SOURCES.read_text())["source"]
    return [entry for entry in entries if "foreign_formats" in entry["benches"]]


def _lay_out(source: Mapping[str, str], root: Path) -> bool:
    """Write the files of a source and their blank images; whether the mirror has them."""
    repo = Path(os.environ.get("LABELLOOP_MIRRORS", "")) / source["repo"].replace("/", "+") / "repo"
    git = ["git", f"--git-dir={repo / '.git' if (repo / '.git').is_dir() else repo}"]
    listed = subprocess.run(
        [*git, "ls-tree", "-r", "--name-only", source["commit"], source["path"]],
        capture_output=True,
        text=True,
        check=False,
    )
    endings = (".json", ".xml", ".txt", ".csv")
    paths = [path for path in listed.stdout.splitlines() if path.endswith(endings)]
    for path in paths:
        shown = subprocess.run([*git, "show", f"{source['commit']}:{path}"], capture_output=True, check=False)
        if not shown.returncode:
            target = root / _PLACES.get(source["format"], "") / Path(path).name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(shown.stdout)
    for name, size in _image_sizes(source["format"], root).items():
        target = root / _IMAGES.get(source["format"], "") / name
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.new("1", size).save(target, "PNG" if not target.suffix or target.suffix == ".png" else None)
    return bool(paths)


# Format -> the folder of its label files, and of its images.
_PLACES = {"createml": "train", "dota": "train/labelTxt"}
_IMAGES = {"createml": "train", "dota": "train/images", "cvat": "images", "open-images": "images"}


def _image_sizes(kind: str, root: Path) -> dict[str, tuple[int, int]]:
    """The name and size of each blank image, read without the code that is judged."""
    sizes: dict[str, tuple[int, int]] = {}
    if kind == "cvat":
        for path in root.glob("*.xml"):
            for tag in re.findall(r"<image [^>]*>", path.read_text(encoding="utf-8")):
                fields = dict(re.findall(r'(\w+)="([^"]*)"', tag))
                sizes[fields["name"]] = int(fields["width"]), int(fields["height"])
    elif kind == "labelme":
        for path in root.glob("*.json"):
            content = json.loads(path.read_text())
            sizes[path.with_suffix(".jpg").name] = content["imageWidth"], content["imageHeight"]
    elif kind == "createml":
        for path in root.glob("train/*.json"):
            sizes |= {entry["image"]: SIZE for entry in json.loads(path.read_text())}
    elif kind == "dota":
        sizes = {f"{path.stem}.png": (6000, 5000) for path in root.glob("train/labelTxt/*.txt")}
    elif kind == "open-images":
        for path in root.glob("*-annotations-bbox.csv"):
            _copy_for_referee(path, root, sizes)
    return sizes


def _copy_for_referee(path: Path, root: Path, sizes: dict[str, tuple[int, int]]) -> None:
    """Globox needs each image, named as its id: it gets the rows of the first images alone."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    ids = list(dict.fromkeys(row["ImageID"] for row in rows if row["ImageID"]))[:OPEN_IMAGES]
    (root / ".referee").mkdir(exist_ok=True)
    with (root / ".referee" / path.name).open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(row for row in rows if row["ImageID"] in set(ids))
    for image in ids:
        sizes[image if image.endswith(".png") else f"{image}.png"] = SIZE
        Image.new("1", SIZE).save(root / ".referee" / image, "PNG")


def _compare(kind: str, root: Path) -> Outcome:
    data = read_dataset(
        open_source(str(root), Settings(home=root / ".home")), kind if kind == "coco-captions" else "auto"
    )
    if data.format != kind:
        raise SystemExit(f"A file of {kind} is detected as {data.format}.")
    items = list(data.images())
    images = [item for item in items if not isinstance(item, DatasetProblem)]
    codes = _codes(root) if kind == "open-images" else {}
    ours: list[Row] = []
    for image in images:
        stem = Path(image.name).stem
        for obj in image.objects:
            geometry = obj.geometry
            area = 0.0 if isinstance(geometry, Vector) else geometry.area
            shape = "quad" if kind == "dota" else shape_of(geometry)
            ours.append([stem, codes.get(obj.label, obj.label), shape, *geometry.bounds, area])
        ours += [[stem, choice, "class", 0, 0, 0, 0, 0] for choice in image.choices]
        ours += [[stem, text, "text", 0, 0, 0, 0, 0] for text in {" ".join(text.split()) for text in image.texts}]
    problems = [item for item in items if isinstance(item, DatasetProblem)]
    theirs = _ask(kind, root)
    if isinstance(theirs, str):
        return Outcome(len(images), len(ours), theirs, 0, 0.0, 0.0, problems)
    unmatched, edge, area = _differences(ours, theirs)
    return Outcome(len(images), len(ours), len(theirs), unmatched, edge, area, problems)


def _codes(root: Path) -> dict[str, str]:
    """Name of a class -> its code, which the referee reads."""
    codes: dict[str, str] = {}
    for path in root.glob("class-descriptions*.csv"):
        codes |= {row[1]: row[0] for row in csv.reader(path.read_text().splitlines()) if len(row) > 1}
    return codes


def _ask(kind: str, root: Path) -> list[Row] | str:
    """The objects that the referee reads, or why it reads none."""
    python = os.environ.get(VARIABLE)
    if not python:
        return "not on this machine"
    done = subprocess.run([python, "-I", str(SCRIPT), kind, str(root)], capture_output=True, text=True, check=False)
    if done.returncode:
        return f"stops: {done.stderr.strip().splitlines()[-1].rpartition(': ')[2]}"
    rows: list[Row] = json.loads(done.stdout)
    return rows


def _differences(ours: Sequence[Row], theirs: Sequence[Row]) -> tuple[int, float, float]:
    """Objects without a partner of the same image, label and kind; largest difference of an edge and, in %, an area."""
    groups: dict[tuple[str, ...], list[list[Row]]] = defaultdict(lambda: [[], []])
    for side, rows in enumerate((ours, theirs)):
        for row in rows:
            groups[tuple(row[:3])][side].append(row[3:])
    unmatched, edge, area = 0, 0.0, 0.0
    for left, right in groups.values():
        unmatched += abs(len(left) - len(right))
        remaining = np.array(right, float).reshape(-1, 5)
        for row in np.array(left, float).reshape(-1, 5):
            if not len(remaining):
                break
            nearest = int(np.abs(remaining[:, :4] - row[:4]).sum(axis=1).argmin())
            partner, remaining = remaining[nearest], np.delete(remaining, nearest, axis=0)
            edge = max(edge, float(np.abs(partner[:4] - row[:4]).max()))
            area = max(area, float(abs(partner[4] - row[4]) / max(partner[4], 1.0)))
    return unmatched, edge, area


def _line(source: Mapping[str, str], outcome: Outcome) -> str:
    reasons = sorted({problem.reason for problem in outcome.problems})
    left_out = f"{len(outcome.problems)}: {'; '.join(reasons)[:80]}" if outcome.problems else "0"
    beside = outcome.theirs if isinstance(outcome.theirs, str) else f"{outcome.theirs:,}"
    place = f"{source['repo']}: {source['path']}"
    return (
        f"| {source['format']} | {place} | {outcome.images:,} | {outcome.ours:,} | {beside} |"
        f" {outcome.unmatched} | {outcome.edge:.3f} | {outcome.area:.2%} | {left_out} |"
    )


_PAGE = """\
{text}

| format | file | images | objects | referee's | no partner | largest difference of an edge | of an area | left out |
|---|---|---|---|---|---|---|---|---|
{rows}
"""
_TEXT = """\
Real files from public repositories, read by `labelloop import` (format detected) and by referees:
{referees}. Each object is paired with the nearest one of the same image, label and kind. Edges are
those of bounding boxes, in pixels. Datumaro takes the centre of a Create ML box for its top left
corner, so its boxes are moved by half their size: {corner} of the boxes of ANPR_XavierW would
exceed their images of 416 x 416 pixels, {centre} by their centres. Grouped polygons become masks,
whose edges are whole pixels.
"""
