"""The app factory of all services: health, metrics, request ids, error responses, and access rules."""

import hmac
import ipaddress
import re
import time
import uuid
from collections.abc import Callable, Container, Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec
import structlog
from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge
from werkzeug.middleware.proxy_fix import ProxyFix

from labelloop.service.errors import BadRequest, Busy, Forbidden, LabelloopError, Unauthorized
from labelloop.service.logging import redact
from labelloop.service.memory_budget import Abandoned
from labelloop.service.settings import Settings
from labelloop.service.web.metrics import CONTENT_TYPE, ServiceMetrics
from labelloop.service.web.request_body import BodyTooLarge, limit_request_bodies

REQUEST_ID = "X-Request-ID"
# A client's id is logged and returned in a header, so only these characters are accepted.
_SAFE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
log = structlog.get_logger(__name__)


def create_web_app(
    name: str,
    settings: Settings,
    *,
    ready: Mapping[str, Callable[[], None]] | None = None,
    basic_auth: bool = True,
    open_paths: Container[str] = ("/health",),
) -> Flask:
    """Create a Flask app with the endpoints and rules that all services share.

    Endpoints: `/health` (the process responds), `/ready` (all checks of `ready`, by name; 503 if one raises) and
    `/metrics` (Prometheus, aggregated over all workers). Every response carries `X-Request-ID`, taken from the request
    or generated. Errors are `{"error": {"code", "message"}}`; tracebacks go to the log only.

    Args:
        name: Name of the service, for logs and metrics.
        settings: Body limit, allowed hosts and Basic auth.
        ready: Checks by name; a check raises if its part does not work.
        basic_auth: Require the user and password of the settings, if set.
        open_paths: Paths without Basic auth.

    Returns:
        The app; `metrics_of(app)` returns its metrics.
    """
    app = Flask(name, static_folder=None)
    if proxies := settings.trusted_proxies:
        proxy_fix = ProxyFix(app.wsgi_app, x_for=proxies, x_proto=proxies, x_host=proxies)
        app.wsgi_app = proxy_fix  # type: ignore[method-assign]
    app.extensions["labelloop_metrics"] = ServiceMetrics(name)
    _add_request_ids(app, name)
    _add_origin_rules(app, settings)
    if basic_auth and settings.basic_auth_user:
        _add_basic_auth(app, settings, open_paths)
    limit_request_bodies(app, settings)
    _add_error_handlers(app)
    _add_endpoints(app, name, dict(ready or {}))
    return app


def metrics_of(app: Flask) -> ServiceMetrics:
    """The metrics of an app that `create_web_app` created."""
    metrics: ServiceMetrics = app.extensions["labelloop_metrics"]
    return metrics


def _add_request_ids(app: Flask, name: str) -> None:
    metrics = metrics_of(app)

    @app.before_request
    def start() -> None:
        client_id = request.headers.get(REQUEST_ID, "")
        g.request_id = client_id if _SAFE_ID.fullmatch(client_id) else uuid.uuid4().hex
        g.started = time.perf_counter()
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(service=name, request_id=g.request_id)

    @app.after_request
    def finish(response: Response) -> Response:
        duration_s = time.perf_counter() - g.started
        response.headers[REQUEST_ID] = g.request_id
        # The rule, not the path: paths contain ids, and each would become a time series.
        endpoint = request.url_rule.rule if request.url_rule else "(none)"
        labels = (name, request.method, endpoint, str(response.status_code))
        metrics.requests.labels(*labels).inc()
        metrics.latency.labels(*labels).observe(duration_s)
        log.debug("request", method=request.method, path=request.path, status=response.status_code, seconds=duration_s)
        return response


def _add_origin_rules(app: Flask, settings: Settings) -> None:
    """Refuse requests that a foreign web page makes a browser send, by host name and by origin."""
    allowed_hosts = {"localhost", *(host.strip().lower() for host in settings.allowed_hosts)}
    allowed_hosts |= {urlsplit(url).hostname or "" for url in (settings.ml_url, settings.qc_url)}

    @app.before_request
    def check() -> None:
        host = urlsplit(f"//{request.host}").hostname or ""
        if host not in allowed_hosts and not _is_ip_address(host):
            name = (host or request.headers.get("Host", ""))[:100]
            raise BadRequest(
                f"This service does not accept the host name {name!r}.",
                fix="If the name is correct, add it to LABELLOOP_ALLOWED_HOSTS.",
                code="foreign_host",
                status=421,
            )
        if request.method in {"GET", "HEAD", "OPTIONS"}:
            return
        origin = request.headers.get("Origin")
        foreign = origin is not None and origin.partition("://")[2] != request.host
        if foreign or request.headers.get("Sec-Fetch-Site") in {"cross-site", "same-site"}:
            raise Forbidden("The request comes from a web page of another site.", fix="Send it from our own pages.")


def _is_ip_address(host: str) -> bool:
    """Whether a host is an IP address, which unlike a name cannot be rebound by DNS."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _add_basic_auth(app: Flask, settings: Settings, open_paths: Container[str]) -> None:
    user = settings.basic_auth_user.encode()
    password = settings.basic_auth_password.get_secret_value().encode()

    @app.before_request
    def authenticate() -> None:
        if request.path in open_paths:
            return
        credentials = request.authorization
        basic = credentials is not None and credentials.type == "basic"
        sent_user = (credentials.username or "") if basic and credentials else ""
        sent_password = (credentials.password or "") if basic and credentials else ""
        # Always compare both, so that the response time does not reveal which one is wrong.
        right_user = hmac.compare_digest(sent_user.encode(), user)
        right_password = hmac.compare_digest(sent_password.encode(), password)
        if not (right_user and right_password):
            raise Unauthorized("The user name or password is missing or wrong.")


def _add_error_handlers(app: Flask) -> None:
    @app.errorhandler(LabelloopError)
    def labelloop_error(error: LabelloopError) -> Response:
        if isinstance(error, Busy | Abandoned):  # expected under load: no traceback per request
            log.warning("request_not_served", code=error.code, reason=error.message)
        elif error.status >= 500:
            log.error("request_failed", code=error.code, exc_info=error)
        response = _error_response(error.status, error.code, str(error))
        if error.retry_after_s is not None:
            response.headers["Retry-After"] = str(error.retry_after_s)
        if isinstance(error, Unauthorized):
            response.headers["WWW-Authenticate"] = 'Basic realm="labelloop", charset="UTF-8"'
        return response

    @app.errorhandler(RequestEntityTooLarge)
    def too_large(_: RequestEntityTooLarge) -> Response:
        limit = app.config["MAX_CONTENT_LENGTH"]
        return labelloop_error(BodyTooLarge(f"The request's body is larger than {limit} bytes."))

    @app.errorhandler(HTTPException)
    def http_exception(error: HTTPException) -> Response:
        status = error.code or 500
        code = re.sub(r"\W+", "_", (error.name or "error").lower())
        message = _HTTP_MESSAGES.get(status, "").format(request=request) or error.description or ""
        response = _error_response(status, code, message)
        for header, value in error.get_headers():
            if header.lower() in {"allow", "location", "retry-after"}:
                response.headers[header] = value
        return response

    @app.errorhandler(Exception)
    def unexpected(error: Exception) -> Response:
        log.error("request_failed", code="internal_error", exc_info=error)
        message = f"Internal error; see the log under request id {g.get('request_id', '')}."
        return _error_response(500, "internal_error", message)


_HTTP_MESSAGES = {
    404: "There is nothing at {request.path}.",
    405: "{request.path} does not accept {request.method}.",
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
        return Response(metrics_of(app).exposition(), content_type=CONTENT_TYPE)


def _outcome(check: str, run: Callable[[], None]) -> str:
    try:
        run()
    except LabelloopError as error:
        return redact(str(error))
    except Exception as error:  # any failure is the answer
        log.warning("not_ready", check=check, exc_info=error)
        return redact(f"{type(error).__name__}: {error}")
    return "ok"


def _json(status: int, value: Any) -> Response:
    return Response(msgspec.json.encode(value), status=status, content_type="application/json")


def _error_response(status: int, code: str, message: str) -> Response:
    return _json(status, {"error": {"code": code, "message": redact(message)}})
