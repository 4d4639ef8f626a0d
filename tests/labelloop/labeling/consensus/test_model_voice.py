"""A model as one more voice of the consensus: its errors are found, its scores are used, it is no annotator."""

import msgspec
import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import expit

from labelloop.labeling.consensus.clustering import cluster_regions
from labelloop.labeling.consensus.consensus import (
    AnnotatorView,
    collect_evidence,
    consensus,
    fit_annotator_model,
    provenance_json,
)
from labelloop.labeling.consensus.detection_model import DIFFICULTY
from labelloop.labeling.consensus.model_voice import MIN_TASKS, VOICE, VoiceRegions
from labelloop.labeling.consensus.results import attach_results
from labelloop.labeling.consensus.voiced import heard_task, with_voice
from labelloop.labeling.geometry.shapes import Rectangle
from labelloop.labeling.region import Region


def region(x, y, *, label="car", score=None, rng=None):
    offset = rng.normal(0, 2, 2) if rng is not None else (0.0, 0.0)
    shape = Rectangle(float(x + offset[0]), float(y + offset[1]), 60.0, 60.0)
    return Region(shape, (label,), "r", "label", "image", "rectanglelabels", score, 0, 1000, 1000)


def shares_found(recall):
    """Share of easy and of hard objects that somebody with this mean recall finds, as the model has it."""
    logit = brentq(lambda at: expit(at + np.array(DIFFICULTY)).mean() - recall, -9, 9)
    return expit(logit + np.array(DIFFICULTY[::-1]))


def simulated(*, tasks=120, people=2, recall=0.6, false=0.3, voice_recall=0.8, voice_false=1.0, seed=0):
    """(truth, views, voice) of each task: right boxes of the voice score higher than its false ones.

    Half of the objects are harder to find, for everybody.
    """
    rng = np.random.default_rng(seed)
    chances, voice_chances = shares_found(recall), shares_found(voice_recall)
    for _ in range(tasks):
        grid = [(120 * column, 120 * row) for column in range(8) for row in range(8)]
        places = [grid[index] for index in rng.permutation(len(grid))]
        truth, empty = places[:5], iter(places[5:])
        hard = rng.integers(2, size=len(truth))
        views = []
        for who in range(1, people + 1):
            drawn = [
                region(*place, rng=rng) for place, kind in zip(truth, hard, strict=True) if rng.random() < chances[kind]
            ]
            drawn += [region(*next(empty), rng=rng) for _ in range(rng.poisson(false))]
            views.append(AnnotatorView(who, tuple(drawn)))
        said = [
            region(*place, score=rng.beta(6, 2), rng=rng)
            for place, kind in zip(truth, hard, strict=True)
            if rng.random() < voice_chances[kind]
        ]
        said += [region(*next(empty), score=rng.beta(2, 6), rng=rng) for _ in range(rng.poisson(voice_false))]
        yield truth, views, VoiceRegions.heard("v1", said)


def fitted(tasks):
    model = fit_annotator_model(collect_evidence(views) for _, views, _ in tasks)
    return with_voice(
        model,
        [heard_task(views, cluster_regions([view.regions for view in views]), voice) for _, views, voice in tasks],
    )


def f1(tasks, model, *, with_model):
    hits = found = truths = 0
    for truth, views, voice in tasks:
        agreed = consensus(views, model, voice=voice if with_model else None).regions
        centres = {(round(one.region.geometry.x / 120), round(one.region.geometry.y / 120)) for one in agreed}
        hits += len(centres & {(x // 120, y // 120) for x, y in truth})
        found, truths = found + len(agreed), truths + len(truth)
    return 2 * hits / (found + truths)


def test_errors_of_the_model_are_estimated_like_a_persons():
    for recall, false in ((0.8, 1.0), (0.5, 0.3)):
        voice = fitted(list(simulated(people=5, voice_recall=recall, voice_false=false))).voice
        # Of objects that somebody found: the annotators' own model counts too few that all of them missed.
        assert voice.recall() == pytest.approx(recall, abs=0.25)
        assert voice.false_regions == pytest.approx(false, abs=0.25)
        assert voice.calibrated(0.8) > 0.9 > 0.3 > voice.calibrated(0.1)


@pytest.mark.parametrize("people", [1, 2, 3])
def test_a_good_model_improves_the_consensus(people):
    tasks = list(simulated(people=people))
    model = fitted(tasks)
    assert f1(tasks, model, with_model=True) > f1(tasks, model, with_model=False) + 0.03


def test_a_useless_model_does_no_harm():
    rng = np.random.default_rng(1)
    tasks = [
        (
            truth,
            views,
            VoiceRegions.heard("v1", [region(*rng.uniform(0, 900, 2), score=rng.random()) for _ in range(5)]),
        )
        for truth, views, _ in simulated(people=3)
    ]
    model = fitted(tasks)
    assert f1(tasks, model, with_model=True) > f1(tasks, model, with_model=False) - 0.02


def test_the_model_is_no_annotator():
    tasks = list(simulated())
    model = fitted(tasks)
    assert VOICE not in model.detection.logits
    assert VOICE not in model.box_bias.by_annotator
    _, views, voice = tasks[0]
    agreed = consensus(views, model, voice=voice)
    assert agreed.annotators == (1, 2)
    for one in (*agreed.regions, *agreed.rejected):
        assert {source.annotator for source in one.sources} <= {1, 2}
        assert VOICE not in one.missed_by


def test_an_object_that_only_the_model_marks_says_so():
    model = fitted(list(simulated(people=1, recall=0.5)))
    voice = VoiceRegions.heard("v7", [region(0, 0, score=0.9), region(400, 400, score=0.06)])
    views = [AnnotatorView(1, (region(800, 800),))]
    agreed = consensus(views, model, voice=voice)
    (only,) = [one for one in agreed.regions if not one.sources]
    assert provenance_json(only)["model"] == {"version": "v7", "score": 0.9}
    assert only.missed_by == (1,)
    assert attach_results(agreed, views).regions[-1].geometry == only.region.geometry
    assert all(one.sources for one in agreed.rejected)  # what only the model doubts is no annotator's loss


def test_few_tasks_leave_the_consensus_as_it_is():
    tasks = list(simulated(tasks=MIN_TASKS - 1))
    model = fitted(tasks)
    assert model.voice is None
    _, views, voice = tasks[0]
    assert consensus(views, model, voice=voice) == consensus(views, model)


def test_model_of_the_voice_survives_json():
    tasks = list(simulated(tasks=40))
    voice = fitted(tasks).voice
    assert msgspec.json.decode(msgspec.json.encode(voice), type=type(voice)) == voice
    heard = heard_task(tasks[0][1], cluster_regions([view.regions for view in tasks[0][1]]), tasks[0][2])
    assert msgspec.json.decode(msgspec.json.encode(heard), type=type(heard)) == heard


def test_of_two_overlapping_regions_the_better_is_heard():
    voice = VoiceRegions.heard("v1", [region(0, 0, score=0.4), region(3, 3, score=0.8), region(300, 0, score=0.02)])
    assert [one.score for one in voice.regions] == [0.8]
