"""Posterior of the detection model: stated probabilities are shares that come true, on crowds whose truth is known."""

import msgspec
import numpy as np
import pytest

from labelloop.labeling.consensus.consensus import AnnotatorModel, Evidence, fit_annotator_model
from labelloop.labeling.consensus.detection_posterior import DetectionPosterior
from labelloop.labeling.consensus.localisation import Localisation, fit_localisation

LEAD = 99


def crowd(rng, *, people=6, each=3, images=150, spread=1.5, match=0.02, lookalikes=0.0, overlooked=0.0, truth=False):
    """Evidence, and per cluster (image index, annotators, markers, whether it is an object)."""
    skill, tasks, known = rng.normal(1.5, 0.5, people), [], []
    for _ in range(images):
        annotators = sorted(rng.choice(people, each, replace=False).tolist())
        clusters = []
        for _ in range(rng.poisson(5)):
            hard = -50.0 if rng.random() < overlooked else rng.normal(0, spread)
            found = tuple(who for who in annotators if rng.random() < 1 / (1 + np.exp(-(skill[who] + hard))))
            clusters.append((found, True))
        for who in annotators:
            for _ in range(rng.poisson(0.2)):
                alike = match if rng.random() >= lookalikes else 0.5
                clusters.append((tuple(x for x in annotators if x == who or rng.random() < alike), False))
        seen = [(found, real) for found, real in clusters if found or (truth and real)]
        known += [(tuple(annotators), found, real) for found, real in seen]
        votes = tuple(
            ("o", tuple((who, ("c",)) for who in (*found, *([LEAD] if truth and real else [])))) for found, real in seen
        )
        tasks.append(Evidence((*annotators, *([LEAD] if truth else [])), votes, (), truth=LEAD if truth else None))
    return tasks, known


def stated(model, known):
    return np.array(
        [
            model.region_probabilities(people, np.array([[who in found for who in people]]))[0]
            for people, found, _ in known
        ]
    )


@pytest.mark.parametrize(
    ("spread", "lookalikes"), [(0.3, 0.0), (2.0, 0.0), (1.0, 0.4)], ids=["alike", "hard objects", "lookalikes"]
)
def test_stated_probabilities_are_shares_that_come_true(spread, lookalikes):
    tasks, known = crowd(np.random.default_rng(1), spread=spread, lookalikes=lookalikes)
    probabilities, real = stated(fit_annotator_model(tasks), known), np.array([each[2] for each in known])
    assert probabilities.mean() == pytest.approx(real.mean(), abs=0.07)
    sure = probabilities > 0.9
    assert probabilities[sure].mean() == pytest.approx(real[sure].mean(), abs=0.06)


def test_probabilities_do_not_depend_on_the_images_seen_before():
    tasks, _ = crowd(np.random.default_rng(1))
    posterior, people = fit_annotator_model(tasks).posterior, [1, 2, 3]
    marked = np.array([[True, False, False], [True, True, True], [False, True, True], [True, False, False]])
    expected = msgspec.structs.replace(posterior).mean_probabilities(people, marked)
    assert expected == pytest.approx(posterior.real_probabilities(people, marked).mean(axis=0), abs=1e-12)
    for rows in ([2], [0, 1], [3, 2, 1, 0], [1]):
        assert np.array_equal(posterior.mean_probabilities(people, marked[rows]), expected[rows])


def test_marks_left_out_are_foretold():
    tasks, known = crowd(np.random.default_rng(2), each=4, spread=2.0)
    posterior = fit_annotator_model(tasks).posterior
    foretold, did = [], []
    for people, found, _ in known[:500]:
        *others, last = people
        if marked_by := tuple(who for who in found if who != last):
            foretold.append(posterior.mark_probability(others, marked_by, last))
            did.append(last in found)
    foretold, did = np.array(foretold), np.array(did)
    assert foretold.mean() == pytest.approx(did.mean(), abs=0.05)
    high = foretold > np.median(foretold)
    assert did[high].mean() > did[~high].mean() + 0.2


def test_ground_truth_says_how_many_objects_all_overlook():
    for overlooked in (0.0, 0.3):
        tasks, known = crowd(np.random.default_rng(3), spread=0.5, overlooked=overlooked, truth=True)
        posterior = fit_annotator_model(tasks).posterior
        density = np.array([draw.density for draw in posterior.draws])
        missed = posterior.missed_objects((0, 1, 2))
        unseen = (missed + posterior.overlooked * density) / (density * (1 + posterior.overlooked))
        true = np.mean([not found for _, found, real in known if real])
        assert np.median(unseen) == pytest.approx(true, abs=0.05)


def test_model_without_regions_states_nothing():
    model = fit_annotator_model([Evidence((1, 2), (), (("q", ((1, ("a",)), (2, ("b",)))),))] * 30)
    assert model.posterior == DetectionPosterior()
    assert model.region_probabilities([1, 2], np.array([[True, False]])) is None


def test_stored_model_is_read_back_and_an_older_one_too():
    tasks, _ = crowd(np.random.default_rng(4), images=40)
    model = fit_annotator_model(tasks)
    stored = msgspec.json.encode(msgspec.structs.replace(model, labels={}, choices={}))
    assert msgspec.json.decode(stored, type=AnnotatorModel).posterior == model.posterior
    older = {key: each for key, each in msgspec.json.decode(stored, type=dict[str, msgspec.Raw]).items()
             if key not in {"posterior", "localisation"}}  # fmt: skip
    assert msgspec.json.decode(msgspec.json.encode(older), type=AnnotatorModel).posterior == DetectionPosterior()


def drawn(rng, deviation, count=200, each=3):
    box = np.array([0.0, 0.0, 60.0, 40.0])
    sides = np.array([60.0, 40.0, 60.0, 40.0])
    return [
        (tuple((who, tuple((box + rng.normal(0, deviation, 4) * sides).tolist())) for who in range(each)), each)
        for _ in range(count)
    ]


def test_sloppy_borders_lower_the_rate_of_boxes_at_the_right_place():
    bias = fit_annotator_model([]).box_bias
    exact, sloppy = (fit_localisation(drawn(np.random.default_rng(5), deviation), bias) for deviation in (0.03, 0.2))
    ones, threes = np.ones(1), np.full(1, 3.0)
    assert exact.region_rates(ones, threes, 0.5)[0] > 0.98
    assert sloppy.region_rates(ones, threes, 0.5)[0] < 0.85
    assert sloppy.region_rates(ones, threes, 0.2)[0] > sloppy.region_rates(ones, threes, 0.5)[0]


def test_single_boxes_say_nothing_about_borders():
    one = (((1, (0.0, 0.0, 9.0, 9.0)),), 3)
    assert fit_localisation([one], fit_annotator_model([]).box_bias) == Localisation()


def test_box_far_from_the_others_is_seldom_right():
    model = Localisation(float(np.log(0.005)))
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [7, 0, 17, 10]], dtype=float)
    rates = model.box_rates([boxes], np.array([[0.5, 0, 10.5, 10]]), np.ones(1), 0.5).mean(axis=0)
    assert rates[0] > 0.9
    assert rates[2] < 0.2
