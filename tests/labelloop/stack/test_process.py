"""Children: their whole process group ends, also when only a killed supervisor's record is left of them."""

import os
import sys
import time
from pathlib import Path

import pytest

from labelloop.stack.errors import StartFailed
from labelloop.stack.label_studio_server import wait_until_up
from labelloop.stack.process import Child, Part, end_leftovers

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
        part = Part(
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
    assert child.ended() is not None


def test_what_a_killed_supervisor_left_is_found_and_ended(start, tmp_path, wait_until):
    child = start(STUBBORN)
    pid = grandchild(child, wait_until)
    assert end_leftovers(tmp_path / "run", grace_s=2) == ["Some part"]
    wait_until(lambda: not alive(pid) and child.ended() is not None)
    assert end_leftovers(tmp_path / "run") == []


def test_a_process_number_that_another_program_has_now_is_left_alone(start, tmp_path):
    child = start("import time; time.sleep(600)")
    record = tmp_path / "run" / "part.json"
    record.write_text(record.read_text().replace('"born":"', '"born":"earlier '))
    assert end_leftovers(tmp_path / "run") == []
    assert child.ended() is None
    assert not record.exists()


def test_a_part_that_ends_while_starting_is_named_with_its_last_words(start, tmp_path):
    child = start("print('the reason'); raise SystemExit(3)", health="http://127.0.0.1:9/health")
    with pytest.raises(StartFailed, match=r"(?s)Some part ended while starting \(exit code 3\).*the reason.*part\.log"):
        wait_until_up(child, timeout_s=60)


def test_a_part_that_never_answers_is_given_up(start):
    child = start("import time; time.sleep(600)", health="http://127.0.0.1:9/health")
    with pytest.raises(StartFailed, match=r"Some part did not answer at http://127\.0\.0\.1:9/health"):
        wait_until_up(child, timeout_s=0.3)


def test_label_studio_moving_to_the_next_port_is_noticed(start, free_port):
    """Label Studio moves when its port is taken in the moment between our look and its own."""
    port = free_port()
    serve = (
        "import http.server; print('* Port 1 is in use.\\n* Trying to start at 2', flush=True);"
        f"http.server.test(http.server.SimpleHTTPRequestHandler, port={port}, bind='127.0.0.1')"
    )
    child = start(serve, health=f"http://127.0.0.1:{port}/", bad_sign="* Trying to start at")
    with pytest.raises(StartFailed, match=r"(?s)not run as it was told to.*Trying to start at 2.*another port"):
        wait_until_up(child, timeout_s=60)


def test_only_the_lines_of_this_run_are_shown(start, wait_until):
    first = start("print('first run')")
    wait_until(lambda: first.ended() is not None)
    second = start("print('second run')")
    wait_until(lambda: second.ended() is not None)
    assert second.tail() == ["second run"]
    assert "first run" in second.part.log.read_text()
    assert time.strftime("%Y") in second.part.log.read_text()
