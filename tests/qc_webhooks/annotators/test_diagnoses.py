"""The cause of disagreement that is said is the true one, and no careful annotator is named."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.diagnoses import facts_of_tasks
from bench.simulated_projects import CAREFUL, CARELESS, TRUTHS, Habit, Shape, make_tasks
from qc_webhooks.annotators import DIAGNOSES, find_diagnoses
from qc_webhooks.annotators.error_rates import ErrorRate, find_outliers
from qc_webhooks.annotators.explanations import find_camps
from qc_webhooks.annotators.questions import QuestionAnswers

BOXES = Shape(tasks=40)


def diagnosed(shape, habits, seed=0):
    return find_diagnoses(facts_of_tasks(make_tasks(shape, habits, seed)))


def project(truth, shape=BOXES, seed=0):
    known = TRUTHS[truth](shape, random.Random(seed))
    return known, diagnosed(shape, known.habits, seed)


@pytest.mark.parametrize("truth", [name for name in TRUTHS if name.startswith("camps")])
def test_camps_are_an_unclear_guideline(truth):
    known, [found] = project(truth)
    assert found.kind == "guideline"
    assert {frozenset(found.first), frozenset(found.second)} == set(known.sides)
    assert not found.who
    assert "guideline is unclear" in found.text


def test_a_conflict_is_explained_by_the_diagnosis_that_concerns_it():
    """With names where a page shows it, without in a note; not for annotators of one group, nor for other conflicts."""
    habits = {who: Habit(grow=0.25) if who in {3, 4} else CAREFUL for who in range(1, 7)}
    [found] = diagnosed(BOXES, habits)
    assert found.covers("low_overlap", "label", ("Car",), ("Car",))
    assert not found.covers("missing", "label", ("Car",), ())
    assert found.explanation((3, 5)) == (
        "annotator 3 and annotator 5 read the guideline differently: where the border of an object is."
    )
    assert found.explanation((5,), (3, 5, 6)).startswith("annotator 3 and annotator 5 and annotator 6 read")
    assert found.explanation((3, 4)) == ""
    assert "annotator" not in found.note.replace("annotators", "")
    assert "where the border of an object is" in found.note


def test_a_split_by_size_explains_objects_of_that_size_only():
    habits = {who: Habit(skip_below=35) if who < 4 else CAREFUL for who in range(1, 7)}
    [found] = diagnosed(BOXES, habits)
    assert found.covers("missing", "label", ("Car",), (), area=20.0**2)
    assert not found.covers("missing", "label", ("Car",), (), area=90.0**2)
    assert found.covers("missing", "label", ("Car",), ())  # the size is unknown


def test_a_careless_annotator_explains_their_own_conflicts():
    habits = {who: CARELESS if who == 2 else CAREFUL for who in range(1, 7)}
    [found] = diagnosed(BOXES, habits)
    assert found.explanation((2,), (1, 2, 3)).startswith("annotator 2 errs far more often than the others (")
    assert found.explanation((1,), (1, 2, 3)) == ""
    assert found.note == ""


@pytest.mark.parametrize("truth", ["two miss half at random", "one careless", "three careless"])
def test_careless_annotators_are_named_and_nobody_else(truth):
    known, found = project(truth)
    assert {item.kind for item in found} == {"careless"}
    assert {who for item in found for who in item.who} == known.who


@pytest.mark.parametrize("truth", ["a copier", "a bot gives one answer", "a bot is too fast"])
def test_work_that_is_not_their_own_is_said(truth):
    known, found = project(truth)
    assert found[0].kind == known.kind
    assert {who for item in found for who in item.who} == known.who
    assert not {item.kind for item in found} & {"guideline", "two views", "hard"}


PRELABELLED = [Shape(tasks=60, prelabels=True), Shape(tasks=200, kind="choices", prelabels=True)]


@pytest.mark.parametrize("shape", PRELABELLED, ids=["boxes", "choices"])
def test_a_bot_that_accepts_pre_labels_is_said(shape):
    known, found = project("a bot accepts pre-labels", shape)
    assert {who for item in found if item.kind == "click-through" for who in item.who} == known.who
    assert "careless" not in {item.kind for item in found}


@pytest.mark.parametrize("shape", PRELABELLED, ids=["boxes", "choices"])
def test_who_accepts_right_pre_labels_quickly_is_not_named(shape):
    known, found = project("one accepts right pre-labels quickly", shape)
    assert not known.who
    assert found == ()


def test_two_who_accept_the_same_wrong_pre_labels_are_no_copiers():
    habits = {who: Habit(accepts=True) if who < 3 else CAREFUL for who in range(1, 7)}
    found = diagnosed(Shape(tasks=200, kind="choices", prelabels=True), habits)
    assert {item.kind for item in found} == {"click-through"}
    assert {who for item in found for who in item.who} == {1, 2}


def test_a_view_about_pre_labelled_answers_is_no_click_through():
    [found] = project("camps on a label", Shape(tasks=200, kind="choices", prelabels=True))[1]
    assert found.kind == "guideline"


def test_wavering_of_all_is_a_hard_call():
    _, found = project("all waver")
    assert {item.kind for item in found} == {"hard"}
    assert not any(item.who for item in found)


@pytest.mark.parametrize("shape", [BOXES, Shape(tasks=100, kind="choices"), Shape(tasks=40, kind="spans")])
def test_nothing_is_said_of_careful_annotators(shape):
    assert project("all careful", shape)[1] == ()


def test_the_size_that_a_split_follows_is_said():
    habits = {who: Habit(skip_below=35) if who < 4 else CAREFUL for who in range(1, 7)}
    [found] = diagnosed(BOXES, habits)
    assert "smaller than" in found.content
    limit = int(found.content.split()[2])
    assert 25 <= limit <= 50


def test_misses_of_hard_objects_are_no_camps():
    """Two careless annotators miss small objects most, as all do."""
    habits = {who: Habit(miss=0.4) if who < 3 else CAREFUL for who in range(1, 7)}
    found = diagnosed(Shape(tasks=60, hard=True), habits)
    assert {item.kind for item in found} == {"careless"}
    assert {who for item in found for who in item.who} == {1, 2}


def test_one_annotator_with_another_view_is_told_from_a_careless_one():
    habits = dict.fromkeys(range(1, 7), CAREFUL) | {4: Habit(says={"Van": "Bus"})}
    [found] = diagnosed(BOXES, habits)
    assert (found.kind, found.who, set(found.answers)) == ("one person", (4,), {"Bus", "Van"})


def test_two_annotators_of_whom_one_errs_are_not_told_apart():
    found = diagnosed(replace(BOXES, people=2, each=2), {1: CAREFUL, 2: CARELESS})
    assert {item.kind for item in found} == {"undecided"}
    assert not any(item.who for item in found)


def test_two_annotators_with_two_views_are_said():
    [found] = diagnosed(replace(BOXES, people=2, each=2), {1: CAREFUL, 2: Habit(says={"Van": "Bus"})})
    assert (found.kind, found.who) == ("two views", ())


def test_every_diagnosis_has_its_words():
    for said in DIAGNOSES.values():
        assert said.name
        assert said.sentence.endswith(".")
        assert said.advice.endswith(".")
        assert "{evidence}" in said.sentence


def asked(answers):
    count = len(answers)
    return QuestionAnswers("label", "label", ("a", "b"), tuple(range(answers.shape[1])), answers.astype(np.int8),
                 np.arange(count), np.full(count, np.nan), ("a",) * count)  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_independent_errors_are_no_camps(seed):
    rng = np.random.default_rng(seed)
    truth = rng.integers(2, size=(300, 1))
    rates = np.array([0.03, 0.03, 0.03, 0.4, 0.4, 0.4])
    answers = np.where(rng.random((300, 6)) < rates, 1 - truth, truth)
    assert find_camps(asked(answers)) is None


@pytest.mark.parametrize("seed", range(5))
def test_groups_that_agree_on_open_items_are_camps(seed):
    rng = np.random.default_rng(seed)
    truth = rng.integers(2, size=(200, 1))
    open_ = rng.random((200, 1)) < 0.3
    right = np.where(open_, np.array([1, 1, 1, 0, 0, 0]), truth)
    answers = np.where(rng.random((200, 6)) < 0.05, 1 - right, right)
    answers = np.where(rng.random((200, 6)) < 0.4, -1, answers)
    found = find_camps(asked(answers))
    assert (found.first, found.second) == ((0, 1, 2), (3, 4, 5))
    assert found.gain > 6


def test_outlier_needs_many_more_errors_than_the_others():
    rates = [ErrorRate(who, errors, 200.0) for who, errors in enumerate((8, 10, 12, 9, 60))]
    assert find_outliers(rates, tests=5) == (4,)
    alike = [ErrorRate(who, errors, 200.0) for who, errors in enumerate((30, 36, 44, 52, 60))]
    assert find_outliers(alike, tests=5) == ()
    few = [ErrorRate(who, errors, 10.0) for who, errors in enumerate((0, 0, 0, 0, 5))]
    assert find_outliers(few, tests=5) == ()


def test_every_diagnosis_is_in_the_docs():
    page = Path(__file__).parents[3].joinpath("docs", "how-to", "diagnoses.md").read_text()
    for kind, said in DIAGNOSES.items():
        assert f"- **{said.name}**. " in page
        assert f"`{kind}`" in page.replace("\n", " ")
