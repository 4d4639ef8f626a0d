"""What the candidates of an object say together is nearer to the truth than what the surest of them says."""

import numpy as np
import pytest

from ml_backend.detection.box_voting import (
    MIN_CANDIDATE_SCORE,
    MOST_OBLONG,
    PlattCalibration,
    edge_aspect_features,
    fuse_candidates,
    logit,
)
from ml_backend.detection.detections import Detections
from ml_backend.detection.preprocess import Fit

PLAIN = (PlattCalibration(), PlattCalibration())
FAR = Fit(1, 1, -500, -500, 5000, 5000)
"""A photo whose edges are far from every box."""


def candidates(count=300, seed=1):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 200, (count, 2))
    boxes = np.concatenate([low, low + rng.uniform(20, 60, (count, 2))], axis=1).astype(np.float32)
    return Detections(boxes, rng.uniform(0.005, 1, count).astype(np.float32), rng.integers(0, 2, count))


def objects(*groups):
    """Each group of scores around an object of its own."""
    boxes = [
        [100 * place, 0, 100 * place + 40, 40 + 0.1 * k] for place, one in enumerate(groups) for k in range(len(one))
    ]
    scores = np.concatenate([np.array(one, np.float32) for one in groups])
    return Detections(np.array(boxes, np.float32), scores, np.zeros(len(scores), np.int64))


def shown(found, *, floor=0.0, lines=PLAIN):
    return fuse_candidates(found, FAR, floor=floor, lines=lines)


def test_the_mean_of_the_boxes_of_an_object_is_nearer_to_it_than_the_surest():
    """Fifty objects far from each other, ten boxes around each, the surest no better placed than the others."""
    rng = np.random.default_rng(0)
    corner = np.array([(100 * (i % 10), 100 * (i // 10)) for i in range(50)], np.float32)
    truth = np.concatenate([corner, corner + 40], axis=1)
    boxes = (truth[:, None] + rng.normal(0, 3, (50, 10, 4))).reshape(-1, 4).astype(np.float32)
    scores = rng.uniform(0.5, 1, 500).astype(np.float32)
    found = Detections(boxes, scores, np.zeros(500, np.int64))
    surest = found[np.array([10 * i + int(scores[10 * i : 10 * i + 10].argmax()) for i in range(50)])]
    away = [abs(one.boxes - truth[_nearest(one.boxes, truth)]).mean() for one in (surest, shown(found))]
    assert len(shown(found)) == 50
    assert away[1] < 0.5 * away[0]


def test_an_object_that_many_candidates_see_is_surer_than_one_that_a_single_one_does():
    found = shown(objects([0.8], [0.7, 0.7, 0.7, 0.6]))
    assert found.boxes[:, 0].round().tolist() == [100, 0]
    assert found.scores[0] > 0.75 > found.scores[1] + 0.05


def test_boxes_that_lie_next_to_an_object_do_not_speak_for_it():
    alone, beside = objects([0.8]), objects([0.8])
    near = Detections(np.array([[16, 0, 56, 40]], np.float32), np.array([0.7], np.float32), np.zeros(1, np.int64))
    together = shown(Detections.joined([beside, near]))
    assert together.scores[0] == shown(alone).scores[0]


def test_a_line_says_how_sure_boxes_are_and_without_one_their_own_score_stays():
    found = objects([0.8, 0.7], [0.4])
    plain, calibrated, own = (
        shown(found, lines=(line,)).scores for line in (PlattCalibration(), PlattCalibration(2.0, -1.0), None)
    )
    np.testing.assert_allclose(logit(calibrated), 2 * logit(plain) - 1, rtol=1e-4)
    assert own.tolist() == pytest.approx([0.8, 0.4])


@pytest.mark.parametrize(
    ("box", "cut", "ratio"),
    [
        ((40, 40, 80, 80), 0, 1),
        ((0, 40, 40, 80), 1, 1),
        ((160, 50, 200, 60), 1, 4),
        ((1, 60, 41, 99.5), 2, 40 / 39.5),
        ((0, 40, 200, 50), 1, 20),
        ((0, 0, 200, 100), 2, 2),
        ((7, 7, 7, 7), 0, 1),
    ],
    ids=["whole", "left", "right", "corner", "from edge to edge", "all of the photo", "without area"],
)
def test_a_box_is_marked_by_the_edges_that_cut_it_and_by_its_form(box, cut, ratio):
    [[edges, oblong]] = edge_aspect_features(np.array([box], np.float32), 200, 100)
    assert edges == cut
    assert oblong == pytest.approx(min(np.log(ratio) ** 2, MOST_OBLONG), abs=1e-5)


def test_what_the_edge_of_the_photo_cuts_is_less_sure_where_the_line_says_so():
    """The same two objects in the same input, of which the photo takes the left half."""
    found, line = objects([0.8], [0.8]), (PlattCalibration(cut=-1.0),)
    whole, narrow = (
        fuse_candidates(found, fit, floor=0, lines=line) for fit in (FAR, Fit(1, 1, -500, -500, 640, 5000))
    )
    np.testing.assert_allclose(whole.scores[0], whole.scores[1])
    assert narrow.boxes[0, 0] == 0, "the uncut one comes first"
    assert logit(narrow.scores)[0] - logit(narrow.scores)[1] == pytest.approx(1, abs=1e-3)


def test_the_edge_of_a_part_is_not_that_of_the_photo():
    found = objects([0.8])
    lines = (PlattCalibration(cut=-1.0),)
    part = Fit(0.5, 0.5, 0, 0, 4000, 4000, origin=(1000, 1000))
    assert (
        fuse_candidates(found, part, floor=0, lines=lines).scores
        == fuse_candidates(found, FAR, floor=0, lines=(PlattCalibration(),)).scores
    )


def test_lines_one_after_the_other_are_one():
    first, second = PlattCalibration(2.0, -1.0, -0.5, 0.25), PlattCalibration(0.5, 3.0, 1.0, 1.0)
    assert second(first) == PlattCalibration(1.0, 2.5, 0.75, 1.125)
    assert second(PlattCalibration()) == second == PlattCalibration()(second)


@pytest.mark.parametrize("floor", [0.05, 0.2, 0.6])
def test_what_is_shown_does_not_hang_on_the_floor_nor_on_other_classes(floor):
    found = candidates()
    whole, part = shown(found), shown(found, floor=floor)
    assert 0 < len(part) < len(whole)
    kept = whole[whole.scores >= floor]
    np.testing.assert_array_equal(part.boxes, kept.boxes)
    np.testing.assert_array_equal(part.scores, kept.scores)
    alone = shown(found[found.classes == 1], floor=floor)
    np.testing.assert_allclose(alone.boxes, part[part.classes == 1].boxes, rtol=1e-6)


def test_the_best_comes_first_and_the_faintest_not_at_all():
    found = shown(candidates())
    assert (np.diff(found.scores) <= 0).all()
    assert not len(shown(objects([0.9 * MIN_CANDIDATE_SCORE])))
    assert not len(shown(Detections.none()))


def test_a_box_without_area_stays_where_it_is():
    found = Detections(np.full((1, 4), 7, np.float32), np.ones(1, np.float32), np.zeros(1, np.int64))
    assert shown(found).boxes.tolist() == [[7, 7, 7, 7]]


def _nearest(boxes, truth):
    return np.linalg.norm(boxes[:, None] - truth[None], axis=2).argmin(axis=1)
