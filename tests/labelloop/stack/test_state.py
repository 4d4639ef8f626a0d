"""What is remembered between runs, and that a home folder has one supervisor."""

import os
import subprocess
import sys

import pytest

from labelloop.service.errors import SchemaTooNew
from labelloop.stack.errors import StackError
from labelloop.stack.state import DemoProject, StackState, read_state, running_supervisor, sole_supervisor, write_state

HOLD = """
import sys, time
from pathlib import Path
from labelloop.stack.state import sole_supervisor
with sole_supervisor(Path(sys.argv[1]), "http://localhost:8123"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_state_round_trip(tmp_path):
    assert read_state(tmp_path) == StackState()
    state = StackState(("anna@example.com",), {"demo": DemoProject(3, 25, complete=True)})
    write_state(tmp_path, state)
    assert read_state(tmp_path) == state


def test_a_state_of_a_newer_labelloop_is_refused(tmp_path):
    (tmp_path / "state.json").write_text('{"people": {"in": "another form"}, "format": 2}')
    with pytest.raises(SchemaTooNew, match=r"state.json was written by a newer labelloop \(format 2\)"):
        read_state(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"projects": 1}'])
def test_a_state_that_cannot_be_read_is_no_empty_state(tmp_path, text):
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(StackError, match=r"state\.json cannot be read"):
        read_state(tmp_path)


def test_a_second_supervisor_names_the_first(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        expected = rf"process {holder.pid}.*http://localhost:8123.*labelloop down"
        with pytest.raises(StackError, match=expected), sole_supervisor(tmp_path, "http://localhost:1"):
            pass
        assert running_supervisor(tmp_path).pid == holder.pid
        holder.kill()
    assert running_supervisor(tmp_path) is None


def test_the_home_is_free_again_afterwards(tmp_path):
    assert running_supervisor(tmp_path) is None
    for _ in range(2):
        with sole_supervisor(tmp_path, "http://localhost:1"):
            assert running_supervisor(tmp_path).pid == os.getpid()
    assert running_supervisor(tmp_path) is None
