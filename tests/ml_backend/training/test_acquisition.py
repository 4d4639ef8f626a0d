"""Active learning order: random at first, then rarely labelled classes; empty images interleaved, duplicates last."""

import numpy as np
import pytest

from ml_backend.detection.detections import Detections
from ml_backend.training.acquisition import (
    EMPTY_EVERY,
    MAX_TIE_BREAKER,
    LabelCounts,
    UnlabelledImage,
    next_images,
    object_weights,
    rank,
    sample_without_near_duplicates,
    uncertainty,
)


def detections_of(*boxes):
    """Detections of (score, class)."""
    scores, classes = zip(*boxes, strict=True) if boxes else ((), ())
    return Detections(np.zeros((len(scores), 4), np.float32), np.array(scores, np.float32), np.array(classes, np.int64))


def unit(angle):
    return np.array([np.cos(angle), np.sin(angle)], np.float32)


def full_weights(count):
    return np.ones(count, np.float32)


def counts_of(*photos):
    return LabelCounts.from_images([(labels, full_weights(len(labels))) for labels in photos])


def value_of(*boxes, drawn, varies=None):
    return uncertainty(
        detections_of(*boxes),
        full_weights(len(boxes)),
        names=["common", "rare"],
        labelled=LabelCounts(drawn, varies or {}),
    )


def test_rare_object_is_worth_more_than_ten_common_ones():
    drawn = {"common": 99, "rare": 1}
    assert value_of((0.9, 1), drawn=drawn) > 3 * value_of(*[(0.9, 0)] * 10, drawn=drawn)


def test_value_grows_less_than_linearly():
    drawn = {"common": 99, "rare": 1}
    single, double = (value_of(*[(0.9, 1)] * count, drawn=drawn) for count in (1, 2))
    assert single < double < 2 * single


def test_low_scores_do_not_count():
    assert value_of(*[(0.09, 1)] * 50, drawn={"common": 99, "rare": 1}) < 0.01


def test_image_without_detections_has_no_value():
    assert uncertainty(detections_of(), full_weights(0), names=["a"], labelled=counts_of()) is None


def test_class_with_constant_count_has_little_value():
    alike, varying = counts_of(*[["cell"]] * 9), counts_of(*[["cell"] * count for count in (0, 0, 0, 0, 3, 3, 3, 0, 0)])
    assert alike.objects == varying.objects == {"cell": 9}
    assert alike.dispersion["cell"] == pytest.approx(1 / 9)
    assert varying.dispersion["cell"] == 1.0
    values = {
        varies: value_of((0.9, 1), (0.9, 1), drawn={"rare": 9}, varies={"rare": varies}) for varies in (1 / 9, 1.0)
    }
    assert values[1.0] > 8 * values[1 / 9]


def test_labels_are_counted_per_image():
    drawn = counts_of(["a", "a", "b"], [], ["a"])
    assert drawn.objects == {"a": 3, "b": 1}
    # Variance over mean of (2, 0, 1) and of (1, 0, 0), plus a third of the pseudo-image of index 1.
    assert drawn.dispersion == pytest.approx({"a": 2 / 3 + 1 / 3, "b": 2 / 3 + 1 / 3})
    assert counts_of() == LabelCounts({}, {})


def values_of(drawn, *photos):
    """Values of images with this many detections of one class."""
    scores = np.linspace(0.5, 0.9, len(photos))
    return [
        uncertainty(detections_of(*[(score, 0)] * count), full_weights(count), names=["a"], labelled=drawn)
        for score, count in zip(scores, photos, strict=True)
    ]


def test_overdispersed_class_is_sought_in_crowded_images():
    worths = values_of(counts_of(["a"] * 4, []), 1, 2, 5)
    assert worths == sorted(worths)
    assert worths[2] > 2 * worths[0] > 0.01


def test_order_is_random_without_dispersion():
    worths = values_of(counts_of(["a"], ["a"], ["a", "a"]), *[1] * 50)
    assert len(set(worths)) == 50
    assert max(worths) < 0.01
    assert abs(np.corrcoef(worths, np.arange(50))[0, 1]) < 0.4


def test_unlabelled_class_is_sought_without_dispersion_of_others():
    drawn = counts_of(["common"], ["common"], ["common"])
    labelled_value, unlabelled_value = (
        uncertainty(detections_of((0.9, index)), full_weights(1), names=["common", "rare"], labelled=drawn)
        for index in (0, 1)
    )
    assert unlabelled_value > 0.1 > 0.01 > labelled_value


def test_truncated_objects_count_less():
    boxes = np.array([[10, 10, 50, 50], [0, 10, 50, 50], [10, 10, 50, 99.5], [8, 60, 92, 90]], np.float32)
    counted = object_weights(boxes, width=100, height=100)
    assert counted[0] == counted[3] == 1
    assert 0 < counted[1] == counted[2] < 0.5
    assert object_weights(boxes, width=0, height=0).tolist() == [1] * 4, "the size is not known"
    assert object_weights(boxes[:0], width=100, height=100).shape == (0,)
    detections = detections_of((0.9, 1), (0.9, 1))
    cut, uncut = (
        uncertainty(detections, np.full(2, share, np.float32), names=["a", "b"], labelled=counts_of(["a"]))
        for share in (0.3, 1)
    )
    assert cut < uncut


def test_cold_start_is_a_random_permutation():
    vectors = np.stack([unit(angle) for angle in np.linspace(0, 3, 60)])
    order = sample_without_near_duplicates(vectors, np.zeros((0, 2), np.float32), 60)
    assert sorted(order) == list(range(60))
    assert order == sample_without_near_duplicates(vectors, np.zeros((0, 2), np.float32), 60), (
        "the same for the same photos"
    )
    assert abs(np.corrcoef(order, np.arange(60))[0, 1]) < 0.4, "whatever their order was"


def test_near_duplicates_come_last():
    vectors = np.stack([unit(angle) for angle in (0.0, 0.001, 1.0, 1.001, 2.0, 3.0)])
    order = sample_without_near_duplicates(vectors, np.stack([unit(3.001)]), 6)
    assert len({*order[:3]} & {0, 1}) == len({*order[:3]} & {2, 3}) == 1
    assert 4 in order[:3]
    assert 5 in order[3:]


def test_empty_images_are_interleaved():
    order = rank([None] * 50 + [0.1, 0.9] + [0.5] * 48)
    assert order[0] == 51, "the highest value comes first"
    assert sorted(order) == list(range(100))
    empty = [index < 50 for index in order]
    assert [sum(empty[start : start + 5]) for start in range(0, 60, 5)] == [1] * 12


def test_empty_images_are_interleaved_across_repeated_ranking():
    left = [None] * 10 + [0.5] * 40
    served = [left.pop(rank(left, labelled=labelled)[0]) is None for labelled in range(40)]
    assert [sum(served[start : start + EMPTY_EVERY]) for start in range(0, 40, EMPTY_EVERY)] == [1] * 8


def test_highest_value_comes_first_and_its_duplicate_last():
    images = [
        UnlabelledImage(unit(angle), worth) for angle, worth in ((0.0, 0.1), (1.0, 0.9), (1.001, 0.8), (2.0, 0.5))
    ]
    labelled = np.stack([unit(angle) for angle in (4.0, 4.2, 4.4, 4.6, 4.8)])
    assert next_images(images, labelled, 4) == [1, 3, 0, 2]


def test_cold_start_ignores_values():
    vectors = [unit(angle) for angle in (0.0, 3.0, 1.0, 2.0)]
    images = [UnlabelledImage(vector, worth) for vector, worth in zip(vectors, (9.0, None, 0.0, 1.0), strict=True)]
    labelled = np.stack([unit(0.5)])
    assert next_images(images, labelled, 4) == sample_without_near_duplicates(np.stack(vectors), labelled, 4)


def test_empty_images_compete_equally_without_values():
    vectors = [unit(angle) for angle in np.linspace(0, 3, 60)]
    images = [
        UnlabelledImage(vector, None if index % 2 else MAX_TIE_BREAKER / 2) for index, vector in enumerate(vectors)
    ]
    labelled = np.stack([unit(angle) for angle in (4.0, 4.2, 4.4)])
    order = next_images(images, labelled, 60)
    assert order == sample_without_near_duplicates(np.stack(vectors), labelled, 60)
    assert 5 < sum(index % 2 for index in order[:30]) < 25
