"""Agreement on spans, tags, rankings, numbers and texts: published examples."""

import numpy as np
import pytest

from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.task import read_task
from qc_webhooks.agreement import read_answers
from qc_webhooks.statistics import Ratings
from qc_webhooks.statistics.agreement_coefficients import intraclass_correlation, krippendorff_alpha
from qc_webhooks.statistics.answer_agreement import masi_distance, similarity_statistic, tag_statistics
from qc_webhooks.statistics.bootstrap import mean_of_tasks
from qc_webhooks.statistics.unitizing import UnitizingAgreement, _Control
from qc_webhooks.verdict.concordance import kendall_w
from qc_webhooks.verdict.continua import Continuum, continua_of

# Krippendorff 1995, figure 2: from 150 to 450, here from 0; observers i and j, categories c and k.
EXAMPLE = Continuum(
    "words", 300,
    ((1, "c", 75, 145), (1, "c", 220, 250), (2, "c", 70, 150), (2, "c", 205, 225), (2, "c", 250, 270),
     (1, "k", 30, 90), (1, "k", 150, 200), (2, "k", 30, 90), (2, "k", 150, 200)),
)  # fmt: skip


def test_unitizing_alpha_of_the_published_example():
    sums, one = _Control(), np.ones((1, 1))
    sums.add(EXAMPLE, (1, 2))
    lengths = np.array(sums.lengths, dtype=float), np.array(sums.observed_lengths, dtype=float)
    parts = {label: np.ravel(part.disagreements(one, *lengths)) for label, part in sums.labels.items()}
    assert parts["c"] == pytest.approx((0.0144, 0.0532), abs=1e-4)
    assert parts["k"] == pytest.approx((0.0, 0.0490), abs=1e-4)
    observed, expected = np.sum(list(parts.values()), axis=0)
    assert 1 - parts["c"][0] / parts["c"][1] == pytest.approx(0.7285, abs=2e-4)
    assert 1 - observed / expected == pytest.approx(0.8587, abs=1e-4)


def test_unitizing_alpha_has_n_and_an_interval_that_holds_it():
    rng, agreement = np.random.default_rng(0), UnitizingAgreement()
    for _ in range(40):
        starts = np.sort(rng.choice(18, 3, replace=False)) * 50
        units = [
            (who, "PER", int(start + shift), int(start + shift + 20))
            for start in starts
            for who in (1, 2)
            for shift in [rng.integers(0, 4)]
        ]
        agreement.add([Continuum("words", 1000, tuple(units))], (1, 2))
    found = agreement.estimates()["words"]["alpha_unitizing"]
    assert found.n == 240
    assert 0.8 < found.low < found.value < found.high <= 1


def test_spans_at_random_places_have_an_alpha_of_nothing():
    rng, agreement = np.random.default_rng(1), UnitizingAgreement()
    for _ in range(300):
        units = [(who, "A", int(start), int(start) + 30) for who in (1, 2) for start in [rng.integers(0, 470)]]
        agreement.add([Continuum("words", 500, tuple(units))], (1, 2))
    found = agreement.estimates()["words"]["alpha_unitizing"]
    assert found.low < 0 < found.high
    assert abs(found.value) < 0.1


def test_a_time_series_begins_with_its_first_span():
    """From 1970 on, almost all of it would be a gap that all agree on."""
    config = LabelConfig.parse(
        '<View><TimeSeries name="o" value="$csv"/><TimeSeriesLabels name="c" toName="o"/></View>'
    )

    def continua(origin):
        annotations = [
            {"id": who, "completed_by": who, "result": [
                {"id": "s", "from_name": "c", "to_name": "o", "type": "timeserieslabels",
                 "value": {"start": origin + start, "end": origin + 60, "timeserieslabels": ["Low"]}}]}
            for who, start in ((1, 0), (2, 20))
        ]  # fmt: skip
        task = read_task({"id": 1, "data": {}, "annotations": annotations})
        return continua_of(task, read_answers(task, config=config), config)

    assert continua(0) == continua(1591265400) == continua(-1e9)
    assert continua(0) == (Continuum("c", 60, ((1, "Low", 0, 60), (2, "Low", 20, 60))),)


def test_one_label_of_few_spans_says_too_little_data():
    agreement = UnitizingAgreement()
    for task in range(20):
        rare = ((1, "B", 5, 9),) if task == 0 else ()
        agreement.add([Continuum("words", 100, ((1, "A", 20, 40), (2, "A", 20, 40 + task % 3), *rare))], (1, 2))
    found = agreement.estimates()["words"]
    assert found["alpha_unitizing: A"].value > 0.9
    assert found["alpha_unitizing: B"].value is None
    assert "1 of the 20 required" in found["alpha_unitizing: B"].evidence


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [("ab", "ab", 0), ("ab", "abc", 1 - 2 / 3 * 2 / 3), ("ab", "bc", 1 - 1 / 3 * 1 / 3), ("a", "b", 1), ("", "", 0)],
)
def test_masi_distance_is_that_of_passonneau(a, b, distance):
    assert masi_distance(a, b) == masi_distance(b, a) == pytest.approx(distance)


def test_tags_have_an_alpha_each_and_one_of_sets():
    rng, items = np.random.default_rng(2), []
    for _ in range(60):
        truth = {"day"} if rng.random() < 0.5 else {"night"}
        truth |= {"rain"} if rng.random() < 0.3 else set()
        noisy = {"rain"} if rng.random() < 0.3 else set()
        items.append(((1, tuple(sorted(truth))), (2, tuple(sorted((truth - {"rain"}) | noisy)))))
    found = tag_statistics(items)
    assert found["alpha: day"].value == pytest.approx(1)
    assert abs(found["alpha: rain"].value) < 0.3
    assert found["alpha: rain"].value < found["alpha_masi"].value < 1
    assert all(each.n >= 20 for each in found.values())


def test_intraclass_correlation_of_shrout_and_fleiss():
    judges = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]])
    ratings = Ratings.of([dict(enumerate(map(float, row))) for row in judges])
    assert intraclass_correlation(ratings) == pytest.approx(0.1657, abs=1e-4)
    # as many units of each kind change nothing but the degrees of freedom
    assert intraclass_correlation(ratings, np.full(6, 1000.0)) == pytest.approx(0.110, abs=0.001)


def test_kendall_w_of_siegel_and_castellan():
    ranks = ([1, 6, 3, 2, 5, 4], [1, 5, 6, 4, 2, 3], [6, 3, 2, 5, 4, 1])
    rankings = [tuple(("order", "abcdef"[item]) for item in np.argsort(row)) for row in ranks]
    assert kendall_w(rankings) == pytest.approx(0.16, abs=0.005)
    assert kendall_w(rankings[:1] * 3) == pytest.approx(1)
    assert kendall_w(rankings[:1]) is None


def test_similarity_of_texts_is_a_mean_with_an_interval_over_tasks():
    rng = np.random.default_rng(3)
    tasks = [[(1, 2, value), (1, 3, value)] for value in rng.uniform(0.6, 1, 80).tolist()]
    found = similarity_statistic(tasks)
    assert found.n == 80
    assert found.low < 0.8 < found.high
    assert found.high - found.low < 0.1
    assert similarity_statistic(tasks[:10]).value is None


def test_interval_of_values_all_one_has_a_width():
    found = mean_of_tasks([1.0] * 30, [1] * 30)
    assert (found.value, found.high) == (1, 1)
    assert found.low < 0.95


def test_alpha_takes_distances_of_its_own():
    ratings = Ratings.of([{1: "a", 2: "a"}, {1: "a", 2: "b"}, {1: "b", 2: "b"}])
    assert krippendorff_alpha(ratings, distances=1 - np.eye(2)) == krippendorff_alpha(ratings)
