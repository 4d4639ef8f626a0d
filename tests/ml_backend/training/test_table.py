"""What teaches what: the candidates of a drawn box, the background, and what nobody knows of."""

import numpy as np
import pytest

from ml_backend.detection.preprocess import Fit
from ml_backend.training.backbone import CandidateFeatures
from ml_backend.training.examples import Example
from ml_backend.training.fit import fit_head
from ml_backend.training.table import build_table

DRAWN = (20, 20, 60, 60)
CANDIDATES = [
    DRAWN,  # 0: the drawn box itself
    (22, 20, 60, 60),  # 1: nearly so
    (20, 20, 60, 44),  # 2: covers it by .6
    (20, 20, 60, 42),  # 3: by .55: nobody knows
    (100, 100, 140, 140),  # 4: elsewhere, and the backbone is sure of something there
    (100, 20, 140, 60),  # 5: elsewhere, and it sees nothing
]


def example(*, complete=True, drawn=(DRAWN,), labels=("cell",), seed=0):
    boxes = np.array(CANDIDATES, np.float32)
    scores = np.array([[0.1], [0.1], [0.1], [0.1], [0.9], [0.1]], np.float32)
    features = np.random.default_rng(seed).normal(0, 1, (6, 3)).astype(np.float32)
    sight = CandidateFeatures(boxes, np.full(6, 0.8, np.float32), scores, features, Fit(1.0, 1.0, 0, 0, 160, 160))
    return Example(sight, np.array(drawn, np.float32).reshape(-1, 4), labels, complete)


def problem(*examples, name="cell"):
    table = build_table(examples, (6,))
    return table.problem(name, table.photos)


def test_candidates_that_cover_a_box_show_it_the_better_the_more_and_those_between_tell_nothing():
    posed = problem(example())
    assert posed.positives.tolist() == [0, 1, 2]
    assert posed.weights.sum() == pytest.approx(1), "one object counts one"
    assert posed.truth[0] == 1
    assert posed.truth[2] < posed.truth[1]
    assert posed.negatives.tolist() == [4, 5]


def test_what_the_backbone_is_sure_of_on_a_sparsely_labelled_photo_is_no_background():
    assert problem(example(complete=False)).negatives.tolist() == [5]


def test_on_a_sparsely_labelled_photo_a_box_of_another_class_is_background_of_this_one():
    """What was drawn is known: its candidates, however sure the backbone is of them, show the class that was drawn."""
    boxes, labels = (DRAWN, (100, 100, 140, 140)), ("cell", "dust")
    assert 4 in problem(example(complete=False, drawn=boxes, labels=labels)).negatives.tolist()


def test_a_class_that_nobody_drew_is_unknown_not_denied():
    """It has no row at all: neither it, nor what it looks like, is answered; the backbone may still know it."""
    head = fit_head([example()], levels=(6,), trainer="logistic", refit_boxes=False)
    assert head.names == ("cell",)
    known = fit_head([example()], levels=(6,), trainer="logistic", refit_boxes=False, known=[("dust", 0)])
    assert known.names == ("cell", "dust")
    assert known.score_candidates(example().sight)[1][4, 1] == pytest.approx(0.72)


def test_candidates_lie_level_after_level_whatever_photo_they_are_of():
    table = build_table([example(), example(seed=1)], (4, 2))
    assert table.spans == ((0, 8), (8, 12))
    assert table.parts[1].rows.tolist() == [4, 5, 6, 7, 10, 11]
    posed = table.problem("cell", table.photos)
    assert posed.positives.tolist() == [0, 1, 2, 4, 5, 6]
    assert posed.negatives.tolist() == [8, 9, 10, 11]


def test_a_class_that_the_backbone_knows_starts_from_what_it_answers():
    """Before anything is fitted, the row answers the log-odds of the backbone itself."""
    table = build_table([example()], (6,), prior=(0,))
    posed = table.problem("cell", table.photos, known=0)
    answered = 1 / (1 + np.exp(-posed.scores(posed.first)))
    np.testing.assert_allclose(answered, 0.8 * example().sight.scores[:, 0], rtol=1e-4)


def test_moved_boxes_count_by_the_mean_of_both_overlaps():
    table = build_table([example()], (6,))
    nowhere = np.zeros((9, 4))
    same = table.problem("cell", table.photos, refined_overlaps=table.moved(table.photos, nowhere))
    assert same.positives.tolist() == [0, 1, 2]
    away = nowhere.copy()
    away[-1, 0] = 0.5  # half a width to the right
    moved = table.moved(table.photos, away)
    assert moved[0][0, 0] == pytest.approx(1 / 3, abs=1e-5)
    assert table.problem("cell", table.photos, refined_overlaps=moved).positives.tolist() == [0, 1]
