"""Scores come to mean what they say; the best box of an object is the right one; few detections change little."""

import tracemalloc

import numpy as np
import pytest

from ml_backend.detection.box_voting import PlattCalibration, logit
from ml_backend.detection.detections import Detections
from ml_backend.training.calibration import calibrated, expected_error, fit_calibrations, fit_line, match_detections
from ml_backend.training.linear_head import Head
from ml_backend.training.metrics import GroundTruth


def drawn(count, *, stretch, shift, seed=0):
    """Log-odds of detections, and which are right where the true log-odds are stretch x log-odds + shift."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(-1, 2, count)
    return odds, rng.uniform(size=count) < 1 / (1 + np.exp(-(stretch * odds + shift)))


def test_many_detections_tell_how_sure_the_scores_are():
    line = fit_line(*drawn(5000, stretch=0.6, shift=1.0))
    assert line.stretch == pytest.approx(0.6, abs=0.07)
    assert line.shift == pytest.approx(1.0, abs=0.15)


def test_many_detections_tell_what_annotators_leave_out_at_the_edge():
    rng = np.random.default_rng(0)
    odds, marked = rng.normal(-1, 2, 3000), np.stack([rng.integers(0, 3, 3000), rng.uniform(0, 2, 3000)], axis=1)
    right = rng.uniform(size=3000) < 1 / (1 + np.exp(-(odds - 1.5 * marked[:, 0])))
    line = fit_line(odds, right, marked)
    assert line.cut == pytest.approx(-1.5, abs=0.2)
    assert line.oblong == pytest.approx(0, abs=0.2)
    few = fit_line(odds[:4], right[:4], marked[:4])
    assert abs(few.cut) < 0.5


def test_calibration_betters_the_error_on_other_detections():
    line = fit_line(*drawn(300, stretch=0.5, shift=2.0))
    odds, right = drawn(5000, stretch=0.5, shift=2.0, seed=1)
    before, after = (1 / (1 + np.exp(-z)) for z in (odds, line.stretch * odds + line.shift))
    assert expected_error(after, right) < 0.3 * expected_error(before, right)


def test_one_detection_changes_little():
    one, many = (fit_line(np.full(count, 2.0), np.zeros(count, bool)) for count in (1, 200))
    assert one.stretch * 2 + one.shift > 0.5, "still more likely right than wrong"
    assert many.stretch * 2 + many.shift < -3


def test_of_two_boxes_on_an_object_only_the_better_is_right():
    boxes = np.array([[0, 0, 10, 10], [1, 0, 10, 10], [0, 0, 10, 10], [50, 50, 60, 60]], np.float32)
    found = Detections(boxes, np.array([0.4, 0.9, 0.8, 0.7], np.float32), np.array([0, 0, 1, 0]))
    truth = GroundTruth(np.array([[0, 0, 10, 10]], np.float32), ("a",))
    assert match_detections(found, truth, names=["a", "b"]).tolist() == [False, True, False, False]


def test_a_calibrated_head_answers_the_line_of_each_class():
    head = Head(("a", "b"), (3,), np.ones((1, 5, 2)), np.array([[1.0, 2.0]]))
    moved = calibrated(head, {"b": PlattCalibration(2.0, -1.0)})
    assert head.lines == (PlattCalibration(), PlattCalibration())
    assert moved.lines == (PlattCalibration(), PlattCalibration(2.0, -1.0))
    assert calibrated(moved, {"b": PlattCalibration(0.5, 3.0)}).lines == (
        PlattCalibration(),
        PlattCalibration(1.0, 2.5),
    ), "one line after the other"


def test_what_is_cut_on_photos_where_nobody_draws_such_gets_a_line_that_says_so():
    """Forty photos, each with a whole object that is drawn, and a cut one that is not, both found."""
    boxes = np.array([[40, 40, 60, 60], [0, 40, 20, 60]], np.float32)
    found = [Detections(boxes, np.array([0.7, 0.7], np.float32), np.zeros(2, np.int64))] * 40
    line = fit_calibrations(found, [GroundTruth(boxes[:1], ("a",))] * 40, [(200, 100)] * 40, names=["a"])["a"]
    assert line.cut < -1
    beyond = fit_calibrations(found, [GroundTruth(boxes[:1], ("a",))] * 40, [(200, 100)] * 40, names=["a", "b"])
    assert beyond == {"a": line, "b": PlattCalibration()}, "of what was not found nothing is known"


def test_log_odds_of_certainty_are_finite():
    assert np.isfinite(logit(np.array([0.0, 1.0]))).all()


def test_thousands_of_drawn_boxes_do_not_fill_memory():
    corners = np.array([(10 * (at % 200), 10 * (at // 200)) for at in range(20_000)], np.float32)
    boxes = np.concatenate([corners, corners + 9], axis=1)
    found = Detections(boxes[:600:2], np.linspace(0.9, 0.1, 300, dtype=np.float32), np.zeros(300, np.int64))
    tracemalloc.start()
    right = match_detections(found, GroundTruth(boxes, ("disc",) * len(boxes)), names=("disc",))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert right.all()
    assert peak < 40e6  # all pairs are 48 MB, more than once
