"""One more annotator is asked where that pays, and nowhere else."""

import itertools
import random
from functools import partial

import numpy as np
import pytest

from labelloop.labeling.consensus.consensus import AnnotatorModel, Evidence, fit_annotator_model
from labelloop.service.jobs.inbox import Inbox
from qc_webhooks.decision.expected_gain import expected_gain
from qc_webhooks.pipeline.checker import Checker
from qc_webhooks.policy import read_policy
from qc_webhooks.schedulers.annotator_model import MIN_TASKS, AnnotatorModelScheduler, AnnotatorModelStore
from qc_webhooks.store.projects import ProjectStore
from tests.qc_webhooks.conftest import PROJECT, QcStudio

CAREFUL, GOOD, SLOPPY, WILD = 1, 2, 3, 4


def answered(*votes):
    """A task with one question: (annotator, answer), ..."""
    return Evidence(
        tuple(who for who, _ in votes), (), (("quality", tuple((who, (message,)) for who, message in votes)),)
    )


def marked(looked, who, label="Car"):
    """A task with one object, marked by some of those who looked."""
    return Evidence(looked, (("label", tuple((first, (label,)) for first in who)),), ())


def crowd_of(skill, *, tasks=400, seed=0):
    """What 400 tasks tell of annotators who are right so often."""
    rng = np.random.default_rng(seed)
    result = []
    for truth in rng.integers(2, size=tasks):
        right = {who: rng.random() < often for who, often in skill.items()}
        result.append(answered(*((who, "good" if truth == right[who] else "bad") for who in skill)))
    return fit_annotator_model(result)


@pytest.fixture(scope="module")
def crowd():
    return crowd_of({CAREFUL: 0.97, GOOD: 0.9, SLOPPY: 0.65, WILD: 0.5})


def simulated(task, crowd, most, *, draws=20_000, seed=1):
    """The gain by simulation: truths drawn from the posterior, answers from the typical annotator's confusion."""
    rng, labels = np.random.default_rng(seed), crowd.choices["quality"]
    posterior = np.array([labels.posterior(task.choices[0][1])[answer] for answer in labels.classes])
    confusion, best = labels.confusion[-1], 0.0
    for count in range(1, most - len(task.annotators) + 1):
        truth = rng.choice(len(posterior), draws, p=posterior)
        message = (rng.random((draws, count)) < confusion[truth, 1][:, None]).sum(axis=1)
        rows = posterior * confusion[:, 1] ** message[:, None] * confusion[:, 0] ** (count - message[:, None])
        best = max(best, (rows.argmax(axis=1) == truth).mean() - posterior.max())
    return best


@pytest.mark.parametrize("votes", [((1, "good"), (3, "bad")), ((3, "good"), (4, "good")), ((2, "good"), (3, "good"))])
@pytest.mark.parametrize("most", [3, 6])
def test_the_gain_is_what_a_simulation_finds(crowd, votes, most):
    task = answered(*votes)
    assert expected_gain(task, crowd, max_annotators=most).gain == pytest.approx(simulated(task, crowd, most), abs=0.01)


def test_reliable_annotators_need_no_third(crowd):
    sure = expected_gain(answered((CAREFUL, "good"), (GOOD, "good")), crowd, max_annotators=6)
    unsure = expected_gain(answered((SLOPPY, "good"), (WILD, "good")), crowd, max_annotators=6)
    assert sure.errors < 0.01 < 0.1 < unsure.errors
    assert sure.gain < 0.002 < 0.1 < unsure.gain
    assert expected_gain(answered((SLOPPY, "good"), (WILD, "good")), crowd, max_annotators=2).gain == 0, (
        "nobody may be asked"
    )


def test_a_dispute_with_one_who_guesses_is_none(crowd):
    against_a_guesser = expected_gain(answered((CAREFUL, "good"), (WILD, "bad")), crowd, max_annotators=3)
    against_a_peer = expected_gain(answered((CAREFUL, "good"), (GOOD, "bad")), crowd, max_annotators=3)
    assert against_a_guesser.gain < against_a_peer.gain / 3


def test_looking_ahead_finds_what_one_more_alone_would_not(crowd):
    task = answered((SLOPPY, "good"), (GOOD, "good"))
    assert expected_gain(task, crowd, max_annotators=3).gain < expected_gain(task, crowd, max_annotators=6).gain


def test_without_a_model_only_single_marks_need_another_annotator():
    assert expected_gain(marked((1, 2), (1,)), None, max_annotators=3).gain > 0.1
    assert expected_gain(marked((1, 2), (1, 2)), None, max_annotators=3).gain == pytest.approx(0, abs=1e-9)
    assert expected_gain(Evidence((1, 2), (), ()), None, max_annotators=3).gain == 0


def test_errors_of_a_task_add_up():
    first = expected_gain(marked((1, 2), (1,)), None, max_annotators=3)
    both = Evidence((1, 2), marked((1, 2), (1,)).clusters * 2, ())
    assert expected_gain(both, None, max_annotators=3).gain == pytest.approx(2 * first.gain)
    assert expected_gain(both, None, max_annotators=3).errors == pytest.approx(2 * first.errors)


def test_the_gain_never_exceeds_the_errors():
    names = [f"class {n}" for n in range(60)]
    tasks = [answered(*((who, names[(n + who * (n % 7 == 0)) % 60]) for who in (1, 2, 3))) for n in range(300)]
    result = expected_gain(answered((1, names[0]), (2, names[1])), fit_annotator_model(tasks), max_annotators=10)
    assert 0 < result.gain <= result.errors < 1


# --- the live service ------------------------------------------------------------------------------------------------


@pytest.fixture
def service(studio, memory, settings, engine):
    """check, and the keeper of what is known of annotators; up to six are asked."""
    (settings.home / "qc").mkdir(parents=True)
    (settings.home / "qc" / "policy.toml").write_text("max_annotators = 6\nadjudicate = false\n")
    ProjectStore(engine).add(PROJECT)
    inbox = Inbox(engine)
    keeper = AnnotatorModelScheduler(engine, inbox, partial(read_policy, settings.home))
    return Checker(studio, memory, settings.home), keeper, inbox


def submitted(studio: QcStudio, checker, choice, message):
    task = studio.add_task()
    for who, answer in message.items():
        studio.annotate(task, who, [choice(answer)])
    checker.check(PROJECT, task)
    return task


def thirty_tasks(studio, checker, choice):
    """Thirty tasks by four people: two who are right, two who guess."""
    rng = random.Random(3)
    for _ in range(30):
        truth, *guesses = rng.choices(("good", "bad"), k=3)
        submitted(studio, checker, choice, {CAREFUL: truth, GOOD: truth, SLOPPY: guesses[0], WILD: guesses[1]})


@pytest.fixture
def taught(studio, service, choice):
    """What is known after thirty tasks."""
    checker, keeper, _ = service
    thirty_tasks(studio, checker, choice)
    keeper.run()
    return service


def test_without_a_reliability_model_an_agreement_stands(studio, service, choice):
    checker, keeper, inbox = service
    for _ in range(MIN_TASKS - 1):
        task = submitted(studio, checker, choice, {SLOPPY: "good", WILD: "good"})
    keeper.run()
    assert AnnotatorModelStore(keeper._engine).load(PROJECT) is None
    assert studio.tasks_by_id[task]["is_labeled"]
    assert inbox.due_subjects(10) == []


def test_an_unreliable_agreement_goes_to_a_third_annotator(studio, taught, choice):
    checker, _, _ = taught
    trusted = submitted(studio, checker, choice, {CAREFUL: "good", GOOD: "good"})
    doubtful = submitted(studio, checker, choice, {SLOPPY: "good", WILD: "good"})
    assert not studio.serves(trusted, 9)
    assert studio.serves(doubtful, 9)
    note = studio.tasks_by_id[doubtful]["data"]["qc_note"]
    assert note.startswith("2 of 2 annotators agree. One more annotator is requested: the consensus may be wrong (")
    assert studio.tasks_by_id[doubtful]["data"]["qc_status"] == "agreed"
    writes = len(studio.writes)
    assert checker.check(PROJECT, doubtful).actions == ()
    assert len(studio.writes) == writes


def test_an_early_agreement_is_rechecked_once(studio, service, choice):
    checker, keeper, inbox = service
    early = submitted(studio, checker, choice, {SLOPPY: "good", WILD: "good"})
    assert not studio.serves(early, 9)
    thirty_tasks(studio, checker, choice)
    keeper.run()
    assert ("qc.task", f"{PROJECT}:{early}") in inbox.due_subjects(100)
    checker.check(PROJECT, early)
    assert studio.serves(early, 9)
    again = keeper.update(PROJECT)
    assert again == 0, "told once for each state of a task"


def test_a_user_may_withdraw_the_further_annotator(studio, taught, choice):
    checker, keeper, _ = taught
    task = submitted(studio, checker, choice, {SLOPPY: "good", WILD: "good"})
    studio.tasks_by_id[task].update(overlap=2, is_labeled=True)
    keeper.update(PROJECT)
    checker.check(PROJECT, task)
    assert studio.tasks_by_id[task]["overlap"] == 2
    assert not studio.serves(task, 9)


def test_the_estimate_is_read_back_as_it_was(taught, engine):
    crowd = AnnotatorModelStore(engine).load(PROJECT)
    assert isinstance(crowd, AnnotatorModel)
    accuracy = {who: np.trace(crowd.choices["quality"].confusion[index]) / 2
                for who, index in crowd.choices["quality"].raters.items()}  # fmt: skip
    assert min(accuracy[CAREFUL], accuracy[GOOD]) > 0.9 > 0.7 > max(accuracy[SLOPPY], accuracy[WILD])


def test_an_estimate_is_made_only_after_news(studio, taught, choice, engine, monkeypatch):
    checker, keeper, _ = taught
    before = AnnotatorModelStore(engine).load(PROJECT)
    created = []
    keeper.update = created.append
    keeper.run()
    assert created == []
    for _ in itertools.repeat(None, 6):
        submitted(studio, checker, choice, {CAREFUL: "good", GOOD: "good"})
    with monkeypatch.context() as later:
        later.setattr("qc_webhooks.schedulers.annotator_model.time.time", lambda: 4e9)
        keeper.run()
    assert created == [PROJECT]
    assert before is not None
