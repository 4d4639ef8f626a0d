"""What is asked for next: chance first, then photos of seldom drawn classes; empty photos in turn, twins last."""

import numpy as np
import pytest

from ml_backend.detection.detections import Detections
from ml_backend.training.acquisition import (
    CHANCE,
    EMPTY_EVERY,
    LabelCounts,
    UnlabelledImage,
    next_photos,
    rank,
    sample_without_near_duplicates,
    uncertainty,
    weights,
)


def found(*boxes):
    """Detections of (score, class)."""
    scores, classes = zip(*boxes, strict=True) if boxes else ((), ())
    return Detections(np.zeros((len(scores), 4), np.float32), np.array(scores, np.float32), np.array(classes, np.int64))


def unit(angle):
    return np.array([np.cos(angle), np.sin(angle)], np.float32)


def whole(count):
    return np.ones(count, np.float32)


def on(*photos):
    return LabelCounts.on([(labels, whole(len(labels))) for labels in photos])


def worth(*boxes, drawn, varies=None):
    return uncertainty(
        found(*boxes), whole(len(boxes)), names=["common", "rare"], drawn=LabelCounts(drawn, varies or {})
    )


def test_one_object_of_a_seldom_drawn_class_counts_more_than_ten_of_a_common_one():
    drawn = {"common": 99, "rare": 1}
    assert worth((0.9, 1), drawn=drawn) > 3 * worth(*[(0.9, 0)] * 10, drawn=drawn)


def test_two_rare_objects_teach_more_than_one_but_not_twice_as_much():
    drawn = {"common": 99, "rare": 1}
    one, two = (worth(*[(0.9, 1)] * count, drawn=drawn) for count in (1, 2))
    assert one < two < 2 * one


def test_many_guesses_are_no_object():
    assert worth(*[(0.09, 1)] * 50, drawn={"common": 99, "rare": 1}) < 0.01


def test_a_photo_on_which_nothing_was_found_has_no_worth():
    assert uncertainty(found(), whole(0), names=["a"], drawn=on()) is None


def test_a_class_that_is_on_every_photo_once_tells_little_though_the_head_sees_two():
    alike, varying = on(*[["cell"]] * 9), on(*[["cell"] * count for count in (0, 0, 0, 0, 3, 3, 3, 0, 0)])
    assert alike.objects == varying.objects == {"cell": 9}
    assert alike.varies["cell"] == pytest.approx(1 / 9)
    assert varying.varies["cell"] == 1.0
    told = {varies: worth((0.9, 1), (0.9, 1), drawn={"rare": 9}, varies={"rare": varies}) for varies in (1 / 9, 1.0)}
    assert told[1.0] > 8 * told[1 / 9]


def test_what_was_drawn_is_counted_photo_by_photo():
    drawn = on(["a", "a", "b"], [], ["a"])
    assert drawn.objects == {"a": 3, "b": 1}
    # Variance of (2, 0, 1) over its mean, (1, 0, 0) over its own; and one third of a photo that varies by 1.
    assert drawn.varies == pytest.approx({"a": 2 / 3 + 1 / 3, "b": 2 / 3 + 1 / 3})
    assert on() == LabelCounts({}, {})


def told(drawn, *photos):
    """The worth of photos that show so many of one class."""
    scores = np.linspace(0.5, 0.9, len(photos))
    return [
        uncertainty(found(*[(score, 0)] * count), whole(count), names=["a"], drawn=drawn)
        for score, count in zip(scores, photos, strict=True)
    ]


def test_a_class_of_which_some_photos_have_many_is_asked_for_where_there_are_many():
    worths = told(on(["a"] * 4, []), 1, 2, 5)
    assert worths == sorted(worths)
    assert worths[2] > 2 * worths[0] > 0.01


def test_where_all_photos_show_about_the_same_chance_decides():
    worths = told(on(["a"], ["a"], ["a", "a"]), *[1] * 50)
    assert len(set(worths)) == 50
    assert max(worths) < 0.01
    assert abs(np.corrcoef(worths, np.arange(50))[0, 1]) < 0.4


def test_a_class_that_nobody_drew_yet_is_asked_for_though_the_others_do_not_vary():
    drawn = on(["common"], ["common"], ["common"])
    seen, unseen = (
        uncertainty(found((0.9, index)), whole(1), names=["common", "rare"], drawn=drawn) for index in (0, 1)
    )
    assert unseen > 0.1 > 0.01 > seen


def test_what_the_edge_of_its_photo_cuts_counts_less():
    boxes = np.array([[10, 10, 50, 50], [0, 10, 50, 50], [10, 10, 50, 99.5], [8, 60, 92, 90]], np.float32)
    told = weights(boxes, width=100, height=100)
    assert told[0] == told[3] == 1
    assert 0 < told[1] == told[2] < 0.5
    assert weights(boxes, width=0, height=0).tolist() == [1] * 4, "the size is not known"
    assert weights(boxes[:0], width=100, height=100).shape == (0,)
    seen = found((0.9, 1), (0.9, 1))
    cut, uncut = (
        uncertainty(seen, np.full(2, share, np.float32), names=["a", "b"], drawn=on(["a"])) for share in (0.3, 1)
    )
    assert cut < uncut


def test_a_cold_start_draws_by_chance_and_names_no_photo_twice():
    vectors = np.stack([unit(angle) for angle in np.linspace(0, 3, 60)])
    order = sample_without_near_duplicates(vectors, np.zeros((0, 2), np.float32), 60)
    assert sorted(order) == list(range(60))
    assert order == sample_without_near_duplicates(vectors, np.zeros((0, 2), np.float32), 60), (
        "the same for the same photos"
    )
    assert abs(np.corrcoef(order, np.arange(60))[0, 1]) < 0.4, "whatever their order was"


def test_photos_that_show_the_same_as_others_come_last():
    vectors = np.stack([unit(angle) for angle in (0.0, 0.001, 1.0, 1.001, 2.0, 3.0)])
    order = sample_without_near_duplicates(vectors, np.stack([unit(3.001)]), 6)
    assert len({*order[:3]} & {0, 1}) == len({*order[:3]} & {2, 3}) == 1
    assert 4 in order[:3]
    assert 5 in order[3:]


def test_empty_photos_come_in_turn_neither_first_nor_last():
    order = rank([None] * 50 + [0.1, 0.9] + [0.5] * 48)
    assert order[0] == 51, "the most doubtful comes first"
    assert sorted(order) == list(range(100))
    empty = [index < 50 for index in order]
    assert [sum(empty[start : start + 5]) for start in range(0, 60, 5)] == [1] * 12


def test_empty_photos_come_in_turn_where_the_order_is_made_anew_after_each_label():
    left = [None] * 10 + [0.5] * 40
    served = [left.pop(rank(left, labelled=labelled)[0]) is None for labelled in range(40)]
    assert [sum(served[start : start + EMPTY_EVERY]) for start in range(0, 40, EMPTY_EVERY)] == [1] * 8


def test_after_the_start_what_teaches_most_comes_first_and_its_twin_last():
    looks = [UnlabelledImage(unit(angle), worth) for angle, worth in ((0.0, 0.1), (1.0, 0.9), (1.001, 0.8), (2.0, 0.5))]
    labelled = np.stack([unit(angle) for angle in (4.0, 4.2, 4.4, 4.6, 4.8)])
    assert next_photos(looks, labelled, 4) == [1, 3, 0, 2]


def test_a_cold_start_looks_at_the_photos_alone():
    vectors = [unit(angle) for angle in (0.0, 3.0, 1.0, 2.0)]
    looks = [UnlabelledImage(vector, worth) for vector, worth in zip(vectors, (9.0, None, 0.0, 1.0), strict=True)]
    labelled = np.stack([unit(0.5)])
    assert next_photos(looks, labelled, 4) == sample_without_near_duplicates(np.stack(vectors), labelled, 4)


def test_where_no_photo_promises_anything_those_on_which_nothing_was_seen_are_as_good_as_others():
    vectors = [unit(angle) for angle in np.linspace(0, 3, 60)]
    looks = [UnlabelledImage(vector, None if place % 2 else CHANCE / 2) for place, vector in enumerate(vectors)]
    labelled = np.stack([unit(angle) for angle in (4.0, 4.2, 4.4)])
    order = next_photos(looks, labelled, 60)
    assert order == sample_without_near_duplicates(np.stack(vectors), labelled, 60)
    assert 5 < sum(place % 2 for place in order[:30]) < 25
