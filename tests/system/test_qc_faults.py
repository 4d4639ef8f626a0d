"""Faults of every kind at once on stock Label Studio, and the same final state as without any.

Two worker processes on one database, each behind a line of its own to Label Studio; the line answers 500 now and then
and kills the worker with SIGKILL at every write, before it went through or after. Of the events that Label Studio sends
three of ten are lost, and the others come five times and in any order. In the middle Label Studio is started anew.
"""

import contextlib
import hashlib
import http.client
import http.server
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from labelloop.service.db.engine import open_database
from labelloop.service.jobs.inbox import Inbox
from labelloop.service.settings import Settings, env_name
from labelloop.service.studio import Studio
from labelloop.stack.ports import free_port
from qc_webhooks.decision.context import KEYS
from qc_webhooks.studio.connect import connect
from tests.system.test_qc import CONFIG, STORED, box

pytestmark = [pytest.mark.system, pytest.mark.slow]

POLL_S = 1.0
# What each of the three annotators draws, task by task: the third settles it, and does not.
DRAWN = ((0, 60, 1), (0, 30, 60))


@dataclass
class Line:
    """The line from one worker to Label Studio."""

    target: str
    worker: Path
    faulty: bool = False
    seen: set[str] = field(default_factory=set)
    chance: random.Random = field(default_factory=lambda: random.Random(4))
    killed: int = 0
    refused: int = 0

    def serve(self, port: int) -> http.server.ThreadingHTTPServer:
        line = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                with contextlib.suppress(OSError):  # the worker may be gone
                    status, headers, content = line.pass_on(self.command, self.path, dict(self.headers), body)
                    self.send_response(status)
                    for name, value in headers:
                        if name.lower() not in {"transfer-encoding", "content-length", "connection"}:
                            self.send_header(name, value)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)

            do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = answer  # noqa: N815

            def log_message(self, *_: object) -> None:
                """No log."""

        return _started(Handler, port)

    def pass_on(self, method, path, headers, body):
        is_write = method in {"PATCH", "POST", "DELETE"} and path.startswith(
            ("/api/tasks/", "/api/predictions/", "/api/annotations/")
        )
        when = ""
        if self.faulty and is_write:
            name = hashlib.sha256(f"{method} {path} ".encode() + body).hexdigest()
            when = {0: "before", 1: "after"}[int(name, 16) % 2] if name not in self.seen else ""
            self.seen.add(name)
        if when == "before":
            self.kill()
            raise ConnectionError
        if self.faulty and not when and self.chance.random() < 0.1:
            self.refused += 1
            return 500, [], b"it fell over"
        there = urlsplit(self.target)
        connection = http.client.HTTPConnection(there.hostname, there.port, timeout=30)
        try:
            connection.request(method, path, body, headers | {"Host": there.netloc, "Connection": "close"})
            got = connection.getresponse()
            answer = got.status, got.getheaders(), got.read()
        except OSError:
            return 502, [], b"nobody is there"
        finally:
            connection.close()
        if when == "after":
            self.kill()
            raise ConnectionError
        return answer

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, FileNotFoundError, ValueError):
            os.kill(int(self.worker.read_text()), signal.SIGKILL)
            self.killed += 1


class Post:
    """Where Label Studio sends its events; it loses some of them and brings the others too often."""

    def __init__(self, target: str) -> None:
        self.target, self.faulty, self.random = target, False, random.Random(7)
        self.lost = self.brought = 0

    def serve(self, port: int) -> http.server.ThreadingHTTPServer:
        post = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {name: self.headers[name] for name in self.headers if name.lower().startswith("x-labelloop")}
                self.send_response(200)
                self.end_headers()
                post.take(body, headers)

            def log_message(self, *_: object) -> None:
                """No log."""

        return _started(Handler, port)

    def take(self, body: bytes, headers: dict[str, str]) -> None:
        if self.faulty and self.random.random() < 0.3:
            self.lost += 1
            return
        for _ in range(5 if self.faulty else 1):
            self.brought += 1
            late = self.random.uniform(0, 1) if self.faulty else 0.0
            threading.Timer(late, self.bring, (body, headers)).start()

    def bring(self, body: bytes, headers: dict[str, str]) -> None:
        headers = headers | {"Content-Type": "application/json"}
        with contextlib.suppress(httpx.HTTPError):
            httpx.post(f"{self.target}/webhook", content=body, headers=headers, trust_env=False, timeout=30)


def _started(handler, port):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # who was killed hung up
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@dataclass
class World:
    """Label Studio, the people, and two instances of quality control."""

    label_studio: object
    admin: Studio
    people: list[Studio]
    lines: list[Line]
    post: Post
    inbox: Inbox
    settings: Settings
    engine: object

    def settle(self) -> None:
        """Until a poll has come through and there is nothing left to do; faults end for the poll's sake."""
        time.sleep(1.5 if self.post.faulty else 0.5)  # the late ones of the events
        faulty = self.lines[0].faulty
        for line in self.lines:
            line.faulty = False
        self._idle()
        time.sleep(POLL_S + 1)
        self._idle()
        for line in self.lines:
            line.faulty = faulty

    def work(self) -> None:
        """Until nothing is due, with the faults on."""
        deadline = time.monotonic() + 90
        time.sleep(1.5)
        while self._open() and time.monotonic() < deadline:
            time.sleep(0.2)

    def _open(self) -> int:
        counts = self.inbox.counts()
        return counts["pending"] + counts["claimed"]

    def _idle(self) -> None:
        deadline = time.monotonic() + 120
        while self._open():
            assert time.monotonic() < deadline, f"work is left: {self.inbox.counts()}"
            time.sleep(0.1)


@pytest.fixture
def database(request):
    """Postgres where there is one, as two instances would share it; else SQLite."""
    try:
        return request.getfixturevalue("postgres_url")
    except pytest.skip.Exception:
        return ""


@pytest.fixture
def world(label_studio, tmp_path, database):
    ports = {name: free_port() for name in ("service", "post", "one", "other")}
    shared = {
        "home": str(tmp_path), "label_studio_api_key": label_studio.admin_token, "webhook_secret": "s3cret",
        "poll_seconds": str(POLL_S), "job_backoff_s": "0.2", "job_attempts": "1000", "job_backoff_max_s": "1",
        "qc_url": f"http://127.0.0.1:{ports['post']}",
    } | ({"database_url": database} if database else {})  # fmt: skip
    settings = Settings(label_studio_url=label_studio.url, **shared)
    engine = open_database(settings)

    def program(code, url):
        values = shared | {"label_studio_url": url}
        env = os.environ | {env_name(name): value for name, value in values.items()}
        return subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.DEVNULL)

    lines = [Line(label_studio.url, tmp_path / name) for name in ("one", "other")]
    post = Post(f"http://127.0.0.1:{ports['service']}")
    servers = [line.serve(ports[line.worker.name]) for line in lines] + [post.serve(ports["post"])]
    programs = [program(f"from qc_webhooks.cli.qc import serve; serve(port={ports['service']})", label_studio.url)]
    programs += [
        program(
            f"from pathlib import Path; from tests.system.reborn import main; main(Path({str(line.worker)!r}))",
            f"http://127.0.0.1:{ports[line.worker.name]}",
        )
        for line in lines
    ]
    admin = Studio.from_settings(settings)
    people = [Studio(label_studio.url, label_studio.user(f"{name}@example.com")[0]) for name in ("anne", "ben", "cleo")]
    try:
        deadline = time.monotonic() + 60
        while not (_is_up(f"{post.target}/health") and all(line.worker.exists() for line in lines)):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield World(label_studio, admin, people, lines, post, Inbox.from_settings(settings, engine), settings, engine)
    finally:
        for each in programs:
            each.terminate()
        for each in programs:
            each.wait(30)
        for server in servers:
            server.shutdown()
            server.server_close()
        for studio in (admin, *people):
            studio.close()
        engine.dispose()


def _is_up(url):
    try:
        return httpx.get(url, trust_env=False).is_success
    except httpx.TransportError:
        return False


def story(world, *, faulty):
    """People label what they are served, one corrects, a reviewer accepts what is proposed. States after each part."""
    project = world.admin.create_project(title="faults", label_config=CONFIG, maximum_annotations=2)["id"]
    connect(world.admin, project, world.settings, world.engine)
    prelabel = {"model_version": "base-1", "result": [], "score": 0.5}
    tasks = world.admin.import_tasks(project, [{"data": STORED, "predictions": [prelabel]} for _ in DRAWN])
    world.admin.request("PATCH", f"api/projects/{project}/", json={"model_version": "base-1"})
    world.settle()
    world.post.faulty = faulty
    for line in world.lines:
        line.faulty = faulty
    states, made = [], {}
    for _ in range(2):  # two label each task, then the third what they dispute
        for who, person in enumerate(world.people):
            while (served := person.next_task(project)) is not None:
                made[served["id"], who] = person.add_annotation(
                    served["id"], [box(DRAWN[tasks.index(served["id"])][who])]
                )["id"]
        world.work()
        world.settle()
    states.append(state_of(world, project, tasks))
    if faulty:
        world.label_studio.restart()
    world.people[0].update_annotation(made[tasks[0], 0], result=[box(90)])
    world.work()
    world.settle()
    states.append(state_of(world, project, tasks))
    for task in tasks:
        proposed = [
            each for each in world.admin.task_json(project, task)["predictions"]
            if each["model_version"] == "QC consensus"
        ]  # fmt: skip
        for each in proposed:
            world.admin.add_annotation(task, each["result"], parent_prediction=each["id"])
    world.work()
    world.settle()
    states.append(state_of(world, project, tasks))
    return states


def state_of(world, project, tasks):
    """What people see of each task, without the numbers that depend on the order of doing."""
    return [_shown(world.admin.task_json(project, task)) for task in tasks]


def _shown(task):
    return {
        "keys": {key: task["data"].get(key) for key in KEYS},
        "overlap": task["overlap"],
        "is_labeled": task["is_labeled"],
        "overlays": [each["model_version"] for each in sorted(task["predictions"], key=lambda each: each["id"])],
        "annotations": len(task["annotations"]),
        "truths": sum(bool(each["ground_truth"]) for each in task["annotations"]),
    }


def test_faults_of_every_kind_on_stock_label_studio_leave_the_same_state_as_none(world, capsys):
    expected = story(world, faulty=False)
    assert expected[0][1]["overlays"], "three who disagree wait for a reviewer"
    assert expected[2][1]["truths"] == 1
    found = story(world, faulty=True)
    with capsys.disabled():
        killed, refused = sum(line.killed for line in world.lines), sum(line.refused for line in world.lines)
        print(f"\nkilled {killed}, refused {refused}, events lost {world.post.lost}, brought {world.post.brought}")
    for part, (seen, wanted) in enumerate(zip(found, expected, strict=True), start=1):
        assert seen == wanted, f"part {part}"
    assert killed > 5
    assert world.post.lost
    assert not world.inbox.counts()["dead"]
