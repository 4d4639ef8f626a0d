"""S3 servers that hang, throttle or close connections, on real sockets: retries succeed or fail soon with a fix."""

import random
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

import pytest

from labelloop.service.store import StoreError, StoreUnreachable, open_store, s3, s3_lease, s3_responses


@pytest.fixture
def store(bare_s3, tmp_path):
    return open_store("s3://bucket/p", bare_s3.settings(tmp_path))


OPERATIONS = {
    "put": lambda store: store.put("k", b"data"),
    "get": lambda store: store.get("there"),
    "exists": lambda store: store.exists("there"),
    "list": lambda store: list(store.list()),
    "create": lambda store: store.create("new", b"data"),
    "put_many": lambda store: store.put_many((f"many/{n}", b"data") for n in range(100)),
}


def busy(until, *answers):
    def fault(handler):
        if time.monotonic() < until:
            handler.refuse(*random.choice(answers))
            return True
        return False

    return fault


def test_requests_are_retried_while_the_server_is_busy(bare_s3, store):
    store.put("there", b"data")
    answers = [(503, "SlowDown"), (500, "InternalError"), (502, "BadGateway"), (429, "TooManyRequests")]
    bare_s3.fault = busy(time.monotonic() + 5, *answers)
    with ThreadPoolExecutor(len(OPERATIONS)) as threads:
        for done in [threads.submit(operation, store) for operation in OPERATIONS.values()]:
            done.result()


def reset(handler):
    """Close the connection like a killed server: the client gets ECONNRESET."""
    handler.close_connection = True
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def times(count, fault):
    left = [count]
    lock = threading.Lock()

    def faulty(handler):
        with lock:
            left[0] -= 1
            faulty_request = left[0] >= 0
        if faulty_request:
            fault(handler)
        return faulty_request

    return faulty


def half(handler):
    """Send half of a body and reset the connection."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.send_header("ETag", '"x"')
    handler.end_headers()
    handler.wfile.write(b"x" * 50_000)
    handler.wfile.flush()
    reset(handler)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_reset_connection_is_retried(bare_s3, store, operation):
    store.put("there", b"data")
    bare_s3.fault = times(3, reset)
    OPERATIONS[operation](store)


def test_a_truncated_body_is_read_again(bare_s3, store, tmp_path):
    store.put("there", b"data")
    bare_s3.fault = times(2, half)
    assert store.get("there") == b"data"
    bare_s3.fault = times(2, half)
    store.download("there", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"data"
    bare_s3.fault = times(1000, half)
    with pytest.raises(StoreError) as caught:
        store.get("there")
    assert "p/there" in caught.value.message


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_silent_server_fails_soon_with_the_fix(bare_s3, tmp_path, monkeypatch, operation):
    monkeypatch.setattr(s3, "s3_client", partial(s3.s3_client, timeout_s=0.5))
    store = open_store("s3://bucket/p", bare_s3.settings(tmp_path))
    silent = threading.Event()
    bare_s3.fault = lambda handler: silent.wait(60)
    started = time.monotonic()
    with pytest.raises(StoreUnreachable) as caught:
        OPERATIONS[operation](store)
    silent.set()
    assert time.monotonic() - started < 30  # two timeouts of half a second
    assert "does not answer" in caught.value.message
    assert "LABELLOOP_S3_ENDPOINT_URL" in caught.value.fix


def test_a_permanent_error_quotes_the_server(bare_s3, store, monkeypatch):
    monkeypatch.setattr("labelloop.service.store.s3_client.random.uniform", lambda low, high: 0.0)
    bare_s3.fault = busy(float("inf"), (503, "SlowDown"))
    with pytest.raises(StoreError, match="SlowDown") as caught:
        store.put("k", b"data")
    assert "check its log" in caught.value.fix


def test_a_lost_response_to_a_creation_is_not_a_conflict(bare_s3, store):
    store.create("first", b"")

    def lost(handler):
        if handler.command != "PUT" or not handler.key.endswith("/once"):
            return False
        bare_s3.fault = None
        body = b"mine"
        writer = handler.headers["x-amz-meta-labelloop-writer"]
        bare_s3.objects[handler.key] = (body, writer, time.time())  # stored, but the response is lost
        reset(handler)
        return True

    bare_s3.fault = lost
    store.create("once", b"mine")
    assert store.get("once") == b"mine"


@pytest.mark.parametrize("jump_s", [0, -86400, 86400])
def test_the_lock_of_a_killed_writer_expires_whatever_the_clocks_say(bare_s3, store, monkeypatch, jump_s):
    etag = store.put("state", b"one")
    assert store.lease("state").try_acquire()  # and its process is killed
    key = next(key for key in bare_s3.objects if "locks/" in key)
    data, writer, when = bare_s3.objects[key]
    bare_s3.objects[key] = data, writer, when + jump_s  # the server's clock changed
    monkeypatch.setattr(s3_lease, "LEASE_S", 1.0)
    began = time.monotonic()
    store.swap("state", b"two", etag=etag)
    assert time.monotonic() - began >= 1.0
    assert store.get("state") == b"two"
    assert not [key for key in bare_s3.objects if "locks/" in key]


def test_a_slow_writer_keeps_its_lock(bare_s3, store, monkeypatch):
    monkeypatch.setattr(s3_lease, "LEASE_S", 0.8)
    etag = store.put("state", b"one")
    slow = store.lease("state")
    with ThreadPoolExecutor(1) as threads:
        with slow.acquire():
            swapping = threads.submit(store.swap, "state", b"two", etag=etag)
            time.sleep(4 * s3_lease.LEASE_S)
            assert slow.is_held()
            assert not swapping.done()
        swapping.result()
    assert store.get("state") == b"two"
    deadline = time.monotonic() + 30
    while [key for key in bare_s3.objects if "locks/" in key]:  # its heartbeats too
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_refused_large_object_is_not_sent_again(bare_s3, store):
    """The server refuses the request headers and closes the connection without reading the body."""

    def denied(handler):
        handler.close_connection = True
        handler.refuse(403, "AccessDenied")
        reset(handler)

    bare_s3.refuse_early = denied
    with pytest.raises(StoreUnreachable, match="access is denied"):
        store.put("large", b"x" * (8 << 20))
    assert [method for method, key, _ in bare_s3.asked if key == "p/large"] == ["PUT"]


def redirect(handler):
    handler.answer(307, Location=f"http://127.0.0.1:{handler.server.server_port}{handler.path}")
    return True


def web_page(handler):
    handler.answer(200, b"<html>Log in</html>", Content_Type="text/html")
    return True


def error_in_success(handler):
    handler.answer(200, b"<Error><Code>InternalError</Code></Error>")
    return True


def begin(handler):
    handler.send_response(200)
    for name, value in {"Content-Length": 100_000, "ETag": '"x"'}.items():
        handler.send_header(name, str(value))
    handler.end_headers()


def stall(ended):
    def fault(handler):
        begin(handler)
        handler.wfile.write(b"x" * 50_000)
        handler.wfile.flush()
        ended.wait(60)
        return True

    return fault


def drip(ended):
    def fault(handler):
        begin(handler)
        with suppress(OSError):
            while not ended.wait(0.02):
                handler.wfile.write(b"x")
                handler.wfile.flush()
        return True

    return fault


@pytest.mark.parametrize("operation", ["put", "get", "exists", "list"])
def test_an_endless_redirect_is_named(bare_s3, store, operation):
    bare_s3.fault = redirect
    with pytest.raises(StoreUnreachable, match=r"redirects to 127\.0\.0\.1") as caught:
        OPERATIONS[operation](store)
    assert "LABELLOOP_S3_ENDPOINT_URL" in caught.value.fix
    assert len(bare_s3.asked) <= 2


@pytest.mark.parametrize("operation", ["put", "get", "exists", "list"])
def test_a_web_page_is_not_an_s3_response(bare_s3, store, operation):
    bare_s3.fault = web_page
    with pytest.raises(StoreUnreachable, match="not from S3"):
        OPERATIONS[operation](store)


def test_an_error_with_status_200_is_not_an_object(bare_s3, store, tmp_path):
    bare_s3.fault = error_in_success
    for read in (lambda: store.get("there"), lambda: store.download("there", tmp_path / "copy")):
        with pytest.raises(StoreUnreachable, match="not from S3"):
            read()
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("fault", [stall, drip])
@pytest.mark.parametrize("read", ["get", "download"])
def test_a_stalled_body_fails_soon(bare_s3, store, tmp_path, monkeypatch, fault, read):
    assert s3_responses.STALL_S * 5 < 60  # five attempts take less than a minute
    monkeypatch.setattr(s3_responses, "STALL_S", 0.2)
    ended = threading.Event()
    bare_s3.fault = fault(ended)
    began = time.monotonic()
    with pytest.raises(StoreUnreachable, match="cut off or stalled"):
        store.get("there") if read == "get" else store.download("there", tmp_path / "copy")
    ended.set()
    assert time.monotonic() - began < 15
