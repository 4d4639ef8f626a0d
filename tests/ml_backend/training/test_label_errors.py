"""Label issues name a missing object, a wrong class, a loose box and a spurious one, and little else."""

import tracemalloc

import numpy as np
import pytest

from ml_backend.detection.fit import Fit
from ml_backend.training.backbone import CandidateFeatures
from ml_backend.training.examples import Example
from ml_backend.training.label_errors import (
    Agreement,
    LabelCheck,
    LabelIssue,
    check_labels,
    class_support,
    cross_validated_issues,
    rate_issues,
)
from ml_backend.training.linear_head import LinearHead

SIDE = 20
POSITIONS = [(20, 20), (120, 20), (20, 120), (120, 120)]


def candidates_of(kinds, *, seed=0):
    """A grid of candidates on a plain image of 200 pixels; those at `POSITIONS` look like the given kinds."""
    rng = np.random.default_rng(seed)
    corners = np.array([(x, y) for y in range(0, 200, 20) for x in range(0, 200, 20)], np.float32)
    boxes = np.concatenate([corners, corners + SIDE], axis=1)
    embeddings = rng.normal(0, 0.05, (len(boxes), 3)).astype(np.float32)
    for position, kind in zip(POSITIONS, kinds, strict=True):
        if kind is not None:
            [index] = np.flatnonzero((corners == position).all(axis=1))
            embeddings[index, kind] += 3
    half = np.full(len(boxes), 0.5, np.float32)
    return CandidateFeatures(
        boxes, half, np.zeros((len(boxes), 1), np.float32), embeddings, Fit(1.0, 1.0, 0, 0, 200, 200)
    )


HEAD = LinearHead(
    ("disc", "square"),
    (100,),
    np.concatenate([np.array([[1.5, 0], [0, 1.5], [0, 0]]), np.zeros((5, 2))])[None],
    np.array([[-6.0, -6.0]]),
)


def box(index, grow=0):
    x, y = POSITIONS[index]
    return [x, y, x + SIDE + grow, y + SIDE + grow]


def issues_of(drawn, labels, kinds=(0, 1, 0, None)):
    issues = check_labels(
        Example(candidates_of(kinds), np.array(drawn, np.float32).reshape(-1, 4), tuple(labels)), HEAD
    ).issues
    return [(issue.kind, issue.label, issue.drawn) for issue in issues if issue.confidence > 0.3]


def test_correct_labels_have_no_issues():
    assert issues_of([box(0), box(1), box(2)], ["disc", "square", "disc"]) == []


@pytest.mark.parametrize(
    ("drawn", "labels", "expected"),
    [
        ([box(0), box(1)], ["disc", "square"], ("missing", "disc", None)),
        ([box(0), box(1), box(2)], ["disc", "disc", "disc"], ("class", "square", 1)),
        ([box(0), box(1), box(2), box(3)], ["disc", "square", "disc", "disc"], ("spurious", "disc", 3)),
        ([box(0), box(1), box(2, grow=11)], ["disc", "square", "disc"], ("loose", "disc", 2)),
    ],
)
def test_each_kind_of_error_is_reported(drawn, labels, expected):
    assert issues_of(drawn, labels) == [expected]


def test_covered_detections_are_not_missing_objects():
    """The model is as confident between two labelled neighbours as on an isolated object."""
    alone = check_labels(Example(candidates_of((0, None, None, None)), np.zeros((0, 4), np.float32), ()), HEAD).issues
    x, y = POSITIONS[0]
    halves = [[x - 14, y, x + 10, y + SIDE], [x + 10, y, x + 34, y + SIDE]]
    between = check_labels(
        Example(candidates_of((0, None, None, None)), np.array(halves, np.float32), ("disc",) * 2), HEAD
    ).issues
    assert max(issue.confidence for issue in alone if issue.kind == "missing") > 0.3
    assert not [issue for issue in between if issue.kind == "missing"]


def test_classes_unknown_to_the_head_are_skipped():
    assert issues_of([box(0), box(1), box(2), box(3)], ["disc", "square", "disc", "star"]) == []


def test_images_are_checked_by_out_of_fold_heads():
    """One image of eight lacks a box: a head fitted on it would not report it as missing."""
    examples = []
    for seed in range(8):
        drawn = [box(0), box(2)] if seed != 3 else [box(0)]
        examples.append(
            Example(candidates_of((0, None, 0, None), seed=seed), np.array(drawn, np.float32), ("disc",) * len(drawn))
        )
    by_image = dict(cross_validated_issues(examples, levels=(100,)))
    assert sorted(by_image) == list(range(8))
    [first, *_] = by_image[3].issues
    assert (first.kind, first.label) == ("missing", "disc")
    confident = [
        index for index, check in by_image.items() for issue in check.issues if issue.confidence >= first.confidence
    ]
    assert confident == [3]


@pytest.mark.parametrize(("agreed", "kept"), [(100, 5), (10, 0)])
def test_issues_of_a_class_are_raised_only_where_plausible(agreed, kept):
    """The model sees 5 undrawn objects beside 100 drawn ones, or beside 10: annotators do not miss one in three."""
    issue = LabelIssue("missing", 0.8, (0, 0, 9, 9), "disc")
    agreements = [Agreement("missing", "disc", 0.9)] * agreed + [Agreement("missing", "square", 0.9)] * 100
    rated, withheld = rate_issues([LabelCheck([issue], agreements), *[LabelCheck([issue])] * 4])
    assert sum(map(len, rated)) == kept
    assert withheld == ({} if kept else {("missing", "disc"): 5})
    assert {found.confidence for issues in rated for found in issues} <= {0.8}


@pytest.mark.parametrize(("agreement", "kept"), [(0.95, [0.9]), (0.45, [])])
def test_confident_issues_need_agreements_as_confident(agreement, kept):
    box_at = (0.0, 0.0, 9.0, 9.0)
    issues = [LabelIssue("missing", score, box_at, "disc") for score in (0.9, *[0.5] * 30)]
    rated, withheld = rate_issues([LabelCheck(issues, [Agreement("missing", "disc", agreement)] * 20)], least=0.4)
    assert [issue.confidence for issue in rated[0]] == kept
    assert withheld == {("missing", "disc"): 31 - len(kept)}


def test_agreements_name_found_and_well_placed_boxes():
    check = check_labels(
        Example(candidates_of((0, 1, None, None)), np.array([box(0), box(1, grow=6)], np.float32), ("disc", "square")),
        HEAD,
    )
    found = {(found.kind, found.label) for found in check.agreements if found.confidence > 0.3}
    assert {pair for pair in found if pair[0] != "spurious"} == {
        ("missing", "disc"),
        ("loose", "disc"),
        ("missing", "square"),
        ("class", "disc"),
        ("class", "square"),
    }


def test_thousands_of_boxes_use_bounded_memory():
    corners = np.array([(x, y) for y in range(0, 200, 4) for x in range(0, 200, 4)], np.float32)
    boxes = np.concatenate([corners, corners + 3], axis=1)
    many = np.concatenate([boxes] * 8)
    example = Example(candidates_of((0, 1, 0, None)), many, ("disc",) * len(many))
    scores = np.full((len(boxes), 2), 0.9, np.float32)
    tracemalloc.start()
    support = class_support(example, boxes, scores)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (support == np.float32(0.9)).all()
    assert peak < 100e6  # all pairs are 400 MB
