"""Suppression equals the textbook algorithm, and never acts across classes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_backend.detection.detections import (
    Detections,
    bounds_of,
    corners_of,
    merge_slices,
    non_max_suppression,
    pairwise_iou,
    pairwise_rotated_iou,
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

    selected = []
    for index in sorted(range(len(scores)), key=lambda candidate: -scores[candidate]):
        if all(classes[index] != classes[other] or overlap(boxes[index], boxes[other]) <= iou for other in selected):
            selected.append(index)
    return selected


@given(st.integers(0, 2**32 - 1), st.integers(0, 60), st.sampled_from([0.3, 0.45, 0.65]))
def test_suppression_equals_the_textbook(seed, count, iou):
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 40, (count, 2))
    boxes = np.concatenate([low, low + rng.integers(1, 30, (count, 2))], axis=1).astype(np.float32)
    scores = rng.permutation(count).astype(np.float32) / max(count, 1)
    classes = rng.integers(0, 3, count)
    result = non_max_suppression(Detections(boxes, scores, classes), iou=iou)
    expected = textbook(boxes.tolist(), scores.tolist(), classes.tolist(), iou)
    assert result.scores.tolist() == scores[expected].tolist()
    assert result.boxes.tolist() == boxes[expected].tolist()


def test_classes_do_not_suppress_each_other():
    same = np.array([[0, 0, 10, 10]] * 3, np.float32)
    detections = Detections(same, np.array([0.9, 0.8, 0.7], np.float32), np.array([0, 1, 0]))
    assert non_max_suppression(detections, iou=0.5).classes.tolist() == [0, 1]


def test_max_boxes_limits_the_result():
    boxes = np.array([[20 * i, 0, 20 * i + 10, 10] for i in range(50)], np.float32)
    detections = Detections(boxes, np.linspace(0.1, 0.9, 50, dtype=np.float32), np.zeros(50, np.int64))
    result = non_max_suppression(detections, iou=0.5, max_boxes=7)
    assert len(result) == 7
    assert result.scores.min() == pytest.approx(detections.scores[-7])


def test_empty_detections_stay_empty():
    assert len(non_max_suppression(Detections.empty(), iou=0.5)) == 0


def test_empty_box_has_no_overlap():
    assert pairwise_iou(np.array([[5, 5, 5, 5], [0, 0, 10, 10]], np.float32)).tolist() == [[0, 0], [0, 1]]


@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_rotated_iou_equals_shapely(seed, count):
    import shapely

    rng = np.random.default_rng(seed)
    rotated = np.column_stack(
        [rng.uniform(0, 60, (count, 2)), rng.uniform(1, 30, (count, 2)), rng.uniform(-4, 4, count)]
    ).astype(np.float32)
    outlines = [
        shapely.affinity.rotate(shapely.box(x - w / 2, y - h / 2, x + w / 2, y + h / 2), turn, "center", True)
        for x, y, w, h, turn in rotated.tolist()
    ]
    expected = [[a.intersection(b).area / a.union(b).area for b in outlines] for a in outlines]
    np.testing.assert_allclose(pairwise_rotated_iou(rotated), expected, atol=1e-4)
    np.testing.assert_allclose(bounds_of(rotated), [outline.bounds for outline in outlines], atol=1e-3)
    np.testing.assert_allclose(
        shapely.area(shapely.polygons(corners_of(rotated))), rotated[:, 2] * rotated[:, 3], rtol=1e-4
    )


def test_crossing_rotated_boxes_are_two_objects():
    rotated = np.array([[50, 50, 60, 6, 0.7], [50, 50, 60, 6, -0.7]], np.float32)
    detections = Detections(bounds_of(rotated), np.array([0.9, 0.8], np.float32), np.zeros(2, np.int64), rotated)
    assert len(non_max_suppression(detections, iou=0.5)) == 2
    assert len(non_max_suppression(Detections(detections.boxes, detections.scores, detections.classes), iou=0.5)) == 1


def single(box, score, class_=0):
    return Detections(np.array([box], np.float32), np.array([score], np.float32), np.array([class_]))


MERGES = {
    "detected twice": ([single([0, 0, 10, 10], 0.9), single([1, 0, 10, 10], 0.8)], [0.9]),
    "fragment with a higher score": ([single([0, 0, 30, 10], 0.7), single([20, 0, 30, 10], 0.8)], [0.7]),
    "two small boxes in a large poor one": ([single([0, 0, 30, 10], 0.3), single([20, 0, 30, 10], 0.8)], [0.8, 0.3]),
    "another class inside": ([single([0, 0, 30, 10], 0.9), single([20, 0, 30, 10], 0.8, 1)], [0.9, 0.8]),
    "apart": ([single([0, 0, 10, 10], 0.9), single([20, 0, 30, 10], 0.8)], [0.9, 0.8]),
    "nothing": ([Detections.empty(), Detections.empty()], []),
    "no look": ([], []),
}


@pytest.mark.parametrize("case", MERGES)
def test_slices_are_merged(case):
    parts, expected = MERGES[case]
    assert merge_slices(parts, share=0.75, iou=0.5).scores.tolist() == pytest.approx(expected)
