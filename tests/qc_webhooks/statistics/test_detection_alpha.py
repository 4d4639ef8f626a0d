"""Detection alpha against KaLOS, its interval, and its memory."""

import math
import random
import tracemalloc

import numpy as np
import pytest

from labelloop.labeling.geometry.shapes import Polygon, Rectangle
from labelloop.labeling.region import Region
from qc_webhooks.agreement.detection_counts import THRESHOLDS, count_detections
from qc_webhooks.statistics.detection_alpha import MIN_IMAGES, DetectionAgreement

# (mean over images, global) of KaLOS 0.8.0 for `images(7, shape)` without those of a single annotator: `calculate_iaa`
# with greedy, category_lenient and bbox_iou_similarity or segm_iou_similarity. `test_equals_kalos_live` repeats them
# where KaLOS is installed.
KALOS = {
    ("box", 0.3): (0.638333, 0.491538),
    ("box", 0.5): (0.638333, 0.491538),
    ("box", 0.75): (0.411600, 0.120352),
    ("polygon", 0.3): (0.586763, 0.579566),
    ("polygon", 0.5): (0.550714, 0.517143),
    ("polygon", 0.75): (0.237541, -0.021436),
}


def outline(rng, x, y, width, height):
    """A ragged ellipse with 6, 12 or 25 corners."""
    corners = rng.choice([6, 12, 25])
    return tuple(
        (
            x + width / 2 * (1 + math.cos(2 * math.pi * step / corners) * rng.uniform(0.85, 1.1)),
            y + height / 2 * (1 + math.sin(2 * math.pi * step / corners) * rng.uniform(0.85, 1.1)),
        )
        for step in range(corners)
    )


def images(seed, shape, *, count=40, classes=4):
    """Images as (annotators, [(annotator, label, shape)]): 1 to 4 of five annotators each, some without objects."""
    rng = random.Random(seed)
    for _ in range(count):
        annotators = [f"r{index}" for index in rng.sample(range(5), rng.choice([1, 2, 2, 3, 4]))]
        objects = [
            (rng.uniform(0, 800), rng.uniform(0, 800), rng.uniform(30, 200), rng.uniform(30, 200),
             rng.randrange(classes))
            for _ in range(rng.choice([0, 0, 1, 3, 6, 12]))
        ]  # fmt: skip
        drawn = []
        for annotator in annotators:
            for x, y, width, height, label in objects:
                if rng.random() < 0.15:
                    continue
                answer = rng.randrange(classes) if rng.random() < 0.1 else label
                at = x + rng.gauss(0, width * 0.06), y + rng.gauss(0, height * 0.06)
                size = width * rng.uniform(0.9, 1.1), height * rng.uniform(0.9, 1.1)
                form = Rectangle(*at, *size) if shape == "box" else Polygon(outline(rng, *at, *size))
                drawn.append((annotator, answer, form))
        yield annotators, drawn


def region(label, shape):
    return Region(shape, (str(label),), "r", "label", "image", "rectanglelabels", None, 0, 1000, 1000)


def counts_of(annotators, drawn, match_iou):
    if not drawn or len(annotators) < 2:
        return {}
    regions = [region(label, shape) for _, label, shape in drawn]
    owners = [annotators.index(annotator) for annotator, _, _ in drawn]
    return {"label": count_detections(regions, owners, annotators=len(annotators), match_iou=match_iou)}


def agreement(seen, match_iou=0.5):
    """Detection alpha of images."""
    collected = DetectionAgreement()
    for annotators, drawn in seen:
        collected.add(counts_of(annotators, drawn, match_iou), annotators=len(annotators))
    return collected.estimates()["label"]


@pytest.mark.parametrize(("shape", "threshold"), KALOS)
def test_equals_kalos_recorded(shape, threshold):
    mean, together = KALOS[shape, threshold]
    found = agreement(images(7, shape), match_iou=threshold)
    assert found.mean_alpha.value == pytest.approx(mean, abs=0.0005)
    assert found.alpha.value == pytest.approx(together, abs=0.0005)
    assert found.match_iou == threshold


def kalos(seen, shape, threshold):
    core = pytest.importorskip("kalos.iaa.core", reason="KaLOS is not installed")
    processed, numbers = {}, iter(range(1_000_000))
    for index, (annotators, drawn) in enumerate(seen):
        if len(annotators) < 2:
            continue
        by_rater = {}
        for rater, label, form in drawn:
            left, top, right, bottom = form.bounds
            one = {"id": next(numbers), "rater_id": rater, "category_id": label}
            one["bbox"] = [left, top, right - left, bottom - top]
            if shape != "box":
                one["segmentation"] = [[value for point in form.points for value in point]]
            by_rater.setdefault(rater, []).append(one)
        processed[index] = {"file_name": str(index), "rater_list": annotators, "annotations_by_rater": by_rater}
    similarity = "bbox_iou_similarity" if shape == "box" else "segm_iou_similarity"
    raters = sorted({rater for image in processed.values() for rater in image["rater_list"]})
    categories = {label: str(label) for label in range(4)}
    return core.calculate_iaa(
        processed, categories, "greedy", similarity, "category_lenient", threshold, False, False, False, raters
    )[:2]


@pytest.mark.parametrize("shape", ["box", "polygon"])
def test_equals_kalos_live(shape):
    for seed, threshold in ((7, 0.3), (7, 0.5), (7, 0.75), (8, 0.5)):
        mean, together = kalos(images(seed, shape), shape, threshold)
        found = agreement(images(seed, shape), match_iou=threshold)
        assert found.mean_alpha.value == pytest.approx(mean, abs=1e-6)
        assert found.alpha.value == pytest.approx(together, abs=1e-6)


def test_curve_is_alpha_at_each_threshold():
    curve = agreement(images(3, "box"), match_iou=0.31).curve
    assert [threshold for threshold, _, _ in curve] == list(THRESHOLDS)
    for threshold, together, mean in curve[4::5]:
        there = agreement(images(3, "box"), match_iou=threshold)
        found = there.alpha.value, there.mean_alpha.value
        assert found == pytest.approx((together.value, mean.value), abs=1e-12)


def copies(count, annotators=3):
    """Images on which all annotators agree."""
    names = [str(index) for index in range(annotators)]
    for index in range(count):
        shapes = [Rectangle(50.0 * place, 10.0 + index, 40.0, 40.0) for place in range(4)]
        yield names, [(name, 0, shape) for name in names for shape in shapes]


def test_copies_agree_wholly_with_room_for_chance():
    found = agreement(copies(30))
    for estimate in (found.alpha, found.mean_alpha, found.f1):
        assert estimate.value == estimate.high == 1.0
        assert 0.85 < estimate.low < 1.0
        assert estimate.n == 30


def test_images_of_one_annotator_are_left_out():
    alone = (["a"], [("a", 0, Rectangle(0.0, 0.0, 9.0, 9.0))])
    seen = list(images(5, "box"))
    assert agreement([*seen, *[alone] * 20]) == agreement(seen)


def test_empty_images_count_for_every_control():
    seen = list(copies(10))
    found = agreement([*seen, *[(["a", "b"], [])] * 10])
    assert (found.images, found.images_with_regions) == (20, 10)


def test_few_images_or_objects_give_no_value():
    found = agreement(copies(MIN_IMAGES - 1))
    assert found.alpha.value is None
    assert found.alpha.evidence == "not enough evidence: 4 of the 5 required images have objects"
    one_object = [(names, drawn[:1]) for names, drawn in copies(10)]
    assert agreement(one_object).alpha.evidence == "not enough evidence: 10 of the 20 required objects"


def test_f1_needs_the_same_label_and_half_overlap():
    names = ["a", "b"]
    pairs = [
        (Rectangle(0.0, 0.0, 100.0, 100.0), Rectangle(0.0, 0.0, 100.0, 51.0), 0),
        (Rectangle(0.0, 0.0, 100.0, 100.0), Rectangle(0.0, 0.0, 100.0, 49.0), 0),
        (Rectangle(0.0, 0.0, 100.0, 100.0), Rectangle(0.0, 0.0, 100.0, 100.0), 1),
    ]
    seen = [(names, [("a", 0, left), ("b", label, right)]) for left, right, label in pairs * 10]
    assert agreement(seen).f1.value == pytest.approx(1 / 3)


def test_intervals_hold_the_alpha_of_many_images():
    rng = random.Random(1)
    population = list(images(11, "box", count=400))
    truth = agreement(population)
    held = 0
    for _ in range(60):
        found = agreement(rng.choices(population, k=25))
        held += found.alpha.low <= truth.alpha.value <= found.alpha.high
    assert held >= 51  # 95 % of 60 is 57; 51 or fewer have a chance of 0.5 %


def test_memory_is_flat_in_images():
    counts = [counts_of(*image, 0.5) for image in images(2, "box", count=50)]
    collected = DetectionAgreement()

    def held_after(rounds):
        for _ in range(rounds):
            for one in counts:
                collected.add(one, annotators=3)
        collected.estimates()  # adds what is buffered
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        first = held_after(20)
        second = held_after(40)
    finally:
        tracemalloc.stop()
    assert (second - first) / (40 * len(counts)) < 8  # bytes per image


def test_counts_of_an_image_are_small():
    import msgspec

    encoded = [
        len(msgspec.json.encode(one)) for image in images(2, "box", count=50) for one in counts_of(*image, 0.5).values()
    ]
    assert np.mean(encoded) < 200
