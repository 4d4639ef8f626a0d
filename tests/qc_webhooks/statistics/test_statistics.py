"""Statistics of agreement: published numbers are met, intervals hold what they promise, too little is said so."""

import itertools
import math

import numpy as np
import pytest

from labelloop.labeling.consensus.dawid_skene import POOLING, dawid_skene
from qc_webhooks.statistics import ABSENT, MIN_UNITS, STATISTICS, Estimate, Ratings, describe, estimate
from qc_webhooks.statistics.agreement_coefficients import (
    brennan_prediger,
    cohen_kappa,
    conger_kappa,
    consensus_score,
    fleiss_kappa,
    gwet_ac1,
    krippendorff_alpha,
    observed_agreement,
    overall_score,
    pairwise_score,
    positive_agreement,
    positive_agreements,
)

N = None

# The sample of fast-krippendorff's README.
KRIPPENDORFF_3X15 = [
    [N, N, N, N, N, 3, 4, 1, 2, 1, 1, 3, 3, N, 3],
    [1, N, 2, 1, 3, 3, 4, 3, N, N, N, N, N, N, N],
    [N, N, 2, 1, 3, 4, 4, N, 2, 1, 1, 3, 3, N, 4],
]
# Krippendorff 2011, example C.
KRIPPENDORFF_4X12 = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, N, N, N],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, N, 3],
    [N, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, N],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, N],
]
# Gwet's "raw_4raters": the same, but for who rated the last unit.
GWET_4X12 = [[*row[:-1], last] for row, last in zip(KRIPPENDORFF_4X12, (N, N, 3, N), strict=True)]
# Fleiss' kappa in Wikipedia: how many of 14 raters chose each of 5 categories, 10 subjects.
FLEISS_10X5 = [
    [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
]  # fmt: skip
# Fleiss 1971: 30 patients, six diagnoses each; R's irr says 0.4302445.
DIAGNOSES = [
    "444444", "222555", "233335", "555555", "222444", "113333", "333355", "113334", "114444", "555555",
    "144444", "124444", "222333", "144444", "224445", "333335", "111455", "111112", "224444", "133555",
    "555555", "244444", "224555", "114444", "144445", "222224", "111155", "224444", "133333", "555555",
]  # fmt: skip
# Dawid and Skene 1979, table 1: patient -> answers of the five observers; the first answered three times.
ANAESTHETISTS = [
    "111 1 1 1 1", "333 4 3 3 4", "112 2 1 2 2", "222 3 1 2 1", "222 3 2 2 2", "222 3 3 2 2", "122 2 1 1 1",
    "333 3 4 3 3", "222 2 2 2 3", "232 2 2 2 3", "444 4 4 4 4", "222 3 3 4 3", "111 1 1 1 1", "222 3 2 1 2",
    "121 1 1 1 1", "111 2 1 1 1", "111 1 1 1 1", "111 1 1 1 1", "222 2 2 2 1", "222 1 3 2 2", "222 2 2 2 2",
    "222 2 2 2 1", "222 3 2 2 2", "221 2 2 2 2", "111 1 1 1 1", "111 1 1 1 1", "232 2 2 2 2", "111 1 1 1 1",
    "111 1 1 1 1", "112 1 1 2 1", "111 1 1 1 1", "333 3 2 3 3", "111 1 1 1 1", "222 2 2 2 2", "222 3 2 3 2",
    "433 4 3 4 3", "221 2 2 3 2", "232 3 2 3 3", "333 3 4 3 2", "111 1 1 1 1", "111 1 1 1 1", "121 2 1 1 1",
    "232 2 2 2 2", "121 1 1 1 1", "222 2 2 2 2",
]  # fmt: skip


def of_matrix(matrix):
    """Ratings from (raters, units); None or NaN where a rater did not rate a unit."""
    columns = zip(*matrix, strict=True)
    return Ratings.of(
        [
            {rater: value for rater, value in enumerate(column) if value is not None and value == value}
            for column in columns
        ]
    )


def of_table(table):
    """Two raters from their contingency table."""
    return Ratings.of(
        [
            {"A": row, "B": column}
            for row, counts in enumerate(table)
            for column, count in enumerate(counts)
            for _ in range(count)
        ]
    )


def of_counts(rows):
    return Ratings.of([dict(enumerate(v for v, count in enumerate(row) for _ in range(count))) for row in rows])


@pytest.mark.parametrize(
    ("matrix", "level", "published"),
    [
        (KRIPPENDORFF_3X15, "nominal", 0.6914),
        (KRIPPENDORFF_3X15, "ordinal", 0.8067),
        (KRIPPENDORFF_3X15, "interval", 0.8108),
        (KRIPPENDORFF_3X15, "ratio", 0.8089),
        (KRIPPENDORFF_4X12, "nominal", 0.7434),
        (KRIPPENDORFF_4X12, "ordinal", 0.8154),
        (KRIPPENDORFF_4X12, "interval", 0.8491),
        (KRIPPENDORFF_4X12, "ratio", 0.7974),
    ],
)
def test_krippendorffs_alpha_is_the_published_one(matrix, level, published):
    assert krippendorff_alpha(of_matrix(matrix), level=level) == pytest.approx(published, abs=1e-4)


@pytest.mark.parametrize(
    ("statistic", "published"),
    [
        (fleiss_kappa, 0.76117),
        (gwet_ac1, 0.77544),
        (krippendorff_alpha, 0.74342),
        (conger_kappa, 0.76282),
        (brennan_prediger, 0.77273),
    ],
)
def test_gwets_four_raters_with_missing_ratings(statistic, published):
    assert statistic(of_matrix(GWET_4X12)) == pytest.approx(published, abs=1e-5)


def test_fleiss_kappa_is_the_published_one():
    assert fleiss_kappa(of_counts(FLEISS_10X5)) == pytest.approx(0.2099, abs=1e-4)
    diagnoses = Ratings.of([dict(enumerate(row)) for row in DIAGNOSES])
    assert fleiss_kappa(diagnoses) == pytest.approx(0.4302445, abs=1e-7)


@pytest.mark.parametrize(
    ("table", "published"),
    [
        ([[20, 5], [10, 15]], 0.4000),
        ([[45, 15], [25, 15]], 0.1304),
        ([[25, 35], [5, 35]], 0.2593),
        ([[0, 4, 1], [0, 8, 0], [0, 1, 5]], 0.4842),  # SAS, simple kappa
    ],
)
def test_cohens_kappa_is_the_published_one(table, published):
    assert cohen_kappa(of_table(table)) == pytest.approx(published, abs=1e-4)


def test_dawid_and_skene_find_what_they_published():
    flat = [
        (patient, observer, int(answer) - 1)
        for patient, row in enumerate(ANAESTHETISTS)
        for observer, answers in enumerate(row.split())
        for answer in answers
    ]
    model = dawid_skene(*zip(*flat, strict=True), max_iterations=15)
    assert model.log_likelihood == pytest.approx(-192.891, abs=1e-3)
    assert model.marginals == pytest.approx([0.40, 0.42, 0.11, 0.07], abs=0.005)
    assert model.confusion[0, 0] == pytest.approx([0.89, 0.11, 0, 0], abs=0.005)
    assert model.posterior[34, 1:3] == pytest.approx([0.948, 0.052], abs=0.001)
    assert model.posterior[37, 2] == pytest.approx(0.979, abs=0.001)
    assert model.posterior[6, 0] == pytest.approx(0.981, abs=0.001)


def scores_of(agreements, annotators=(0, 1, 2)):
    return dict(zip(itertools.combinations(annotators, 2), agreements, strict=True))


@pytest.mark.parametrize(
    ("agreements", "threshold", "pairwise", "consensus"),
    [
        ([0, 0, 0], 1, 0, 0.333),  # A, B, C
        ([1, 0, 0], 1, 0.333, 0.667),  # A, A, C
        ([0.29, 0, 0], 0.25, 0.0966, 0.667),  # spans 0-14 pos, 10-14 pos, 10-14 neg
        ([0.53, 0.24, 0.45], 0.5, 0.4067, 0.667),  # boxes
    ],
    ids=["all differ", "two agree", "spans", "boxes"],
)
def test_the_worked_examples_of_label_studio_enterprise(agreements, threshold, pairwise, consensus):
    result = scores_of(agreements)
    assert pairwise_score(result) == pytest.approx(pairwise, abs=5e-4)
    assert consensus_score((0, 1, 2), result, threshold) == pytest.approx(consensus, abs=5e-4)


def test_a_chain_of_likeness_is_no_group_of_three():
    assert consensus_score((0, 1, 2), scores_of([1, 0, 1]), 1) == pytest.approx(2 / 3)


def test_the_overall_score_weighs_controls():
    scores = {"label": 0.83, "quality": 0.33, "text": 0.33}
    assert overall_score(scores, {"label": 1.0, "quality": 0.3, "text": 0.2}) == pytest.approx(0.6633, abs=1e-4)
    assert overall_score({}, {}) is None
    assert overall_score(scores, dict.fromkeys(scores, 0.0)) is None


def test_leaving_out_together_is_no_positive_agreement():
    units = [{1: "Car", 2: "Car"}, {1: "Car", 2: ABSENT}, {1: ABSENT, 2: ABSENT}, {1: "Car", 2: "Dog"}]
    # 3 given by the first, 2 by the second, 1 in common
    assert positive_agreement(Ratings.of(units)) == pytest.approx(2 * 1 / (3 + 2))
    assert positive_agreements(Ratings.of(units)) == pytest.approx({"Car": 2 / 4, "Dog": 0})
    assert positive_agreement(of_table([[20, 5], [10, 15]])) == pytest.approx(0.7)


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_are_one_for_equal_ratings(name):
    function = STATISTICS[name].function
    rng = np.random.default_rng(0)
    units = [{"a": int(v), "b": int(v), "c": int(v)} for v in rng.integers(1, 4, 40)]
    assert function(Ratings.of(units), None) == pytest.approx(1)
    mixed = [{who: int(rng.integers(1, 4)) for who in "abc" if rng.random() < 0.8} for _ in range(60)]
    value = function(Ratings.of(mixed), None)
    other = [{{"a": "z", "b": "y", "c": "x"}[who]: rating for who, rating in unit.items()} for unit in mixed[::-1]]
    assert function(Ratings.of(other), None) == pytest.approx(value)
    assert abs(value) < 0.5


@pytest.mark.parametrize("name", STATISTICS)
def test_a_unit_of_weight_two_counts_as_two_units(name):
    function = STATISTICS[name].function
    rng = np.random.default_rng(1)
    units = [{who: int(rng.integers(1, 4)) for who in "abc" if rng.random() < 0.8} for _ in range(12)]
    weights = np.array([2.0] * 4 + [1.0] * 6 + [0.0] * 2)
    repeated = units[:4] + units[:10]
    # what no longer occurs keeps its place among the values
    assert function(Ratings.of(units), weights) == pytest.approx(function(Ratings.of(repeated), None), abs=1e-12)


@pytest.mark.parametrize("name", STATISTICS)
def test_nothing_to_compare_is_no_number(name):
    result = STATISTICS[name].function(Ratings.of([{"a": 1}, {"b": 2}]), None)
    assert math.isnan(result)


def test_few_units_give_no_value_but_the_required_number():
    few = Ratings.of([{1: "x", 2: "x"}] * (MIN_UNITS - 1))
    result = estimate(observed_agreement, few)
    assert (result.value, result.low, result.n) == (None, None, MIN_UNITS - 1)
    assert "not enough evidence: 19 of the 20" in result.evidence


def test_ratings_of_one_value_give_no_estimate():
    result = describe(Ratings.of([{1: "x", 2: "x"}] * 50), "nominal")
    assert result["agreement"] == Estimate(1.0, 1.0, 1.0, 50)
    assert result["cohen_kappa"].value is None
    assert result["cohen_kappa"].evidence == "not enough evidence: all ratings are the same"


@pytest.mark.parametrize(
    "statistic", [fleiss_kappa, gwet_ac1, krippendorff_alpha, cohen_kappa, conger_kappa, brennan_prediger]
)
def test_intervals_hold_the_truth_about_as_often_as_they_promise(statistic):
    rng = np.random.default_rng(5)

    def crowd(units):
        truth = rng.integers(0, 3, units)
        message = np.where(rng.random((3, units)) < 0.8, truth, rng.integers(0, 3, (3, units)))
        return Ratings.of([{who: int(message[who, unit]) for who in range(3)} for unit in range(units)])

    truth = statistic(crowd(20_000), None)
    held = 0
    for seed in range(100):
        result = estimate(statistic, crowd(80), seed=seed, resamples=200)
        held += result.low <= truth <= result.high
    assert 88 <= held <= 99


def test_a_report_made_twice_is_the_same():
    ratings = of_matrix([[*row, *row] for row in KRIPPENDORFF_4X12])
    assert estimate(fleiss_kappa, ratings) == estimate(fleiss_kappa, ratings)


def test_dawid_skene_does_not_collapse_with_two_answers():
    """Without third opinions that explains the answers as well as mostly right raters do; it is never what is true."""
    accuracy, majority = [], []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        often = 1 / np.arange(1, 121) ** 0.9
        skill = np.clip(rng.beta(8, 2, 120), 0.5, 0.99)
        skill[:4] = 0.53  # those who answer most guess
        truth = rng.integers(2, size=150)
        who = np.array([rng.choice(120, 2, replace=False, p=often / often.sum()) for _ in truth])
        message = np.where(rng.random(who.shape) < skill[who], truth[:, None], 1 - truth[:, None])
        result = dawid_skene(np.repeat(np.arange(150), 2), who.ravel(), message.ravel(), classes=2, pooling=POOLING)
        accuracy.append(float((result.posterior.argmax(axis=1) == truth).mean()))
        majority.append(float(((message.mean(axis=1) > rng.uniform(0.4, 0.6, 150)) == truth).mean()))
        assert result.marginals.min() > 0.15
    assert np.mean(accuracy) > np.mean(majority)
    assert min(accuracy) > 0.6
