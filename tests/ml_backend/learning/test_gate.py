"""What the gate lets through, and the reason that it gives."""

import numpy as np
import pytest

from ml_backend.detections import Detections
from ml_backend.judge import Truth
from ml_backend.learning.gate import Exam, judge_by_folds, judge_held_out, unjudged

BOX = np.array([[10, 10, 60, 60]], np.float32)


def exam(right, *, of=10, label="Disc"):
    """Ten photos with a disc; on so many of them it was found."""
    hit = Detections(BOX, np.array([0.9], np.float32), np.array([0]))
    return Exam([Truth(BOX, (label,))] * of, [hit] * right + [Detections.none()] * (of - right), ("Disc",))


@pytest.mark.parametrize(
    ("before", "after", "tolerance", "passed"),
    [(5, 6, 0.0, True), (6, 6, 0.0, True), (7, 6, 0.03, False), (7, 6, 0.15, True), (9, 0, 0.5, False)],
)
def test_a_candidate_must_find_as_much_on_the_held_out_photos(before, after, tolerance, passed):
    verdict = judge_held_out(exam(after), exam(before), tolerance=tolerance)
    assert verdict.passed is passed
    assert verdict.judged_by == "held-out"
    assert f"{verdict.ap50:.3f}" in verdict.reason
    assert f"{verdict.parent_ap50:.3f}" in verdict.reason
    if not passed:
        assert "Disc" in verdict.reason


def test_many_small_steps_down_do_not_add_up():
    assert judge_held_out(exam(5), exam(6), tolerance=0.1, earlier=[exam(7)]).passed
    refused = judge_held_out(exam(5), exam(6), tolerance=0.1, earlier=[exam(6), exam(8)])
    assert not refused.passed
    assert "0.8" in refused.reason


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
def test_cross_validation_compares_with_the_base_and_with_what_is_served(score, base, before, photos, passed):
    verdict = judge_by_folds(score, exam(base), before=before, photos=photos, tolerance=0.03)
    assert verdict.passed is passed
    assert verdict.judged_by == "cross-validation"
    assert f"{score:.3f}" in verdict.reason


def test_what_cannot_be_judged_replaces_only_what_finds_nothing_of_it():
    assert unjudged(knows=[]).passed
    refused = unjudged(knows=["Cat"])
    assert not refused.passed
    assert "Cat" in refused.reason


def test_too_few_held_out_photos_judge_nothing():
    assert exam(5).enough
    assert not exam(4, of=4).enough
    assert not Exam([], [], []).enough


def test_a_class_that_has_no_label_in_the_project_counts_for_nothing():
    nameless = Exam(exam(10).truths, exam(10).found, ("",))
    assert nameless.by_class() == {"Disc": 0.0}
