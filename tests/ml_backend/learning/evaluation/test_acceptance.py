"""What the gate lets through, and the reason that it gives."""

import numpy as np
import pytest

from ml_backend.detection.detections import Detections
from ml_backend.learning.evaluation.acceptance import (
    accept_without_evaluation,
    judge_by_folds,
    judge_held_out,
    standard_error,
)
from ml_backend.learning.evaluator import EvaluationResult
from ml_backend.training.metrics import GroundTruth

BOX = np.array([[10, 10, 60, 60]], np.float32)


def exam(right, *, of=10, label="Disc"):
    """Ten images with a disc each, and the number of them on which it is detected."""
    hit = Detections(BOX, np.array([0.9], np.float32), np.array([0]))
    return EvaluationResult(
        [GroundTruth(BOX, (label,))] * of, [hit] * right + [Detections.empty()] * (of - right), ("Disc",)
    )


@pytest.mark.parametrize(
    ("before", "after", "of", "tolerance", "passed"),
    [
        (5, 6, 10, 0.0, True),
        (6, 6, 10, 0.0, True),
        (7, 6, 10, 0.03, True),  # a tenth less on ten photos is chance
        (7, 4, 10, 0.03, False),
        (700, 600, 1000, 0.03, False),  # on a thousand it is not
        (700, 600, 1000, 0.15, True),
        (700, 670, 1000, 0.0, False),
        (9, 0, 10, 0.5, False),
    ],
)
def test_candidate_needs_equal_ap50_on_held_out_images(before, after, of, tolerance, passed):
    verdict = judge_held_out(exam(after, of=of), exam(before, of=of), tolerance=tolerance)
    assert verdict.passed is passed
    assert verdict.judged_by == "held-out"
    assert f"{verdict.ap50:.3f}" in verdict.reason
    assert f"{verdict.parent_ap50:.3f}" in verdict.reason
    if not passed:
        assert "Disc" in verdict.reason


def test_many_small_steps_down_do_not_add_up():
    exams = {share: exam(share * 100, of=1000) for share in (5, 6, 7, 8)}
    assert judge_held_out(exams[5], exams[6], tolerance=0.1, earlier=[exams[7]]).passed
    refused = judge_held_out(exams[5], exams[6], tolerance=0.1, earlier=[exams[6], exams[8]])
    assert not refused.passed
    assert "0.8" in refused.reason


@pytest.mark.parametrize(("photos", "share"), [(5, 0.6), (20, 0.6), (20, 0.9), (80, 0.3)])
def test_chance_is_as_large_as_two_equally_good_models_differ(photos, share):
    """Both find each object with the same chance, two thirds of them alike: drawn many times over."""
    rng = np.random.default_rng(0)
    common, ours, others = (rng.uniform(size=(20_000, photos)) < share for _ in range(3))
    alike = rng.uniform(size=(20_000, photos)) < 2 / 3
    away = np.where(alike, common, ours).mean(axis=1) - np.where(alike, common, others).mean(axis=1)
    chance = standard_error({"Disc": share}, {"Disc": photos})
    assert 0.03 < (away < -chance).mean() < 0.16  # so often a candidate as good as the other would be refused


@pytest.mark.parametrize(
    ("score", "base", "before", "photos", "passed"),
    [
        (0.5, 3, None, 10, True),  # better than the base
        (0.5, 8, None, 10, False),  # worse than the base
        (0.5, 3, 0.6, 10, True),  # a little lower than what is served: so few photos tell no more
        (0.3, 3, 0.9, 100, False),  # much lower
        (0.3, 0, 0.9, 2, False),
    ],
)
def test_cross_validation_compares_with_base_and_served_version(score, base, before, photos, passed):
    verdict = judge_by_folds(score, exam(base), before=before, photos=photos, tolerance=0.03)
    assert verdict.passed is passed
    assert verdict.judged_by == "cross-validation"
    assert f"{score:.3f}" in verdict.reason


def test_unevaluated_candidate_replaces_only_a_model_without_its_classes():
    assert accept_without_evaluation(knows=[]).passed
    refused = accept_without_evaluation(knows=["Cat"])
    assert not refused.passed
    assert "Cat" in refused.reason


def test_too_few_held_out_photos_judge_nothing():
    assert exam(5).enough
    assert not exam(4, of=4).enough
    assert not EvaluationResult([], [], []).enough


def test_class_without_a_project_label_is_ignored():
    nameless = EvaluationResult(exam(10).truths, exam(10).detections, ("",))
    assert nameless.by_class() == {"Disc": 0.0}
