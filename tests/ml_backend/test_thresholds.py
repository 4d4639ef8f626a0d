"""Thresholds follow the edits where there are many, and stay where they were thought to be while there are few."""

import numpy as np
import pytest

from ml_backend.detections import Detections
from ml_backend.judge import Truth
from ml_backend.thresholds import USUAL, Edits, best_threshold, edits_of, f1_curve, learned_thresholds


def test_f1_at_each_threshold_is_that_of_counting():
    edits = Edits(kept=(0.9, 0.5, 0.5), deleted=(0.7, 0.2), added=1)
    scores, f1 = f1_curve(edits)
    expected = []
    for cut in (0.2, 0.5, 0.7, 0.9):
        right = sum(score >= cut for score in edits.kept)
        wrong = sum(score >= cut for score in edits.deleted)
        missed = len(edits.kept) - right + edits.added
        expected.append(2 * right / (2 * right + wrong + missed))
    assert scores.tolist() == [0.2, 0.5, 0.7, 0.9]
    np.testing.assert_allclose(f1, expected)


def test_the_best_threshold_parts_what_was_kept_from_what_was_deleted():
    assert 0.3 < best_threshold(Edits(kept=(0.8, 0.9), deleted=(0.1, 0.3))) <= 0.8
    assert best_threshold(Edits(deleted=(0.9,))) is None
    assert best_threshold(Edits(added=3)) is None


@pytest.mark.parametrize(("deleted", "kept", "low", "high"), [(0.7, 0.9, 0.7, 0.9), (0.1, 0.2, 0.1, 0.22)])
def test_many_edits_decide(deleted, kept, low, high):
    edits = Edits(kept=(kept,) * 800, deleted=(deleted,) * 800)
    assert low < learned_thresholds({"a": edits})["a"] < high


def test_one_edit_hardly_moves_a_threshold():
    assert learned_thresholds({"a": Edits(deleted=(0.95,), kept=(0.96,))})["a"] == pytest.approx(USUAL, abs=0.1)
    assert learned_thresholds({"a": Edits()}) == {"a": USUAL}


def test_a_rare_class_follows_the_others_first():
    edits = {"common": Edits((0.15,) * 900, (0.05,) * 900), "rare": Edits()}
    found = learned_thresholds(edits)
    assert found["rare"] == pytest.approx(found["common"], abs=0.05)
    assert found["rare"] < USUAL / 2


def test_a_submitted_photo_says_what_was_kept_deleted_and_added():
    boxes = np.array([[0, 0, 10, 10], [20, 20, 30, 30], [50, 50, 60, 60]], np.float32)
    found = Detections(boxes, np.array([0.9, 0.6, 0.3], np.float32), np.array([0, 0, 1]))
    truth = Truth(np.array([[0, 0, 10, 11], [20, 20, 30, 30], [80, 80, 90, 90]], np.float32), ("a", "b", "a"))
    edits = edits_of(found, truth, names=["a", "b"])
    assert edits["a"].kept == (pytest.approx(0.9),)
    assert edits["a"].deleted == (pytest.approx(0.6),)
    assert edits["a"].added == 1
    assert edits["b"] == Edits((), (pytest.approx(0.3),), 1)
