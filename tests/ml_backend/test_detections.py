"""Suppression agrees with the textbook loop, and never across classes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_backend.detections import Detections, pairwise_iou, suppress


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
