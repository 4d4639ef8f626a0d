"""Peak memory of a fit by the number of labelled images, with the features on disk as a worker has them."""

from __future__ import annotations

import multiprocessing
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from ml_backend.inference.detector import embedded_model
from ml_backend.learning.annotations import LabelledImage
from ml_backend.learning.features import FeatureProvider
from ml_backend.malloc import trim_memory, use_single_arena
from ml_backend.training.backbone import open_backbone
from ml_backend.training.feature_cache import FeatureCache
from ml_backend.training.model_selection import select_and_fit
from tests.drawn import draw_shapes

IMAGES = (13, 60, 150, 300)


class _Drawn:
    """Images by number in place of a URL."""

    def photo(self, url: str, **_: object) -> SimpleNamespace:
        pixels = np.asarray(draw_shapes(int(url), ("Disc", "Square"))[0])
        return SimpleNamespace(pixels=pixels, width=pixels.shape[1], height=pixels.shape[0])


def run() -> str:
    """The table."""
    rows = [
        "A process with the embedded model opens the features of drawn images and fits boxes on them. Resident memory",
        "with the features open, the peak of the fit, and what stays after it, in MB.",
        "",
        "| labelled images | features open | peak of the fit | after it |",
        "|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for count in IMAGES:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                before, peak, after = pool.apply(measured, (folder, count))
            rows.append(f"| {count} | {before:.0f} | **{peak:.0f}** | {after:.0f} |")
            print(rows[-1], flush=True)
    return "\n".join(rows)


def measured(folder: str, count: int) -> tuple[float, float, float]:
    """Resident megabytes before, at most during, and after a fit."""
    use_single_arena()
    backbone = open_backbone(embedded_model(), folder=Path(folder, "backbone"), threads=1)
    provider = FeatureProvider(_Drawn(), FeatureCache(Path(folder, "features"), max_bytes=10**10))  # type: ignore[arg-type]
    examples = []
    for number in range(count):
        pixels, objects = draw_shapes(number, ("Disc", "Square"))
        height, width = np.asarray(pixels).shape[:2]
        boxes, labels = tuple(box for _, box in objects), tuple(label for label, _ in objects)
        image = LabelledImage(str(number), width, height, boxes, labels)
        examples.append(provider.example(backbone, image, task=number))
    trim_memory()
    before = _resident_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    select_and_fit(examples, levels=backbone.levels)
    peak = _resident_mb("VmHWM")
    trim_memory()
    return before, peak, _resident_mb("VmRSS")


def _resident_mb(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    return 0.0
