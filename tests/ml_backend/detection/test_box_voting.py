"""Fused candidates are closer to the object, and better scored, than its best candidate."""

import numpy as np
import pytest

from ml_backend.detection.box_voting import (
    MAX_SQUARED_LOG_ASPECT,
    MIN_CANDIDATE_SCORE,
    PlattCalibration,
    edge_aspect_features,
    fuse_candidates,
)
from ml_backend.detection.detections import Detections
from ml_backend.detection.fit import Fit
from ml_backend.detection.logits import logit

PLAIN = (PlattCalibration(), PlattCalibration())
# An image whose edges are far from every box.
FAR = Fit(1, 1, -500, -500, 5000, 5000)


def candidates(count=300, seed=1):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 200, (count, 2))
    boxes = np.concatenate([low, low + rng.uniform(20, 60, (count, 2))], axis=1).astype(np.float32)
    return Detections(boxes, rng.uniform(0.005, 1, count).astype(np.float32), rng.integers(0, 2, count))


def objects(*groups):
    """Each group of scores is one object."""
    boxes = [
        [100 * index, 0, 100 * index + 40, 40 + 0.1 * k]
        for index, group in enumerate(groups)
        for k in range(len(group))
    ]
    scores = np.concatenate([np.array(group, np.float32) for group in groups])
    return Detections(np.array(boxes, np.float32), scores, np.zeros(len(scores), np.int64))


def fused(detections, *, floor=0.0, calibrations=PLAIN):
    return fuse_candidates(detections, FAR, floor=floor, calibrations=calibrations)


def test_averaged_box_is_closer_than_the_best_candidate():
    """Fifty separate objects with ten boxes each; the best score has no better box than the others."""
    rng = np.random.default_rng(0)
    corner = np.array([(100 * (i % 10), 100 * (i // 10)) for i in range(50)], np.float32)
    truth = np.concatenate([corner, corner + 40], axis=1)
    boxes = (truth[:, None] + rng.normal(0, 3, (50, 10, 4))).reshape(-1, 4).astype(np.float32)
    scores = rng.uniform(0.5, 1, 500).astype(np.float32)
    detections = Detections(boxes, scores, np.zeros(500, np.int64))
    best = detections[np.array([10 * i + int(scores[10 * i : 10 * i + 10].argmax()) for i in range(50)])]
    errors = [abs(result.boxes - truth[_nearest(result.boxes, truth)]).mean() for result in (best, fused(detections))]
    assert len(fused(detections)) == 50
    assert errors[1] < 0.5 * errors[0]


def test_many_candidates_score_higher_than_one():
    detections = fused(objects([0.8], [0.7, 0.7, 0.7, 0.6]))
    assert detections.boxes[:, 0].round().tolist() == [100, 0]
    assert detections.scores[0] > 0.75 > detections.scores[1] + 0.05


def test_low_overlap_candidates_do_not_raise_the_score():
    alone, with_neighbour = objects([0.8]), objects([0.8])
    neighbour = Detections(np.array([[16, 0, 56, 40]], np.float32), np.array([0.7], np.float32), np.zeros(1, np.int64))
    together = fused(Detections.concatenate([with_neighbour, neighbour]))
    assert together.scores[0] == fused(alone).scores[0]


def test_calibration_applies_and_none_keeps_the_own_score():
    detections = objects([0.8, 0.7], [0.4])
    plain, calibrated, own = (
        fused(detections, calibrations=(calibration,)).scores
        for calibration in (PlattCalibration(), PlattCalibration(2.0, -1.0), None)
    )
    np.testing.assert_allclose(logit(calibrated), 2 * logit(plain) - 1, rtol=1e-4)
    assert own.tolist() == pytest.approx([0.8, 0.4])


@pytest.mark.parametrize(
    ("box", "cut", "ratio"),
    [
        ((40, 40, 80, 80), 0, 1),
        ((0, 40, 40, 80), 1, 1),
        ((160, 50, 200, 60), 1, 4),
        ((1, 60, 41, 99.5), 2, 40 / 39.5),
        ((0, 40, 200, 50), 1, 20),
        ((0, 0, 200, 100), 2, 2),
        ((7, 7, 7, 7), 0, 1),
    ],
    ids=["complete", "left", "right", "corner", "from edge to edge", "full image", "without area"],
)
def test_covariates_count_cut_axes_and_aspect(box, cut, ratio):
    [[edges, oblong]] = edge_aspect_features(np.array([box], np.float32), 200, 100)
    assert edges == cut
    assert oblong == pytest.approx(min(np.log(ratio) ** 2, MAX_SQUARED_LOG_ASPECT), abs=1e-5)


def test_edge_weight_lowers_truncated_objects():
    """The same two objects in the same input; the second image covers only its left half."""
    detections, calibrations = objects([0.8], [0.8]), (PlattCalibration(edge_weight=-1.0),)
    whole, narrow = (
        fuse_candidates(detections, fit, floor=0, calibrations=calibrations)
        for fit in (FAR, Fit(1, 1, -500, -500, 640, 5000))
    )
    np.testing.assert_allclose(whole.scores[0], whole.scores[1])
    assert narrow.boxes[0, 0] == 0, "the uncut one comes first"
    assert logit(narrow.scores)[0] - logit(narrow.scores)[1] == pytest.approx(1, abs=1e-3)


def test_slice_edges_are_not_image_edges():
    detections = objects([0.8])
    calibrations = (PlattCalibration(edge_weight=-1.0),)
    part = Fit(0.5, 0.5, 0, 0, 4000, 4000, origin=(1000, 1000))
    assert (
        fuse_candidates(detections, part, floor=0, calibrations=calibrations).scores
        == fuse_candidates(detections, FAR, floor=0, calibrations=(PlattCalibration(),)).scores
    )


def test_calibrations_compose():
    first, second = PlattCalibration(2.0, -1.0, -0.5, 0.25), PlattCalibration(0.5, 3.0, 1.0, 1.0)
    assert second(first) == PlattCalibration(1.0, 2.5, 0.75, 1.125)
    assert second(PlattCalibration()) == second == PlattCalibration()(second)


@pytest.mark.parametrize("floor", [0.05, 0.2, 0.6])
def test_results_are_independent_of_floor_and_other_classes(floor):
    detections = candidates()
    whole, part = fused(detections), fused(detections, floor=floor)
    assert 0 < len(part) < len(whole)
    expected = whole[whole.scores >= floor]
    np.testing.assert_array_equal(part.boxes, expected.boxes)
    np.testing.assert_array_equal(part.scores, expected.scores)
    alone = fused(detections[detections.classes == 1], floor=floor)
    np.testing.assert_allclose(alone.boxes, part[part.classes == 1].boxes, rtol=1e-6)


def test_best_comes_first_and_weak_candidates_are_dropped():
    detections = fused(candidates())
    assert (np.diff(detections.scores) <= 0).all()
    assert not len(fused(objects([0.9 * MIN_CANDIDATE_SCORE])))
    assert not len(fused(Detections.empty()))


def test_empty_box_keeps_its_position():
    detections = Detections(np.full((1, 4), 7, np.float32), np.ones(1, np.float32), np.zeros(1, np.int64))
    assert fused(detections).boxes.tolist() == [[7, 7, 7, 7]]


def _nearest(boxes, truth):
    return np.linalg.norm(boxes[:, None] - truth[None], axis=2).argmin(axis=1)
