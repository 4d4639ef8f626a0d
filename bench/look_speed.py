"""The rate of `labelloop dataset check` and the memory that it takes: reading images, and comparing 100,000 of them."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from exporters.look.fingerprint import SIDE
from exporters.look.twins import find_twins

IMAGES = int(os.environ.get("BENCH_LOOK_FILES", "3000"))
COMPARED = int(os.environ.get("BENCH_LOOK_COMPARED", "100000"))
TWINS = 0.05
SIZES = ((640, 480), (1280, 960), (1920, 1080))


def run() -> str:
    """Measure in processes of their own, so that each has its own peak of memory."""
    return "\n".join(
        subprocess.run(
            [sys.executable, "-m", "bench.look_speed", part], capture_output=True, text=True, check=True
        ).stdout.strip()
        for part in ("read", "again", "compare")
    )


def read(*, again: bool) -> str:
    """Check a folder of JPEGs, once or a second time."""
    from exporters.check.images import folder_dataset
    from exporters.check.run import CheckOptions, check
    from labelloop.service.settings import Settings

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "yolo"
        _write(root)
        settings = Settings(home=Path(folder) / "home", label_studio_api_key="")
        workers = os.cpu_count() or 1
        for _ in range(1 + again):
            started = time.perf_counter()
            report = check(folder_dataset(str(root), settings), settings, CheckOptions(workers=workers))
            seconds = time.perf_counter() - started
        what = "again, nothing new to read" if again else f"first time, {workers} processes"
        images = report.looked_at["images"]
        return (
            f"- {images:,} JPEGs of 640 x 480 to 1920 x 1080, {what}: {images / seconds:,.0f} images a second;"
            + _peak()
        )


def compare() -> str:
    """Find the twins among many thumbnails: drawn patterns, of which some are changed copies of others."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        thumbnails = np.memmap(Path(folder) / "thumbnails", np.uint8, "w+", shape=(COMPARED, SIDE, SIDE))
        for start in range(0, COMPARED, 1000):
            count = min(1000, COMPARED - start)
            thumbnails[start : start + count] = _patterns(rng, count)
        copies = int(COMPARED * TWINS)
        for copy, original in enumerate(rng.choice(COMPARED - copies, copies, replace=False) + copies):
            noisy = thumbnails[original] * rng.uniform(0.8, 1.0) + rng.normal(0, 3, (SIDE, SIDE))
            thumbnails[copy] = noisy.clip(0, 255)
        started = time.perf_counter()
        twins = find_twins(thumbnails)
        seconds = time.perf_counter() - started
        found = int(twins.twin.sum())
        return (
            f"- {COMPARED:,} fingerprints compared with each other: {seconds:.0f} s, {found:,} of {copies:,} planted"
            " pairs found;" + _peak()
        )


def _patterns(rng: np.random.Generator, count: int) -> np.ndarray:
    """Random images whose power falls with the frequency, as that of photos (1/f)."""
    frequencies = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.fftfreq(SIDE)[None, :])
    spectrum = np.fft.fft2(rng.normal(size=(count, SIDE, SIDE))) / np.maximum(frequencies, 1 / SIDE) ** 1.2
    values = np.fft.ifft2(spectrum).real
    values = (values - values.mean(axis=(1, 2), keepdims=True)) / values.std(axis=(1, 2), keepdims=True)
    return (values * 45 + 120).clip(0, 255).astype(np.uint8)


def _write(root: Path) -> None:
    import cv2

    rng = np.random.default_rng(0)
    (root / "images" / "train").mkdir(parents=True)
    (root / "labels" / "train").mkdir(parents=True)
    (root / "data.yaml").write_text("train: images/train\nnames: [car]\n")
    for number, pattern in enumerate(_patterns(rng, IMAGES)):
        image = cv2.resize(pattern, SIZES[number % len(SIZES)], interpolation=cv2.INTER_CUBIC)
        image = cv2.merge([image, 255 - image, image])
        cv2.imwrite(str(root / f"images/train/{number}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 90])
        (root / f"labels/train/{number}.txt").write_text("0 0.5 0.5 0.2 0.2\n")


def _peak() -> str:
    return f" {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB at most in the main process"


if __name__ == "__main__":
    print({"read": lambda: read(again=False), "again": lambda: read(again=True), "compare": compare}[sys.argv[1]]())
