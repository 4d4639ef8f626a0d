"""Consensus of rankings: known rankings are recovered, a careless annotator loses weight, buckets are voted on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from labelloop.labeling.consensus.rankings import (
    TYPICAL,
    fit_ranking_accuracy,
    merge_rankings,
    ranking_similarities,
    ranking_similarity,
)

rankings = st.permutations("abcdef").map(lambda items: tuple(("rank", item) for item in items))


def simulated(noises, *, seed=0, tasks=40, items=8):
    """The true ranking of each task, and each annotator's: true places plus normal noise (Thurstone's model)."""
    draw = np.random.default_rng(seed)
    truths, answers = [], []
    for _ in range(tasks):
        truth = draw.permutation(items)
        places = [np.argsort(np.arange(items) + draw.normal(0, noise, items)) for noise in noises]
        truths.append(truth.tolist())
        answers.append(
            tuple((who, tuple(("rank", str(truth[place])) for place in order)) for who, order in enumerate(places))
        )
    return truths, answers


def mean_tau(truths, answers, accuracy):
    places = [[int(item) for _, item in merge_rankings(answer, accuracy).ranking] for answer in answers]
    return np.mean(
        [
            kendalltau([truth.index(item) for item in place], range(len(place))).statistic
            for truth, place in zip(truths, places, strict=True)
        ]
    )


@pytest.mark.parametrize(("noises", "gain"), [((1.5,) * 5, -0.01), ((1.0,) * 4 + (50.0,), 0.03), ((0.7, 1.5, 3), 0.03)])
def test_weights_beat_a_plain_borda_count(noises, gain):
    truths, answers = simulated(noises)
    equal = dict.fromkeys(range(len(noises)), TYPICAL)
    fitted = fit_ranking_accuracy([ranking_similarities(answer) for answer in answers])
    assert mean_tau(truths, answers, fitted) > mean_tau(truths, answers, equal) + gain


def test_one_task_already_tells_the_careless_one():
    careful = tuple(("rank", item) for item in "abcdef")
    merged = merge_rankings((*((who, careful) for who in (1, 2, 4, 5)), (3, careful[::-1])))
    assert merged.ranking == careful
    assert merged.nearest != 3
    assert merged.similarity > 0.9  # 0.8 with equal weights


def test_each_item_goes_to_the_bucket_of_most():
    votes = [{"good": "ab", "bad": "cd"}, {"good": "ba", "bad": "cd"}, {"good": "abc", "bad": "d"}]
    answers = tuple(
        (who, tuple((bucket, item) for bucket, items in vote.items() for item in items))
        for who, vote in enumerate(votes)
    )
    assert merge_rankings(answers).ranking == (("good", "a"), ("good", "b"), ("bad", "c"), ("bad", "d"))


def test_item_that_one_left_out_stays_in():
    answers = ((1, (("rank", "a"), ("rank", "b"))), (2, (("rank", "a"), ("rank", "b"), ("rank", "c"))))
    assert [item for _, item in merge_rankings(answers).ranking] == ["a", "b", "c"]


@given(rankings, rankings)
def test_similarity_is_kendalls_share_of_concordant_pairs(a, b):
    places = [[item for _, item in ranking] for ranking in (a, b)]
    tau = kendalltau(*([place.index(item) for item in "abcdef"] for place in places)).statistic
    assert ranking_similarity(a, b) == pytest.approx((tau + 1) / 2)
    assert ranking_similarity(a, a) == 1


@given(st.lists(rankings, min_size=1, max_size=5))
def test_every_item_is_ranked_once(given_rankings):
    merged = merge_rankings(tuple(enumerate(given_rankings)))
    assert sorted(item for _, item in merged.ranking) == list("abcdef")
