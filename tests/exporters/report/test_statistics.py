"""Statistics of a version: how its images are divided into blocks changes nothing, and memory is bounded."""

import numpy as np
import pytest

from exporters.formats.base import ObjectNumbers
from exporters.model.class_map import Categories
from exporters.model.records import Image
from exporters.pipeline.report_collector import _Classes
from exporters.report import statistics as module
from exporters.report.statistics import VersionStatistics

CLASSES = _Classes({}, Categories())


def images_of(count):
    return [Image(n, f"{n}.jpg", 640 * (n % 5 > 0), 480, ("train", "val")[n % 3 == 0], "", n) for n in range(count)]


def collected(images, counts, class_ids, block, samples=4):
    statistics, first = VersionStatistics(samples), np.concatenate(([0], np.cumsum(counts)))
    for start in range(0, len(images), block):
        part = slice(start, min(start + block, len(images)))
        ids = class_ids[first[part.start] : first[part.stop]]
        values = np.column_stack((ids, np.tile((10.0, 10.0, 50.0, 40.0, 1200.0), (len(ids), 1))))
        numbers = ObjectNumbers(counts[part], values)
        statistics.add("", images[part], [b""] * len(images[part]), CLASSES, numbers)
    statistics.measure()
    return statistics


@pytest.mark.parametrize("block", [1, 7, 50])
def test_blocks_do_not_change_counts_or_samples(block):
    rng = np.random.default_rng(block)
    images, counts = images_of(300), rng.integers(0, 4, 300)
    class_ids = rng.choice([1, 2, 3, 9], counts.sum(), p=[0.6, 0.3, 0.08, 0.02])
    whole, parts = (collected(images, counts, class_ids, size) for size in (300, block))
    assert [image for image, _ in parts.samples()] == [image for image, _ in whole.samples()]
    for name in (
        "images",
        "objects",
        "images_with_class",
        "images_without_objects",
        "objects_per_image",
        "image_sizes",
    ):
        assert getattr(parts, name) == getattr(whole, name)
    assert whole.images_without_objects.total() == np.count_nonzero(counts == 0)
    assert whole.objects.total() == len(class_ids)


def test_images_without_objects_are_measured_in_time(monkeypatch):
    monkeypatch.setattr(module, "_WAITING", 10)
    statistics = VersionStatistics(0)
    for image in images_of(25):
        statistics.add("", [image], [b""], CLASSES)
        assert len(statistics._sizes) < 10
    statistics.measure()
    assert statistics.images_without_objects.total() == 25
