"""The numbers of many records at once are those of one record after the other, to the bit."""

import random

import numpy as np
import pytest

from exporters.formats.decode_numbers import ObjectNumbers, _one_by_one, decode_numbers
from exporters.report.statistics import VersionStatistics


@pytest.mark.parametrize("name", ["coco", "voc", "yolo-detect", "yolo-obb", "yolo-segment"])
@pytest.mark.parametrize("kinds", ["boxes", "mixed"])
def test_numbers_are_those_of_each_object(run, build, monkeypatch, name, kinds):
    rng = random.Random(1)

    def region(index):
        box = build.box(
            rng.uniform(-9, 80), rng.uniform(-9, 80), rng.uniform(1, 30), rng.uniform(1, 30), id=f"b{index}"
        )
        if kinds == "boxes":
            return box
        turned = box | {"value": box["value"] | {"rotation": rng.uniform(0, 360)}}
        polygon = build.polygon([[1, 1], [60, 5], [40, 40 + rng.random()]], "a<b", id=f"b{index}")
        return rng.choice([box, turned, polygon, build.ellipse(50, 50, 20, 9, id=f"b{index}")])

    seen = []
    add = VersionStatistics.add

    def checked(self, fmt, images, records, classes, numbers=None):
        expected = _one_by_one(fmt, records, images, classes)
        for found in (decode_numbers(fmt, records, images, classes), numbers):
            if found is not None:
                assert isinstance(found, ObjectNumbers)
                np.testing.assert_array_equal(found.counts, expected.counts)
                np.testing.assert_array_equal(found.values, expected.values)
                seen.append(found)
        add(self, fmt, images, records, classes, numbers)

    monkeypatch.setattr(VersionStatistics, "add", checked)
    tasks = [
        build.task(n, build.annotation(*map(region, range(rng.randrange(1, 6))))) for n in range(1, 140)
    ]  # of two blocks
    run(tasks, formats=(name,), label_config=None, archives=True)
    has_numbers = name in {"coco", "voc", "yolo-detect"} or (kinds, name) == ("boxes", "yolo-obb")
    assert len(seen) >= 1 + has_numbers
