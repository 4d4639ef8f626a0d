"""The photos that the benches of learning work on, as a backbone sees them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ml_backend.training.backbone import open_backbone
from ml_backend.training.datasets import LocalImage, read_labelled
from ml_backend.training.examples import Example
from ml_backend.training.feature_cache import FeatureCache
from ml_backend.training.simulate import FeatureSource, decodable_images

SHARED = Path(__file__).parents[2] / "shared"
NANO = SHARED / "models" / "yolox_nano.onnx"
MISSING = "Not measured: the data sets are not on this machine."


def with_nano(measure: Callable[[FeatureSource], str]) -> str:
    """What is measured on photos as the YOLOX-nano sees them, in Markdown; where these are missing, just that."""
    if not NANO.is_file():
        return MISSING
    with tempfile.TemporaryDirectory() as folder:
        return measure(album(NANO, Path(folder)))


def album(model: Path, folder: Path) -> FeatureSource:
    """An album of a model, kept in a folder."""
    backbone = open_backbone(model, folder=folder, threads=1)
    return FeatureSource(backbone, FeatureCache(folder / "sights", max_bytes=2**32))


def training_photos(album: FeatureSource, data: str) -> tuple[list[LocalImage], list[Example]]:
    """The photos of a data set that no bench judges AP50 on, all of which can be decoded."""
    root = SHARED / "data" / data
    labelled = read_labelled(root / "images", root / "annotations_voc")
    listed = root / "val.txt"
    held = labelled.listed(listed)[0] if listed.is_file() else {one.name for one in labelled.images[::4]}
    good, _ = decodable_images(album, [one for one in labelled.images if one.name not in held], lambda *_: None)
    return good, [album.example(one) for one in good]


def drawn(examples: Sequence[Example], seed: int, count: int | None = None) -> list[Example]:
    """So many of the examples, by chance."""
    return [examples[index] for index in np.random.default_rng(seed).permutation(len(examples))[:count]]
