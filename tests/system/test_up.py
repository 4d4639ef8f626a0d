"""`labelloop up` as a newcomer runs it: one command, and pre-labelled photographs are served to an annotator."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from labelloop.stack.accounts import ANNOTATORS, log_in
from labelloop.stack.ports import free_port

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


@dataclass
class Loop:
    """A running `labelloop up`."""

    process: subprocess.Popen
    home: Path
    shown: str
    took_s: float

    @property
    def parts(self) -> dict[str, int]:
        return {path.stem: json.loads(path.read_bytes())["pid"] for path in (self.home / "run").glob("*.json")}

    def members(self) -> set[int]:
        """Every process of the parts' process groups, workers of gunicorn included."""
        groups, found = set(self.parts.values()), set()
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
            except OSError:
                continue
            if int(group) in groups and state not in "ZX":
                found.add(int(stat.parent.name))
        return found


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("up") / "home"


@pytest.fixture(scope="module")
def command(installed, label_studio_installation):
    """Of the wheel, as a newcomer has it."""
    ports = [f"--{name}={free_port()}" for name in ("port", "ml-port", "qc-port")]
    return [installed.command, "up", *ports, f"--label-studio={label_studio_installation.folder}"]


@pytest.fixture
def start(command, home):
    started = []

    def begin(home=home):
        env = {**os.environ, "LABELLOOP_HOME": str(home), "LABELLOOP_LABEL_STUDIO_URL": "http://of-the-shell:1"}
        began = time.monotonic()
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        started.append(process)
        shown = []
        for line in process.stdout:
            shown.append(line)
            if line.startswith("Ctrl-C stops everything"):
                return Loop(process, home, "".join(shown), time.monotonic() - began)
        pytest.fail(f"labelloop up ended with status {process.wait()}:\n{''.join(shown)}")

    yield begin
    for process in started:
        if process.poll() is None:
            process.terminate()
        process.communicate()


def next_task(session, project):
    headers = {"X-CSRFToken": session.cookies["csrftoken"]}
    where = {"id": "next_task", "project": project}
    return session.post("/api/dm/actions", params=where, headers=headers, json={}).raise_for_status().json()


def end(loop, number):
    members = loop.members()
    assert set(loop.parts) == {"label-studio", "ml-backend", "qc", "worker"}
    assert len(members) > len(loop.parts)  # gunicorn's workers
    loop.process.send_signal(number)
    rest, _ = loop.process.communicate(timeout=120)
    assert loop.process.returncode == 0
    assert f"Everything has stopped ({number.name})" in rest
    assert [pid for pid in members if Path(f"/proc/{pid}").exists()] == []


def test_a_newcomer_gets_prelabels_and_ctrl_c_ends_every_child(start, home, command):
    loop = start()
    url, project = re.search(r"(http://localhost:\d+)/projects/(\d+)/data", loop.shown).groups()
    for person in ANNOTATORS:
        assert f"{person.email:<18} password {person.account(home).password}" in loop.shown
    with log_in(url, ANNOTATORS[0].account(home)) as session:
        task = next_task(session, int(project))
        tasks = session.get("/api/tasks", params={"project": project, "page_size": 100}).json()
    assert len(task["predictions"]) == 1
    assert task["predictions"][0]["model_version"].startswith("base-")
    assert tasks["total"] >= 20
    assert tasks["total_predictions"] == tasks["total"]

    env = {**os.environ, "LABELLOOP_HOME": str(home)}
    again = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert f"running already in {home} (process {loop.process.pid}), with Label Studio at {url}" in again.stderr

    end(loop, signal.SIGINT)


def test_the_second_start_finds_everything_as_it_was(start, home, wait_until):
    loop = start()
    print(f"\nsecond start: {loop.took_s:.1f} s")
    project = re.search(r"/projects/(\d+)/data", loop.shown).group(1)
    assert project == "1"
    assert "pre-labelling" not in loop.shown
    worker, studio = loop.parts["worker"], loop.parts["label-studio"]
    os.kill(worker, signal.SIGKILL)
    told = next(line for line in loop.process.stdout if line.strip())
    assert told.startswith("Worker has exited (signal 9)")
    assert f"Its log: {home / 'logs' / 'worker.log'}\n" in iter(loop.process.stdout.readline, "")
    assert "It is being restarted" in loop.process.stdout.readline()
    url = re.search(r"(http://localhost:\d+)/projects", loop.shown).group(1)
    os.kill(studio, signal.SIGKILL)
    told = next(line for line in loop.process.stdout if line.strip())
    assert told.startswith("Label Studio has exited (signal 9)")
    assert "It is being restarted" in next(line for line in loop.process.stdout if line.startswith("It is"))
    wait_until(lambda: answers(f"{url}/health"), timeout_s=180)
    assert loop.parts["label-studio"] != studio
    backup = home.parent / "backup.tar.gz"
    command = [sys.executable, "-m", "labelloop.cli.main"]
    subprocess.run([*command, "backup", backup], env={**os.environ, "LABELLOOP_HOME": str(home)}, check=True)
    loop.process.send_signal(signal.SIGTERM)
    loop.process.communicate(timeout=120)
    assert list((home / "run").iterdir()) == []


@pytest.mark.slow
def test_a_stack_that_was_backed_up_while_it_ran_goes_on_elsewhere(start, home):
    """Same ports, another home folder: accounts, project, photographs and pre-labels are those of the first."""
    other = home.with_name("restored")
    command = [sys.executable, "-m", "labelloop.cli.main", "restore", home.parent / "backup.tar.gz"]
    subprocess.run(command, env={**os.environ, "LABELLOOP_HOME": str(other)}, check=True)
    loop = start(other)
    assert "creating the project" not in loop.shown
    assert "pre-labelling" not in loop.shown
    url = re.search(r"(http://localhost:\d+)/projects/1/data", loop.shown).group(1)
    with log_in(url, ANNOTATORS[0].account(other)) as session:
        tasks = session.get("/api/tasks", params={"project": 1, "page_size": 1}).json()
    assert tasks["total_predictions"] == tasks["total"] >= 20
    loop.process.send_signal(signal.SIGTERM)
    loop.process.communicate(timeout=120)


def answers(url):
    try:
        return httpx.get(url, timeout=5, trust_env=False).is_success
    except httpx.HTTPError:
        return False
