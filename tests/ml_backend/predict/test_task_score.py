"""The score orders photos as an annotator wants them: doubtful ones first, empty ones in the middle."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_backend.predict.task_score import NEUTRAL, certainty, near_miss_floor, task_score

T = 0.3


def score(*candidates, threshold=T):
    return task_score([(candidate, threshold) for candidate in candidates])


def test_doubtful_before_empty_before_sure():
    order = [
        score(0.31, 0.29, 0.32),  # three boxes at the threshold
        score(0.31),  # one
        score(0.28),  # nothing shown, but nearly
        score(),  # nothing at all
        score(0.9),  # one sure box
        score(0.9, 0.95, 0.9),  # three
    ]
    assert order == sorted(order)
    assert len(set(order)) == len(order)
    assert order[3] == NEUTRAL


def test_an_image_without_boxes_scores_one_half():
    weakest, strongest = near_miss_floor(T), T - 1e-6
    assert 0 < score(strongest) < score(weakest) <= NEUTRAL


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=30))
def test_it_is_always_a_number_from_0_to_1(candidates):
    assert 0 <= task_score(candidates) <= 1


@pytest.mark.parametrize(
    ("given_score", "threshold", "expected"), [(0.3, 0.3, 0), (1, 0.3, 1), (0.15, 0.3, 0.5), (1, 1, 1), (0.5, 0, 0.5)]
)
def test_sureness_is_the_distance_to_the_threshold(given_score, threshold, expected):
    assert certainty(given_score, threshold) == pytest.approx(expected)
