"""Calibrated scores are probabilities; each object has one true positive; few detections change little."""

import tracemalloc

import numpy as np
import pytest
from scipy.special import expit

from ml_backend.detection.box_voting import PlattCalibration
from ml_backend.detection.detections import Detections
from ml_backend.detection.logits import logit
from ml_backend.training.calibration import calibrate_head, fit_calibrations, fit_platt, match_detections
from ml_backend.training.linear_head import LinearHead
from ml_backend.training.metrics import GroundTruth


def sample_detections(count, *, slope, intercept, seed=0):
    """Logits of detections, and true positives whose true logit is slope x logit + intercept."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1, 2, count)
    return logits, rng.uniform(size=count) < expit(slope * logits + intercept)


def test_platt_recovers_slope_and_intercept():
    calibration = fit_platt(*sample_detections(5000, slope=0.6, intercept=1.0))
    assert calibration.slope == pytest.approx(0.6, abs=0.07)
    assert calibration.intercept == pytest.approx(1.0, abs=0.15)


def test_platt_recovers_the_edge_weight():
    rng = np.random.default_rng(0)
    logits, covariates = rng.normal(-1, 2, 3000), np.stack([rng.integers(0, 3, 3000), rng.uniform(0, 2, 3000)], axis=1)
    correct = rng.uniform(size=3000) < expit(logits - 1.5 * covariates[:, 0])
    calibration = fit_platt(logits, correct, covariates)
    assert calibration.edge_weight == pytest.approx(-1.5, abs=0.2)
    assert calibration.aspect_weight == pytest.approx(0, abs=0.2)
    few = fit_platt(logits[:4], correct[:4], covariates[:4])
    assert abs(few.edge_weight) < 0.5


def calibration_error(scores, correct, *, bins=10):
    """Expected calibration error over equally filled bins."""
    parts = np.array_split(np.argsort(scores, kind="stable"), bins)
    return sum(len(part) * abs(scores[part].mean() - correct[part].mean()) for part in parts) / len(scores)


def test_calibration_lowers_the_error_on_new_detections():
    calibration = fit_platt(*sample_detections(300, slope=0.5, intercept=2.0))
    logits, correct = sample_detections(5000, slope=0.5, intercept=2.0, seed=1)
    before, after = (expit(z) for z in (logits, calibration.slope * logits + calibration.intercept))
    assert calibration_error(after, correct) < 0.3 * calibration_error(before, correct)


def test_one_detection_changes_little():
    single, many = (fit_platt(np.full(count, 2.0), np.zeros(count, bool)) for count in (1, 200))
    assert single.slope * 2 + single.intercept > 0.5, "still more likely correct"
    assert many.slope * 2 + many.intercept < -3


def test_only_the_best_box_of_an_object_matches():
    boxes = np.array([[0, 0, 10, 10], [1, 0, 10, 10], [0, 0, 10, 10], [50, 50, 60, 60]], np.float32)
    detections = Detections(boxes, np.array([0.4, 0.9, 0.8, 0.7], np.float32), np.array([0, 0, 1, 0]))
    truth = GroundTruth(np.array([[0, 0, 10, 10]], np.float32), ("a",))
    assert match_detections(detections, truth, names=["a", "b"]).tolist() == [False, True, False, False]


def test_head_calibrations_compose_per_class():
    head = LinearHead(("a", "b"), (3,), np.ones((1, 5, 2)), np.array([[1.0, 2.0]]))
    calibrated_once = calibrate_head(head, {"b": PlattCalibration(2.0, -1.0)})
    assert head.calibrations == (PlattCalibration(), PlattCalibration())
    assert calibrated_once.calibrations == (PlattCalibration(), PlattCalibration(2.0, -1.0))
    assert calibrate_head(calibrated_once, {"b": PlattCalibration(0.5, 3.0)}).calibrations == (
        PlattCalibration(),
        PlattCalibration(1.0, 2.5),
    ), "calibrations compose"


def test_undrawn_truncated_objects_get_a_negative_edge_weight():
    """Forty images, each with a complete object that is drawn, and a truncated one that is not; both detected."""
    boxes = np.array([[40, 40, 60, 60], [0, 40, 20, 60]], np.float32)
    detections = [Detections(boxes, np.array([0.7, 0.7], np.float32), np.zeros(2, np.int64))] * 40
    calibration = fit_calibrations(detections, [GroundTruth(boxes[:1], ("a",))] * 40, [(200, 100)] * 40, names=["a"])[
        "a"
    ]
    assert calibration.edge_weight < -1
    with_other_class = fit_calibrations(
        detections, [GroundTruth(boxes[:1], ("a",))] * 40, [(200, 100)] * 40, names=["a", "b"]
    )
    assert with_other_class == {"a": calibration, "b": PlattCalibration()}, (
        "a class without detections keeps the identity"
    )


def test_logits_of_zero_and_one_are_finite():
    assert np.isfinite(logit(np.array([0.0, 1.0]))).all()


def test_thousands_of_boxes_use_bounded_memory():
    corners = np.array([(10 * (at % 200), 10 * (at // 200)) for at in range(20_000)], np.float32)
    boxes = np.concatenate([corners, corners + 9], axis=1)
    detections = Detections(boxes[:600:2], np.linspace(0.9, 0.1, 300, dtype=np.float32), np.zeros(300, np.int64))
    tracemalloc.start()
    correct = match_detections(detections, GroundTruth(boxes, ("disc",) * len(boxes)), names=("disc",))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert correct.all()
    assert peak < 40e6  # all pairs are 48 MB, more than once
