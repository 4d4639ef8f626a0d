"""Answers of several tags: never below the majority of each tag, taxonomies along the tree."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from labelloop.labeling.consensus.consensus import AnnotatorView, collect_evidence, consensus, fit_annotator_model
from labelloop.labeling.consensus.tags import expand, fit_tag_model, has_several_tags, uniform_tags


def crowd(rates, *, tags=20, items=300, per_item=3, mean_true=3, seed=0):
    """(votes on each item, true tags (items, tags)) of annotators who flip each tag with their rate."""
    random = np.random.default_rng(seed)
    names = [f"tag {number:02d}" for number in range(tags)]
    answers, truths = [], np.zeros((items, tags), bool)
    for item in range(items):
        truths[item, random.choice(tags, random.integers(1, 2 * mean_true), replace=False)] = True
        votes = []
        for annotator in random.choice(len(rates), per_item, replace=False).tolist():
            given_tags = truths[item] ^ (random.random(tags) < rates[annotator])
            if given_tags.any():
                votes.append((annotator, tuple(np.array(names)[given_tags].tolist())))
        answers.append(tuple(votes))
    return answers, truths


def as_matrix(chosen, tags=20):
    matrix = np.zeros((len(chosen), tags), bool)
    for row, answer in enumerate(chosen):
        matrix[row, [int(tag.split()[1]) for tag in answer]] = True
    return matrix


def majority(votes):
    tags = sorted({tag for _, answer in votes for tag in answer})
    return tuple(tag for tag in tags if 2 * sum(tag in answer for _, answer in votes) > len(votes))


def scores(chosen, truths):
    matrix = as_matrix(chosen, truths.shape[1])
    return f1_score(truths, matrix, average="micro"), (matrix == truths).all(axis=1).mean()


@pytest.mark.parametrize(("per_item", "noise"), [(3, 0.05), (5, 0.05), (2, 0.05)])
def test_equal_annotators_are_never_below_the_majority(per_item, noise):
    answers, truths = crowd([noise] * 20, per_item=per_item, items=500)
    model = fit_tag_model(answers)
    f1, exact = scores([model.best(votes)[0] for votes in answers], truths)
    other_f1, other_exact = scores([majority(votes) for votes in answers], truths)
    assert f1 >= other_f1 - 0.004
    assert exact >= other_exact - 0.005


def test_unequal_annotators_are_weighted():
    rates = np.random.default_rng(1).beta(1, 9, 20)
    answers, truths = crowd(rates, items=500)
    model = fit_tag_model(answers)
    chosen = [model.best(votes) for votes in answers]
    f1, exact = scores([answer for answer, _ in chosen], truths)
    other_f1, other_exact = scores([majority(votes) for votes in answers], truths)
    assert f1 > other_f1 + 0.02
    assert exact > other_exact + 0.08
    assert np.mean([probability for _, probability in chosen]) == pytest.approx(exact, abs=0.05)
    measured = [model.false_rate[model.raters[who]].mean() for who in range(20)]
    assert np.corrcoef(measured, rates)[0, 1] > 0.95


def test_a_thousand_tasks_of_thirty_tags_are_quick():
    answers, _ = crowd([0.05] * 20, tags=30, items=1000)
    started = time.process_time()
    model = fit_tag_model(answers)
    for votes in answers:
        model.best(votes)
    assert time.process_time() - started < 5


def test_ground_truth_replaces_the_estimate():
    votes = [((1, ("a",)), (2, ("b",)))] * 40
    model = fit_tag_model(votes, [("a",)] * 40)
    assert model.best(votes[0])[0] == ("a",)
    assert model.sensitivity[model.raters[1], model.tags.index("a")] > 0.9
    assert model.probabilities(votes[0])["b"] < 0.05


def test_annotators_agree_on_the_branch_of_a_taxonomy():
    votes = [((1, ("animal/dog",)), (2, ("animal/dog",))), ((1, ("animal",)), (3, ("animal/cat",)))] * 10
    model = fit_tag_model(votes)
    answer, _ = model.best(((1, ("animal/dog",)), (2, ("animal/cat",)), (3, ("animal/fox",))))
    assert answer in {("animal",), ("animal/cat",), ("animal/dog",), ("animal/fox",)}
    answer, probability = model.best(((1, ("animal/dog",)), (2, ("animal/dog",)), (3, ("animal/cat",))))
    assert answer == ("animal/dog",)
    assert probability > 0.5


@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.lists(st.sampled_from(["a", "b", "c/d", "c/e", "c"]), min_size=1, unique=True)),
        min_size=1,
        max_size=5,
        unique_by=lambda vote: vote[0],
    )
)
def test_answer_has_a_given_tag_and_a_probability(votes):
    votes = tuple((annotator, tuple(sorted(answer))) for annotator, answer in votes)
    for model in (uniform_tags(votes), fit_tag_model([votes] * 3)):
        answer, probability = model.best(votes)
        assert answer
        assert set(answer) <= {tag for _, given_answer in votes for tag in given_answer} | {"c"}
        assert 0 <= probability <= 1
        unanimous = set.intersection(*(set(given_answer) for _, given_answer in votes))
        if len(votes) > 2:
            assert unanimous <= set(answer)


def test_single_choices_are_no_tags():
    assert not has_several_tags([("a",), ("b",), ("n/a",)])
    assert has_several_tags([("a",), ("a", "b")])
    assert has_several_tags([("c/d",), ("c/e",)])
    assert expand(("c/d",)) == {"c/d", "c/", "c/d/"}


def test_consensus_of_a_task_is_tag_by_tag():
    views = [
        AnnotatorView(1, choices={"weather": ("rain", "wind")}),
        AnnotatorView(2, choices={"weather": ("rain", "fog")}),
        AnnotatorView(3, choices={"weather": ("rain", "wind")}),
    ]
    for model in (None, fit_annotator_model([collect_evidence(views)] * 5)):
        [choice] = consensus(views, model).choices.values()
        assert choice.chosen == ("rain", "wind")
    assert fit_annotator_model([collect_evidence(views)]).choices == {}
