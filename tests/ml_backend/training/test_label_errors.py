"""The second opinion names a forgotten object, a wrong class, a loose box and one around nothing, and little else."""

import tracemalloc

import numpy as np
import pytest

from ml_backend.detection.preprocess import Fit
from ml_backend.training.backbone import CandidateFeatures
from ml_backend.training.examples import Example
from ml_backend.training.label_errors import _support as support_of
from ml_backend.training.label_errors import find_label_issues, second_opinions
from ml_backend.training.linear_head import Head

SIDE = 20
PLACES = [(20, 20), (120, 20), (20, 120), (120, 120)]


def sight(kinds, *, seed=0):
    """A grid of candidates on a plain photo of 200 pixels; those at `PLACES` look like the kind of object there."""
    rng = np.random.default_rng(seed)
    corners = np.array([(x, y) for y in range(0, 200, 20) for x in range(0, 200, 20)], np.float32)
    boxes = np.concatenate([corners, corners + SIDE], axis=1)
    embeddings = rng.normal(0, 0.05, (len(boxes), 3)).astype(np.float32)
    for place, kind in zip(PLACES, kinds, strict=True):
        if kind is not None:
            [index] = np.flatnonzero((corners == place).all(axis=1))
            embeddings[index, kind] += 3
    some = np.full(len(boxes), 0.5, np.float32)
    return CandidateFeatures(
        boxes, some, np.zeros((len(boxes), 1), np.float32), embeddings, Fit(1.0, 1.0, 0, 0, 200, 200)
    )


HEAD = Head(
    ("disc", "square"),
    (100,),
    np.concatenate([np.array([[1.5, 0], [0, 1.5], [0, 0]]), np.zeros((5, 2))])[None],
    np.array([[-6.0, -6.0]]),
)


def box(place, grow=0):
    x, y = PLACES[place]
    return [x, y, x + SIDE + grow, y + SIDE + grow]


def remarks(drawn, labels, kinds=(0, 1, 0, None)):
    found = find_label_issues(Example(sight(kinds), np.array(drawn, np.float32).reshape(-1, 4), tuple(labels)), HEAD)
    return [(one.kind, one.label, one.drawn) for one in found if one.confidence > 0.3]


def test_a_photo_drawn_as_the_model_sees_it_calls_for_no_remark():
    assert remarks([box(0), box(1), box(2)], ["disc", "square", "disc"]) == []


@pytest.mark.parametrize(
    ("drawn", "labels", "expected"),
    [
        ([box(0), box(1)], ["disc", "square"], ("missing", "disc", None)),
        ([box(0), box(1), box(2)], ["disc", "disc", "disc"], ("class", "square", 1)),
        ([box(0), box(1), box(2), box(3)], ["disc", "square", "disc", "disc"], ("spurious", "disc", 3)),
        ([box(0), box(1), box(2, grow=11)], ["disc", "square", "disc"], ("loose", "disc", 2)),
    ],
)
def test_each_kind_of_error_is_named(drawn, labels, expected):
    assert remarks(drawn, labels) == [expected]


def test_what_drawn_boxes_explain_is_no_missing_object():
    """The model is as sure of an object between two drawn neighbours as of one that stands alone."""
    alone = find_label_issues(Example(sight((0, None, None, None)), np.zeros((0, 4), np.float32), ()), HEAD)
    x, y = PLACES[0]
    halves = [[x - 14, y, x + 10, y + SIDE], [x + 10, y, x + 34, y + SIDE]]
    between = find_label_issues(
        Example(sight((0, None, None, None)), np.array(halves, np.float32), ("disc",) * 2), HEAD
    )
    assert max(one.confidence for one in alone if one.kind == "missing") > 0.3
    assert not [one for one in between if one.kind == "missing"]


def test_a_class_that_the_head_does_not_know_is_not_spoken_of():
    assert remarks([box(0), box(1), box(2), box(3)], ["disc", "square", "disc", "star"]) == []


def test_a_photo_is_judged_by_heads_that_did_not_learn_from_it():
    """One photo of eight shows the object without a box: were it learned from, the model would not miss it there."""
    examples = []
    for seed in range(8):
        drawn = [box(0), box(2)] if seed != 3 else [box(0)]
        examples.append(
            Example(sight((0, None, 0, None), seed=seed), np.array(drawn, np.float32), ("disc",) * len(drawn))
        )
    found = dict(second_opinions(examples, levels=(100,)))
    assert sorted(found) == list(range(8))
    [first, *_] = found[3]
    assert (first.kind, first.label) == ("missing", "disc")
    sure = [index for index, some in found.items() for one in some if one.confidence >= first.confidence]
    assert sure == [3]


def test_thousands_of_drawn_boxes_do_not_fill_memory():
    corners = np.array([(x, y) for y in range(0, 200, 4) for x in range(0, 200, 4)], np.float32)
    boxes = np.concatenate([corners, corners + 3], axis=1)
    many = np.concatenate([boxes] * 8)
    example = Example(sight((0, 1, 0, None)), many, ("disc",) * len(many))
    scores = np.full((len(boxes), 2), 0.9, np.float32)
    tracemalloc.start()
    support = support_of(example, boxes, scores)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (support == np.float32(0.9)).all()
    assert peak < 100e6  # all pairs are 400 MB
