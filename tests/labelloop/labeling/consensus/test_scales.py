"""Ratings and numbers: the weighted median of annotators with known bias and noise, and its interval."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelloop.labeling.consensus.scales import ScaleModel, fit_scale_model, weighted_median


def crowd(*, items=300, per_item=3, annotators=12, bias=0.8, noise=(0.3, 2.0), maximum=None, seed=0):
    """(answers on each item, true values, bias and noise of each annotator)."""
    random = np.random.default_rng(seed)
    offsets = random.normal(0, bias, annotators)
    offsets -= np.median(offsets)
    deviations = np.exp(random.uniform(*np.log(noise), annotators))
    answers, truths = [], []
    for _ in range(items):
        truth = random.uniform(0, 10) if maximum is None else float(random.integers(1, maximum + 1))
        chosen = random.choice(annotators, per_item, replace=False)
        values = truth + offsets[chosen] + random.normal(0, deviations[chosen])
        values = values if maximum is None else np.clip(np.round(values), 1, maximum)
        answers.append(tuple(zip(chosen.tolist(), values.tolist(), strict=True)))
        truths.append(truth)
    return answers, np.array(truths), offsets, deviations


def error(values, truths):
    return float(np.sqrt(np.mean((np.array(values) - truths) ** 2)))


@pytest.mark.parametrize("per_item", [2, 3, 5])
def test_known_bias_and_noise_are_found_and_removed(per_item):
    answers, truths, offsets, deviations = crowd(per_item=per_item)
    model = fit_scale_model(answers)
    merged = [model.merge(item) for item in answers]
    plain = [np.median([value for _, value in item]) for item in answers]
    assert error([item.value for item in merged], truths) < 0.95 * error(plain, truths)
    assert np.corrcoef([model.bias[who] for who in range(12)], offsets)[0, 1] > 0.8
    assert np.corrcoef([model.deviation[who] for who in range(12)], deviations)[0, 1] > 0.8


@pytest.mark.parametrize("per_item", [3, 5])
def test_intervals_cover_the_true_value(per_item):
    covered = []
    for seed in range(3):
        answers, truths, _, _ = crowd(per_item=per_item, seed=seed)
        model = fit_scale_model(answers)
        merged = [model.merge(item) for item in answers]
        covered += [item.low <= truth <= item.high for item, truth in zip(merged, truths, strict=True)]
    assert 0.9 <= np.mean(covered) <= 0.99


def test_ratings_stay_stars():
    right, plainly_right = 0, 0
    for seed in range(5):
        answers, truths, _, _ = crowd(maximum=5, bias=0.4, noise=(0.2, 1.2), seed=seed)
        model = fit_scale_model(answers)
        merged = [model.merge(item).value for item in answers]
        assert set(merged) <= {1.0, 2.0, 3.0, 4.0, 5.0}
        plain = [np.floor(np.median([value for _, value in item]) + 0.5) for item in answers]
        right += (np.array(merged) == truths).sum()
        plainly_right += (np.array(plain) == truths).sum()
    assert right > plainly_right


def test_ground_truth_shows_a_bias_that_all_share():
    answers = [((1, 5.0), (2, 5.0))] * 30
    assert fit_scale_model(answers).merge(answers[0]).value == 5
    model = fit_scale_model(answers, [3.0] * 30)
    assert model.bias[1] == pytest.approx(2, abs=0.3)


@given(st.lists(st.tuples(st.integers(0, 6), st.floats(-1e6, 1e6)), min_size=1, max_size=7, unique_by=lambda it: it[0]))
def test_value_lies_among_the_answers(answers):
    for model in (ScaleModel(), fit_scale_model([tuple(answers)] * 3)):
        merged = model.merge(tuple(answers))
        values = [value for _, value in answers]
        assert min(values) - 0.5 <= merged.value <= max(values) + 0.5
        assert merged.low <= merged.value <= merged.high
        assert 0 <= merged.probability <= 1


@given(st.lists(st.tuples(st.floats(-100, 100), st.floats(0.01, 10)), min_size=1, max_size=9))
def test_weighted_median_has_half_of_the_weight_on_each_side(pairs):
    values, weights = (np.array(column) for column in zip(*pairs, strict=True))
    middle = weighted_median(values, weights)
    assert weights[values < middle].sum() <= weights.sum() / 2 * (1 + 1e-6)
    assert weights[values > middle].sum() <= weights.sum() / 2 * (1 + 1e-6)
