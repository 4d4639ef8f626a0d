"""A task is sent back to its annotator with a comment, redone, accepted; every step can be undone."""

import pytest

from labelloop.cli.main import main
from labelloop.service.jobs.inbox import Inbox
from labelloop.service.studio import Studio
from qc_webhooks.decision.send_backs import SEND_BACK_KEYS
from qc_webhooks.pipeline.checker import Checker
from qc_webhooks.pipeline.undo import Undo
from qc_webhooks.store.projects import ProjectStore
from qc_webhooks.store.send_backs import SendBackStore
from tests.qc_webhooks.conftest import PROJECT

ANNE, BEN = 1, 2
COMMENT = "The car at the right is missing."


@pytest.fixture
def studio(studio):
    studio.users_by_id = {ANNE: {"id": ANNE, "email": "anne@example.com"}, BEN: {"id": BEN, "email": "ben@example.com"}}
    return studio


@pytest.fixture
def judged(studio, settings, engine, box, check, monkeypatch):
    """A task where Ben misses an object, as judged."""
    monkeypatch.setenv("LABELLOOP_HOME", str(settings.home))
    monkeypatch.setattr(Studio, "from_settings", lambda *_: studio)
    ProjectStore(engine).add(PROJECT)
    policy = settings.home / "qc" / "policy.toml"
    policy.parent.mkdir(parents=True)
    policy.write_text("max_annotators = 2\n")
    task = studio.add_task()
    studio.annotate(task, ANNE, [box(0), box(60)])
    studio.annotate(task, BEN, [box(0)])
    check(task)
    return task


def run(*words):
    with pytest.raises(SystemExit) as ended:
        main(["qc", "send-back", *map(str, words)])
    return ended.value.code


def shown(studio, task):
    data = studio.tasks_by_id[task]["data"]
    return {name.removeprefix("qc_"): data.get(name) for name in (*SEND_BACK_KEYS, "qc_review")}


def redo(studio, task, box):
    (own,) = [item for item in studio.tasks_by_id[task]["annotations"] if item["completed_by"] == BEN]
    studio.edit_annotation(own["id"], result=[box(0), box(60)])


def titles(studio):
    return [view["data"]["title"] for view in studio.views(PROJECT)]


def test_a_task_goes_to_its_annotator_and_comes_back(studio, judged, box, check, capsys):
    before = len(studio.tasks_by_id[judged]["annotations"])
    assert not run(judged, "--annotator", "BEN@example.com", "--comment", COMMENT)
    assert "They find it in the tab `Sent back: ben@example.com`" in capsys.readouterr().out
    assert shown(studio, judged) == {
        "sent_back": "sent back",
        "sent_to": "ben@example.com",
        "comment": f"ben@example.com: {COMMENT}",
        "review": "no",
    }
    assert f"Sent back to ben@example.com: {COMMENT}" in studio.tasks_by_id[judged]["data"]["qc_note"]
    assert studio.tabs(judged) == []  # no overlays while the annotator works
    assert "Sent back: ben@example.com" in titles(studio)
    assert len(studio.tasks_by_id[judged]["annotations"]) == before

    redo(studio, judged, box)
    check(judged)
    state = shown(studio, judged)
    assert (state["sent_back"], state["sent_to"], state["review"]) == ("redone", "", "yes")
    assert "(redone 20" in state["comment"]
    assert "Redone by ben@example.com" in studio.tasks_by_id[judged]["data"]["qc_note"]

    assert not run(judged, "--accept")
    assert (shown(studio, judged)["sent_back"], shown(studio, judged)["review"]) == ("accepted", "no")
    assert "Sent back: ben@example.com" not in titles(studio)
    written = len(studio.writes)
    check(judged)
    assert len(studio.writes) == written


def test_work_that_was_redone_can_be_sent_back_again(studio, judged, box, check):
    run(judged, "--annotator", BEN, "--comment", COMMENT)
    redo(studio, judged, box)
    check(judged)
    assert not run(judged, "--annotator", BEN, "--comment", "Tighter, please.")
    assert shown(studio, judged)["sent_back"] == "sent back"
    assert shown(studio, judged)["comment"] == "ben@example.com: Tighter, please."


def test_a_ground_truth_ends_a_send_back(studio, judged, box, check):
    run(judged, "--annotator", BEN, "--comment", COMMENT)
    studio.annotate(judged, 9, [box(0), box(60)], ground_truth=True)
    check(judged)
    assert shown(studio, judged)["sent_back"] == "accepted"


def test_every_step_can_be_undone(studio, memory, settings, engine, judged, box, check):
    data = dict(studio.tasks_by_id[judged]["data"])
    inbox = Inbox.from_settings(settings, engine)
    undoing = Undo(studio, memory, Checker(studio, memory, settings.home), inbox)

    def undo_step():
        """Undo writes until the state changes: a step writes keys, and overlays where there were some."""
        state = shown(studio, judged)["sent_back"]
        while shown(studio, judged)["sent_back"] == state:
            assert list(undoing.run(PROJECT, task=judged, last=1))
        check(judged)
        return shown(studio, judged)["sent_back"]

    run(judged, "--annotator", BEN, "--comment", COMMENT)
    redo(studio, judged, box)
    check(judged)
    run(judged, "--accept")
    assert [undo_step() for _ in range(3)] == ["redone", "sent back", None]
    assert SendBackStore(engine).of_task(PROJECT, judged) == ()
    assert studio.tasks_by_id[judged]["data"].keys() == data.keys()
    assert SendBackStore(engine).waiting(PROJECT) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--comment", COMMENT), "with --annotator: anne@example.com (1), ben@example.com (2)"),
        (("--annotator", "carl", "--comment", COMMENT), "carl has no annotation of task"),
        (("--annotator", str(BEN)), "A comment has 1 to 1,000 characters, not 0"),
        (("--accept",), "has no redone work to accept"),
    ],
)
def test_what_cannot_be_sent_back_is_refused_with_a_fix(studio, judged, words, message, capsys):
    assert run(judged, *words) == 1
    assert message in " ".join(capsys.readouterr().err.split())
    assert shown(studio, judged)["sent_back"] is None


def test_a_task_that_is_not_judged_is_refused(judged, capsys):
    assert run(999, "--comment", COMMENT) == 1
    assert "Task 999 is not judged yet" in capsys.readouterr().err


def test_the_comment_is_hidden_while_others_annotate_blind(studio, judged, settings, check):
    run(judged, "--annotator", BEN, "--comment", COMMENT)
    studio.tasks_by_id[judged].update(overlap=3, is_labeled=False)
    (settings.home / "qc" / "policy.toml").write_text("max_annotators = 3\n")
    check(judged)
    assert COMMENT not in studio.tasks_by_id[judged]["data"]["qc_note"]
    assert COMMENT in studio.tasks_by_id[judged]["data"]["qc_comment"]
