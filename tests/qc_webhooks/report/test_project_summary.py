"""What the dashboard shows: days, labels, confusion, savings; and the past replayed under other thresholds."""

import random
import time

import pytest
import structlog
from msgspec.structs import replace

from labelloop.service.studio import StudioUnauthorized, StudioUnreachable
from qc_webhooks.annotators.questions import questions_of
from qc_webhooks.report.project_summary import summarize_project
from qc_webhooks.report.replay import Replay
from qc_webhooks.schedulers.project_summary import SummaryScheduler, SummaryStore
from qc_webhooks.store.projects import ProjectStore
from qc_webhooks.store.task_facts import FactsExtent, FactStore
from qc_webhooks.verdict.task_facts import AnnotationFacts, AnnotatorPair, ObjectFacts, RegionFacts, TaskFacts
from tests.qc_webhooks.conftest import PROJECT, studio_of_people

DAY = 86_400.0
MONDAY = 1_767_571_200.0  # 2026-01-05


def task(number, scores, *, at=0.0, seconds=30.0, outcome="agreed", labels=None):
    """A task with one score per pair of annotators; scores in the order (1,2), (1,3), (2,3)."""
    people = {1: 2, 3: 3, 6: 4}[len(scores)] if scores else 1
    turns = tuple(AnnotationFacts(who, at + who, seconds, 1) for who in range(1, people + 1))
    names = [(a, b) for b in range(1, people + 1) for a in range(1, b)]
    pairs = tuple(
        AnnotatorPair(a, b, score, {"label": score}, 1, 0) for (a, b), score in zip(sorted(names), scores, strict=True)
    )
    output = labels or ["Car"] * people
    things = (
        ObjectFacts(
            "label",
            tuple(RegionFacts(who, (output[who - 1],), 100.0, 0) for who in range(1, people + 1) if output[who - 1]),
        ),
    )
    return TaskFacts(number, turns, things, (), pairs, (), (), sum(scores) / len(scores) if scores else None, outcome)


def test_a_replay_of_the_same_policy_is_the_past():
    replay = Replay.of([
        task(1, [0.9]), task(2, [0.5, 0.9, 0.5]), task(3, [0.5, 0.2, 0.5]), task(4, [0.5]), task(5, []),
    ])  # fmt: skip
    result = replay.run(agreement=0.7, annotators=2, max_annotators=3)
    assert (result.agreed, result.review, result.open, result.waiting) == ({2: 1, 3: 1}, 1, 1, 1)
    assert result.labels == 2 + 3 + 3 + (2 + 1) + 1
    assert result.seconds == 30 * (2 + 3 + 3 + 2 + 1)
    assert (result.agreed_tasks, result.disputes) == (2, 3)


@pytest.mark.parametrize(
    ("settings", "agreed", "review", "open_"),
    [
        ({"agreement": 0.95}, {2: 0, 3: 0}, 2, 2),
        ({"agreement": 0.1}, {2: 4, 3: 0}, 0, 0),
        ({"max_annotators": 2}, {2: 1}, 3, 0),
        ({"annotators": 3}, {3: 1}, 1, 0),
    ],
)
def test_other_thresholds_have_other_outcomes(settings, agreed, review, open_):
    replay = Replay.of([task(1, [0.9]), task(2, [0.5, 0.9, 0.5]), task(3, [0.5, 0.2, 0.5]), task(4, [0.5])])
    result = replay.run(**{"agreement": 0.7, "annotators": 2, "max_annotators": 3} | settings)
    assert (result.agreed, result.review, result.open) == (agreed, review, open_)


def test_one_weak_control_spoils_agreement_only_where_every_control_counts():
    both = TaskFacts(
        1,
        (AnnotationFacts(1, 1, None, 0), AnnotationFacts(2, 2, None, 0)),
        pairs=(AnnotatorPair(1, 2, 0.8, {"a": 1.0, "b": 0.6}, 0, 0),),
    )
    replay = Replay.of([both])
    assert replay.run(agreement=0.7, annotators=2, max_annotators=2).agreed_tasks == 0
    assert replay.run(agreement=0.7, annotators=2, max_annotators=2, every_control=False).agreed_tasks == 1


def test_four_annotators_need_three_who_agree():
    scores = {(1, 2): 0.9, (1, 3): 0.1, (1, 4): 0.1, (2, 3): 0.1, (2, 4): 0.1, (3, 4): 0.9}
    turns = tuple(AnnotationFacts(who, who, None, 0) for who in (1, 2, 3, 4))
    pairs = tuple(AnnotatorPair(a, b, score, {}, 0, 0) for (a, b), score in scores.items())
    replay = Replay.of([TaskFacts(1, turns, pairs=pairs)])
    assert replay.run(agreement=0.7, annotators=4, max_annotators=4).review == 1
    assert replay.run(agreement=0.7, annotators=2, max_annotators=4).agreed[2] == 1


def test_a_reviewers_annotation_is_not_replayed():
    reviewed = task(1, [0.2])
    truth = TaskFacts(
        1,
        (*reviewed.annotations, AnnotationFacts(9, 99.0, 5.0, 1, True)),
        pairs=(*reviewed.pairs, AnnotatorPair(1, 9, 1.0, {}, 0, 0)),
    )
    result = Replay.of([truth]).run(agreement=0.7, annotators=2, max_annotators=3)
    assert result.open == 1


def test_replay_of_100000_stored_tasks_is_fast():
    rng = random.Random(0)
    replay = Replay.of(task(n, [rng.random(), rng.random(), rng.random()]) for n in range(2000))
    again = Replay.read(replay.pack())
    settings = {"agreement": 0.5, "annotators": 2, "max_annotators": 3}
    assert again.run(**settings) == replay.run(**settings)
    many = Replay(
        *(getattr(replay, name).repeat(50, axis=0) for name in ("annotators", "overall", "lowest", "seconds"))
    )
    started = time.process_time()
    assert many.run(**settings).labels == 50 * replay.run(**settings).labels
    assert time.process_time() - started < 1.0


def test_an_unknown_annotator_is_no_annotator_of_the_project():
    """The account is deleted: a negative id, another one in each task, made a project of 450 tasks 20 times slower."""
    labels = ["Car", "Person"]
    known = [task(number, [0.9], labels=labels) for number in range(100)]
    unknown = []
    for number, one in enumerate(known, start=1):
        turns = tuple(replace(turn, annotator=-number if turn.annotator == 2 else 1) for turn in one.annotations)
        marks = tuple(replace(mark, annotator=-number if mark.annotator == 2 else 1) for mark in one.objects[0].marks)
        unknown.append(replace(one, annotations=turns, objects=(replace(one.objects[0], marks=marks),)))
    assert [profile.annotator for profile in summarize_project(known)[0].people] == [1, 2]
    assert [profile.annotator for profile in summarize_project(unknown)[0].people] == [1]
    assert {question.people for question in questions_of(known)} == {(1, 2)}
    assert not questions_of(unknown)


def test_days_hold_their_tasks_and_an_interval():
    tasks = [task(n, [0.5 + n % 5 / 10], at=MONDAY + n % 2 * DAY, outcome="disputed" if n % 4 == 0 else "agreed")
             for n in range(40)]  # fmt: skip
    board, _ = summarize_project(tasks)
    assert [(day.at, day.tasks, day.labels) for day in board.days] == [(MONDAY, 20, 40), (MONDAY + DAY, 20, 40)]
    assert board.days[0].agreement.value == pytest.approx(0.7)
    assert 0.6 < board.days[0].agreement.low < 0.7 < board.days[0].agreement.high
    assert (board.days[0].disputed.value, board.days[1].disputed.value) == (0.5, 0.0)
    assert board.agreement.value == pytest.approx(0.7)


def test_long_projects_are_summarized_by_weeks_from_monday():
    board, _ = summarize_project([task(n, [0.9], at=MONDAY + n * DAY) for n in range(140)])
    assert board.weekly
    assert [day.at for day in board.days] == [MONDAY + 7 * n * DAY for n in range(20)]
    assert all(day.tasks == 7 for day in board.days)


def test_labels_and_confusion_are_counted_by_pairs():
    tasks = [task(n, [0.9], labels=["Car", "Van" if n % 4 == 0 else "Car"]) for n in range(40)]
    tasks += [task(100 + n, [0.9], labels=["Van", ""]) for n in range(5)]
    board, _ = summarize_project(tasks)
    rows = {row.label: row for row in board.labels}
    assert (rows["Car"].objects, rows["Van"].objects) == (40, 15)
    assert rows["Car"].agreement.value == pytest.approx(2 * 30 / (2 * 30 + 10))
    assert rows["Car"].agreement.low < 0.857 < rows["Car"].agreement.high
    assert rows["Car"].confused == (("Van", 0.25),)
    [confusion] = board.confusions
    assert confusion.labels == ("Car", "Van", "(absent)")
    assert confusion.pairs == ((60, 10, 0), (10, 0, 5), (0, 5, 0))


def test_savings_are_told_against_a_fixed_number_of_annotators():
    tasks = [task(n, [0.9], seconds=36.0) for n in range(90)] + [
        task(100 + n, [0.5, 0.9, 0.5], seconds=36.0) for n in range(10)
    ]
    tasks.append(task(999, [0.2], outcome="waiting"))
    board, _ = summarize_project(tasks)
    assert board.savings.by_labels == {"2": 90, "3": 10}
    assert board.savings.saved(3) == 90
    assert board.savings.hours(3) == pytest.approx(0.9)


def test_a_board_of_nothing_is_a_board():
    board, replay = summarize_project([])
    assert board.people == board.days == board.labels == ()
    assert board.agreement.value is None
    assert replay.run(agreement=0.7, annotators=2, max_annotators=3).tasks == 0


def test_summary_updates_only_when_facts_change(engine):
    store, boards = FactStore(engine), SummaryStore(engine)
    ProjectStore(engine).add(PROJECT)
    now = [time.time()]
    studio = studio_of_people("Street", {"first_name": "Anna", "last_name": "Berg"}, {"username": "ben"})
    keeper = SummaryScheduler(engine, studio, clock=lambda: now[0])
    keeper.run()
    empty = boards.load(PROJECT)
    assert (empty.summary.title, empty.tasks) == ("Street", 0)
    store.save(PROJECT, task(1, [0.9], at=MONDAY), None)
    now[0] += 60
    keeper.run()
    visible = boards.load(PROJECT)
    assert (visible.summary.title, visible.tasks) == ("Street", 1)
    assert [visible.summary.name(who) for who in (1, 2, 3, -4)] == [
        "Anna Berg",
        "ben",
        "annotator 3",
        "unknown annotator",
    ]
    keeper.run()
    assert boards.made_at(PROJECT) == visible.made_at
    store.save(PROJECT, task(1, [0.8], at=MONDAY), None)
    now[0] += 3600
    keeper.run()
    assert boards.made_at(PROJECT) > visible.made_at
    assert boards.replay(PROJECT).run(agreement=0.85, annotators=2, max_annotators=3).agreed_tasks == 0


def test_a_summary_without_an_answer_of_label_studio_gets_title_and_names_later(engine, monkeypatch):
    boards = SummaryStore(engine)
    ProjectStore(engine).add(PROJECT)
    FactStore(engine).save(PROJECT, task(1, [0.9], at=MONDAY), None)
    studio = studio_of_people("Street", {"first_name": "Anna", "last_name": "Berg"})
    now = [time.time()]
    keeper = SummaryScheduler(engine, studio, clock=lambda: now[0])

    def unreachable(_project):
        raise StudioUnreachable(url="http://studio", reason="connection refused")

    with monkeypatch.context() as patch:
        patch.setattr(studio, "project", unreachable)
        keeper.run()
    assert (boards.load(PROJECT).summary.title, boards.load(PROJECT).tasks) == ("", 1)
    now[0] += 60
    keeper.run()
    assert (boards.load(PROJECT).summary.title, boards.load(PROJECT).summary.name(1)) == ("Street", "Anna Berg")
    made_at = boards.made_at(PROJECT)
    now[0] += 60
    keeper.run()
    assert boards.made_at(PROJECT) == made_at


def test_label_studio_is_asked_for_names_at_growing_intervals_and_its_answer_is_said(engine, monkeypatch):
    """With a wrong token each summary was made again every 15 s, with two lines in the log."""
    facts, boards = FactStore(engine), SummaryStore(engine)
    for project in (PROJECT, PROJECT + 1):
        ProjectStore(engine).add(project)
        facts.save(project, task(1, [0.9], at=MONDAY), None)
    studio, now, asked = studio_of_people("Street"), [time.time()], []

    def refuse(project):
        asked.append((project, round(now[0] - began)))
        raise StudioUnauthorized(url="http://studio", kind="wrong")

    keeper = SummaryScheduler(engine, studio, clock=lambda: now[0])
    began = now[0]
    intervals = [0, 30, 90, 210, 450, 930, 1890]
    with monkeypatch.context() as patch, structlog.testing.capture_logs() as lines:
        patch.setattr(studio, "project", refuse)
        for _ in range(4 * 60):
            keeper.run()
            now[0] += 15
    assert sorted(asked) == [(project, at) for project in (PROJECT, PROJECT + 1) for at in intervals]
    assert 1 < sum(line["event"] == "names_unknown" for line in lines) <= len(intervals)
    assert len(lines) <= 2 * len(asked)
    facts.save(PROJECT, task(2, [0.9], at=MONDAY), None)
    now[0] = time.time() + 600
    with monkeypatch.context() as patch:
        patch.setattr(studio, "project", refuse)
        keeper.run()
    assert boards.load(PROJECT).tasks == 2, "new facts are shown meanwhile"
    now[0] += 7200
    monkeypatch.setattr(studio, "project", lambda _project: {"title": "Street"})
    with structlog.testing.capture_logs() as lines:
        keeper.run()
    assert [boards.load(project).summary.title for project in (PROJECT, PROJECT + 1)] == ["Street", "Street"]
    assert [line["event"] for line in lines].count("names_unknown_ended") == 1


def test_a_project_that_label_studio_does_not_give_keeps_no_other_from_its_title(engine, monkeypatch):
    boards, now = SummaryStore(engine), [time.time()]
    for project in (PROJECT, PROJECT + 1):
        ProjectStore(engine).add(project)
    studio = studio_of_people("Street")

    def refuse_first(project):
        if project == PROJECT:
            raise StudioUnauthorized(url="http://studio", kind="wrong")
        return {"title": "Street"}

    monkeypatch.setattr(studio, "project", refuse_first)
    SummaryScheduler(engine, studio, clock=lambda: now[0]).run()
    assert [boards.load(project).summary.title for project in (PROJECT, PROJECT + 1)] == ["", "Street"]


def test_a_costly_board_waits_before_it_is_counted_again(engine):
    boards = SummaryStore(engine)
    boards.save(PROJECT, *summarize_project([]), FactsExtent(5, 1.0), took_s=30.0)
    created = boards.made_at(PROJECT)
    assert not boards.is_due(PROJECT, FactsExtent(6, 2.0), now=created + 300)
    assert boards.is_due(PROJECT, FactsExtent(6, 2.0), now=created + 601)
    assert not boards.is_due(PROJECT, FactsExtent(5, 1.0), now=created + 601)
