"""All annotators of a task matched in one pass: the same as two by two, the path of large tasks."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labelloop.labeling.geometry.overlap import iou
from labelloop.labeling.geometry.shapes import Ellipse, Mask, Polygon, Rectangle
from labelloop.labeling.region import Region
from qc_webhooks.agreement import Answers
from qc_webhooks.agreement.conflicts import find_objects
from qc_webhooks.agreement.metrics import Tolerance, soft_f1
from qc_webhooks.agreement.task_matching import TaskMatching
from qc_webhooks.policy import Policy
from qc_webhooks.verdict import object_doubts
from qc_webhooks.verdict.verdict import judge

TOLERANCE = Tolerance(pixels=6.0)


def region(shape, label="car", image=0, id_="", attributes=()):
    return Region(shape, (label,), id_, "label", "image", "rectanglelabels", None, image, 640, 480, dict(attributes))


def shape_of(kind, x, y, size, rng):
    if kind == "polygon":
        turn = np.linspace(0, 2 * math.pi, 12, endpoint=False)
        radius = size * rng.uniform(0.4, 0.5, 12)
        return Polygon(
            tuple(zip((x + radius * np.cos(turn)).tolist(), (y + radius * np.sin(turn)).tolist(), strict=True))
        )
    if kind == "ellipse":
        return Ellipse(x, y, size / 2, size / 3, 20.0)
    rotation = 15.0 if kind == "rotated" else 0.0
    return Rectangle(x, y, size, size, rotation)


def drawn_task(seed, *, kinds=("box",), people=3, images=1, answers=False):
    """Objects of each annotator: jittered, some missing, extra, mislabelled, doubled or crowded."""
    rng = np.random.default_rng(seed)
    jitter = rng.choice([0.0, 2.0, 8.0])
    objects = [
        (
            kinds[rng.integers(len(kinds))],
            *rng.uniform(50, 250, 2),
            rng.choice([12.0, 40.0, 90.0]),
            rng.integers(images),
        )
        for _ in range(rng.integers(0, 7))
    ]
    objects += [(kind, x + size * 0.3, y, size, image) for kind, x, y, size, image in objects[:2]]  # crowded
    task = []
    for who in range(people):
        own = []
        for index, (kind, x, y, size, image) in enumerate(objects):
            if rng.random() < 0.15:
                continue
            label = "van" if rng.random() < 0.1 else "car"
            at = np.array([x, y]) + rng.normal(0, 1, 2) * jitter
            extra = {"state": ("old",)} if answers and rng.random() < 0.3 else {}
            copies = 2 if rng.random() < 0.05 else 1
            # copies of outlines differ: of equal ones, rounding decides which is matched
            own += [
                region(
                    shape_of(kind, *(at + copy * (kinds != ("box",))), size, rng),
                    label, int(image), f"{who}-{index}-{copy}", extra,
                )
                for copy in range(copies)
            ]  # fmt: skip
        task.append(own)
    return task


CASES = {
    "boxes": {},
    "polygons": {"kinds": ("polygon",)},
    "all outlines": {"kinds": ("box", "polygon", "ellipse", "rotated")},
    "two images": {"images": 2},
    "answers": {"answers": True},
    "five annotators": {"people": 5},
}


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_one_pass_matches_as_two_by_two(case, seed):
    task = drawn_task(seed, **CASES[case])
    matching = TaskMatching(task, "regions", TOLERANCE, 0.5)
    for first, second in combinations(range(len(task)), 2):
        expected, found = find_objects(task[first], task[second], TOLERANCE), matching[first, second]
        for kind in ("same", "near"):
            pairs, others = getattr(found, kind), getattr(expected, kind)
            assert [pair[:2] for pair in pairs] == [pair[:2] for pair in others]
            assert [pair[2:] for pair in pairs] == [pytest.approx(pair[2:], abs=1e-9) for pair in others]
        assert (found.only_a, found.only_b, found.close) == (expected.only_a, expected.only_b, expected.close)
        if plain := matching.plain(first, second):
            by_overlap = expected.by_overlap or expected
            assert plain.measured == pytest.approx(soft_f1(task[first], task[second], by_overlap), abs=1e-9)


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_verdict_is_that_of_two_by_two(case, seed):
    answers = [
        Answers(who, who, "", controls={("label", "regions"): regions})
        for who, regions in enumerate(drawn_task(seed, **CASES[case]), start=1)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qc_webhooks.agreement.task_matching.MAX_DENSE_SHAPES", 0)
        expected = judge(answers, Policy())
    found = judge(answers, Policy())
    assert (found.outcome, found.majority, found.settled) == (expected.outcome, expected.majority, expected.settled)
    assert [(item.type, item.regions) for item in found.conflicts] == [
        (item.type, item.regions) for item in expected.conflicts
    ]
    for pair, other in zip(found.comparisons, expected.comparisons, strict=True):
        assert (pair.disputed, pair.overall) == (other.disputed, pytest.approx(other.overall, abs=1e-9))
        assert pair.deciding == pytest.approx(other.deciding, abs=1e-9)


def test_most_careful_pairs_are_decided_at_once(monkeypatch):
    task = [[region(Rectangle(60.0 * n, 10.0 + who, 50.0, 50.0)) for n in range(10)] for who in range(3)]
    monkeypatch.setattr(object_doubts, "_agreement", None)  # what takes a matching two by two
    answers = [Answers(who, who, "", controls={("label", "regions"): own}) for who, own in enumerate(task, start=1)]
    assert judge(answers, Policy()).outcome == "agreed"


def test_masks_of_one_task_are_matched_in_one_pass():
    pixels = np.zeros((60, 80), bool)
    pixels[10:40, 10:40] = True
    shifted = np.roll(pixels, 2, axis=1)
    task = [[region(Mask.from_array(each))] for each in (pixels, shifted, pixels)]
    matching = TaskMatching(task, "regions", TOLERANCE, 0.5)
    assert matching[0, 1].same[0].iou == pytest.approx(840 / 960)
    assert matching[0, 2].same[0].iou == 1.0


def test_equal_shapes_without_area_match():
    task = [[region(Rectangle(5.0, 5.0, 0.0, 0.0))] for _ in range(2)]
    assert TaskMatching(task, "regions", TOLERANCE, 0.5)[0, 1].same[0].iou == 1.0


def test_an_overlap_at_the_threshold_but_for_rounding_is_drawn_alike():
    """Of three annotators, two draw the same box, and one half of it: IoU .5, less by the last bit."""
    box, half = Rectangle(12.2, 0.1, 20.0, 20.0), Rectangle(12.2, 0.1, 20.0, 10.0)
    assert iou(box, half) < 0.5
    task = [[region(half)], [region(box)], [region(box)]]
    matching = TaskMatching(task, "regions", TOLERANCE, 0.5)
    for pair in combinations(range(3), 2):
        found, expected = matching[pair], find_objects(task[pair[0]], task[pair[1]], TOLERANCE)
        assert (found.close, found.same) == (expected.close, expected.same)
        assert found.close == {(0, 0)}
