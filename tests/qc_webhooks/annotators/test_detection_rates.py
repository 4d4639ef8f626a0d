"""Recall and precision against the truth, with intervals: crowds with a known truth, drawn as people draw."""

import numpy as np
import pytest

from labelloop.labeling.consensus.consensus import AnnotatorView, collect_evidence, fit_annotator_model
from labelloop.labeling.geometry.overlap import box_iou, match
from labelloop.labeling.geometry.shapes import Rectangle
from labelloop.labeling.region import Region
from qc_webhooks.annotators.detection_rates import measure_detection

LEAD = 99


def region(box):
    left, top, right, bottom = box.tolist()
    shape = Rectangle(left, top, right - left, bottom - top)
    return Region(shape, ("c",), "r", "label", "image", "rectanglelabels", None, 0, 1000, 1000)


def boxes_of(regions):
    return np.array([each.geometry.bounds for each in regions]).reshape(-1, 4)


def crowd(seed, *, spread=2.0, border=0.08, images=70, people=8, each=3):
    """Views of each image, and its truth, drawn a little more exactly than people draw."""
    rng = np.random.default_rng(seed)
    skill, false = rng.normal(1.5, 0.7, people), rng.gamma(2, 0.15, people)
    for _ in range(images):
        chosen = sorted(rng.choice(people, each, replace=False).tolist())
        count, places = int(rng.poisson(6)), rng.permutation(100)
        grid = [
            np.array([x, y, x + 60, y + 60]) for x, y in zip(places % 10 * 100.0, places // 10 * 100.0, strict=True)
        ]
        drawn = {who: [] for who in chosen}
        for box in grid[:count]:
            hard = rng.normal(0, spread)
            for who in chosen:
                if rng.random() < 1 / (1 + np.exp(-(skill[who] + hard))):
                    drawn[who].append(region(box + rng.normal(0, 60 * border, 4)))
        for number, who in enumerate(chosen):
            drawn[who] += [region(box) for box in grid[20 + 10 * number :][: rng.poisson(false[who])]]
        truth = np.array(grid[:count]).reshape(-1, 4)
        truth = truth + np.random.default_rng(seed).normal(0, 40 * border, truth.shape)
        yield [AnnotatorView(who, tuple(drawn[who])) for who in chosen], truth


def rates(tasks, iou):
    """annotator -> (hits, objects, regions)."""
    counts = {}
    for views, truth in tasks:
        for view in views:
            drawn = boxes_of(view.regions)
            hits = len(match(box_iou(drawn, truth), threshold=iou)) if len(drawn) and len(truth) else 0
            counts.setdefault(view.annotator, np.zeros(3))
            counts[view.annotator] += hits, len(truth), len(drawn)
    return counts


def measured(tasks, iou):
    evidence = [collect_evidence(views) for views, _ in tasks]
    return measure_detection(evidence, fit_annotator_model(evidence), match_iou=iou)


@pytest.mark.parametrize("iou", [0.2, 0.5])
@pytest.mark.parametrize(("spread", "border"), [(0.3, 0.04), (2.0, 0.04), (1.5, 0.15)])
def test_intervals_hold_the_rate_against_the_truth(iou, spread, border):
    held = []
    for seed in range(2):
        tasks = list(crowd(seed, spread=spread, border=border))
        known = rates(tasks, iou)
        for who, found in measured(tasks, iou).items():
            hits, objects, regions = known[who]
            held += [found.recall.low <= hits / objects <= found.recall.high,
                     found.precision.low <= hits / regions <= found.precision.high]  # fmt: skip
    assert np.mean(held) >= 0.85


def test_boxes_that_overlap_too_little_count_as_missed():
    tasks = list(crowd(3, border=0.2))
    loose, strict = measured(tasks, 0.2), measured(tasks, 0.7)
    for who, found in loose.items():
        assert strict[who].recall.value < found.recall.value
        assert strict[who].precision.value < found.precision.value


def test_ground_truths_give_the_exact_rate():
    tasks = [([*views[:1], AnnotatorView(LEAD, tuple(map(region, truth)))], truth) for views, truth in crowd(4)]
    evidence = [collect_evidence(views, truth=LEAD) for views, _ in tasks]
    found = measure_detection(evidence, fit_annotator_model(evidence), match_iou=0.5)
    assert LEAD not in found
    known = rates([(views[:1], truth) for views, truth in tasks], 0.5)
    for who, each in found.items():
        hits, objects, _ = known[who]
        if each.recall.value is not None:
            assert each.recall.value == pytest.approx(hits / objects, abs=0.02)
            assert each.recall.high - each.recall.low < 4 * (0.25 / objects) ** 0.5 + 0.02


def test_one_annotator_alone_is_not_measured():
    tasks = [(views[:1], truth) for views, truth in crowd(5, images=20)]
    assert measured(tasks, 0.5) == {}
