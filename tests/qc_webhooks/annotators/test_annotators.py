"""Simulated annotators who drift, copy, accept pre-labels, rush or err are found; careful ones are not flagged."""

import random
from itertools import combinations

import pytest
from msgspec.structs import replace

from labelloop.labeling.consensus.consensus import fit_annotator_model
from qc_webhooks.annotators import find_diagnoses, profile_annotators
from qc_webhooks.annotators.drift import detect_drift
from qc_webhooks.verdict.task_facts import (
    CORRECTED,
    MANUAL,
    UNCHANGED,
    AnnotationFacts,
    AnnotatorPair,
    ObjectFacts,
    Question,
    RegionFacts,
    Repeat,
    TaskFacts,
)

DAY = 86_400.0
TEAM = (1, 2, 3, 4, 5, 6)


class Project:
    """A project whose annotators behave as the test says; everything else about them is alike.

    Args:
        seed: Of chance.
        labels: annotator -> function (truth, moment 0 to 1) -> the label given; others slip in 4 % of the cases.
        origins: annotator -> function (is the pre-label wrong?) -> how the region came about.
        per_task: How many annotate a task.
    """

    def __init__(self, seed=0, *, tasks=300, labels=None, origins=None, copier=None, seconds=None, team=TEAM,
                 per_task=3, classes=("Bus", "Car", "Van"), recall=None):  # fmt: skip
        self.rng = rng = random.Random(seed)
        self.classes, labels, origins, seconds = classes, labels or {}, origins or {}, seconds or {}
        self.facts = []
        for number in range(tasks):
            moment = number / tasks
            who = rng.sample(team, min(per_task, len(team)))
            if copier and copier[0] in who and copier[1] not in who:
                who = [copier[1], *[person for person in who if person != copier[1]]][:per_task]
            truths = [rng.choice(classes) for _ in range(5)]
            answers = {person: [labels.get(person, self.slip)(truth, moment) for truth in truths] for person in who}
            calls = {person: [rng.random() < (recall or {}).get(person, 0.97) for _ in truths] for person in who}
            wrong = [rng.random() < 0.3 for _ in truths]
            created = {
                person: [origins[person](bad) if person in origins else MANUAL for bad in wrong] for person in who
            }
            things = tuple(
                ObjectFacts("label", tuple(
                    RegionFacts(person, (answers[person][index],), rng.uniform(90, 110), created[person][index])
                    for person in sorted(who) if calls[person][index]
                ))
                for index in range(len(truths)) if any(calls[person][index] for person in who)
            )  # fmt: skip
            pairs = tuple(self.pair(a, b, answers, copier) for a, b in combinations(sorted(who), 2))
            turns = tuple(
                AnnotationFacts(person, number * DAY / 5 + index + (10 if copier and person == copier[0] else 0),
                     seconds.get(person, lambda: rng.lognormvariate(3, 0.4))(), 5)
                for index, person in enumerate(who)
            )  # fmt: skip
            self.facts.append(TaskFacts(number + 1, turns, things, (), pairs, (), (), 0.9, "agreed"))

    def slip(self, truth, _moment, rate=0.04):
        return self.rng.choice(self.classes) if self.rng.random() < rate else truth

    def pair(self, a, b, answers, copier):
        agreement = sum(first == other for first, other in zip(answers[a], answers[b], strict=True)) / len(answers[a])
        copied = 5 if copier and {a, b} == set(copier) and self.rng.random() < 0.5 else 0
        return AnnotatorPair(a, b, agreement, {"label": agreement}, 5, copied)

    @property
    def people(self):
        crowd = fit_annotator_model(task.evidence() for task in self.facts)
        return {
            profile.annotator: profile for profile in profile_annotators(self.facts, crowd, find_diagnoses(self.facts))
        }


def worse_later(project_rng):
    def label(truth, moment):
        slips = project_rng.random() < (0.5 if moment > 0.6 else 0.04)
        return project_rng.choice(("Bus", "Car", "Van")) if slips else truth

    return label


@pytest.mark.parametrize("seed", range(4))
def test_who_drifts_is_found_and_nobody_who_works_beside_them(seed):
    result = detect_drift(Project(seed, labels={2: worse_later(random.Random(seed))}).facts)
    assert set(result) == {2}
    drift = result[2]
    assert drift.after < drift.before - 0.2
    assert drift.low < drift.after - drift.before < drift.high < 0
    assert 0.45 < drift.since / (300 * DAY / 5) < 0.75


def test_a_clean_team_has_no_concerns():
    """30 annotators in 6 teams: no drift, duplicates, haste or bias is found; at most a few rates are flagged."""
    concerns = [line for seed in range(6) for profile in Project(seed, team=(1, 2, 3, 4, 5), tasks=100).people.values()
                for line in profile.concerns]  # fmt: skip
    assert len(concerns) <= 1, concerns


def test_inseparable_pair_has_no_drift():
    labels = {2: worse_later(random.Random(1))}
    assert not detect_drift(Project(1, team=(1, 2), per_task=2, labels=labels).facts)


@pytest.mark.parametrize("seed", range(3))
def test_copier_is_distinguished_from_the_copied_annotator(seed):
    people = Project(seed, copier=(4, 1)).people
    suspects = {who: [pair.other for pair in person.copies] for who, person in people.items() if person.copies}
    assert suspects == {1: [4], 4: [1]}
    assert people[4].copies[0].copied_by == people[1].copies[0].copied_by == 4
    assert "the same to the pixel as annotator 1" in " ".join(people[4].concerns)
    assert not people[1].concerns


def test_equal_boxes_are_no_copies_where_everybody_has_them():
    """Boxes around whole images are equal by nature."""
    project = Project(3)
    facts = [
        replace(task, pairs=tuple(replace(pair, common_regions=5, identical_regions=2) for pair in task.pairs))
        for task in project.facts
    ]
    crowd = fit_annotator_model(task.evidence() for task in facts)
    assert not any(profile.copies for profile in profile_annotators(facts, crowd))


def test_annotators_who_accept_wrong_pre_labels_are_flagged():
    rng = random.Random(5)

    def careful(bad):
        return CORRECTED if bad and rng.random() < 0.85 else UNCHANGED

    def blind(bad):
        return CORRECTED if bad and rng.random() < 0.08 else UNCHANGED

    people = Project(5, origins=dict.fromkeys(TEAM, careful) | {3: blind}).people
    assert [who for who, profile in people.items() if profile.anchoring.is_anchored] == [3]
    assert people[3].anchoring.left.value > 0.85 > 0.3 > people[1].anchoring.left.value
    assert people[1].anchoring.untouched.value == pytest.approx(0.745, abs=0.05)
    assert any("pre-labels unchanged that the others correct" in line for line in people[3].concerns)


def test_good_pre_labels_that_everybody_keeps_accuse_nobody():
    people = Project(6, origins=dict.fromkeys(TEAM, lambda bad: UNCHANGED)).people
    assert all(
        profile.anchoring.untouched.value == 1 and not profile.anchoring.is_anchored for profile in people.values()
    )


def test_speed_is_told_against_the_others_of_the_same_tasks():
    rng = random.Random(7)

    def usual():
        return rng.lognormvariate(3, 0.4)

    people = Project(7, seconds={1: lambda: 2 * usual(), 5: lambda: usual() * rng.choice((0.1, 1, 1))}).people
    pace = people[1].speed.pace
    assert 1.8 < pace.low < pace.high < 2.6
    assert people[5].speed.hasty.low > 0.2
    assert [who for who, profile in people.items() if any("others' time" in line for line in profile.concerns)] == [5]
    assert people[2].speed.seconds == pytest.approx(20, rel=0.15)


def test_low_repeatability_is_flagged():
    project = Project(8)
    steady = [TaskFacts(9000 + n, repeats=(Repeat(1, 0.95), Repeat(2, 0.4 + 0.02 * (n % 5)))) for n in range(12)]
    facts = [*project.facts, *steady]
    people = {
        profile.annotator: profile
        for profile in profile_annotators(facts, fit_annotator_model(task.evidence() for task in facts))
    }
    assert people[1].repeats.value == pytest.approx(0.95)
    assert people[2].repeats.high < 0.5
    assert people[3].repeats.value is None
    assert any("earlier annotation" in line for line in people[2].concerns)
    assert not people[1].concerns


def test_a_reviewers_ground_truth_is_no_opinion_about_anybody():
    project = Project(9, copier=(4, 1))
    facts = [
        replace(task, annotations=tuple(replace(item, ground_truth=item.annotator == 4) for item in task.annotations))
        for task in project.facts
    ]
    people = {
        profile.annotator: profile
        for profile in profile_annotators(facts, fit_annotator_model(task.evidence() for task in facts))
    }
    assert not people[1].copies
    assert 4 not in people, "a reviewer is not measured"


def test_ground_truth_agreement_has_an_interval_and_worst_tasks():
    def task(number, score, *, served=True):
        turns = (
            AnnotationFacts(1, number, 9.0, 1, False, score, served),
            AnnotationFacts(9, number - 1.0, 9.0, 1, True),
        )
        return TaskFacts(
            number,
            turns,
            (),
            (Question("kind", ((1, ("Car",)), (9, ("Car",)))),),
            (AnnotatorPair(1, 9, score, {}, 0, 0),),
        )

    facts = [task(n, 0.9 if n % 2 else 1.0) for n in range(1, 31)] + [task(40, 0.2), task(41, 0.1, served=False)]
    (first,) = profile_annotators(facts, fit_annotator_model(task.evidence() for task in facts))
    assert first.against_truth.n == 31
    assert first.against_truth.low < 0.93 < first.against_truth.high
    assert first.furthest[0] == (40, 0.2)
    assert first.against_decided.value is None, "one task says too little"
    few = [task(n, 1.0) for n in range(1, 7)]
    (other,) = profile_annotators(few, fit_annotator_model(task.evidence() for task in few))
    assert other.against_truth.value == 1
    assert other.against_truth.low < 0.9, "six without a miss are no certainty"
