"""Connecting runs the steps of every program: a failed step does not stop the others, and is reported with its fix.

Against a real Label Studio: tests/system/test_doctor.py.
"""

import pytest

from labelloop.connect import STEPS, IncompleteConnection, connect, print_change
from labelloop.service.connect_report import ConnectionChange
from labelloop.service.errors import LabelloopError
from labelloop.service.settings import Settings
from labelloop.service.studio import StudioNotFound


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path)


@pytest.fixture
def studio(fake_label_studio):
    fake_label_studio.put_project(1)
    return fake_label_studio


def step(*changes):
    return lambda _studio, _project, _settings: list(changes)


def failing(message, fix):
    def run(_studio, _project, _settings):
        raise LabelloopError(message, fix=fix)

    return run


BACKEND, HOOK, TAB = (
    ConnectionChange("ML backend base-1", done=True),
    ConnectionChange("webhook", done=False),
    ConnectionChange('tab "QC"', done=True),
)


def test_every_part_is_connected():
    assert list(STEPS) == ["addresses", "ml-backend", "learning", "qc"]


def test_every_change_is_reported_and_returned_in_order(settings, studio):
    reported = []
    steps = {"ml-backend": step(BACKEND, HOOK), "qc": step(TAB)}
    assert (
        connect(1, settings, studio=studio, steps=steps, on_change=reported.append) == [BACKEND, HOOK, TAB] == reported
    )


def test_failing_step_does_not_stop_the_others(settings, studio):
    reported = []
    steps = {"ml-backend": failing("It does not answer.", "Start it."), "qc": step(TAB)}
    with pytest.raises(IncompleteConnection) as caught:
        connect(1, settings, studio=studio, steps=steps, on_change=reported.append)
    assert reported == [TAB]
    error = caught.value
    assert error.changes == (TAB,)
    assert [(failure.part, failure.what) for failure in error.failures] == [("ml-backend", "It does not answer.")]
    assert "It does not answer." in str(error)
    assert "Start it." in error.fix
    assert "labelloop connect 1" in error.fix


def test_shared_fix_of_two_failures_is_reported_once(settings, studio):
    fix = "Open the network."
    steps = {"ml-backend": failing("Banned.", fix), "qc": failing("Banned too.", fix)}
    with pytest.raises(IncompleteConnection) as caught:
        connect(1, settings, studio=studio, steps=steps)
    assert caught.value.fix.count(fix) == 1
    assert len(caught.value.failures) == 2


def test_missing_project_changes_nothing(settings, studio):
    ran = []
    with pytest.raises(StudioNotFound):
        connect(2, settings, studio=studio, steps={"qc": lambda *_: ran.append(1)})
    assert ran == []


def test_bug_in_a_step_is_raised(settings, studio):
    def crash(*_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        connect(1, settings, studio=studio, steps={"qc": crash})


def test_printed_line_starts_with_the_state(capsys):
    print_change(BACKEND)
    print_change(HOOK)
    done, right = capsys.readouterr().out.splitlines()
    assert done.split("  ")[1].strip() == "done"
    assert "already right" in right
    assert "ML backend base-1" in done
