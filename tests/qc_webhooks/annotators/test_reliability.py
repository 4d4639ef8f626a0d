"""Reliability of simulated annotators whose truth is known: found, with intervals that hold it."""

import numpy as np
import pytest

from labelloop.labeling.consensus.consensus import Evidence, fit_annotator_model
from qc_webhooks.annotators.reliability import rate_annotators, rate_interval

NAMES = ("Car", "Bus", "Van")


def labelled(skill, *, tasks=300, seed=0, bias=None):
    """Tasks with one question; each annotator is right so often, and errs evenly or towards the answer of `bias`."""
    rng, result = np.random.default_rng(seed), []
    for truth in rng.integers(3, size=tasks):
        votes = []
        for who, right in skill.items():
            wrong = bias[who] if bias and who in bias and bias[who] != truth else (truth + 1 + rng.integers(2)) % 3
            votes.append((who, (NAMES[truth if rng.random() < right else wrong],)))
        result.append(Evidence(tuple(skill), (), (("kind", tuple(votes)),)))
    return result


def detections(recall, false, *, tasks=250, seed=0):
    """Images with four objects; annotators have these rates of recall and of false positives per image."""
    rng, result = np.random.default_rng(seed), []
    for _ in range(tasks):
        clusters = []
        for _ in range(4):
            marked = tuple((who, ("Car",)) for who, often in recall.items() if rng.random() < often)
            clusters += [("objects", marked)] if marked else []
        for who, rate in false.items():
            clusters += [("objects", ((who, ("Car",)),))] * rng.poisson(rate)
        result.append(Evidence(tuple(recall), tuple(clusters), ()))
    return result


LEAD = 99


def with_truth(tasks, truths, *, share=1.0):
    """The same tasks with the ground truth of a share of them."""
    known_values = int(share * len(tasks))
    return [
        Evidence(
            (*task.annotators, LEAD), (),
            tuple((name, (*votes, (LEAD, (NAMES[truth],)))) for name, votes in task.choices),
            truth=LEAD,
        )
        if index < known_values else task
        for index, (task, truth) in enumerate(zip(tasks, truths, strict=True))
    ]  # fmt: skip


def truths_of(tasks, seed=0):
    return np.random.default_rng(seed).integers(3, size=tasks)


def rated(tasks):
    return {item.annotator: item for item in rate_annotators(tasks, fit_annotator_model(tasks))}


def test_accuracy_is_found_and_its_interval_holds_it():
    skill = {1: 0.97, 2: 0.9, 3: 0.8, 4: 0.6}
    result = {who: item.choices["kind"].accuracy for who, item in rated(labelled(skill)).items()}
    for who, right in skill.items():
        assert result[who].low <= right <= result[who].high
        assert 0.02 < result[who].high - result[who].low < 0.2
    assert [who for who, _ in sorted(result.items(), key=lambda item: -item[1].value)] == [1, 2, 3, 4]


def test_a_ground_truth_says_more_than_what_the_others_think():
    """Two who err alike outvote the one who is right; a truth on a fifth of the tasks shows who that is."""
    skill, bias = {1: 0.95, 2: 0.3, 3: 0.3}, {2: 0, 3: 0}
    tasks = labelled(skill, tasks=300, bias=bias)
    guessed, result = (
        {who: item.choices["kind"].accuracy for who, item in rated(selected).items()}
        for selected in (tasks, with_truth(tasks, truths_of(300), share=0.2))
    )
    assert guessed[1].value < guessed[2].value, "by their word alone the best one is the worst"
    for who, right in skill.items():
        assert result[who].low <= right <= result[who].high


def test_known_truths_give_the_exact_share_and_narrower_intervals():
    skill = {1: 0.97, 2: 0.9, 3: 0.8, 4: 0.6}
    tasks, truths = labelled(skill), truths_of(300)
    alone, known_values = rated(tasks), rated(with_truth(tasks, truths))
    assert LEAD not in known_values, "who tells the truth is not measured by it"
    for who, right in skill.items():
        result, before = known_values[who].choices["kind"].accuracy, alone[who].choices["kind"].accuracy
        share = np.mean(
            [dict(task.choices[0][1])[who] == (NAMES[truth],) for task, truth in zip(tasks, truths, strict=True)]
        )
        assert result.value == pytest.approx(share, abs=0.01)
        assert result.low <= right <= result.high
        assert result.high - result.low <= before.high - before.low + 0.005


def test_one_alone_is_measured_by_ground_truths():
    tasks = with_truth(labelled({1: 0.8}, tasks=60), truths_of(60))
    result = rated(tasks)[1].choices["kind"].accuracy
    assert result.low < 0.8 < result.high


def test_recall_and_precision_by_ground_truths():
    """Alone on each image, with a lead who marked all four objects and nothing else."""
    rng, tasks = np.random.default_rng(1), []
    for _ in range(100):
        clusters = [
            ("objects", ((1, ("Car",)), (LEAD, ("Car",))) if rng.random() < 0.75 else ((LEAD, ("Car",)),))
            for _ in range(4)
        ]
        clusters += [("objects", ((1, ("Car",)),))] * rng.poisson(0.3)
        tasks.append(Evidence((1, LEAD), tuple(clusters), (), truth=LEAD))
    result = rated(tasks)[1].regions
    assert result.recall.low < 0.75 < result.recall.high
    assert result.recall.high - result.recall.low < 0.1
    assert result.precision.value == pytest.approx(3 / 3.3, abs=0.03)
    presence = fit_annotator_model(tasks).detection
    assert presence.recall(1) == pytest.approx(0.75, abs=0.04)


def test_recall_precision_and_strictness_are_found():
    result = rated(detections({1: 0.95, 2: 0.9, 3: 0.7}, {1: 0.05, 2: 0.5, 3: 0.05}))
    recall = {who: item.regions.recall_of_found for who, item in result.items()}
    assert recall[3].high < recall[1].low, "lower recall"
    assert recall[3].low <= 0.7 <= recall[3].high
    precision = {who: item.regions.precision_by_others.value for who, item in result.items()}
    assert precision[2] < precision[1], "lower precision"
    assert result[3].regions.strictness > 1.15 > result[2].regions.strictness


def test_nothing_is_said_of_too_few_answers():
    result = rated(labelled({1: 0.9, 2: 0.9, 3: 0.9}, tasks=10))
    accuracy = result[1].choices["kind"].accuracy
    assert (accuracy.value, accuracy.n) == (None, 10)
    assert "10" in accuracy.evidence


def test_preferred_answer_shows_as_bias_and_in_the_confusion():
    result = rated(labelled({1: 0.95, 2: 0.95, 3: 0.6}, bias={3: 0}))
    habit = result[3].choices["kind"]
    assert habit.bias["Car"] > 15 > 5 > abs(result[1].choices["kind"].bias["Car"])
    assert habit.confusion["Bus"]["Car"] > 3 * habit.confusion["Bus"].get("Van", 0)


def test_nobody_is_measured_by_their_own_vote():
    """Two who always contradict each other: neither can be told right, and both intervals say so."""
    tasks = [Evidence((1, 2), (), (("kind", ((1, (NAMES[n % 2],)), (2, (NAMES[1 - n % 2],)))),)) for n in range(60)]
    for item in rated(tasks).values():
        accuracy = item.choices["kind"].accuracy
        assert accuracy.high - accuracy.low > 0.3


def test_an_annotator_who_works_alone_is_not_rated():
    tasks = [Evidence((1,), (("objects", ((1, ("Car",)),)),), ()) for _ in range(50)]
    (result,) = rated(tasks).values()
    assert result.regions.recall.value is None
    assert result.regions.precision.value is None
    assert result.tasks == 50


@pytest.mark.parametrize(("right", "n"), [(0.9, 400), (0.5, 400), (0.97, 1000)])
def test_the_interval_over_known_truths_is_that_of_a_rate(right, n):
    hits = np.arange(n) < right * n
    result = rate_interval(hits.astype(float), (~hits).astype(float))
    half = 1.96 * (right * (1 - right) / n) ** 0.5
    assert result.value == pytest.approx(right, abs=0.01)
    assert (result.high - result.low) / 2 == pytest.approx(half, rel=0.15, abs=0.004)


def test_of_who_never_erred_the_interval_reaches_up_to_one():
    result = rate_interval(np.ones(40), np.zeros(40))
    assert result.high == pytest.approx(1)
    assert 0.9 < result.low < 0.95


def test_unsure_truths_widen_the_interval():
    sure = rate_interval(np.full(100, 1.0), np.full(100, 0.0))
    unsure = rate_interval(np.full(100, 0.7), np.full(100, 0.3))
    assert unsure.high - unsure.low > 1.5 * (sure.high - sure.low)
