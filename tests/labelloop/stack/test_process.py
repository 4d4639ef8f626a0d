"""Children: their whole process group ends, also when only a killed supervisor's record is left of them."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

from labelloop.cli.stack import down
from labelloop.stack.errors import StackError
from labelloop.stack.label_studio_server import wait_until_healthy
from labelloop.stack.process import Child, ServiceSpec, stop_orphans
from labelloop.stack.state import sole_supervisor

# A program with a child of its own that does not listen to polite signals, as a stuck worker would.
STUBBORN = """
import os, signal, subprocess, sys, time
deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", deaf])
print("grandchild", child.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def start(tmp_path):
    children = []

    def begin(code, **fields):
        part = ServiceSpec(
            "Some part", "part", [sys.executable, "-c", code], dict(os.environ), tmp_path / "part.log", **fields
        )
        children.append(Child(part, tmp_path / "run"))
        return children[-1]

    yield begin
    for child in children:
        child.stop(grace_s=1)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def grandchild(child, wait_until):
    wait_until(lambda: any(line.startswith("grandchild") for line in child.tail()))
    return int(next(line for line in child.tail() if line.startswith("grandchild")).split()[1])


def test_a_stubborn_grandchild_does_not_outlive_its_part(start, wait_until):
    child = start(STUBBORN)
    pid = grandchild(child, wait_until)
    child.stop(grace_s=2)
    wait_until(lambda: not alive(pid))
    assert child.exit_code() is not None


def test_orphans_of_a_killed_supervisor_are_stopped(start, tmp_path, wait_until):
    child = start(STUBBORN)
    pid = grandchild(child, wait_until)
    assert stop_orphans(tmp_path / "run", grace_s=2) == ["Some part"]
    wait_until(lambda: not alive(pid) and child.exit_code() is not None)
    assert stop_orphans(tmp_path / "run") == []


def test_down_stops_what_a_killed_up_left_running(start, tmp_path, monkeypatch, capsys, wait_until):
    monkeypatch.setenv("LABELLOOP_HOME", str(tmp_path))
    child = start("import time; time.sleep(600)")
    down()
    assert "left running has been stopped: Some part." in capsys.readouterr().out
    wait_until(lambda: child.exit_code() is not None)
    with pytest.raises(StackError, match="No labelloop up is running"):
        down()


def test_down_leaves_the_parts_of_an_up_that_starts_meanwhile(start, tmp_path, monkeypatch):
    monkeypatch.setenv("LABELLOOP_HOME", str(tmp_path))
    child = start("import time; time.sleep(600)")
    with sole_supervisor(tmp_path, None), pytest.raises(StackError, match="running already"):
        down()
    assert child.exit_code() is None
    assert (tmp_path / "run" / "part.json").exists()


def test_a_process_id_that_is_reused_while_orphans_end_is_not_killed(start, tmp_path, monkeypatch, wait_until):
    child = start("import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)")
    wait_until(lambda: "deaf" in child.tail())
    born = iter([json.loads((tmp_path / "run" / "part.json").read_text())["born"]])
    monkeypatch.setattr("labelloop.stack.process._born", lambda _: next(born, "a later process"))
    assert stop_orphans(tmp_path / "run", grace_s=2) == ["Some part"]
    time.sleep(0.2)
    assert child.exit_code() is None


def test_a_reused_process_id_is_not_signalled(start, tmp_path):
    child = start("import time; time.sleep(600)")
    record = tmp_path / "run" / "part.json"
    record.write_text(record.read_text().replace('"born":"', '"born":"earlier '))
    assert stop_orphans(tmp_path / "run") == []
    assert child.exit_code() is None
    assert not record.exists()


def test_a_part_that_exits_while_starting_is_named_with_its_log(start, tmp_path):
    child = start("print('the reason'); raise SystemExit(3)", health="http://127.0.0.1:9/health")
    with pytest.raises(StackError, match=r"(?s)part exited while starting \(exit code 3\).*the reason.*part\.log"):
        wait_until_healthy(child, timeout_s=60)


def test_a_part_that_never_answers_is_given_up(start):
    child = start("import time; time.sleep(600)", health="http://127.0.0.1:9/health")
    with pytest.raises(StackError, match=r"Some part did not answer at http://127\.0\.0\.1:9/health"):
        wait_until_healthy(child, timeout_s=0.3)


def test_label_studio_moving_to_the_next_port_is_noticed(start, free_port):
    """Label Studio moves to the next port if its port is taken between our check and its start."""
    port = free_port()
    serve = (
        "import http.server; print('* Port 1 is in use.\\n* Trying to start at 2', flush=True);"
        f"http.server.test(http.server.SimpleHTTPRequestHandler, port={port}, bind='127.0.0.1')"
    )
    child = start(serve, health=f"http://127.0.0.1:{port}/", failure_marker="* Trying to start at")
    with pytest.raises(StackError, match=r"(?s)not run as configured.*Trying to start at 2.*another port"):
        wait_until_healthy(child, timeout_s=60)


def test_only_the_lines_of_this_run_are_shown(start, wait_until):
    first = start("print('first run')")
    wait_until(lambda: first.exit_code() is not None)
    second = start("print('second run')")
    wait_until(lambda: second.exit_code() is not None)
    assert second.tail() == ["second run"]
    assert "first run" in second.part.log.read_text()
    assert time.strftime("%Y") in second.part.log.read_text()
