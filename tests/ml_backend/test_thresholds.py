"""Thresholds follow the edits where there are many, and stay where they were thought to be while there are few."""

import numpy as np
import pytest

from ml_backend.detections import Detections
from ml_backend.judge import Truth
from ml_backend.thresholds import (
    USUAL,
    Edits,
    best_threshold,
    edits_of,
    learned_thresholds,
    usual_threshold,
    worth_curve,
)


def test_f1_at_each_threshold_is_that_of_counting():
    edits = Edits(kept=(0.9, 0.5, 0.5), deleted=(0.7, 0.2), added=1)
    scores, f1 = worth_curve(edits)
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


@pytest.mark.parametrize("drawing", [1.0, 3.0])
def test_what_drawing_costs_decides_which_threshold_makes_the_smallest_bill(drawing):
    rng = np.random.default_rng(0)
    scores = rng.uniform(0, 1, 4000)
    right = rng.uniform(0, 1, 4000) < scores  # calibrated
    edits = Edits(tuple(scores[right]), tuple(scores[~right]), 100)

    def bill(cut):
        return (scores[~right] >= cut).sum() + drawing * (scores[right] < cut).sum()

    found = best_threshold(edits, drawing=drawing)
    assert bill(found) <= 1.02 * min(bill(cut) for cut in np.linspace(0, 1, 201))
    assert found == pytest.approx(usual_threshold(drawing), abs=0.1)
    assert learned_thresholds({"a": edits}, usual=usual_threshold(drawing), drawing=drawing)["a"] == pytest.approx(
        usual_threshold(drawing), abs=0.1
    )


def test_where_every_pre_label_costs_more_than_it_spares_hardly_any_is_shown():
    edits = Edits(kept=(0.2,) * 10, deleted=(0.3,) * 1000)
    assert best_threshold(edits, drawing=1.0) > 0.3
