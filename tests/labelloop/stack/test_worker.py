"""The worker waits for Label Studio and logs each wait; a refused token stops it at once."""

import pytest
import structlog

from labelloop.cli import worker
from labelloop.service.jobs.inbox import Claim, Event
from labelloop.service.jobs.isolated_job import IsolatedJobRunner
from labelloop.service.studio import StudioUnauthorized, StudioUnreachable


class Answers:
    def __init__(self, *answers):
        self.answers = list(answers)

    def me(self):
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def pauses(monkeypatch):
    sleeps = []
    monkeypatch.setattr(worker.time, "sleep", sleeps.append)
    return sleeps


URL = "http://localhost:8080"


def test_it_waits_longer_each_time_and_logs_each_wait(pauses):
    vanished = [StudioUnreachable(url=URL, reason="refused")] * 6
    with structlog.testing.capture_logs() as lines:
        worker.wait_for_label_studio(Answers(*vanished, {"id": 1}), URL)
    assert pauses == [0.5, 1, 2, 4, 5, 5]
    assert {line["event"] for line in lines} == {"waiting_for_label_studio"}
    assert len(lines) == 6
    assert lines[0]["url"] == URL


def test_a_refused_token_is_not_waited_for(pauses):
    with pytest.raises(StudioUnauthorized):
        worker.wait_for_label_studio(Answers(StudioUnauthorized(url=URL, kind="wrong", fix="Make a new one.")), URL)
    assert pauses == []


@pytest.mark.parametrize(("topic", "kind"), [("qc.project", "done"), ("learn.nothing", "retry")])
def test_every_program_handles_its_topics_in_a_process_of_its_own(tmp_path, monkeypatch, topic, kind):
    """No project is connected: the one has nothing to compare, the other is not known at all."""
    monkeypatch.setenv("LABELLOOP_HOME", str(tmp_path))
    event = Event(1, topic, "*", "k", {}, 1, 0.0)
    runner = IsolatedJobRunner(worker.ISOLATED_JOB_COMMAND, 2 * 2**30, 60.0)
    assert runner.run(Claim(topic, "*", "token", (event,), 2)).kind == kind
