"""The supervisor: one signal stops every child, a second one is ignored, exits are reported and restarted."""

import json
import os
import signal
import subprocess
import sys

import pytest

RUN = """
import os, sys
from pathlib import Path
from labelloop.stack import supervisor as supervision
from labelloop.stack.process import ServiceSpec
from labelloop.stack.supervisor import Stopped, StopSignals, Supervisor

home = Path(sys.argv[1])
for name in ('MIN_UPTIME_S', 'RESTART_WINDOW_S'):
    setattr(supervision, name, float(os.environ.get(name, getattr(supervision, name))))
def part(name, code):
    marker = os.environ.get('FAILURE_MARKER', '')
    command = [sys.executable, "-c", code]
    return ServiceSpec(name, name, command, dict(os.environ), home / f"{name}.log", failure_marker=marker)
SLOW = (
    "import signal,time,sys; signal.signal(15, lambda *_: (time.sleep(1), sys.exit(0)));"
    "print('up', flush=True); time.sleep(600)"
)
try:
    with StopSignals() as signals, Supervisor(home / "run", signals) as supervisor:
        first = supervisor.start(part("first", SLOW))
        second = supervisor.start(part("second", sys.argv[2] if len(sys.argv) > 2 else SLOW))
        print(first.pid, second.pid, flush=True)
        supervisor.watch(lambda child, how, again: print("ended:", child.part.name, how, again, flush=True))
except Stopped as stopped:
    print("stopped by", stopped, flush=True)
"""


@pytest.fixture
def supervise(tmp_path):
    started = []

    def begin(*args, **env):
        command = [sys.executable, "-c", RUN, str(tmp_path), *args]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **env})
        started.append(process)
        return process, [int(pid) for pid in process.stdout.readline().split()]

    yield begin
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def pid_in(record):
    try:
        return json.loads(record.read_text())["pid"]
    except (OSError, ValueError):  # it is being written
        return None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_one_signal_ends_every_child(supervise, number, tmp_path, wait_until):
    process, pids = supervise()
    wait_until(lambda: all("up" in (tmp_path / f"{name}.log").read_text() for name in ("first", "second")))
    process.send_signal(number)
    assert process.stdout.read() == f"stopped by {number.name}\n"
    assert all(map(gone, pids))
    assert list((tmp_path / "run").iterdir()) == []


def test_an_impatient_second_signal_leaves_no_child_behind(supervise, tmp_path, wait_until):
    process, pids = supervise()
    wait_until(lambda: all("up" in (tmp_path / f"{name}.log").read_text() for name in ("first", "second")))
    process.send_signal(signal.SIGINT)
    for _ in range(5):
        process.send_signal(signal.SIGINT)
    assert process.stdout.read() == "stopped by SIGINT\n"
    assert all(map(gone, pids))


def test_a_failed_part_is_reported_once_and_others_keep_running(supervise, wait_until):
    process, pids = supervise("raise SystemExit(3)", MIN_UPTIME_S="3600")  # never long enough to have worked
    assert process.stdout.readline() == "ended: second exit code 3 False\n"
    assert not gone(pids[0])
    process.send_signal(signal.SIGTERM)
    assert process.stdout.read() == "stopped by SIGTERM\n"
    assert gone(pids[0])


def test_a_killed_part_is_restarted_a_few_times(supervise, tmp_path, wait_until):
    process, pids = supervise()
    record, reports = tmp_path / "run" / "second.json", {pids[1]}
    for life in range(6):  # each is killed right after its start
        os.kill(pid_in(record), signal.SIGKILL)
        assert process.stdout.readline() == f"ended: second signal 9 {life < 5}\n"
        if life < 5:
            wait_until(lambda: pid_in(record) not in {None, *reports})
            reports.add(pid_in(record))
    assert len(reports) == 6
    process.send_signal(signal.SIGTERM)
    assert process.stdout.read() == "stopped by SIGTERM\n"
    assert all(map(gone, (pids[0], *reports)))


def test_a_part_that_exits_after_working_is_restarted(supervise):
    process, pids = supervise("import time; time.sleep(0.4); raise SystemExit(3)", MIN_UPTIME_S="0.3")
    for _ in range(5):
        assert process.stdout.readline() == "ended: second exit code 3 True\n"
    assert process.stdout.readline() == "ended: second exit code 3 False\n"
    assert not gone(pids[0])
    process.send_signal(signal.SIGTERM)
    assert process.stdout.read() == "stopped by SIGTERM\n"


def test_label_studio_is_restarted_and_stops_everything_when_it_keeps_failing(supervise, tmp_path, wait_until):
    process, pids = supervise()
    record, reports = tmp_path / "run" / "first.json", {pids[0]}
    for life in range(6):
        os.kill(pid_in(record), signal.SIGKILL)
        assert process.stdout.readline() == f"ended: first signal 9 {life < 5}\n"
        if life < 5:
            wait_until(lambda: pid_in(record) not in {None, *reports})
            reports.add(pid_in(record))
    assert process.stdout.read() == ""
    assert all(map(gone, (*reports, pids[1])))


def test_exits_outside_the_window_do_not_count(supervise, tmp_path, wait_until):
    process, _ = supervise(
        "import time; time.sleep(0.3); raise SystemExit(3)", MIN_UPTIME_S="0.2", RESTART_WINDOW_S="0.5"
    )
    for _ in range(8):
        assert process.stdout.readline() == "ended: second exit code 3 True\n"
    process.send_signal(signal.SIGTERM)


def test_a_part_on_another_port_is_restarted(supervise):
    process, _ = supervise("import time; print('moved', flush=True); time.sleep(600)", FAILURE_MARKER="moved")
    assert process.stdout.readline() == "ended: second it runs on another port than configured True\n"
    process.send_signal(signal.SIGTERM)
