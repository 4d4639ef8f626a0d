"""A creation whose answer is lost and that is repeated: refused because of itself, it is no conflict."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from labelloop.service.settings import Settings
from labelloop.service.store import ObjectExists, StoreError, open_store

WRITER = re.compile(rb"labelloop-writer\W+([0-9a-f]{32})")


class Handler(BaseHTTPRequestHandler):
    """Stores the first write, answers 503 to it, and refuses the next."""

    protocol_version = "HTTP/1.1"

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("__", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def write(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        server = self.server
        server.writes += 1
        if server.writes == 1:
            found = WRITER.search(body)
            server.writer = found[1].decode() if found else self.headers["x-ms-meta-labelloop_writer"]
            self.answer(503)
        elif self.command == "POST":
            self.answer(412, json.dumps({"error": {"code": 412, "message": "conditionNotMet"}}).encode())
        else:
            self.answer(409, b"<Error><Code>BlobAlreadyExists</Code></Error>")

    def do_GET(self):
        writer = self.server.stored_by or self.server.writer
        state = {"name": "k", "generation": "7", "metadata": {"labelloop-writer": writer}}
        azure = {"x__ms__meta__labelloop_writer": writer, "ETag": '"7"', "x__ms__blob__type": "BlockBlob"}
        dates = {"Last__Modified": "Mon, 30 Nov 2026 12:00:00 GMT"}
        self.answer(200, json.dumps(state).encode(), **azure, **dates)

    do_POST = do_PUT = write  # noqa: N815
    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.writes, server.writer, server.stored_by = 0, "", ""
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(params=["gs", "az"])
def store(request, server, monkeypatch, tmp_path):
    pytest.importorskip({"gs": "google.cloud.storage", "az": "obstore"}[request.param])
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", f"{address}/account")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "c2VjcmV0")
    return open_store(f"{request.param}://bucket", Settings(home=tmp_path))


def test_repeated_creation_finds_its_own_object(store, server):
    assert store.create("k", b"mine").strip('"') == "7"
    assert server.writes == 2


def test_repeated_creation_finds_the_object_of_another(store, server):
    server.stored_by = "f" * 32
    with pytest.raises(ObjectExists):
        store.create("k", b"mine")


def test_use_of_azure_after_a_fork_is_refused(monkeypatch, tmp_path):
    pytest.importorskip("obstore")
    from labelloop.service.store import azure

    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    store = open_store("az://bucket", Settings(home=tmp_path))
    monkeypatch.setattr(azure, "_first_process", lambda: -1)
    with pytest.raises(StoreError, match="forked"):
        store.get("k")
