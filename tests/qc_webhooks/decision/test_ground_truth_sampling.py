"""Tasks with a ground truth, served to measure annotators: whom, which, when, and that a human's change stands."""

import random
import time

import pytest

from labelloop.labeling.studio.task import read_task
from labelloop.service.jobs.inbox import EVENTS, Inbox
from qc_webhooks.agreement import read_answers
from qc_webhooks.decision.ground_truth_sampling import AnnotatorQuota, GroundTruthTask, annotator_quotas, tasks_to_serve
from qc_webhooks.pipeline.checker import Checker
from qc_webhooks.pipeline.undo import Undo
from qc_webhooks.policy import Policy, read_policy
from qc_webhooks.schedulers.ground_truth import GroundTruthScheduler, GroundTruthStore
from qc_webhooks.store.decisions import DecisionStore
from qc_webhooks.store.projects import ProjectStore
from qc_webhooks.verdict.fact_collection import facts_of
from qc_webhooks.verdict.verdict import judge

PROJECT = 7
LEAD, ANNE, BEN, CLEO = 9, 1, 2, 3
MORNING = 1767247200.0  # 2026-01-01 06:00 UTC; the days of the Label Studio in memory begin at midnight


class Loop:
    """The worker: what is in the inbox is checked, then who is due is looked up."""

    def __init__(self, studio, engine, settings):
        self.studio, self.engine, self.settings = studio, engine, settings
        self.memory = DecisionStore(engine)
        self.inbox = Inbox.from_settings(settings, engine)
        self.checker = Checker(studio, self.memory, settings.home)
        self.keeper = GroundTruthScheduler(engine, studio, self.inbox, self.policy, clock=lambda: MORNING)
        ProjectStore(engine).add(PROJECT)

    def policy(self, project):
        return read_policy(self.settings.home, project)

    def settle(self, *tasks):
        """Checks these tasks, and whatever follows."""
        for task in tasks:
            self.checker.check(PROJECT, task)
        for _ in range(5):
            self.keeper._next_run_at.clear()  # a test does not wait for its share of a worker's time
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
    """Annotate this many ordinary tasks as one annotator."""
    for n in range(count):
        task = studio.add_task(overlap=1)
        studio.annotate(task, annotator, [box(start + n % 50)])
        loop.settle(task)


def test_what_must_be_owed_varies_so_that_nobody_can_count():
    prices = [GroundTruthTask(n, 1, frozenset()).due_threshold for n in range(400)]
    assert 0.5 <= min(prices) < 0.55
    assert 1.45 < max(prices) <= 1.5
    assert sum(prices) / len(prices) == pytest.approx(1, abs=0.05)


def test_a_task_counts_only_for_who_came_after_its_truth():
    work = [(BEN, 5, 8, "1"), (ANNE, 3, 9, "1"), (BEN, 4, 11, "2"), (ANNE, 5, 30, "2")]
    anne, ben = annotator_quotas(work, {5: 20}, since="2", share=0.5)
    assert (anne.measured, anne.owed, anne.recent) == (1, 0, 1)
    assert (ben.measured, ben.owed, ben.recent) == (0, 2.0, 1)


def test_the_balance_of_earlier_work_is_bounded():
    (anne,) = annotator_quotas([(ANNE, 1000 + n, n, "1") for n in range(5000)], {}, since="0", share=0.1)
    assert anne.owed == 2.5


def test_each_gets_what_is_new_to_fewest_others():
    expected = [GroundTruthTask(1, 1, frozenset({LEAD})), GroundTruthTask(2, 2, frozenset({LEAD, BEN}))]
    assert tasks_to_serve(expected, [AnnotatorQuota(ANNE, 1.5), AnnotatorQuota(BEN, -1)]) == {2: 3}, (
        "Ben is never served task 2 again"
    )
    assert tasks_to_serve(expected, [AnnotatorQuota(ANNE, 0.4), AnnotatorQuota(BEN, 0.4)]) == {}
    assert tasks_to_serve(expected, [AnnotatorQuota(LEAD, 1.5)]) == {}, "the one who made the truth knows it"
    assert tasks_to_serve(expected, [AnnotatorQuota(ANNE, 0)], first=1) == {1: 2}, "a new annotator begins with one"
    opened = [GroundTruthTask(1, 1, frozenset({LEAD}), requested_overlap=2), expected[1]]
    assert tasks_to_serve(opened, [AnnotatorQuota(ANNE, 1.5)]) == {1: 2}, "one at a time"


@pytest.mark.parametrize("speeds", [(1.0,), (1.0, 1.0), (1.0,) * 8, (1.0, 0.5, 0.1), (1.0, 0.3, 0.3, 0.3, 0.3)])
def test_everybody_gets_the_share_however_many_and_however_fast(speeds):
    """Label Studio serves an open one first, to all who request a task until the first one submits it."""
    rng, share, golds = random.Random(5), 0.1, {task: ({LEAD}, [1]) for task in range(1, 160)}
    wanted: dict[int, int] = {}
    measured, done = (dict.fromkeys(range(len(speeds)), 0) for _ in range(2))
    handed_in: list[tuple[int, int, int, str]] = []
    clock = [(rng.random() / speed, who, None) for who, speed in enumerate(speeds)]
    for _ in range(2 * 400 * len(speeds)):
        at, who, working_on = min(clock)
        clock.remove((at, who, working_on))
        if working_on is None:  # asks for a task
            open_ = [
                task for task, overlap in wanted.items() if overlap > golds[task][1][0] and who not in golds[task][0]
            ]
            took = rng.uniform(0.6, 1.4) / speeds[who]
            clock.append((at + took, who, open_[0] if open_ else 0))
            continue
        done[who] += 1
        handed_in.append((who, working_on, len(handed_in) + 1, "1"))
        if working_on:
            golds[working_on][0].add(who)
            golds[working_on][1][0] += 1
            measured[who] += 1
        clock.append((at + 0.001, who, None))
        expected = [
            GroundTruthTask(task, n[0], frozenset(received), wanted.get(task)) for task, (received, n) in golds.items()
        ]
        people = annotator_quotas(handed_in[-400:], dict.fromkeys(golds, 0), since="1", share=share)
        wanted = tasks_to_serve(expected, people)
    for who, speed in enumerate(speeds):
        assert 0.05 <= measured[who] / done[who] <= 0.16, (who, speed, measured, done)


def test_only_a_due_annotator_gets_a_blind_ground_truth(studio, loop, box, write_policy):
    write_policy(ground_truth_share=0.2)
    task = gold(studio, box)
    loop.settle(task)
    assert not studio.serves(task, ANNE), "not yet"
    work(studio, loop, ANNE, box, 8)
    assert studio.serves(task, ANNE)
    assert studio.fields["annotator_evaluation_enabled"]
    assert not studio.tasks_by_id[task]["data"].get("qc_note"), "the note must not give it away"
    studio.annotate(task, ANNE, [box(11)])
    loop.settle(task)
    assert not studio.serves(task, BEN)
    assert [item["ground_truth"] for item in studio.tasks_by_id[task]["annotations"] if item.get("ground_truth")] == [
        True
    ]
    assert studio.tasks_by_id[task]["data"]["qc_status"] == "agreed"


def test_nothing_happens_without_the_setting(studio, loop, box):
    task = gold(studio, box)
    work(studio, loop, ANNE, box, 8)
    loop.settle(task)
    assert not studio.serves(task, ANNE)
    assert not studio.fields["annotator_evaluation_enabled"]
    assert "overlap" not in {name for write in studio.writes for name in write.arguments}


def test_ground_truths_are_held_back_until_due(studio, loop, box, write_policy):
    """With two annotators a task, Label Studio would serve an imported truth before everything else."""
    write_policy(ground_truth_share=0.2)
    task = gold(studio, box, overlap=2)
    assert studio.serves(task, ANNE)
    loop.settle(task)
    assert not studio.serves(task, ANNE)
    write_policy(ground_truth_share=0.0)
    loop.settle()
    assert studio.serves(task, ANNE), "as it was"
    assert studio.tasks_by_id[task]["overlap"] == 2
    assert not studio.fields["annotator_evaluation_enabled"]


def test_open_ground_truths_close_with_the_setting(studio, loop, box, write_policy):
    write_policy(ground_truth_share=0.2)
    task = gold(studio, box)
    work(studio, loop, ANNE, box, 8)
    loop.settle(task)
    assert studio.serves(task, ANNE)
    write_policy(ground_truth_share=0.0)
    loop.settle()
    assert (studio.tasks_by_id[task]["overlap"], studio.tasks_by_id[task]["is_labeled"]) == (1, True)


def test_a_user_may_close_a_served_ground_truth(studio, loop, box, write_policy):
    write_policy(ground_truth_share=0.2)
    task, other = gold(studio, box), gold(studio, box)
    loop.settle(task, other)
    work(studio, loop, ANNE, box, 8)
    served = task if studio.serves(task, ANNE) else other
    studio.tasks_by_id[served] |= {"overlap": 1, "is_labeled": True, "updated_at": studio.tick()}
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


def test_a_removed_ground_truth_measures_no_annotator(studio, loop, box, write_policy):
    write_policy(ground_truth_share=0.2)
    task = gold(studio, box)
    work(studio, loop, ANNE, box, 8)
    loop.settle(task)
    (truth,) = studio.tasks_by_id[task]["annotations"]
    studio.edit_annotation(truth["id"], ground_truth=False)
    loop.settle(task)
    assert GroundTruthStore(loop.engine).rows(PROJECT) == {}
    assert (studio.tasks_by_id[task]["overlap"], studio.tasks_by_id[task]["is_labeled"]) == (1, True)


def test_a_restored_ground_truth_is_served_again(studio, loop, box, write_policy, monkeypatch):
    write_policy(ground_truth_share=0.2)
    task = gold(studio, box)
    work(studio, loop, ANNE, box, 8)
    loop.settle(task)
    assert studio.serves(task, ANNE)
    (truth,) = studio.tasks_by_id[task]["annotations"]
    studio.edit_annotation(truth["id"], ground_truth=False)
    loop.settle(task)
    later = time.time() + 60
    monkeypatch.setattr("qc_webhooks.schedulers.ground_truth.time.time", lambda: later)
    studio.edit_annotation(truth["id"], ground_truth=True)
    loop.settle(task)
    assert studio.serves(task, ANNE)


def test_checking_again_writes_nothing(studio, loop, box, write_policy):
    write_policy(ground_truth_share=0.2)
    task = gold(studio, box)
    work(studio, loop, ANNE, box, 8)
    loop.settle(task)
    before = len(studio.writes)
    loop.settle(task)
    loop.settle(task)
    assert len(studio.writes) == before


def test_facts_tell_how_far_each_agrees_with_the_truth(studio, box):
    number = gold(studio, box)
    studio.annotate(number, ANNE, [box(10)])
    studio.annotate(number, BEN, [box(60)])
    read = read_task(studio.task_json(PROJECT, number))
    answers, policy = read_answers(read), Policy()
    facts = facts_of(read, answers, judge(answers, policy), policy.tolerance)
    assert {turn.annotator: (turn.ground_truth_agreement, turn.measures_annotator) for turn in facts.annotations} == {
        ANNE: (1.0, True), BEN: (0.0, True), LEAD: (None, False),
    }  # fmt: skip
