"""The inbox on SQLite and on a real Postgres."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from labelloop.service.jobs.inbox import Backoff, Inbox


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self, _connection) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def inbox(database, clock):
    return Inbox(database, lease_s=30, backoff=Backoff(attempts=3, base_s=10, max_s=15), clock=clock)


def keys(claim):
    return [event.key for event in claim.events]


def test_an_event_comes_back_as_it_was_put(inbox):
    payload = {"text": "naïve ☃", "nested": [1, 2.5, None, True], "big": 2**53}
    assert inbox.put("annotation", "task:7", "a1@t1", payload)
    (event,) = inbox.claim("annotation", "task:7", "me").events
    assert (event.topic, event.subject, event.key, event.payload) == ("annotation", "task:7", "a1@t1", payload)
    assert (event.attempts, event.created_at) == (1, 1_000_000.0)


def test_a_key_is_stored_once_even_after_it_is_done(inbox):
    assert inbox.put("t", "s", "k", {"first": True})
    assert not inbox.put("t", "s", "k", {"first": False})
    claim = inbox.claim("t", "s", "me")
    assert [event.payload for event in claim.events] == [{"first": True}]
    inbox.mark_done(claim)
    assert not inbox.put("t", "s", "k", {})
    assert inbox.counts() == {"pending": 0, "claimed": 0, "done": 1, "dead": 0}


def test_the_same_key_under_another_topic_is_another_event(inbox):
    assert inbox.put("t", "s", "k", {})
    assert inbox.put("u", "s", "k", {})


def test_a_claim_has_all_events_of_a_subject_in_order(inbox):
    for number in range(5):
        inbox.put("t", "s", str(number), {})
    inbox.put("t", "other", "x", {})
    assert keys(inbox.claim("t", "s", "me")) == ["0", "1", "2", "3", "4"]
    assert inbox.due_subjects(10) == [("t", "other")]


def test_a_claim_is_exclusive_and_later_events_wait(inbox):
    inbox.put("t", "s", "1", {})
    first = inbox.claim("t", "s", "me")
    inbox.put("t", "s", "2", {})
    assert inbox.claim("t", "s", "you") is None
    assert inbox.due_subjects(10) == []
    assert inbox.mark_done(first)
    assert inbox.due_subjects(10) == [("t", "s")]
    assert keys(inbox.claim("t", "s", "you")) == ["2"]


def test_nothing_due_is_no_claim_and_leaves_no_claim(inbox):
    assert inbox.claim("t", "s", "me") is None
    inbox.put("t", "s", "1", {})
    assert inbox.claim("t", "s", "me") is not None


def test_a_delayed_event_is_claimed_with_a_due_one(inbox, clock):
    inbox.put("t", "s", "later", {}, delay_s=60)
    assert inbox.due_subjects(10) == []
    assert inbox.claim("t", "s", "me") is None
    inbox.put("t", "s", "now", {})
    assert keys(inbox.claim("t", "s", "me")) == ["later", "now"]
    inbox.put("t", "u", "alone", {}, delay_s=60)
    clock.now += 61
    assert ("t", "u") in inbox.due_subjects(10)


def test_a_failing_event_backs_off_and_dies_with_the_reason(inbox, clock):
    inbox.put("t", "s", "k", {})
    pauses = []
    for attempt in (1, 2):
        claim = inbox.claim("t", "s", "me")
        assert claim.events[0].attempts == attempt
        inbox.retry(claim, "Label Studio is away")
        assert inbox.due_subjects(10) == []
        start = clock.now
        while not inbox.due_subjects(10):
            clock.now += 0.5
        pauses.append(clock.now - start)
    assert 5 <= pauses[0] <= 10.5  # 10 s x [0.5, 1)
    assert 7.5 <= pauses[1] <= 15.5  # 20 s, at most 15 s, x [0.5, 1)
    inbox.retry(inbox.claim("t", "s", "me"), "Label Studio is away")
    (letter,) = inbox.dead_letters()
    assert (letter.event.key, letter.reason, letter.event.attempts) == ("k", "Label Studio is away", 3)
    clock.now += 10_000
    assert inbox.due_subjects(10) == []


def test_a_new_event_does_not_shorten_a_backoff(inbox):
    inbox.put("t", "s", "failing", {})
    inbox.retry(inbox.claim("t", "s", "me"), "no")
    inbox.put("t", "s", "new", {})
    assert keys(inbox.claim("t", "s", "me")) == ["new"]


def test_only_the_events_out_of_attempts_die(inbox, clock):
    inbox.put("t", "s", "old", {})
    for _ in range(2):
        inbox.retry(inbox.claim("t", "s", "me"), "no")
        clock.now += 20
    inbox.put("t", "s", "new", {})
    inbox.retry(inbox.claim("t", "s", "me"), "no")
    assert [letter.event.key for letter in inbox.dead_letters()] == ["old"]
    assert inbox.counts()["pending"] == 1


def test_dead_letters_are_replayed_with_fresh_attempts(inbox):
    for key in "abc":
        inbox.put("t", key, key, {})
        inbox.mark_dead(inbox.claim("t", key, "me"), "unreadable")
    letters = {letter.event.key: letter for letter in inbox.dead_letters()}
    assert {letter.reason for letter in letters.values()} == {"unreadable"}
    assert inbox.replay([letters["a"].event.id]) == 1
    assert inbox.due_subjects(10) == [("t", "a")]
    assert inbox.claim("t", "a", "me").events[0].attempts == 1
    assert inbox.replay("all") == 2
    assert inbox.replay("all") == 0
    assert inbox.counts() == {"pending": 2, "claimed": 1, "done": 0, "dead": 0}


def test_an_expired_lease_is_taken_over_for_good(inbox, clock):
    inbox.put("t", "s", "1", {})
    slow = inbox.claim("t", "s", "slow")
    clock.now += 31
    assert inbox.due_subjects(10) == [("t", "s")]
    second = inbox.claim("t", "s", "quick")
    assert keys(second) == ["1"]
    assert second.events[0].attempts == 2
    for late in (inbox.mark_done, inbox.release, inbox.extend_lease):
        assert not late(slow)
    assert not inbox.retry(slow, "late")
    assert not inbox.mark_dead(slow, "late")
    assert inbox.counts() == {"pending": 0, "claimed": 1, "done": 0, "dead": 0}
    assert inbox.mark_done(second)
    assert inbox.counts()["done"] == 1


def test_a_heartbeat_keeps_the_lease(inbox, clock):
    inbox.put("t", "s", "1", {})
    claim = inbox.claim("t", "s", "me")
    for _ in range(5):
        clock.now += 20
        assert inbox.extend_lease(claim)
        assert inbox.due_subjects(10) == []
        assert inbox.claim("t", "s", "you") is None


def test_a_released_claim_is_due_without_counting_an_attempt(inbox):
    inbox.put("t", "s", "1", {})
    assert inbox.release(inbox.claim("t", "s", "me"))
    assert inbox.claim("t", "s", "you").events[0].attempts == 1


def test_an_event_that_kills_its_workers_is_given_up(inbox, clock):
    inbox.put("t", "s", "bomb", {})
    for _ in range(3):
        assert keys(inbox.claim("t", "s", "doomed")) == ["bomb"]
        clock.now += 31
    inbox.put("t", "s", "good", {})
    assert keys(inbox.claim("t", "s", "me")) == ["good"]
    (letter,) = inbox.dead_letters()
    assert letter.reason == "the worker ended 3 times while it handled this event"


def test_a_very_long_list_of_events_comes_in_several_claims(inbox, monkeypatch):
    monkeypatch.setattr("labelloop.service.jobs.inbox.CLAIM_LIMIT", 3)
    for number in range(7):
        inbox.put("t", "s", str(number), {})
    handled = []
    while inbox.has_due_events("t", "s"):
        claim = inbox.claim("t", "s", "me")
        assert len(claim.events) <= 3
        handled += keys(claim)
        inbox.mark_done(claim)
    assert handled == [str(number) for number in range(7)]


def test_the_longest_waiting_subject_is_due_first(inbox, clock):
    for number in (3, 1, 2):
        clock.now = 1_000_000.0 + number
        inbox.put("t", str(number), str(number), {})
    clock.now += 10
    assert inbox.due_subjects(2) == [("t", "1"), ("t", "2")]
    assert inbox.lag_s() == pytest.approx(11)


def test_finished_events_are_pruned_and_dead_letters_are_not(inbox, clock):
    for key in ("done", "dead", "pending"):
        inbox.put("t", key, key, {})
    inbox.mark_done(inbox.claim("t", "done", "me"))
    inbox.mark_dead(inbox.claim("t", "dead", "me"), "no")
    assert inbox.prune(100) == 0
    clock.now += 101
    assert inbox.prune(100) == 1
    assert inbox.counts() == {"pending": 1, "claimed": 0, "done": 0, "dead": 1}


def test_many_threads_claim_each_event_once(database):
    """Eight threads claim five subjects while events arrive: claims are exclusive and nothing is lost."""
    inbox = Inbox(database, lease_s=60)
    handled, overlaps = [], []
    busy = {str(subject): threading.Lock() for subject in range(5)}
    total = 60
    for number in range(20):
        inbox.put("t", str(number % 5), str(number), {})

    def feed():
        for number in range(20, total):
            inbox.put("t", str(number % 5), str(number), {})

    def work():
        for _ in range(2000):
            for topic, subject in inbox.due_subjects(10):
                claim = inbox.claim(topic, subject, "me")
                if claim is None:
                    continue
                if not busy[subject].acquire(blocking=False):
                    overlaps.append(subject)
                    continue
                handled.extend(keys(claim))
                busy[subject].release()
                assert inbox.mark_done(claim)
            if len(handled) >= total:
                return

    threads = [threading.Thread(target=work) for _ in range(8)] + [threading.Thread(target=feed)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not overlaps
    assert Counter(handled) == Counter({str(number): 1 for number in range(total)})
    assert inbox.counts()["done"] == total


@hypothesis_settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["put", "claim", "done", "retry", "release", "wait", "replay"]), st.integers(0, 2)),
        max_size=40,
    )
)
def test_whatever_happens_every_event_is_in_exactly_one_state(inbox, clock, steps):
    """Random histories: events are conserved, an owner's answer counts only while it owns the subject."""
    with inbox.engine.begin() as connection:
        for table in ("inbox_events", "inbox_claims"):
            connection.exec_driver_sql(f"DELETE FROM {table}")
    held, put = {}, 0
    for number, (step, which) in enumerate(steps):
        subject = str(which)
        if step == "put":
            put += inbox.put("t", subject, f"{number}", number)
        elif step == "claim":
            claim = inbox.claim("t", subject, "me")
            if claim is not None:
                assert subject not in held or clock.now > held[subject][1]
                held[subject] = (claim, clock.now + 30)
        elif step == "wait":
            clock.now += 16
        elif step == "replay":
            inbox.replay("all")
        elif subject in held:
            claim, _until = held.pop(subject)
            assert {"done": inbox.mark_done, "release": inbox.release, "retry": lambda c: inbox.retry(c, "no")}[step](
                claim
            )
        assert sum(inbox.counts().values()) == put


@given(attempt=st.integers(1, 10_000), base=st.floats(0.01, 100), ceiling=st.floats(1, 10_000))
def test_backoff_stays_within_its_bounds(attempt, base, ceiling):
    pause = Backoff(attempts=5, base_s=base, max_s=ceiling).pause_s(attempt)
    assert 0 < pause <= ceiling
    assert pause <= base * 2 ** min(attempt - 1, 60)
