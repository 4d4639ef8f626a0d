"""S3 servers that hang, are busy or break connections, on real sockets: it ends well, or soon with a clear message."""

import random
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

import pytest

from labelloop.service.store import StoreError, StoreUnreachable, open_store
from labelloop.service.store import s3 as bucket
from labelloop.service.store import s3_lease as s3_lock
from labelloop.service.store import s3_responses as answers


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


def busy(until, *says):
    def fault(handler):
        if time.monotonic() < until:
            handler.refuse(*random.choice(says))
            return True
        return False

    return fault


def test_server_that_is_busy_for_five_seconds_is_waited_for(bare_s3, store):
    store.put("there", b"data")
    says = [(503, "SlowDown"), (500, "InternalError"), (502, "BadGateway"), (429, "TooManyRequests")]
    bare_s3.fault = busy(time.monotonic() + 5, *says)
    with ThreadPoolExecutor(len(OPERATIONS)) as threads:
        for done in [threads.submit(operation, store) for operation in OPERATIONS.values()]:
            done.result()


def reset(handler):
    """Ends the connection at once, as a killed server does: the other side gets ECONNRESET."""
    handler.close_connection = True
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def times(count, fault):
    left = [count]
    lock = threading.Lock()

    def faulty(handler):
        with lock:
            left[0] -= 1
            mine = left[0] >= 0
        if mine:
            fault(handler)
        return mine

    return faulty


def half(handler):
    """Begins to answer and breaks off in the middle of the body."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.send_header("ETag", '"x"')
    handler.end_headers()
    handler.wfile.write(b"x" * 50_000)
    handler.wfile.flush()
    reset(handler)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_connection_that_is_reset_is_made_anew(bare_s3, store, operation):
    store.put("there", b"data")
    bare_s3.fault = times(3, reset)
    OPERATIONS[operation](store)


def test_object_that_breaks_off_in_its_middle_is_read_again(bare_s3, store, tmp_path):
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
def test_server_that_accepts_and_never_answers_is_given_up_soon_with_the_fix(bare_s3, tmp_path, monkeypatch, operation):
    monkeypatch.setattr(bucket, "s3_client", partial(bucket.s3_client, timeout_s=0.5))
    store = open_store("s3://bucket/p", bare_s3.settings(tmp_path))
    silent = threading.Event()
    bare_s3.fault = lambda handler: silent.wait(60)
    began = time.monotonic()
    with pytest.raises(StoreUnreachable) as caught:
        OPERATIONS[operation](store)
    silent.set()
    assert time.monotonic() - began < 30  # it waits for two silences of half a second, and never for the end of one
    assert "does not answer" in caught.value.message
    assert "LABELLOOP_S3_ENDPOINT_URL" in caught.value.fix


def test_server_that_stays_broken_is_told_with_what_it_said(bare_s3, store, monkeypatch):
    monkeypatch.setattr("labelloop.service.store.s3_client.random.uniform", lambda low, high: 0.0)
    bare_s3.fault = busy(float("inf"), (503, "SlowDown"))
    with pytest.raises(StoreError, match="SlowDown") as caught:
        store.put("k", b"data")
    assert "look at its log" in caught.value.fix


def test_answer_that_is_lost_after_the_object_was_created_is_no_conflict(bare_s3, store):
    store.create("first", b"")

    def lost(handler):
        if handler.command != "PUT" or not handler.key.endswith("/once"):
            return False
        bare_s3.fault = None
        body = b"mine"
        writer = handler.headers["x-amz-meta-labelloop-writer"]
        bare_s3.objects[handler.key] = (body, writer, time.time())  # it is there, and nobody is told
        reset(handler)
        return True

    bare_s3.fault = lost
    store.create("once", b"mine")
    assert store.get("once") == b"mine"


def lock_of(store, key="state"):
    return s3_lock.ObjectLease(store._at(), key, store._lock_object)


@pytest.mark.parametrize("jump_s", [0, -86400, 86400])
def test_lock_of_a_killed_writer_is_removed_after_its_lease_whatever_the_clocks_say(
    bare_s3, store, monkeypatch, jump_s
):
    etag = store.put("state", b"one")
    assert lock_of(store)._taken()  # and its process is killed
    key = next(key for key in bare_s3.objects if "locks/" in key)
    data, writer, when = bare_s3.objects[key]
    bare_s3.objects[key] = data, writer, when + jump_s  # the server's clock was set
    monkeypatch.setattr(s3_lock, "LEASE_S", 1.0)
    began = time.monotonic()
    store.swap("state", b"two", etag=etag)
    assert time.monotonic() - began >= 1.0
    assert store.get("state") == b"two"
    assert not [key for key in bare_s3.objects if "locks/" in key]


def test_lock_of_a_writer_that_takes_long_is_its_own_while_it_lives(bare_s3, store, monkeypatch):
    monkeypatch.setattr(s3_lock, "LEASE_S", 0.8)
    etag = store.put("state", b"one")
    slow = lock_of(store)
    with ThreadPoolExecutor(1) as threads:
        with slow.held():
            swapping = threads.submit(store.swap, "state", b"two", etag=etag)
            time.sleep(4 * s3_lock.LEASE_S)
            assert slow.mine()
            assert not swapping.done()
        swapping.result()
    assert store.get("state") == b"two"
    deadline = time.monotonic() + 30
    while [key for key in bare_s3.objects if "locks/" in key]:  # its signs of life too
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_large_object_that_is_refused_is_told_why_and_not_sent_again(bare_s3, store):
    """The server says no to the head of the request and hangs up: it reads nothing of the object."""

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
def test_redirect_that_leads_nowhere_is_named(bare_s3, store, operation):
    bare_s3.fault = redirect
    with pytest.raises(StoreUnreachable, match=r"redirects to 127\.0\.0\.1") as caught:
        OPERATIONS[operation](store)
    assert "LABELLOOP_S3_ENDPOINT_URL" in caught.value.fix
    assert len(bare_s3.asked) <= 2


@pytest.mark.parametrize("operation", ["put", "get", "exists", "list"])
def test_web_page_is_not_taken_for_an_answer(bare_s3, store, operation):
    bare_s3.fault = web_page
    with pytest.raises(StoreUnreachable, match="not S3's"):
        OPERATIONS[operation](store)


def test_error_in_a_successful_answer_is_no_object(bare_s3, store, tmp_path):
    bare_s3.fault = error_in_success
    for read in (lambda: store.get("there"), lambda: store.download("there", tmp_path / "copy")):
        with pytest.raises(StoreUnreachable, match="not S3's"):
            read()
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("way", [stall, drip])
@pytest.mark.parametrize("read", ["get", "download"])
def test_body_that_stops_coming_is_given_up_soon(bare_s3, store, tmp_path, monkeypatch, way, read):
    assert answers.STALL_S * 5 < 60  # five readings end within a minute
    monkeypatch.setattr(answers, "STALL_S", 0.2)
    ended = threading.Event()
    bare_s3.fault = way(ended)
    began = time.monotonic()
    with pytest.raises(StoreUnreachable, match="breaks off or stalls"):
        store.get("there") if read == "get" else store.download("there", tmp_path / "copy")
    ended.set()
    assert time.monotonic() - began < 15
