"""What is said of classes and boxes: one data set for each kind of finding, and a good one for which nothing is."""

import pytest

from exporters.check.boxes import BoxChecker, ClassStatistics
from exporters.check.findings import FINDING_KINDS, CheckReport
from exporters.check.images import CheckedImage, CheckedObject

SIZE = (1000, 800)


def image(*objects, split="train", size=SIZE, classes=()):
    boxes = tuple(CheckedObject(label, box) for label, *box in objects for box in [tuple(map(float, box))])
    return CheckedImage("a.jpg", split, *size, None, b"0" * 16, boxes, classes)


def checked(images, *, actual=None, classes=("car",), **options) -> CheckReport:
    report, statistics = CheckReport(), ClassStatistics()
    for item in images:
        statistics.add(item)
    statistics.report(classes, report)
    checker = BoxChecker(statistics.usual(), report, **options)
    for position, item in enumerate(images):
        checker.check(position, item, actual)
    checker.finish()
    return report


def usual(number=60, split="train"):
    """Images with a box of about 200 x 100 pixels."""
    return [image(("car", 100 + n, 100, 300 + 2 * n, 200 + n), split=split) for n in range(number)]


def test_usual_boxes_have_no_findings():
    assert checked(usual()).counts == {}


ODD = {
    "box-tiny": image(("car", 10, 10, 18, 18)),
    "box-aspect": image(("car", 10, 10, 510, 30)),
    "box-whole-image": image(("car", 0, 0, 1000, 799)),
    "box-twice": image(("car", 100, 100, 300, 200), ("car", 101, 100, 301, 200)),
    "box-two-classes": image(("car", 100, 100, 300, 200), ("bus", 101, 100, 301, 200)),
    "box-outlier": image(("car", 100, 100, 125, 112)),
    "box-off-image": image(("car", 100, 100, 300, 200), ("car", 900, 750, 1300, 850)),
    "box-edge": image(("car", 0, 100, 200, 200)),
    "image-size": image(("car", 1100, 900, 1300, 1000)),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_box_is_found(kind):
    report = checked([*usual(), ODD[kind]])
    assert report.counts[kind] == 1
    assert {found for found in report.kinds() if found.startswith("box")} <= {kind, "box-edge"}


def test_tiny_is_measured_at_the_input_of_the_model():
    large = image(("car", 10, 10, 30, 30), size=(4000, 3000))
    assert checked([large]).counts["box-tiny"] == 1
    assert checked([large], input_size=4000).counts["box-tiny"] == 0


def test_labels_for_a_smaller_copy_are_scaled():
    assert checked(usual(), actual=(2000, 1600)).counts == {}


def test_labels_before_exif_rotation_are_said():
    report = checked(usual(3), actual=(800, 1000))
    assert report.counts["image-size"] == 3
    assert "EXIF" in report.examples("image-size")[0].detail


@pytest.mark.parametrize(
    ("kind", "images"),
    [
        ("class-missing", [*usual(), *[image(("bus", 100, 100, 300, 200), split="val")] * 30]),
        ("class-rare", [*usual(), image(("bus", 100, 100, 300, 200))]),
        ("class-imbalance", [*usual(3000), *[image(("bus", 100, 100, 300, 200))] * 25]),
        (
            "class-shares",
            [
                *usual(200),
                *[image(("bus", 100, 100, 300, 200))] * 20,
                *usual(50, "val"),
                *[image(("bus", 100, 100, 300, 200), split="val")] * 40,
            ],
        ),
    ],
)
def test_unbalanced_classes_are_found(kind, images):
    report = checked(images, classes=("car", "bus"))
    assert report.counts[kind]


def test_splits_of_equal_shares_are_not_reported():
    images = [image((label, 100, 100, 300, 200), split=split) for label in ("car", "bus") for split in ("train", "val")]
    assert checked(images * 60, classes=("car", "bus")).counts == {}


def test_classes_of_whole_images_count():
    report = checked([image(classes=("cat",))] * 30, classes=("cat", "dog"))
    assert [dict(row.objects) for row in report.classes] == [{"train": 30}, {"train": 0}]
    assert report.examples("class-missing")[0].detail.startswith("dog")


def test_worst_findings_are_kept_and_all_are_counted():
    tiny = [image(("car", 10, 10, 11 + n / 100, 11 + n / 100)) for n in range(500)]
    report = checked(tiny)
    assert report.counts["box-tiny"] == 500
    assert report.examples("box-tiny")[0].images[0].position == 0
    assert len(report.examples("box-tiny")) < 500


def test_every_kind_says_effect_and_fix():
    assert all(kind.title and kind.effect and kind.fix for kind in FINDING_KINDS.values())
