"""Object masks of COCO found in public repositories, read out of git mirrors.

`bench/sources.toml` names repository, commit and terms of each. The mirrors are in the folder LABELLOOP_MIRRORS, each
at `<owner>+<name>/repo`. Images of the COCO sample, on which the smart tools are judged, are left out.
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SOURCES = Path(__file__).parent / "sources.toml"
BENCH = "fit_outline"

# Annotations beside these cover one person an image, and only large ones: such objects are drawn less often.
PERSONS = "minto5z/coco_yolo"


@dataclass(frozen=True, eq=False)
class MaskedImage:
    """An image with the outlines of its objects.

    Attributes:
        source: The repository.
        coco_id: COCO's number of the image.
        pixels: (h, w, 3) uint8 RGB.
        objects: Per object its polygons, (n, 2) float32 pixels each.
    """

    source: str
    coco_id: int
    pixels: np.ndarray
    objects: tuple[tuple[np.ndarray, ...], ...]


class Mirror:
    """A git mirror at one commit."""

    def __init__(self, folder: Path, commit: str) -> None:
        """Open the mirror in `folder`, a git directory or a clone."""
        self._git = folder / ".git" if (folder / ".git").is_dir() else folder
        self._commit = commit

    def paths(self) -> list[str]:
        """Paths of all files."""
        return self._run("ls-tree", "-r", "-z", "--name-only", self._commit).decode().split("\0")[:-1]

    def read(self, paths: Iterable[str]) -> Iterator[bytes]:
        """Contents of files, in order; empty where the mirror lacks one."""
        command = ["git", f"--git-dir={self._git}", "cat-file", "--batch"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            for path in paths:
                process.stdin.write(f"{self._commit}:{path}\n".encode())
                process.stdin.flush()
                header = process.stdout.readline().split()
                if header[-1] == b"missing":
                    yield b""
                    continue
                yield process.stdout.read(int(header[2]))
                process.stdout.read(1)
            process.stdin.close()

    def _run(self, *arguments: str) -> bytes:
        return subprocess.run(["git", f"--git-dir={self._git}", *arguments], capture_output=True, check=True).stdout


def sources() -> list[dict[str, str]]:
    """Entries of `bench/sources.toml` for this recipe, in order."""
    return [entry for entry in tomllib.loads(SOURCES.read_text())["source"] if BENCH in entry["benches"]]


def read_masks(mirrors: Path, left_out: set[int]) -> list[MaskedImage]:
    """Read every image with masks, each once, with the most complete annotation.

    Args:
        mirrors: Folder of the git mirrors.
        left_out: COCO ids of images that are not read.

    Raises:
        SystemExit: A mirror is missing; the message names its repository.
    """
    opened: dict[str, Mirror] = {}
    images: dict[int, tuple[Mirror, str]] = {}
    for entry in sources():
        if entry["repo"] in opened:
            continue
        folder = mirrors / entry["repo"].replace("/", "+") / "repo"
        if not folder.is_dir():
            raise SystemExit(f"No mirror of github.com/{entry['repo']} at {folder}; set LABELLOOP_MIRRORS.")
        opened[entry["repo"]] = mirror = Mirror(folder, entry["commit"])
        for path in mirror.paths():
            if match := re.search(r"(\d{12})\.jpg$", path):
                images.setdefault(int(match[1]), (mirror, path))
    outlines: dict[int, tuple[str, list[tuple[np.ndarray, ...]]]] = {}
    for entry in sources():
        mirror = opened[entry["repo"]]
        reading = _yolo_outlines if entry["path"].endswith("/") else _coco_outlines
        for coco_id, objects in reading(mirror, entry["path"]).items():
            known = outlines.get(coco_id)
            if coco_id in images and coco_id not in left_out and (known is None or len(known[1]) < len(objects)):
                outlines[coco_id] = entry["repo"], objects
    found = []
    for coco_id in sorted(outlines):
        source, objects = outlines[coco_id]
        mirror, path = images[coco_id]
        [data] = mirror.read([path])
        if not data:
            continue
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        if _is_share(objects):
            size = np.array([pixels.shape[1], pixels.shape[0]], np.float32)
            objects = [tuple(polygon * size for polygon in polygons) for polygons in objects]
        found.append(MaskedImage(source, coco_id, pixels, tuple(objects)))
    return found


def mirrors_folder() -> Path:
    """The folder LABELLOOP_MIRRORS."""
    return Path(os.environ.get("LABELLOOP_MIRRORS", ""))


def _coco_outlines(mirror: Mirror, path: str) -> dict[int, list[tuple[np.ndarray, ...]]]:
    """Polygons by image of a COCO file; crowds and run-length masks are left out."""
    [data] = mirror.read([path])
    outlines: dict[int, list[tuple[np.ndarray, ...]]] = defaultdict(list)
    for annotation in json.loads(data)["annotations"] if data else ():
        rings = annotation["segmentation"]
        if annotation.get("iscrowd") or not isinstance(rings, list):
            continue
        polygons = tuple(np.array(ring, np.float32).reshape(-1, 2) for ring in rings if len(ring) >= 6)
        if polygons:
            outlines[int(annotation["image_id"])].append(polygons)
    return outlines


def _yolo_outlines(mirror: Mirror, folder: str) -> dict[int, list[tuple[np.ndarray, ...]]]:
    """Polygons by image of a folder of YOLO segment labels, as shares of the image's size."""
    paths = [path for path in mirror.paths() if path.startswith(folder) and path.endswith(".txt")]
    outlines = {}
    for path, data in zip(paths, mirror.read(paths), strict=True):
        lines = [line.split()[1:] for line in data.decode().splitlines()]
        objects = [(np.array(line, np.float32).reshape(-1, 2),) for line in lines if len(line) >= 6]
        if objects and Path(path).stem.isdigit():
            outlines[int(Path(path).stem)] = objects
    return outlines


def _is_share(objects: list[tuple[np.ndarray, ...]]) -> bool:
    return all(float(polygon.max()) <= 1.0 for polygons in objects for polygon in polygons)
