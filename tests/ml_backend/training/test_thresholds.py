"""Thresholds follow the edits where there are many, and stay where they were thought to be while there are few."""

import numpy as np
import pytest

from ml_backend.detection.detections import Detections
from ml_backend.training.metrics import GroundTruth
from ml_backend.training.thresholds import USUAL, Edits, edits_of, edits_of_all, learned_thresholds, least_chance


def spread(count, *, seed=0, scored=lambda chance: chance, missed=0):
    """Edits of boxes that are right as often as their chance says, which `scored` turns into scores."""
    rng = np.random.default_rng(seed)
    chances = rng.uniform(0, 1, count)
    right = rng.uniform(0, 1, count) < chances
    scores = scored(chances)
    return Edits(tuple(scores[right]), tuple(scores[~right]), missed)


def f1(edits, cut):
    """By counting."""
    right = sum(score >= cut for score in edits.kept)
    shown = right + sum(score >= cut for score in edits.deleted)
    return 2 * right / (shown + edits.objects)


def bill(edits, cut, drawing):
    """Deletions, and boxes drawn where each counts as so many."""
    return sum(score >= cut for score in edits.deleted) + drawing * sum(score < cut for score in edits.kept)


CUTS = np.linspace(0.01, 0.99, 99)
SCORES = {
    "calibrated": lambda chance: chance,
    "too sure": lambda chance: chance**0.25,
    "not sure enough": lambda chance: chance**3,
    "within a tenth": lambda chance: 0.6 + chance / 10,
}


@pytest.mark.parametrize("scored", SCORES.values(), ids=SCORES)
@pytest.mark.parametrize("missed", [0, 1000])
def test_many_edits_give_the_best_f1_whatever_scores_mean(scored, missed):
    edits = spread(4000, scored=scored, missed=missed)
    found = learned_thresholds({"a": edits})["a"]
    assert f1(edits, found) >= 0.99 * max(f1(edits, cut) for cut in np.linspace(0.001, 0.999, 999))


@pytest.mark.parametrize("drawing", [1.0, 3.0])
@pytest.mark.parametrize("scored", [SCORES["calibrated"], SCORES["too sure"]])
def test_what_drawing_costs_decides_which_threshold_makes_the_smallest_bill(drawing, scored):
    edits = spread(4000, scored=scored, missed=100)
    found = learned_thresholds({"a": edits}, drawing=drawing)["a"]
    assert bill(edits, found, drawing) <= 1.02 * min(bill(edits, cut, drawing) for cut in CUTS)


def test_classes_whose_scores_mean_other_things_get_thresholds_of_their_own():
    edits = {"shy": spread(2000, scored=lambda chance: chance / 3), "bold": spread(2000, seed=1, scored=np.sqrt)}
    found = learned_thresholds(edits)
    both = Edits.__add__(*edits.values())

    def together(cuts):
        right = sum(score >= cuts[name] for name, one in edits.items() for score in one.kept)
        shown = right + sum(score >= cuts[name] for name, one in edits.items() for score in one.deleted)
        return 2 * right / (shown + both.objects)

    assert found["shy"] < 0.25 < 0.45 < found["bold"]
    assert together(found) > max(f1(both, cut) for cut in CUTS) + 0.02


def test_a_class_without_edits_is_shown_like_the_others():
    bold = spread(1000, scored=np.sqrt)
    found = learned_thresholds({"often": bold, "never": Edits()})
    assert found["never"] == pytest.approx(found["often"], abs=0.02)
    assert found["never"] > USUAL + 0.1


def test_a_class_that_is_found_and_never_there_is_shown_less():
    often = spread(1000)
    found = learned_thresholds({"often": often, "deleted": Edits(deleted=(0.4, 0.5, 0.6) * 20)})
    assert found["deleted"] > found["often"] + 0.1


def test_one_photo_hardly_moves_a_threshold():
    found = learned_thresholds({"a": Edits(kept=(0.8, 0.6), deleted=(0.5, 0.2, 0.1, 0.05), added=1)})
    assert found["a"] == pytest.approx(USUAL, abs=0.1)


def test_one_edit_of_a_class_hardly_tells_it_from_the_others():
    often = spread(1000)
    alone = learned_thresholds({"often": often, "seldom": Edits()})
    one = learned_thresholds({"often": often, "seldom": Edits(deleted=(0.9,))})
    assert one["seldom"] == pytest.approx(alone["seldom"], abs=0.05)


@pytest.mark.parametrize(("drawing", "expected"), [(0.0, 0.4), (1.0, 0.5), (3.0, 0.25)])
def test_without_edits_all_is_as_usual(drawing, expected):
    found = learned_thresholds({"a": Edits(), "b": Edits()}, usual=0.4, drawing=drawing)
    assert found == {"a": pytest.approx(expected), "b": pytest.approx(expected)}
    assert learned_thresholds({}) == {}


def test_the_least_chance_is_half_of_the_best_f1():
    chances = np.random.default_rng(0).uniform(0, 1, 5000)
    best = max(2 * chances[chances >= cut].sum() / ((chances >= cut).sum() + 3000) for cut in CUTS)
    assert least_chance(chances, objects=3000) == pytest.approx(best / 2, abs=0.005)


@pytest.mark.parametrize(
    "edits",
    [
        Edits(added=300),
        Edits(deleted=(0.0, 1.0)),
        Edits(kept=(1.0,) * 500),
        Edits(deleted=(1.0,) * 500),
        Edits(kept=(0.2,) * 10, deleted=(0.3,) * 1000),
    ],
    ids=["nothing found", "no chance at all and certain", "all right", "all wrong", "the worse the surer"],
)
@pytest.mark.parametrize("drawing", [0.0, 1.0])
def test_thresholds_are_scores_whatever_was_done(edits, drawing):
    found = learned_thresholds({"a": edits, "b": Edits()}, drawing=drawing)
    assert all(0 < one < 1 for one in found.values())


def test_where_every_pre_label_costs_more_than_it_spares_hardly_any_is_shown():
    edits = Edits(kept=(0.2,) * 10, deleted=(0.3,) * 1000)
    assert learned_thresholds({"a": edits}, drawing=1.0)["a"] > 0.3


def test_a_submitted_photo_says_what_was_kept_deleted_and_added():
    boxes = np.array([[0, 0, 10, 10], [20, 20, 30, 30], [50, 50, 60, 60]], np.float32)
    found = Detections(boxes, np.array([0.9, 0.6, 0.3], np.float32), np.array([0, 0, 1]))
    truth = GroundTruth(np.array([[0, 0, 10, 11], [20, 20, 30, 30], [80, 80, 90, 90]], np.float32), ("a", "b", "a"))
    edits = edits_of(found, truth, names=["a", "b"])
    assert edits["a"].kept == (pytest.approx(0.9),)
    assert edits["a"].deleted == (pytest.approx(0.6),)
    assert edits["a"].added == 1
    assert edits["b"] == Edits((), (pytest.approx(0.3),), 1)
    twice = edits_of_all([(["a", "b"], found, truth)] * 2, names=["b", "c"])
    assert twice == {"b": Edits((), (pytest.approx(0.3),) * 2, 2), "c": Edits()}
