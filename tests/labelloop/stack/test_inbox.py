"""`labelloop inbox`: what was given up is listed, tried again or deleted, and each is named."""

import pytest

from labelloop.cli.main import main
from labelloop.service.db.engine import open_database
from labelloop.service.jobs.inbox import Inbox
from labelloop.service.settings import Settings


@pytest.fixture
def inbox(tmp_path, monkeypatch):
    """An inbox with two dead letters and a waiting event."""
    monkeypatch.setenv("LABELLOOP_HOME", str(tmp_path))
    inbox = Inbox(open_database(Settings()))
    for subject in ("1:7", "1:8"):
        inbox.put("qc.task", subject, f"key of {subject}", {})
        inbox.mark_dead(inbox.claim("qc.task", subject, "me"), f"cause of {subject}")
    inbox.put("qc.task", "1:9", "waiting", {})
    yield inbox
    inbox.engine.dispose()


@pytest.fixture
def run(capsys):
    """run(words) -> (exit status, what was printed, what was said on standard error)."""

    def call(*words):
        with pytest.raises(SystemExit) as ended:
            main(["inbox", *words])
        output = capsys.readouterr()
        return ended.value.code, output.out, output.err

    return call


def left(inbox):
    return [letter.event.subject for letter in inbox.dead_letters()]


def test_one_dead_letter_is_discarded_and_named(inbox, run):
    number = next(letter.event.id for letter in inbox.dead_letters() if letter.event.subject == "1:7")
    code, out, _ = run("discard", str(number))
    assert code == 0
    assert "qc.task 1:7 (key of 1:7): cause of 1:7" in out
    assert "1 event was discarded." in out
    assert left(inbox) == ["1:8"]
    assert inbox.counts()["pending"] == 1


def test_all_dead_letters_are_discarded_and_nothing_else(inbox, run, monkeypatch):
    monkeypatch.setattr("labelloop.cli.inbox._BATCH", 1)
    code, out, _ = run("discard", "--all")
    assert (code, out.count("cause of")) == (0, 2)
    assert "2 events were discarded." in out
    assert left(inbox) == []
    assert inbox.counts() == {"pending": 1, "claimed": 0, "done": 0, "dead": 0}


@pytest.mark.parametrize("limit", ["0", "-1"])
def test_a_list_of_none_is_refused(inbox, run, limit):
    code, out, err = run("dead", "--limit", limit)
    assert (code, out) == (2, "")
    assert "Must be >= 1" in err


@pytest.mark.parametrize("words", [[], ["1", "--all"], ["4711"], ["1", "4711"]])
@pytest.mark.parametrize("command", ["discard", "replay"])
def test_what_is_not_chosen_or_not_there_changes_nothing(inbox, run, command, words):
    code, _, err = run(command, *words)
    assert code == 1
    assert "labelloop inbox dead" in err
    assert len(left(inbox)) == 2


def test_a_discarded_event_is_accepted_again(inbox, run):
    run("discard", "--all")
    assert inbox.put("qc.task", "1:7", "key of 1:7", {})


def test_dead_letters_are_forgotten_after_their_days(inbox):
    assert inbox.prune(1e6, state="dead") == 0
    assert inbox.prune(-1.0, state="dead") == 2
    assert inbox.counts()["pending"] == 1
