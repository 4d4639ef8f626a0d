"""Exports through a gateway to a real S3 server that fails from some request on: a whole version, or none."""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from exporters.dataset.versions import read_head, read_version, versions
from exporters.pipeline.export import export
from exporters.validate.issues import IssueReport
from exporters.validate.latest import check_latest
from exporters.validate.version import verify
from labelloop.service.store import StoreError, open_store

pytestmark = pytest.mark.system
WRITES = {"PUT", "POST", "DELETE"}


class Gateway(ThreadingHTTPServer):
    """Passes requests on, until so many writes were passed; from then on it does what `fault` says."""

    daemon_threads = True

    def __init__(self, endpoint, fault):
        super().__init__(("127.0.0.1", 0), Passing)
        self.target = urlsplit(endpoint).netloc
        self.fault, self.left, self.writes = fault, None, 0
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def failing(self, method):
        with self.lock:
            self.writes += method in WRITES
            return self.left is not None and self.writes > self.left


class Passing(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def pass_on(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.failing(self.command):
            return self.server.fault(self)
        connection = http.client.HTTPConnection(self.server.target, timeout=60)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in {"connection", "expect"}:
                connection.putheader(name, value)
        connection.endheaders(body or None)
        answer = connection.getresponse()
        data = answer.read()
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in {"connection", "transfer-encoding"}:
                self.send_header(name, value)
        if self.command != "HEAD" and answer.getheader("Content-Length") is None:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        connection.close()
        return None

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = pass_on  # noqa: N815


def answers_500(handler):
    handler.send_response_only(500)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def hangs_up(handler):
    handler.close_connection = True
    handler.connection.shutdown(2)


FAULTS = {"answers 500": answers_500, "hangs up": hangs_up}


@pytest.fixture
def bucket(s3_server):
    return s3_server.make_bucket()


def tasks(count):
    def result(place):
        value = {"x": place % 50, "y": 5, "width": 20, "height": 20, "rotation": 0, "rectanglelabels": ["car"]}
        names = {"id": f"r{place}", "from_name": "label", "to_name": "image", "type": "rectanglelabels"}
        return names | {"value": value, "original_width": 640, "original_height": 360}

    return [
        {
            "id": number,
            "data": {"image": f"s3://photos/{number}.jpg"},
            "annotations": [{"id": number, "completed_by": 1, "result": [result(place) for place in range(4)]}],
        }
        for number in range(1, count + 1)
    ]


def is_whole(store):
    """Every version that there is, is whole; the head names one of them."""
    for manifest in versions(store):
        assert verify(store, manifest.version)[1].issues == []
    head = read_head(store)[0]
    return head.version if head else None


def issues_of_latest(store):
    report = IssueReport()
    check_latest(store, report)
    return {issue.flaw for issue in report.issues}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_fails_from_some_write_on_leaves_whole_versions(s3_server, bucket, tmp_path, monkeypatch, fault):
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.01)))  # boto3 waits between its attempts
    file = tmp_path / "export.json"
    well = s3_server.settings(tmp_path / "home")
    address = f"s3://{bucket}/set"
    file.write_text(json.dumps(tasks(5)))
    export(file, settings=well, to=address, formats=("coco", "yolo-detect"))
    file.write_text(json.dumps(tasks(9)))
    store, outcomes, told = open_store(address, well), [], []
    for passed in range(0, 160, 19):
        gateway = Gateway(s3_server.endpoint, FAULTS[fault])
        gateway.left = passed
        ours = well.replace(s3_endpoint_url=f"http://127.0.0.1:{gateway.server_port}")
        before = is_whole(store)
        try:
            report = export(file, settings=ours, to=address, formats=("coco", "yolo-detect"), afresh=True)
        except StoreError as error:
            told.append(error)
            outcomes.append("failed")
        else:
            assert read_version(store).version == report.version
            outcomes.append("done" if report.latest else "published")
            assert bool(report.latest) != any("labelloop dataset latest" in warning for warning in report.warnings)
        finally:
            gateway.shutdown()
            gateway.server_close()
        assert is_whole(store) == (before if outcomes[-1] == "failed" else report.version)
        # it is of the version that it names, or says that it is being updated
        assert issues_of_latest(store) <= {"latest-state", "latest-old"}
        if outcomes[-1] == "done":
            break
    assert all(bucket in error.message and error.fix for error in told)
    assert outcomes[0] == "failed"
    assert "published" in outcomes
    assert outcomes[-1] == "done"
    assert issues_of_latest(store) == set()


def test_an_exporter_that_is_killed_at_any_time_leaves_whole_versions(s3_server, bucket, tmp_path):
    file = tmp_path / "export.json"
    file.write_text(json.dumps(tasks(40)))
    address = f"s3://{bucket}/set"
    settings = s3_server.settings(tmp_path / "home")
    store = open_store(address, settings)
    environment = {
        **os.environ,
        "LABELLOOP_HOME": str(tmp_path / "home"),
        "LABELLOOP_S3_ENDPOINT_URL": s3_server.endpoint,
        "LABELLOOP_S3_ACCESS_KEY_ID": s3_server.key,
        "LABELLOOP_S3_SECRET_ACCESS_KEY": s3_server.secret,
    }
    command = [sys.executable, "-m", "labelloop.cli.main", "export", "--from", str(file), "--to", address, "--afresh"]
    began = time.monotonic()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    lasts = time.monotonic() - began
    published, statuses = is_whole(store), []
    for share in (0.4, 0.6, 0.8, 0.95):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(share * lasts)
        process.send_signal(signal.SIGKILL)
        statuses.append(process.wait())
        now = is_whole(store)
        assert now is not None
        assert now >= published
        published = now
        assert issues_of_latest(store) <= {"latest-state", "latest-old"}
    assert -signal.SIGKILL in statuses, "every export ended before it was killed"
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert is_whole(store) == read_version(store).version
    assert read_version(store).version in done.stdout
    assert issues_of_latest(store) == set()
