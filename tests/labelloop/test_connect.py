"""Connecting composes the programs' own parts: all that can be done is done, and each failure is told with its fix.

Against a real Label Studio: tests/system/test_doctor.py.
"""

import pytest

from labelloop.connect import STEPS, NotConnected, connect, show
from labelloop.service.connect_report import Change
from labelloop.service.errors import LabelloopError
from labelloop.service.settings import Settings
from labelloop.service.studio import NotFound


class Projects:
    """The one call that connecting itself makes."""

    def project(self, project):
        if project != 1:
            raise NotFound("GET api/projects/2/", 404, "Not found.", fix="Look at the number in the address.")
        return {"id": 1}


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path)


def step(*changes):
    return lambda _studio, _project, _settings: list(changes)


def failing(message, fix):
    def run(_studio, _project, _settings):
        raise LabelloopError(message, fix=fix)

    return run


BACKEND, HOOK, TAB = (
    Change("ML backend base-1", done=True),
    Change("webhook", done=False),
    Change('tab "QC"', done=True),
)


def test_every_part_is_connected():
    assert list(STEPS) == ["addresses", "ml-backend", "learning", "qc"]


def test_every_change_is_told_and_returned_in_order(settings):
    told = []
    steps = {"ml-backend": step(BACKEND, HOOK), "qc": step(TAB)}
    assert connect(1, settings, studio=Projects(), steps=steps, tell=told.append) == [BACKEND, HOOK, TAB] == told


def test_a_part_that_fails_does_not_keep_the_other_from_being_connected(settings):
    told = []
    steps = {"ml-backend": failing("It does not answer.", "Start it."), "qc": step(TAB)}
    with pytest.raises(NotConnected) as caught:
        connect(1, settings, studio=Projects(), steps=steps, tell=told.append)
    assert told == [TAB]
    error = caught.value
    assert error.changes == (TAB,)
    assert [(failure.part, failure.what) for failure in error.failures] == [("ml-backend", "It does not answer.")]
    assert "It does not answer." in str(error)
    assert "Start it." in error.fix
    assert "labelloop connect 1" in error.fix


def test_one_fix_for_two_failures_is_told_once(settings):
    fix = "Open the network."
    steps = {"ml-backend": failing("Banned.", fix), "qc": failing("Banned too.", fix)}
    with pytest.raises(NotConnected) as caught:
        connect(1, settings, studio=Projects(), steps=steps)
    assert caught.value.fix.count(fix) == 1
    assert len(caught.value.failures) == 2


def test_a_project_that_is_not_there_changes_nothing(settings):
    ran = []
    with pytest.raises(NotFound):
        connect(2, settings, studio=Projects(), steps={"qc": lambda *_: ran.append(1)})
    assert ran == []


def test_a_bug_is_not_taken_for_a_failure(settings):
    def crash(*_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        connect(1, settings, studio=Projects(), steps={"qc": crash})


def test_what_is_printed_says_whether_it_was_done(capsys):
    show(BACKEND)
    show(HOOK)
    done, right = capsys.readouterr().out.splitlines()
    assert done.split("  ")[1].strip() == "done"
    assert "already right" in right
    assert "ML backend base-1" in done
