"""Tasks with a ground truth, served to measure annotators: whom, which, when, and that a human's change stands."""

import random

import pytest

from labelloop.labeling.task import read_task
from labelloop.service.inbox import EVENTS, Inbox
from qc_webhooks.agreement import read_answers
from qc_webhooks.check import Checker
from qc_webhooks.facts import facts_of
from qc_webhooks.memory import MemoryStore
from qc_webhooks.policy import Policy, read_policy
from qc_webhooks.projects import ProjectStore
from qc_webhooks.seeding import Known, Stream, seeds, streams
from qc_webhooks.truth_keeper import TruthKeeper, TruthStore
from qc_webhooks.undo import Undo
from qc_webhooks.verdict import judge

PROJECT = 7
LEAD, ANNE, BEN, CLEO = 9, 1, 2, 3
MORNING = 1767247200.0  # 2026-01-01 06:00 UTC; the days of the Label Studio in memory begin at midnight


class Loop:
    """The worker: what is in the inbox is checked, then who is due is looked up."""

    def __init__(self, studio, engine, settings):
        self.studio, self.engine, self.settings = studio, engine, settings
        self.memory = MemoryStore(engine)
        self.inbox = Inbox.from_settings(settings, engine)
        self.checker = Checker(studio, self.memory, settings.home)
        self.keeper = TruthKeeper(engine, studio, self.inbox, self.policy, clock=lambda: MORNING)
        ProjectStore(engine).add(PROJECT)

    def policy(self, project):
        return read_policy(self.settings.home, project)

    def settle(self, *tasks):
        """Checks these tasks, and whatever follows."""
        for task in tasks:
            self.checker.check(PROJECT, task)
        for _ in range(5):
            self.keeper.run()
            with self.engine.begin() as connection:
                rows = connection.execute(EVENTS.select().where(EVENTS.c.state == "pending")).all()
                connection.execute(EVENTS.update().values(state="done"))
            if not rows:
                return
            for row in rows:
                self.checker.check(PROJECT, int(row.subject.partition(":")[2]))


@pytest.fixture
def write_policy(settings):
    def write(**values):
        file = settings.home / "qc" / "policy.toml"
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = {name: str(value).lower() if isinstance(value, bool) else value for name, value in values.items()}
        file.write_text("".join(f"{name} = {value}\n" for name, value in lines.items()))

    return write


@pytest.fixture
def loop(studio, engine, settings):
    return Loop(studio, engine, settings)


def gold(studio, box, *, overlap=1):
    """A task as an import with annotations makes it."""
    task = studio.add_task(overlap=overlap)
    studio.annotate(task, LEAD, [box(10)], ground_truth=True)
    return task


def work(studio, loop, annotator, box, count, *, start=0):
    """So many ordinary tasks of one annotator."""
    for n in range(count):
        task = studio.add_task(overlap=1)
        studio.annotate(task, annotator, [box(start + n % 50)])
        loop.settle(task)


def test_who_did_enough_other_tasks_is_due():
    assert not Stream(ANNE, since=2).is_due(0.1, 0)
    assert Stream(ANNE, since=14).is_due(0.1, 0)
    assert Stream(ANNE, since=0).is_due(0.1, first=1)
    distances = [Stream(ANNE, 0, measured=n, last=n).distance(0.1) for n in range(400)]
    assert min(distances) >= 4
    assert max(distances) <= 14
    assert sum(distances) / len(distances) == pytest.approx(9, abs=0.5)


def test_a_task_counts_only_for_who_came_after_its_truth():
    newest_first = [(ANNE, 5, 30), (BEN, 4, 11), (ANNE, 3, 9), (BEN, 5, 8)]
    anne, ben = streams(newest_first, {5: 20})
    assert (anne.measured, anne.since, anne.last) == (1, 0, 5)
    assert (ben.measured, ben.since, ben.last) == (0, 2, 0)


def test_each_gets_what_fewest_others_could_take():
    known = [Known(1, 1, frozenset({LEAD})), Known(2, 2, frozenset({LEAD, BEN}))]
    assert seeds(known, [Stream(ANNE, 20)], [ANNE, BEN]) == {2: 3}, "Ben is never served task 2 again"
    both = [Stream(ANNE, 20), Stream(BEN, 30)]
    assert seeds(known, both, [ANNE, BEN]) == {1: 3}
    assert seeds(known, [Stream(LEAD, 20)], [LEAD]) == {}, "the one who made the truth knows it"


def test_a_due_annotator_is_served_a_truth_blind_and_nobody_else_is(studio, loop, box, write_policy):
    write_policy(ground_truth_share=0.2)
    task = gold(studio, box)
    loop.settle(task)
    assert not studio.serves(task, ANNE), "not yet"
    work(studio, loop, ANNE, box, 8)
    assert studio.serves(task, ANNE)
    assert studio.settings == {"annotator_evaluation_enabled": True}
    assert not studio.stored[task]["data"].get("qc_note"), "the note must not give it away"
    studio.annotate(task, ANNE, [box(11)])
    loop.settle(task)
    assert not studio.serves(task, BEN)
    assert [each["ground_truth"] for each in studio.stored[task]["annotations"] if each.get("ground_truth")] == [True]
    assert studio.stored[task]["data"]["qc_status"] == "agreed"


def test_nothing_happens_without_the_setting(studio, loop, box):
    task = gold(studio, box)
    work(studio, loop, ANNE, box, 8)
    loop.settle(task)
    assert not studio.serves(task, ANNE)
    assert studio.settings == {}
    assert "overlap" not in {name for write in studio.writes for name in write}


def test_truths_are_held_back_until_somebody_is_due_and_go_back_when_the_setting_goes(studio, loop, box, write_policy):
    """With two annotators a task, Label Studio would serve an imported truth before everything else."""
    write_policy(ground_truth_share=0.2)
    task = gold(studio, box, overlap=2)
    assert studio.serves(task, ANNE)
    loop.settle(task)
    assert not studio.serves(task, ANNE)
    write_policy(ground_truth_share=0.0)
    loop.settle()
    assert studio.serves(task, ANNE), "as it was"
    assert studio.stored[task]["overlap"] == 2
    assert studio.settings == {"annotator_evaluation_enabled": False}


def test_what_nobody_took_is_closed_when_the_setting_goes(studio, loop, box, write_policy):
    write_policy(ground_truth_share=0.2)
    task = gold(studio, box)
    work(studio, loop, ANNE, box, 8)
    loop.settle(task)
    assert studio.serves(task, ANNE)
    write_policy(ground_truth_share=0.0)
    loop.settle()
    assert (studio.stored[task]["overlap"], studio.stored[task]["is_labeled"]) == (1, True)


def test_a_human_who_closes_a_served_truth_has_the_last_word(studio, loop, box, write_policy):
    write_policy(ground_truth_share=0.2)
    task, other = gold(studio, box), gold(studio, box)
    loop.settle(task, other)
    work(studio, loop, ANNE, box, 8)
    served = task if studio.serves(task, ANNE) else other
    studio.stored[served] |= {"overlap": 1, "is_labeled": True, "updated_at": studio._now()}
    loop.settle(served)
    work(studio, loop, ANNE, box, 2)
    assert not studio.serves(served, ANNE)
    assert studio.serves(other if served == task else task, ANNE), "another one takes its place"


def test_seeding_can_be_undone(studio, loop, box, write_policy):
    write_policy(ground_truth_share=0.2)
    task = gold(studio, box)
    loop.settle(task)
    work(studio, loop, ANNE, box, 8)
    assert studio.serves(task, ANNE)
    list(Undo(studio, loop.memory, loop.checker, loop.inbox).run(PROJECT, task=task))
    assert not studio.serves(task, ANNE)
    loop.settle(task)
    assert not studio.serves(task, ANNE)


def test_a_truth_that_is_taken_back_measures_nobody(studio, loop, box, write_policy):
    write_policy(ground_truth_share=0.2)
    task = gold(studio, box)
    work(studio, loop, ANNE, box, 8)
    loop.settle(task)
    (truth,) = studio.stored[task]["annotations"]
    studio.change(truth["id"], ground_truth=False)
    loop.settle(task)
    assert TruthStore(loop.engine).rows(PROJECT) == {}
    assert (studio.stored[task]["overlap"], studio.stored[task]["is_labeled"]) == (1, True)


def test_checking_again_writes_nothing(studio, loop, box, write_policy):
    write_policy(ground_truth_share=0.2)
    task = gold(studio, box)
    work(studio, loop, ANNE, box, 8)
    loop.settle(task)
    before = len(studio.writes)
    loop.settle(task)
    loop.settle(task)
    assert len(studio.writes) == before


def test_everybody_gets_about_the_share_however_fast(studio, loop, box, write_policy):
    """Three who work 6 : 3 : 1 fast; Label Studio serves an open truth first, to whoever asks."""
    write_policy(ground_truth_share=0.1, annotators=2)
    rng, golds = random.Random(4), [gold(studio, box) for _ in range(30)]
    loop.settle(*golds)
    ordinary, got = {ANNE: 0, BEN: 0, CLEO: 0}, {ANNE: 0, BEN: 0, CLEO: 0}
    for _ in range(200):
        who = rng.choices([ANNE, BEN, CLEO], [6, 3, 1])[0]
        task = next((each for each in golds if studio.serves(each, who)), None)
        if task is None:
            ordinary[who] += 1
            task = studio.add_task(overlap=1)
        else:
            got[who] += 1
        studio.annotate(task, who, [box(10)])
        loop.settle(task)
    for who in (ANNE, BEN, CLEO):
        assert 0.05 <= got[who] / (got[who] + ordinary[who]) <= 0.16, (got, ordinary)


def test_facts_tell_how_far_each_agrees_with_the_truth(studio, box):
    number = gold(studio, box)
    studio.annotate(number, ANNE, [box(10)])
    studio.annotate(number, BEN, [box(60)])
    read = read_task(studio.task_json(PROJECT, number))
    answers, policy = read_answers(read), Policy()
    facts = facts_of(read, answers, judge(answers, policy), policy.tolerance)
    assert {turn.annotator: (turn.against, turn.known) for turn in facts.turns} == {
        ANNE: (1.0, True), BEN: (0.0, True), LEAD: (None, False),
    }  # fmt: skip
