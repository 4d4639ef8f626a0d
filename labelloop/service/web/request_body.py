"""Read JSON request bodies within limits of size, memory and time, and detect disconnected clients."""

import select
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
from flask import Flask, Request, current_app, g
from werkzeug.exceptions import HTTPException

from labelloop.service.errors import BadRequest, LabelloopError
from labelloop.service.memory_budget import MemoryBudget
from labelloop.service.settings import Settings

# Time limit for the arrival of a request, or of its first `BUFFER_BYTES`.
RECEIVE_TIMEOUT_S = 5.0
# Bytes of a request that are received before a thread handles it.
BUFFER_BYTES = 1 << 16
# Bodies up to this size are read at once; larger ones share a memory budget.
SMALL_BODY_BYTES = 2**20
# Memory per byte of a body: it is held as bytes and as decoded strings.
BODY_COPIES = 3
# Memory of an empty JSON array, and of a number inside an array, after decoding (CPython 3.11, 64 bits).
CONTAINER_BYTES, VALUE_BYTES = 72, 32
BODY_BUDGET_TIMEOUT_S = 10.0
# Minimum rate at which a body must arrive, after `RECEIVE_TIMEOUT_S`.
MIN_BODY_BYTES_PER_S = 1_000_000

_BUDGET = "labelloop_bodies"


class BodyTooLarge(LabelloopError):
    """The request's body is larger than the service accepts."""

    code = "body_too_large"
    status = 413
    fix = "Send less at once, or raise LABELLOOP_MAX_BODY_BYTES."


def limit_request_bodies(app: Flask, settings: Settings) -> None:
    """Set the maximum body size, and let large bodies share a memory budget (see `json_body`)."""
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
    limit = BODY_COPIES * max(settings.max_body_bytes, SMALL_BODY_BYTES)
    app.extensions[_BUDGET] = MemoryBudget(limit, wait_s=BODY_BUDGET_TIMEOUT_S)

    @app.teardown_request
    def end(_: BaseException | None) -> None:
        lease = g.pop("body_lease", None)
        if lease is not None:
            lease.__exit__(None, None, None)


def json_body(http_request: Request) -> dict[str, Any]:
    """The request's JSON object.

    Raises:
        BadRequest: The content type is not JSON; there is no body, it is not JSON (with the position), or it is not an
            object; or it did not arrive in time.
        BodyTooLarge: The decoded body would need too much memory.
        Busy: Other bodies hold the memory budget.
    """
    if not http_request.is_json and (http_request.content_length or "Transfer-Encoding" in http_request.headers):
        # A page of another site can make a browser send any other type without a preflight (CORS-safelisted).
        raise BadRequest(
            f"The request's content type is {http_request.mimetype or 'missing'}; JSON is expected.",
            fix="Send the header Content-Type: application/json.",
            code="not_json",
            status=415,
        )
    body = _read_body(http_request)
    if not body:
        raise BadRequest("The request has no body; a JSON object is expected.")
    decoded = CONTAINER_BYTES * (body.count(b"[") + body.count(b"{")) + VALUE_BYTES * body.count(b",")
    if decoded > BODY_COPIES * max(http_request.max_content_length or 0, SMALL_BODY_BYTES):
        raise BodyTooLarge(f"The request's body needs about {decoded:,} bytes of memory after decoding.")
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"The request's body is not JSON: {error}.") from None
    if not isinstance(value, dict):
        raise BadRequest(f"The request's body is a JSON {_json_type(value)}; an object is expected.")
    return value


def client_disconnected(http_request: Request) -> Callable[[], bool]:
    """A function that tells whether the client of this request has closed its connection.

    It returns False where that is not observable: servers other than gunicorn, TLS terminated in this process, a proxy
    that keeps the connection open.
    """
    connection: socket.socket | None = http_request.environ.get("gunicorn.socket")

    def disconnected() -> bool:
        if connection is None:
            return False
        try:
            readable, _, _ = select.select([connection], [], [], 0)
            return bool(readable) and connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except (OSError, ValueError):  # closed on our side, or not a plain socket
            return False

    return disconnected


def _read_body(http_request: Request) -> bytes:
    """Read the body. A large one first acquires memory from the app's budget, and must arrive in time.

    Raises:
        Busy: Other bodies hold the memory budget.
        BadRequest: It did not arrive in time.
    """
    length, limit = http_request.content_length, http_request.max_content_length or 0
    if length is None and "chunked" in http_request.headers.get("Transfer-Encoding", ""):
        length = limit  # unknown before it is read
    if length is None or length <= BUFFER_BYTES or length > limit:
        return http_request.get_data(cache=True)
    if length > SMALL_BODY_BYTES:
        g.body_lease = current_app.extensions[_BUDGET].lease(BODY_COPIES * length)
        g.body_lease.__enter__()
    connection: socket.socket | None = http_request.environ.get("gunicorn.socket")
    if connection is None:
        return http_request.get_data(cache=True)
    timed_out = threading.Event()

    def cut_off() -> None:
        timed_out.set()
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RD)

    timer = threading.Timer(RECEIVE_TIMEOUT_S + length / MIN_BODY_BYTES_PER_S, cut_off)
    timer.start()
    try:
        return http_request.get_data(cache=True)
    except HTTPException:
        if timed_out.is_set():
            raise BadRequest(
                "The request's body did not arrive in time.",
                fix="Send it again, or send less at once.",
                code="body_too_slow",
                status=408,
            ) from None
        raise
    finally:
        timer.cancel()


def _json_type(value: Any) -> str:
    names = {list: "array", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")
