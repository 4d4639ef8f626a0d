"""Web apps: the factory every service starts from, with health, metrics, request ids, errors and access rules."""

import hmac
import ipaddress
import re
import select
import socket
import threading
import time
import uuid
from collections.abc import Callable, Container, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import msgspec
import structlog
from flask import Flask, Request, Response, current_app, g, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge
from werkzeug.middleware.proxy_fix import ProxyFix

from labelloop.service.errors import BadRequest, Busy, Forbidden, LabelloopError, Unauthorized
from labelloop.service.logging import redact
from labelloop.service.memory_budget import Abandoned, MemoryBudget
from labelloop.service.settings import Settings
from labelloop.service.web.metrics import CONTENT_TYPE, Metrics

REQUEST_ID = "X-Request-ID"
RECEIVE_S = 5.0
"""Longest time until a request has arrived, or as much of it as `BUFFER_BYTES`."""

BUFFER_BYTES = 1 << 16
"""Bytes of a request that arrive before a thread takes it."""

SMALL_BODY = 2**20
"""Bodies up to so many bytes are read at once; larger ones share a budget."""

BODY_COPIES = 3
"""A body is held as bytes and as decoded strings: the bytes it takes, per byte sent."""

CONTAINER_BYTES, VALUE_BYTES = 72, 32
"""Bytes that an empty JSON array, and a number inside an array, take once decoded (CPython 3.11, 64 bits)."""

BODY_WAIT_S = 10.0
BODY_BYTES_A_SECOND = 1_000_000
"""Slowest rate at which a body may arrive, after the first seconds."""

# An id from outside goes into logs and back into a header: nothing but these characters may.
_SAFE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
log = structlog.get_logger(__name__)


class NotJson(LabelloopError):
    """The request's content type is not JSON."""

    code = "not_json"
    status = 415

    def __init__(self, mimetype: str) -> None:
        super().__init__(
            f"The request's content type is {mimetype or 'missing'}; JSON is expected.",
            fix="Send the header Content-Type: application/json.",
        )


class ForeignHost(LabelloopError):
    """The request names a host that is none of ours, as a web page does whose name resolves to this machine."""

    code = "foreign_host"
    status = 421

    def __init__(self, host: str) -> None:
        super().__init__(
            f"This service does not answer to the host name {host[:100]!r}.",
            fix="If it is meant, add it to LABELLOOP_ALLOWED_HOSTS.",
        )


class BodyTooSlow(LabelloopError):
    """The request's body did not arrive in time."""

    code = "body_too_slow"
    status = 408

    def __init__(self) -> None:
        super().__init__("The request's body did not arrive in time.", fix="Send it again, or less at once.")


class BodyTooLarge(LabelloopError):
    """The request's body is larger than the service reads."""

    code = "body_too_large"
    status = 413

    def __init__(self, reason: str) -> None:
        super().__init__(reason, fix="Send less at once, or raise LABELLOOP_MAX_BODY_BYTES.")


def create_web(
    name: str,
    settings: Settings,
    *,
    ready: Mapping[str, Callable[[], None]] | None = None,
    basic_auth: bool = True,
    open_paths: Container[str] = ("/health",),
) -> Flask:
    """A Flask app with what every service has.

    Endpoints: `/health` (the process answers), `/ready` (every check of `ready`, by name; 503 when one raises),
    `/metrics` (Prometheus, right under several workers). Every answer carries `X-Request-ID`, taken from the request
    or made; errors are `{"error": {"code", "message"}}` and their tracebacks go to the log only.

    Args:
        name: of the service, in logs and metrics.
        settings: body limit and Basic auth come from here.
        ready: checks that raise when their part cannot work.
        basic_auth: ask for the user and password of the settings, if they name any.
        open_paths: paths that need no Basic auth.

    Returns:
        The app. Its metrics are `metrics_of(app)`.
    """
    app = Flask(name, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
    if proxies := settings.trusted_proxies:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=proxies, x_proto=proxies, x_host=proxies)  # type: ignore[method-assign]
    app.extensions["labelloop_metrics"] = Metrics(name)
    _add_request_ids(app, name)
    _add_origin_rules(app, settings)
    if basic_auth and settings.basic_auth_user:
        _add_basic_auth(app, settings, open_paths)
    _add_body_budget(app, settings)
    _add_errors(app)
    _add_endpoints(app, name, dict(ready or {}))
    return app


def metrics_of(app: Flask) -> Metrics:
    """The metrics of an app that `create_web` made."""
    metrics: Metrics = app.extensions["labelloop_metrics"]
    return metrics


def json_body(given: Request) -> dict[str, Any]:
    """The request's JSON object.

    Raises:
        NotJson: the content type is another one.
        BadRequest: no body, not JSON (with the place), or not an object.
    """
    if not given.is_json and (given.content_length or "Transfer-Encoding" in given.headers):
        # A page of another site can have a browser send any other type without asking first (CORS-safelisted).
        raise NotJson(given.mimetype)
    body = _body(given)
    if not body:
        raise BadRequest("The request has no body; a JSON object is expected.")
    decoded = CONTAINER_BYTES * (body.count(b"[") + body.count(b"{")) + VALUE_BYTES * body.count(b",")
    if decoded > BODY_COPIES * max(given.max_content_length or 0, SMALL_BODY):
        raise BodyTooLarge(f"The request's body takes some {decoded:,} bytes once it is decoded.")
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"The request's body is not JSON: {error}.") from None
    if not isinstance(value, dict):
        raise BadRequest(f"The request's body is a JSON {_json_type(value)}; an object is expected.")
    return value


def client_left(given: Request) -> Callable[[], bool]:
    """A function that says whether the client of this request has closed its connection.

    False wherever that cannot be seen: other servers than gunicorn, TLS ended in this process, a proxy that waits on.
    """
    connection: socket.socket | None = given.environ.get("gunicorn.socket")

    def left() -> bool:
        if connection is None:
            return False
        try:
            readable, _, _ = select.select([connection], [], [], 0)
            return bool(readable) and connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except (OSError, ValueError):  # closed on our side, or not a plain socket
            return False

    return left


def _json_type(value: Any) -> str:
    names = {list: "array", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")


def _add_request_ids(app: Flask, name: str) -> None:
    metrics = metrics_of(app)

    @app.before_request
    def start() -> None:
        given = request.headers.get(REQUEST_ID, "")
        g.request_id = given if _SAFE_ID.fullmatch(given) else uuid.uuid4().hex
        g.started = time.perf_counter()
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(service=name, request_id=g.request_id)

    @app.after_request
    def finish(response: Response) -> Response:
        took_s = time.perf_counter() - g.started
        response.headers[REQUEST_ID] = g.request_id
        # The rule, not the path: a path holds ids and would make a series of its own for each.
        endpoint = request.url_rule.rule if request.url_rule else "(none)"
        labels = (name, request.method, endpoint, str(response.status_code))
        metrics.requests.labels(*labels).inc()
        metrics.latency.labels(*labels).observe(took_s)
        log.debug("request", method=request.method, path=request.path, status=response.status_code, seconds=took_s)
        return response


def _add_origin_rules(app: Flask, settings: Settings) -> None:
    """Refuse what a web page elsewhere makes a browser send: by its host name, or by its origin."""
    ours = {"localhost", *(host.strip().lower() for host in settings.allowed_hosts)}
    ours |= {urlsplit(url).hostname or "" for url in (settings.ml_url, settings.qc_url)}

    @app.before_request
    def check() -> None:
        host = urlsplit(f"//{request.host}").hostname or ""
        if host not in ours and not _is_address(host):
            raise ForeignHost(host or request.headers.get("Host", ""))
        if request.method in {"GET", "HEAD", "OPTIONS"}:
            return
        origin = request.headers.get("Origin")
        elsewhere = origin is not None and origin.partition("://")[2] != request.host
        if elsewhere or request.headers.get("Sec-Fetch-Site") in {"cross-site", "same-site"}:
            raise Forbidden("The request comes from a web page of another site.", fix="Send it from our own pages.")


def _is_address(host: str) -> bool:
    """Whether a host is an IP address: no name that somebody else could let resolve to this machine."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _add_body_budget(app: Flask, settings: Settings) -> None:
    """Large bodies wait for each other (see `_body`), so that what is read at the same time stays bounded."""
    limit = BODY_COPIES * max(settings.max_body_bytes, SMALL_BODY)
    app.extensions["labelloop_bodies"] = MemoryBudget(limit, wait_s=BODY_WAIT_S)

    @app.teardown_request
    def end(_: BaseException | None) -> None:
        lease = g.pop("body_lease", None)
        if lease is not None:
            lease.__exit__(None, None, None)


def _body(given: Request) -> bytes:
    """The body's bytes. A large one takes its memory from the app's budget first, and has to arrive in time.

    Raises:
        Busy: Other bodies take the memory.
        BodyTooSlow: It did not arrive in time.
    """
    length, most = given.content_length, given.max_content_length or 0
    if length is None and "chunked" in given.headers.get("Transfer-Encoding", ""):
        length = most  # not known before it is read
    if length is None or length <= BUFFER_BYTES or length > most:
        return given.get_data(cache=True)
    if length > SMALL_BODY:
        g.body_lease = current_app.extensions["labelloop_bodies"].lease(BODY_COPIES * length)
        g.body_lease.__enter__()
    connection: socket.socket | None = given.environ.get("gunicorn.socket")
    if connection is None:
        return given.get_data(cache=True)
    late = threading.Event()

    def cut_off() -> None:
        late.set()
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RD)

    timer = threading.Timer(RECEIVE_S + length / BODY_BYTES_A_SECOND, cut_off)
    timer.start()
    try:
        return given.get_data(cache=True)
    except HTTPException:
        if late.is_set():
            raise BodyTooSlow from None
        raise
    finally:
        timer.cancel()


def _add_basic_auth(app: Flask, settings: Settings, open_paths: Container[str]) -> None:
    user = settings.basic_auth_user.encode()
    password = settings.basic_auth_password.get_secret_value().encode()

    @app.before_request
    def authenticate() -> None:
        if request.path in open_paths:
            return
        given = request.authorization
        basic = given is not None and given.type == "basic"
        name_given = (given.username or "") if basic and given else ""
        word_given = (given.password or "") if basic and given else ""
        # Both are compared always, so that the time taken says nothing about which one is wrong.
        right_user = hmac.compare_digest(name_given.encode(), user)
        right_password = hmac.compare_digest(word_given.encode(), password)
        if not (right_user and right_password):
            raise Unauthorized("The user name or password is missing or wrong.")


def _add_errors(app: Flask) -> None:
    @app.errorhandler(LabelloopError)
    def ours(error: LabelloopError) -> Response:
        if isinstance(error, Busy | Abandoned):  # says all there is to say; a traceback a request would fill the log
            log.warning("request_not_served", code=error.code, reason=error.message)
        elif error.status >= 500:
            log.error("request_failed", code=error.code, exc_info=error)
        response = _error_answer(error.status, error.code, str(error))
        if error.retry_after_s is not None:
            response.headers["Retry-After"] = str(error.retry_after_s)
        if isinstance(error, Unauthorized):
            response.headers["WWW-Authenticate"] = 'Basic realm="labelloop", charset="UTF-8"'
        return response

    @app.errorhandler(RequestEntityTooLarge)
    def too_large(_: RequestEntityTooLarge) -> Response:
        limit = app.config["MAX_CONTENT_LENGTH"]
        return ours(BodyTooLarge(f"The request's body is larger than {limit} bytes."))

    @app.errorhandler(HTTPException)
    def http(error: HTTPException) -> Response:
        status = error.code or 500
        code = re.sub(r"\W+", "_", (error.name or "error").lower())
        response = _error_answer(
            status, code, _HTTP_MESSAGES.get(status, "").format(request=request) or error.description or ""
        )
        for header, value in error.get_headers():
            if header.lower() in {"allow", "location", "retry-after"}:
                response.headers[header] = value
        return response

    @app.errorhandler(Exception)
    def unexpected(error: Exception) -> Response:
        log.error("request_failed", code="internal_error", exc_info=error)
        message = f"Something went wrong inside; the log has it under request id {g.get('request_id', '')}."
        return _error_answer(500, "internal_error", message)


_HTTP_MESSAGES = {
    404: "There is nothing at {request.path}.",
    405: "{request.path} does not answer {request.method}.",
}


def _add_endpoints(app: Flask, name: str, ready: dict[str, Callable[[], None]]) -> None:
    @app.get("/health")
    def health() -> Response:
        return _json(200, {"status": "UP", "service": name})

    @app.get("/ready")
    def readiness() -> Response:
        checks = {check: _outcome(check, run) for check, run in ready.items()}
        good = all(outcome == "ok" for outcome in checks.values())
        return _json(200 if good else 503, {"status": "ready" if good else "not ready", "checks": checks})

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(metrics_of(app).text(), content_type=CONTENT_TYPE)


def _outcome(check: str, run: Callable[[], None]) -> str:
    try:
        run()
    except LabelloopError as error:
        return redact(str(error))
    except Exception as error:  # it may fail in any way; that it failed is the answer
        log.warning("not_ready", check=check, exc_info=error)
        return redact(f"{type(error).__name__}: {error}")
    return "ok"


def _json(status: int, value: Any) -> Response:
    return Response(msgspec.json.encode(value), status=status, content_type="application/json")


def _error_answer(status: int, code: str, message: str) -> Response:
    return _json(status, {"error": {"code": code, "message": redact(message)}})
