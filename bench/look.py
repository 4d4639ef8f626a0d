"""Near-duplicates by look on real images: recall by what was done to an image, pairs found, and who confirms them.

The sets are those of `bench/sources.toml` (benches: look), read out of git mirrors in the folder LABELLOOP_MIRRORS,
and BCCD and raccoons of the shared data. imagededup's PHash at its default distance of 10 is compared where
LOOK_REFEREE_PYTHON is a Python that has it (`pip install --no-deps imagededup` and pillow, scipy, PyWavelets; its
CNN, which needs torch, is not used). A pair counts as confirmed if SIFT keypoints of the full images agree on one
homography: a judge that knows nothing of thumbnails and hashes.
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
from PIL import Image, ImageEnhance

from bench.labelled import SHARED
from exporters.look.candidates import MAX_DISTANCE
from exporters.look.fingerprint import fingerprint, hashes_of
from exporters.look.twins import find_twins
from labelloop.service.media import MediaError

SOURCES = Path(__file__).parent / "sources.toml"
IMAGES = int(os.environ.get("BENCH_LOOK_IMAGES", "1000"))
CHANGED, CONFIRMED = 40, 200
PHASH_DISTANCE = 10
PNG = b"\x89PNG"
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp"}
# A referee in a Python of its own: paths on its input, a hash a line on its output.
REFEREE = """
import sys, types, warnings
from unittest.mock import MagicMock
warnings.simplefilter("ignore")
for name in ("torch", "torch.nn", "torch.utils", "torch.utils.data", "torchvision", "torchvision.models", "tqdm",
             "torchvision.transforms", "torchvision.models.vision_transformer", "sklearn", "sklearn.metrics",
             "sklearn.metrics.pairwise", "matplotlib", "matplotlib.figure", "matplotlib.gridspec", "matplotlib.pyplot",
             "imagededup.methods.cnn", "imagededup.evaluation"):
    sys.modules[name] = MagicMock()
from imagededup.methods.hashing import PHash
hasher = PHash(verbose=False)
for line in sys.stdin:
    try:
        print(hasher.encode_image(image_file=line.strip()) or "-", flush=True)
    except Exception:
        print("-", flush=True)
"""


def _encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _crop(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    width, height = image.size
    return image.crop(
        (round(width * left), round(height * top), round(width * (1 - right)), round(height * (1 - bottom)))
    )


def _scaled(image: Image.Image, share: float, how=Image.Resampling.LANCZOS) -> Image.Image:
    return image.resize((max(1, round(image.width * share)), max(1, round(image.height * share))), how)


def _brighter(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(factor)


CHANGES = {
    "half the size": lambda image: _encoded(_scaled(image, 0.5), quality=90),
    "a quarter of the size, bilinear, PNG": lambda image: _encoded(
        _scaled(image, 0.25, Image.Resampling.BILINEAR), "PNG"
    ),
    "JPEG quality 30": lambda image: _encoded(image, quality=30),
    "JPEG quality 10": lambda image: _encoded(image, quality=10),
    "crop of 3 % (1.5 % a side)": lambda image: _encoded(_crop(image, *[0.015] * 4), quality=90),
    "crop of 6 % (3 % a side)": lambda image: _encoded(_crop(image, *[0.03] * 4), quality=90),
    "crop of 10 % (5 % a side)": lambda image: _encoded(_crop(image, *[0.05] * 4), quality=90),
    "crop of 5 % of one side": lambda image: _encoded(_crop(image, 0.05, 0.015, 0, 0), quality=90),
    "brighter by 30 % (cut off at white)": lambda image: _encoded(_brighter(image, 1.3), quality=90),
    "darker by 30 %": lambda image: _encoded(_brighter(image, 0.7), quality=90),
    "contrast + 30 %": lambda image: _encoded(ImageEnhance.Contrast(image).enhance(1.3), quality=90),
    "grey": lambda image: _encoded(image.convert("L"), quality=90),
    "half the size, crop of 3 %, 15 % brighter, quality 50": lambda image: _encoded(
        _brighter(_crop(_scaled(image, 0.5), *[0.015] * 4), 1.15), quality=50
    ),
    "mirrored (--mirror)": lambda image: _encoded(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), quality=90),
}


@dataclass(frozen=True, eq=False)
class Data:
    """A set: its files and their thumbnails."""

    name: str
    what: str
    files: list[Path]
    thumbnails: np.ndarray


def run() -> str:
    """Measure on every set that is there, and give the tables."""
    with tempfile.TemporaryDirectory() as folder:
        sets = [data for data in _sets(Path(folder)) if data is not None]
        if not sets:
            return "No images: set LABELLOOP_MIRRORS to a folder of git mirrors."
        referee = os.environ.get("LOOK_REFEREE_PYTHON", "")
        hashes = {data.name: _referee(referee, data.files) for data in sets} if referee else {}
        return "\n\n".join((_recall(sets, hashes, referee, Path(folder)), _pairs(sets, hashes)))


def _sets(folder: Path) -> Iterator[Data | None]:
    for name in ("bccd", "raccoon"):
        files = sorted((SHARED / "data" / name / "images").glob("*.jp*g"))
        what = {"bccd": "microscopy: blood cells", "raccoon": "photos of raccoons"}[name]
        yield _data(name, what, files) if files else None
    for source in tomllib.loads(SOURCES.read_text())["source"]:
        if "look" in source["benches"]:
            yield _of_mirror(source, folder)


def _of_mirror(source: dict, folder: Path) -> Data | None:
    git = Path(os.environ.get("LABELLOOP_MIRRORS", "")) / source["repo"].replace("/", "+") / "repo"
    if not git.is_dir():
        return None
    root = ["git", f"--git-dir={git}"]
    path = source["path"].rstrip("/")
    listing = subprocess.run(
        [*root, "ls-tree", "-r", "--name-only", source["commit"], *([] if path == "." else [path])],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    names = [name for name in listing if PurePosixPath(name).suffix.lower() in SUFFIXES]
    names = [name for name in names if source.get("look_only", "") in name]
    names = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())[:IMAGES]
    name = source.get("name") or source["repo"].partition("/")[2]
    into = folder / name.replace(" ", "_")
    into.mkdir()
    files = []
    for number, file in enumerate(names):
        data = subprocess.run([*root, "show", f"{source['commit']}:{file}"], capture_output=True, check=True).stdout
        files.append(into / f"{number:05d}{PurePosixPath(file).suffix.lower()}")
        files[-1].write_bytes(data)
    return _data(name, source["what"], files)


def _data(name: str, what: str, files: list[Path]) -> Data:
    kept, thumbnails = [], []
    for file in files[:IMAGES]:
        try:
            thumbnails.append(fingerprint(file).thumbnail)
        except MediaError:
            continue
        kept.append(file)
    print(f"{name}: {len(kept)} images", flush=True)
    return Data(name, what, kept, np.array(thumbnails))


def _referee(python: str, files: list[Path]) -> np.ndarray:
    """imagededup's 64-bit hashes of files; zero where it has none."""
    lines = "\n".join(map(str, files)) + "\n"
    done = subprocess.run([python, "-I", "-c", REFEREE], input=lines, capture_output=True, text=True, check=True)
    return np.array([0 if line == "-" else int(line, 16) for line in done.stdout.split()], np.uint64)


def _recall(sets: list[Data], hashes: dict[str, np.ndarray], referee: str, folder: Path) -> str:
    found = {change: [0, 0, 0] for change in CHANGES}
    total = 0
    for data in sets:
        chosen = list(range(0, len(data.files), max(1, len(data.files) // CHANGED)))
        total += len(chosen)
        own = data.thumbnails[chosen]
        files: list[Path] = []
        for change, make in CHANGES.items():
            changed = [make(Image.open(data.files[index]).convert("RGB")) for index in chosen]
            thumbnails = np.stack([fingerprint(one).thumbnail for one in changed])
            twins = find_twins(np.concatenate([own, thumbnails]), mirror="mirrored" in change)
            pairs = {tuple(pair) for pair in twins.pairs[twins.twin].tolist()}
            found[change][0] += sum((row, row + len(chosen)) in pairs for row in range(len(chosen)))
            close = np.bitwise_count(hashes_of(own)[0] ^ hashes_of(thumbnails)[0]) <= MAX_DISTANCE
            found[change][1] += int(close.sum())
            for one in changed if referee else ():
                files.append(folder / f"changed-{len(files)}.{'png' if one[:4] == PNG else 'jpg'}")
                files[-1].write_bytes(one)
        if referee:
            theirs = _referee(referee, files).reshape(len(CHANGES), len(chosen))
            close = np.bitwise_count(hashes[data.name][chosen] ^ theirs) <= PHASH_DISTANCE
            for change, number in zip(CHANGES, close.sum(axis=1).tolist(), strict=True):
                found[change][2] += number
        print(f"{data.name}: changed", flush=True)
    lines = [
        "## Recall\n",
        f"{total} real images of {len(sets)} sets, each changed in every way, and found as near-duplicates of it.\n",
        "| change | found | our hash alone (distance 14) | imagededup PHash (distance 10) |",
        "|---|---|---|---|",
    ]
    for change, (ours, hash_only, theirs) in found.items():
        alone = "" if "mirrored" in change else f"{hash_only / total:.1%}"
        lines.append(
            f"| {change} | {ours / total:.1%} | {alone} | {f'{theirs / total:.1%}' if referee else 'not run'} |"
        )
    return "\n".join(lines)


def _pairs(sets: list[Data], hashes: dict[str, np.ndarray]) -> str:
    about = (
        "Confirmed: the share of pairs whose SIFT keypoints agree on one homography. SIFT finds few keypoints on smooth"
        f" and moving things: what it does not confirm may be right there. Of {CONFIRMED} at random where there are"
        " more.\n"
    )
    head = "| set | images | near-duplicates | confirmed | same scene | our hash alone | confirmed |"
    head += " imagededup PHash | confirmed |"
    lines = ["## Pairs found in the sets as they are\n", about, head, "|---" * 9 + "|"]
    for data in sets:
        twins = find_twins(data.thumbnails)
        own = hashes_of(data.thumbnails)[0]
        alone = _close(own, MAX_DISTANCE)
        cells = [_cells(data, twins.pairs[twins.twin].tolist()), str(int((~twins.twin).sum())), _cells(data, alone)]
        if data.name in hashes:
            cells.append(_cells(data, _close(hashes[data.name], PHASH_DISTANCE)))
        else:
            cells.append("not run | ")
        lines.append(f"| {data.name}: {data.what} | {len(data.files)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _close(hashes: np.ndarray, distance: int) -> list[list[int]]:
    close = np.bitwise_count(hashes[:, None] ^ hashes[None, :]) <= distance
    return np.argwhere(np.triu(close, 1)).tolist()


def _cells(data: Data, pairs: list[list[int]]) -> str:
    rng = np.random.default_rng(0)
    sample = pairs if len(pairs) <= CONFIRMED else [pairs[index] for index in rng.choice(len(pairs), CONFIRMED, False)]
    features: dict[int, tuple] = {}
    confirmed = sum(_same_picture(*[_features(data, index, features) for index in pair]) for pair in sample)
    return f"{len(pairs)} | {confirmed / len(sample):.0%}" if sample else "0 | "


def _features(data: Data, index: int, cache: dict[int, tuple]) -> tuple:
    if index not in cache:
        grey = cv2.imread(str(data.files[index]), cv2.IMREAD_GRAYSCALE)
        scale = 480 / max(grey.shape)
        grey = cv2.resize(
            grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        )
        cache[index] = cv2.SIFT_create(500, contrastThreshold=0.02).detectAndCompute(grey, None)
    return cache[index]


def _same_picture(first: tuple, second: tuple) -> bool:
    (points, descriptors), (other_points, other) = first, second
    if descriptors is None or other is None or len(descriptors) < 8 or len(other) < 8:
        return False
    matches = cv2.BFMatcher().knnMatch(descriptors, other, k=2)
    good = [pair[0] for pair in matches if len(pair) == 2 and pair[0].distance < 0.8 * pair[1].distance]
    if len(good) < 8:
        return False
    source = np.float32([points[match.queryIdx].pt for match in good])
    target = np.float32([other_points[match.trainIdx].pt for match in good])
    homography, inside = cv2.findHomography(source, target, cv2.RANSAC, 6.0)
    return homography is not None and int(inside.sum()) >= max(8, 0.5 * len(good))
