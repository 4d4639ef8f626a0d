"""What is asked for next: spread first, then doubt about seldom drawn classes; empty photos in the middle."""

import numpy as np
import pytest

from ml_backend.acquisition import Look, entropy, next_photos, rank, spread, uncertainty
from ml_backend.detections import Detections


def found(*boxes):
    """Detections of (score, class)."""
    scores, classes = zip(*boxes, strict=True) if boxes else ((), ())
    return Detections(np.zeros((len(scores), 4), np.float32), np.array(scores, np.float32), np.array(classes, np.int64))


def unit(angle):
    return np.array([np.cos(angle), np.sin(angle)], np.float32)


def test_entropy_is_one_bit_where_the_head_cannot_tell_and_none_where_it_is_sure():
    assert entropy(np.array([0.5])) == pytest.approx(1)
    assert entropy(np.array([0.0, 1.0])).max() < 1e-4


def test_a_class_that_was_seldom_drawn_counts_more():
    names, drawn = ["common", "rare"], {"common": 99, "rare": 0}
    rare = uncertainty(found((0.5, 1)), names=names, drawn=drawn)
    assert rare == pytest.approx(10 * uncertainty(found((0.5, 0)), names=names, drawn=drawn))


def test_a_crowd_counts_no_more_than_a_few():
    one = uncertainty(found(*[(0.5, 0)] * 3), names=["a"], drawn={})
    assert uncertainty(found(*[(0.5, 0)] * 300), names=["a"], drawn={}) == pytest.approx(one)


def test_spread_takes_the_farthest_from_what_is_there():
    vectors = np.stack([unit(a) for a in (0.0, 0.1, 1.5, 3.0)])
    assert spread(vectors, np.stack([unit(0.05)]), 2) == [3, 2]


def test_spread_begins_in_the_middle_and_names_no_photo_twice():
    vectors = np.stack([unit(a) for a in (0.0, 0.5, 1.0)])
    order = spread(vectors, np.zeros((0, 2), np.float32), 9)
    assert order[0] == 1
    assert sorted(order) == [0, 1, 2]


def test_empty_photos_come_in_turn_neither_first_nor_last():
    order = rank([None] * 50 + [0.1, 0.9] + [0.5] * 48)
    assert order[0] == 51, "the most doubtful comes first"
    assert sorted(order) == list(range(100))
    empty = [index < 50 for index in order]
    assert [sum(empty[start : start + 5]) for start in range(0, 60, 5)] == [1] * 12


def test_after_the_start_the_doubtful_are_asked_for_and_unlike_ones_first():
    looks = [Look(unit(3.0), 0.0)] * 20 + [Look(unit(a), 0.9) for a in (0.0, 0.1, 1.0, 1.1, 2.0)]
    labelled = np.stack([unit(0.0), unit(0.05)])
    assert next_photos(looks, labelled, 1) == [24]


def test_a_cold_start_looks_at_the_photos_alone():
    looks = [Look(unit(0.0), 0.0), Look(unit(3.0), None), Look(unit(0.1), 9.0)]
    assert next_photos(looks, np.stack([unit(0.0)]), 1) == [1]
