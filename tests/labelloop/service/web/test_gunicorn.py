"""Serving with several workers: real gunicorn processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from labelloop.service.errors import LabelloopError, SettingsError
from labelloop.service.web.gunicorn import METRICS_PREFIX, load_factory, remove_metrics_of_killed, run_gunicorn

SERVICE = """
import os, sys, time
from labelloop.service.web.gunicorn import run_gunicorn
from labelloop.service.logging import setup_logging
from labelloop.service.settings import Settings
from labelloop.service.web.app import create_web_app, metrics_of
from labelloop.service.web.request_body import client_disconnected, json_body

def create_app(settings):
    app = create_web_app("demo", settings)
    metrics_of(app).gauge("alive", "Living workers.").set(1)

    @app.get("/pid")
    def pid():
        return {"pid": os.getpid(), "home": str(settings.home)}

    @app.get("/slow")
    def slow():
        open("slow-began", "w").close()
        time.sleep(1.5)
        return {}

    @app.get("/endless")
    def endless():
        open("endless-began", "w").close()
        time.sleep(600)

    @app.post("/echo")
    def echo():
        from flask import request
        return {"keys": len(json_body(request))}

    @app.get("/until-left")
    def until_left():
        from flask import request
        left = client_disconnected(request)
        assert not left()
        open("until-left-began", "w").close()
        while not left():
            time.sleep(0.02)
        open("left", "w").close()
        return {}

    @app.get("/die")
    def die():
        os.kill(os.getpid(), 9)

    return app

if __name__ == "__main__":
    settings = Settings(home=sys.argv[2], log_format="json")
    setup_logging(settings)
    run_gunicorn("service_under_test:create_app()", bind=sys.argv[1], workers=2, threads=4, settings=settings)
"""


class Service:
    def __init__(self, folder, port: int) -> None:
        (folder / "service_under_test.py").write_text(SERVICE)
        self.url = f"http://127.0.0.1:{port}"
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "service_under_test.py", f"127.0.0.1:{port}", str(folder / "home")],
                cwd=folder, stdout=log, stderr=log, env=os.environ | {"TMPDIR": str(self.temporary)},
            )  # fmt: skip

    def get(self, path: str, **kwargs) -> httpx.Response:
        return httpx.get(self.url + path, timeout=120, **kwargs)

    def up(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return self.get("/health").status_code == 200
        except httpx.HTTPError:
            return False

    def samples(self) -> dict[str, float]:
        lines = [line for line in self.get("/metrics").text.splitlines() if not line.startswith("#")]
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


@pytest.fixture
def service(tmp_path, free_port, wait_until):
    started = Service(tmp_path, free_port())
    try:
        wait_until(started.up)
        yield started
    finally:
        started.process.terminate()
        try:
            started.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            started.process.kill()
            started.process.wait()


COUNT = 'labelloop_http_requests_total{app="demo",endpoint="/pid",method="GET",status="200"}'
LATENCY = 'labelloop_http_request_seconds_count{app="demo",endpoint="/pid",method="GET",status="200"}'


def test_40_requests_to_two_workers_are_counted_40_by_either(service, tmp_path, wait_until):
    with ThreadPoolExecutor(8) as pool:
        answers = [answer.json() for answer in pool.map(lambda _: service.get("/pid"), range(40))]
    assert {answer["home"] for answer in answers} == {str(tmp_path / "home")}, "the settings reached the workers"
    for _ in range(8):  # whichever worker answers
        metrics = service.samples()
        assert (metrics[COUNT], metrics[LATENCY]) == (40, 40)
    pids = Counter(answer["pid"] for answer in answers)
    deadline = time.monotonic() + 60
    while len(pids) < 2 and time.monotonic() < deadline:
        pids[service.get("/pid").json()["pid"]] += 1
    assert len(pids) == 2, "both workers answer"


def test_what_a_killed_worker_counted_stays_and_its_gauges_go(service, wait_until):
    before = set()

    def both_answer() -> bool:
        before.add(service.get("/pid").json()["pid"])
        return len(before) == 2

    wait_until(both_answer)
    counted = service.samples()[COUNT]
    with pytest.raises(httpx.HTTPError):
        service.get("/die")
    requests = []

    def its_successor_answers() -> bool:
        requests.append(service.get("/pid").json()["pid"])
        return requests[-1] not in before

    wait_until(its_successor_answers)
    metrics = service.samples()
    assert metrics[COUNT] == counted + len(requests)
    assert metrics["labelloop_alive"] == 2, "the dead one left the sum"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_within_seconds_and_leaves_nothing(service, how):
    started = time.monotonic()
    service.process.send_signal(how)
    assert service.process.wait(timeout=120) == 0
    assert time.monotonic() - started < 60
    assert list(service.temporary.iterdir()) == []


def test_sigterm_waits_for_requests_within_the_time_limit(service, tmp_path, wait_until):
    with ThreadPoolExecutor(2) as pool:
        slow, endless = pool.submit(service.get, "/slow"), pool.submit(service.get, "/endless")
        wait_until(lambda: {"slow-began", "endless-began"} <= {path.name for path in tmp_path.iterdir()})
        started = time.monotonic()
        service.process.terminate()
        assert slow.result().status_code == 200
        assert service.process.wait(timeout=120) == 0
        assert time.monotonic() - started < 60  # of the ten minutes
        assert isinstance(endless.exception(), httpx.HTTPError)


def test_a_taken_port_is_said_plainly(settings):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(LabelloopError) as error:
            run_gunicorn("any:thing", bind=f"127.0.0.1:{port}", settings=settings)
    assert str(error.value).startswith(f"Cannot listen on 127.0.0.1:{port}: Address already in use.")
    assert f":{port}" in error.value.fix


@pytest.mark.parametrize("bind", ["9090", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:99999"])
def test_an_address_that_is_none_is_refused(settings, bind):
    with pytest.raises(SettingsError, match="host:port"):
        run_gunicorn("any:thing", bind=bind, settings=settings)


@pytest.mark.parametrize(
    "factory", ["nowhere.app:create_app()", "labelloop.service.web.app:nothing", "labelloop.service.web.app"]
)
def test_a_factory_that_is_none_is_refused(factory):
    with pytest.raises(SettingsError, match="no app factory"):
        load_factory(factory)


def test_a_request_sees_that_its_client_has_gone(service, tmp_path, wait_until):
    address = httpx.URL(service.url)
    with socket.create_connection((address.host, address.port)) as client:
        client.sendall(b"GET /until-left HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_until((tmp_path / "until-left-began").exists)
        time.sleep(0.1)
        assert not (tmp_path / "left").exists()
    wait_until((tmp_path / "left").exists)


HEAD = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
HALVES = {
    "half a head": HEAD,
    "a large body's beginning": HEAD + b"Content-Length: 900000\r\n\r\n" + b" " * 1000,
    "a chunked body's beginning": HEAD + b"Transfer-Encoding: chunked\r\n\r\n9000\r\n",
    "a body after a go-ahead": HEAD + b"Content-Length: 900\r\nExpect: 100-continue\r\n\r\n",
    "half a second request": b"GET /pid HTTP/1.1\r\nHost: localhost\r\n\r\n" + HEAD,
}


def test_dripping_clients_keep_nobody_waiting(service, wait_until):
    address = httpx.URL(service.url)
    halves = [half for half in HALVES for _ in range(10)]  # of each more than there are threads
    clients = [socket.create_connection((address.host, address.port)) for _ in halves]
    try:
        for client, half in zip(clients, halves, strict=True):
            client.sendall(HALVES[half])
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            for client in clients:
                client.sendall(b" ")
            started = time.monotonic()
            assert service.get("/pid").status_code == 200
            assert time.monotonic() - started < 1
        for client, half in zip(clients, halves, strict=True):
            client.settimeout(30)
            answer = b""
            while b" 408 " not in answer:
                more = client.recv(1000)
                assert more, (half, answer)
                answer += more
    finally:
        for client in clients:
            client.close()
    wait_until(lambda: service.get("/pid").status_code == 200)


def test_requests_in_pieces_and_one_after_the_other_are_answered(service):
    address = httpx.URL(service.url)
    body = b'{"a": 1, "b": "' + b"x" * 300_000 + b'"}'
    request = HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
    with socket.create_connection((address.host, address.port), timeout=30) as client:
        for pieces in ([request[:30], request[30:150], request[150:70_000], request[70_000:]], [request], [request]):
            for piece in pieces:
                client.sendall(piece)
                time.sleep(0.02)
            answer = b""
            while b'{"keys":2}' not in answer:
                answer += client.recv(4096)
            assert answer.startswith(b"HTTP/1.1 200")


CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
SECOND = b"GET /pid HTTP/1.1\r\nHost: localhost\r\n\r\n" + HEAD
WAYS = {
    "at once": [CHUNKED + b'7\r\n{"a": 1\r\n1;x=y\r\n}\r\n0\r\n\r\n'],
    "in pieces": [CHUNKED + b"7", b'\r\n{"a": 1\r', b"\n1\r\n}\r\n0\r\nX: y\r\n", b"\r\n"],
    "larger than what is waited for": [
        CHUNKED + b'30d47\r\n{"a": 1' + b" " * 100_000,
        b" " * 100_000 + b"\r\n1\r\n}\r\n0\r\n\r\n",
    ],
    "after a go-ahead": [HEAD + b"Content-Length: 8\r\nExpect: 100-continue\r\n\r\n", b'{"a": 1}'],
    "split behind another request": [SECOND, b'Content-Length: 8\r\n\r\n{"a": 1}'],
}


def test_requests_are_answered_however_they_arrive(service):
    address = httpx.URL(service.url)
    with socket.create_connection((address.host, address.port), timeout=30) as client:
        for way, pieces in WAYS.items():
            for piece in pieces:
                client.sendall(piece)
                time.sleep(0.05)
            answer = b""
            while b'{"keys":1}' not in answer:
                more = client.recv(4096)
                assert more, (way, answer)
                answer += more


GET = b"GET /pid HTTP/1.1\r\nHost: localhost\r\n"
NEVER_READ = {
    "answered without a look at its body": GET + b"Content-Length: 9000000\r\n\r\n" + b" " * 70_000,
    "told that the connection ends": GET + b"Connection: close\r\n\r\n",
}


def test_clients_that_do_not_close_keep_nobody_waiting(service):
    address = httpx.URL(service.url)
    requests = [request for request in NEVER_READ.values() for _ in range(12)]
    clients = [socket.create_connection((address.host, address.port)) for _ in requests]
    try:
        for client, request in zip(clients, requests, strict=True):
            client.sendall(request)
        for _ in range(10):
            started = time.monotonic()
            assert service.get("/pid").status_code == 200
            assert time.monotonic() - started < 1
        for client in clients:
            client.settimeout(30)
            while client.recv(4096):
                pass
    finally:
        for client in clients:
            client.close()


def test_a_client_that_closes_in_the_middle_is_dropped(service):
    address = httpx.URL(service.url)
    for _ in range(50):
        with socket.create_connection((address.host, address.port)) as client:
            client.sendall(HEAD)
    assert service.get("/pid").status_code == 200


def test_metrics_of_killed_services_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left, mine, foreign = (
        tmp_path / name for name in (f"{METRICS_PREFIX}{ended.pid}-a", f"{METRICS_PREFIX}{os.getpid()}-b", "other-c")
    )
    for folder in (left, mine, foreign):
        folder.mkdir()
        (folder / "counter_1.db").touch()
    remove_metrics_of_killed()
    assert [folder.exists() for folder in (left, mine, foreign)] == [False, True, True]
