"""Thresholds follow many edits, and stay near the default with few."""

import numpy as np
import pytest

from ml_backend.detection.detections import Detections
from ml_backend.training.metrics import GroundTruth
from ml_backend.training.thresholds import (
    DEFAULT_PROBABILITY,
    ScoredEdits,
    edits_of,
    edits_of_all,
    f1_optimal_probability,
    learned_thresholds,
)


def spread(count, *, seed=0, scored=lambda chance: chance, missed=0):
    """Edits of boxes whose probability of being correct is known; `scored` maps it to scores."""
    rng = np.random.default_rng(seed)
    probabilities = rng.uniform(0, 1, count)
    correct = rng.uniform(0, 1, count) < probabilities
    scores = scored(probabilities)
    return ScoredEdits(tuple(scores[correct]), tuple(scores[~correct]), missed)


def f1(edits, cut):
    """By counting."""
    correct = sum(score >= cut for score in edits.accepted)
    total = correct + sum(score >= cut for score in edits.deleted)
    return 2 * correct / (total + edits.objects)


def edit_cost(edits, cut, drawing):
    """Number of deletions, plus drawn boxes times their cost."""
    return sum(score >= cut for score in edits.deleted) + drawing * sum(score < cut for score in edits.accepted)


CUTS = np.linspace(0.01, 0.99, 99)
SCORES = {
    "calibrated": lambda chance: chance,
    "too sure": lambda chance: chance**0.25,
    "not sure enough": lambda chance: chance**3,
    "within a tenth": lambda chance: 0.6 + chance / 10,
}


@pytest.mark.parametrize("scored", SCORES.values(), ids=SCORES)
@pytest.mark.parametrize("missed", [0, 1000])
def test_many_edits_maximise_f1_for_any_score_scale(scored, missed):
    edits = spread(4000, scored=scored, missed=missed)
    threshold = learned_thresholds({"a": edits})["a"]
    assert f1(edits, threshold) >= 0.99 * max(f1(edits, cut) for cut in np.linspace(0.001, 0.999, 999))


@pytest.mark.parametrize("drawing", [1.0, 3.0])
@pytest.mark.parametrize("scored", [SCORES["calibrated"], SCORES["too sure"]])
def test_drawing_cost_minimises_the_edit_cost(drawing, scored):
    edits = spread(4000, scored=scored, missed=100)
    threshold = learned_thresholds({"a": edits}, drawing_cost=drawing)["a"]
    assert edit_cost(edits, threshold, drawing) <= 1.02 * min(edit_cost(edits, cut, drawing) for cut in CUTS)


def test_classes_of_different_score_scales_get_own_thresholds():
    edits = {"shy": spread(2000, scored=lambda chance: chance / 3), "bold": spread(2000, seed=1, scored=np.sqrt)}
    thresholds = learned_thresholds(edits)
    both = ScoredEdits.__add__(*edits.values())

    def combined_f1(cuts):
        correct = sum(score >= cuts[name] for name, class_edits in edits.items() for score in class_edits.accepted)
        total = correct + sum(
            score >= cuts[name] for name, class_edits in edits.items() for score in class_edits.deleted
        )
        return 2 * correct / (total + both.objects)

    assert thresholds["shy"] < 0.25 < 0.45 < thresholds["bold"]
    assert combined_f1(thresholds) > max(f1(both, cut) for cut in CUTS) + 0.02


def test_class_without_edits_uses_the_shared_calibration():
    bold = spread(1000, scored=np.sqrt)
    thresholds = learned_thresholds({"often": bold, "never": ScoredEdits()})
    assert thresholds["never"] == pytest.approx(thresholds["often"], abs=0.02)
    assert thresholds["never"] > DEFAULT_PROBABILITY + 0.1


def test_class_of_false_positives_gets_a_higher_threshold():
    often = spread(1000)
    thresholds = learned_thresholds({"often": often, "deleted": ScoredEdits(deleted=(0.4, 0.5, 0.6) * 20)})
    assert thresholds["deleted"] > thresholds["often"] + 0.1


def test_one_image_hardly_moves_a_threshold():
    thresholds = learned_thresholds({"a": ScoredEdits(accepted=(0.8, 0.6), deleted=(0.5, 0.2, 0.1, 0.05), added=1)})
    assert thresholds["a"] == pytest.approx(DEFAULT_PROBABILITY, abs=0.1)


def test_one_edit_hardly_moves_a_class():
    often = spread(1000)
    alone = learned_thresholds({"often": often, "seldom": ScoredEdits()})
    with_edit = learned_thresholds({"often": often, "seldom": ScoredEdits(deleted=(0.9,))})
    assert with_edit["seldom"] == pytest.approx(alone["seldom"], abs=0.05)


@pytest.mark.parametrize(("drawing", "expected"), [(0.0, 0.4), (1.0, 0.5), (3.0, 0.25)])
def test_default_threshold_without_edits(drawing, expected):
    thresholds = learned_thresholds({"a": ScoredEdits(), "b": ScoredEdits()}, default=0.4, drawing_cost=drawing)
    assert thresholds == {"a": pytest.approx(expected), "b": pytest.approx(expected)}
    assert learned_thresholds({}) == {}


def test_optimal_probability_is_half_of_the_best_f1():
    chances = np.random.default_rng(0).uniform(0, 1, 5000)
    best = max(2 * chances[chances >= cut].sum() / ((chances >= cut).sum() + 3000) for cut in CUTS)
    assert f1_optimal_probability(chances, objects=3000) == pytest.approx(best / 2, abs=0.005)


@pytest.mark.parametrize(
    "edits",
    [
        ScoredEdits(added=300),
        ScoredEdits(deleted=(0.0, 1.0)),
        ScoredEdits(accepted=(1.0,) * 500),
        ScoredEdits(deleted=(1.0,) * 500),
        ScoredEdits(accepted=(0.2,) * 10, deleted=(0.3,) * 1000),
    ],
    ids=["nothing found", "no chance at all and certain", "all right", "all wrong", "the worse the surer"],
)
@pytest.mark.parametrize("drawing", [0.0, 1.0])
def test_thresholds_are_valid_scores_for_extreme_edits(edits, drawing):
    thresholds = learned_thresholds({"a": edits, "b": ScoredEdits()}, drawing_cost=drawing)
    assert all(0 < threshold < 1 for threshold in thresholds.values())


def test_costly_pre_labels_get_a_high_threshold():
    edits = ScoredEdits(accepted=(0.2,) * 10, deleted=(0.3,) * 1000)
    assert learned_thresholds({"a": edits}, drawing_cost=1.0)["a"] > 0.3


def test_submitted_labels_yield_accepted_deleted_and_added():
    boxes = np.array([[0, 0, 10, 10], [20, 20, 30, 30], [50, 50, 60, 60]], np.float32)
    detections = Detections(boxes, np.array([0.9, 0.6, 0.3], np.float32), np.array([0, 0, 1]))
    truth = GroundTruth(np.array([[0, 0, 10, 11], [20, 20, 30, 30], [80, 80, 90, 90]], np.float32), ("a", "b", "a"))
    edits = edits_of(detections, truth, names=["a", "b"])
    assert edits["a"].accepted == (pytest.approx(0.9),)
    assert edits["a"].deleted == (pytest.approx(0.6),)
    assert edits["a"].added == 1
    assert edits["b"] == ScoredEdits((), (pytest.approx(0.3),), 1)
    twice = edits_of_all([(["a", "b"], detections, truth)] * 2, names=["b", "c"])
    assert twice == {"b": ScoredEdits((), (pytest.approx(0.3),) * 2, 2), "c": ScoredEdits()}
