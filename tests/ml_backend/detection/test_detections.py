"""Suppression agrees with the textbook loop, and never across classes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_backend.detection.detections import (
    Detections,
    bounds_of,
    corners_of,
    merge,
    pairwise_iou,
    pairwise_turned_iou,
    suppress,
)


def textbook(boxes, scores, classes, iou):
    """Greedy suppression, box by box."""

    def overlap(a, b):
        w = min(a[2], b[2]) - max(a[0], b[0])
        h = min(a[3], b[3]) - max(a[1], b[1])
        if w <= 0 or h <= 0:
            return 0.0
        area = lambda box: (box[2] - box[0]) * (box[3] - box[1])  # noqa: E731
        return w * h / (area(a) + area(b) - w * h)

    kept = []
    for index in sorted(range(len(scores)), key=lambda one: -scores[one]):
        if all(classes[index] != classes[other] or overlap(boxes[index], boxes[other]) <= iou for other in kept):
            kept.append(index)
    return kept


@given(st.integers(0, 2**32 - 1), st.integers(0, 60), st.sampled_from([0.3, 0.45, 0.65]))
def test_the_same_boxes_stay_as_in_the_textbook(seed, count, iou):
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 40, (count, 2))
    boxes = np.concatenate([low, low + rng.integers(1, 30, (count, 2))], axis=1).astype(np.float32)
    scores = rng.permutation(count).astype(np.float32) / max(count, 1)
    classes = rng.integers(0, 3, count)
    kept = suppress(Detections(boxes, scores, classes), iou=iou)
    expected = textbook(boxes.tolist(), scores.tolist(), classes.tolist(), iou)
    assert kept.scores.tolist() == scores[expected].tolist()
    assert kept.boxes.tolist() == boxes[expected].tolist()


def test_boxes_of_two_classes_do_not_suppress_each_other():
    same = np.array([[0, 0, 10, 10]] * 3, np.float32)
    found = Detections(same, np.array([0.9, 0.8, 0.7], np.float32), np.array([0, 1, 0]))
    assert suppress(found, iou=0.5).classes.tolist() == [0, 1]


def test_no_more_boxes_than_asked_for():
    boxes = np.array([[20 * i, 0, 20 * i + 10, 10] for i in range(50)], np.float32)
    found = Detections(boxes, np.linspace(0.1, 0.9, 50, dtype=np.float32), np.zeros(50, np.int64))
    kept = suppress(found, iou=0.5, most=7)
    assert len(kept) == 7
    assert kept.scores.min() == pytest.approx(found.scores[-7])


def test_nothing_seen_stays_nothing():
    assert len(suppress(Detections.none(), iou=0.5)) == 0


def test_a_box_without_area_overlaps_nothing():
    assert pairwise_iou(np.array([[5, 5, 5, 5], [0, 0, 10, 10]], np.float32)).tolist() == [[0, 0], [0, 1]]


@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_turned_boxes_overlap_as_their_outlines_do(seed, count):
    import shapely

    rng = np.random.default_rng(seed)
    turned = np.column_stack(
        [rng.uniform(0, 60, (count, 2)), rng.uniform(1, 30, (count, 2)), rng.uniform(-4, 4, count)]
    ).astype(np.float32)
    outlines = [
        shapely.affinity.rotate(shapely.box(x - w / 2, y - h / 2, x + w / 2, y + h / 2), turn, "center", True)
        for x, y, w, h, turn in turned.tolist()
    ]
    expected = [[a.intersection(b).area / a.union(b).area for b in outlines] for a in outlines]
    np.testing.assert_allclose(pairwise_turned_iou(turned), expected, atol=1e-4)
    np.testing.assert_allclose(bounds_of(turned), [one.bounds for one in outlines], atol=1e-3)
    np.testing.assert_allclose(
        shapely.area(shapely.polygons(corners_of(turned))), turned[:, 2] * turned[:, 3], rtol=1e-4
    )


def test_crossing_turned_boxes_are_two_objects_though_their_upright_boxes_are_one():
    turned = np.array([[50, 50, 60, 6, 0.7], [50, 50, 60, 6, -0.7]], np.float32)
    found = Detections(bounds_of(turned), np.array([0.9, 0.8], np.float32), np.zeros(2, np.int64), turned)
    assert len(suppress(found, iou=0.5)) == 2
    assert len(suppress(Detections(found.boxes, found.scores, found.classes), iou=0.5)) == 1


def one(box, score, class_=0):
    return Detections(np.array([box], np.float32), np.array([score], np.float32), np.array([class_]))


MERGES = {
    "seen twice": ([one([0, 0, 10, 10], 0.9), one([1, 0, 10, 10], 0.8)], [0.9]),
    "a piece of the whole, though the piece is surer": ([one([0, 0, 30, 10], 0.7), one([20, 0, 30, 10], 0.8)], [0.7]),
    "two small ones in a large doubtful one": ([one([0, 0, 30, 10], 0.3), one([20, 0, 30, 10], 0.8)], [0.8, 0.3]),
    "another class inside": ([one([0, 0, 30, 10], 0.9), one([20, 0, 30, 10], 0.8, 1)], [0.9, 0.8]),
    "apart": ([one([0, 0, 10, 10], 0.9), one([20, 0, 30, 10], 0.8)], [0.9, 0.8]),
    "nothing": ([Detections.none(), Detections.none()], []),
    "no look": ([], []),
}


@pytest.mark.parametrize("case", MERGES)
def test_looks_at_one_photo_are_put_together(case):
    parts, expected = MERGES[case]
    assert merge(parts, share=0.75, iou=0.5).scores.tolist() == pytest.approx(expected)
