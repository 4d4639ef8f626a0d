"""The HTTP client for Label Studio: JSON requests, retries of safe requests, errors with a fix."""

import hashlib
import re
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import httpx
import msgspec
import stamina

from labelloop.service.studio.auth import Authorization, bare_token
from labelloop.service.studio.errors import StudioError, StudioNotFound, StudioRefused, StudioUnreachable

QueryParams = Mapping[str, str | int | float | bool | None]
_T = TypeVar("_T")

_IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "PATCH", "DELETE"})  # safe to retry
_TRANSIENT = frozenset({502, 503, 504})
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_ATTEMPTS = 4
_DETAIL_CHARS = 500
_MAX_RETRY_AFTER_S = 30.0

_FIXES = {  # part of Label Studio's message: fix
    "resolves to a reserved network address": (
        "Label Studio forbids private addresses. Start it with USE_DEFAULT_BANNED_SUBNETS=false and "
        "USER_ADDITIONAL_BANNED_SUBNETS=169.254.0.0/16: this allows your network, but not the metadata address."
    ),
    "Enter a valid URL": (
        "Label Studio does not accept a host name without a dot: use localhost, an IP address or a name with a dot."
    ),
    "Can't resolve hostname": "Use a host name or an address that Label Studio's machine can reach.",
    "health check failed": ("Start the ML backend, and use a URL that Label Studio's machine can reach."),
    "authentication parameters were either not provided": "Give the backend's user and password.",
}


class _RetryableError(Exception):
    """The request may be retried. `error` is raised after the last attempt; `after_s` is the server's Retry-After."""

    def __init__(self, error: StudioError, after_s: float | None = None) -> None:
        super().__init__(type(error).__name__)
        self.error = error
        self.after_s = after_s


# Idle connections that are kept open at most. Label Studio's own server speaks HTTP and writes headers and body
# separately: on a kept connection Nagle's algorithm holds the body back until the client's delayed ACK, 40 ms later. A
# new one is acknowledged at once. HTTPS ends at a proxy without that delay, and a new connection costs a TLS handshake.
_KEPT_OPEN = {"http": 0, "https": 20}


class StudioClient:
    """JSON requests to one Label Studio as one user. Thread-safe; HTTPS connections are kept open."""

    def __init__(self, url: str, api_key: str, *, timeout_s: float = 30.0) -> None:
        self.url = clean_url(url)
        timeout = httpx.Timeout(timeout_s, connect=min(timeout_s, 10.0))
        kept_open = _KEPT_OPEN[urlsplit(self.url).scheme]
        limits = httpx.Limits(max_connections=100, max_keepalive_connections=kept_open)
        self._http = httpx.Client(timeout=timeout, limits=limits)
        weakref.finalize(self, self._http.close)  # close the connections with their owner, without a warning
        self._api_key = bare_token(api_key)
        self._authorization = Authorization(self.url, self._api_key, self._http)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    @property
    def cache_key(self) -> str:
        """A hash of the URL and the token, which separates cached files of different users."""
        return hashlib.sha256(f"{self.url} {self._api_key}".encode()).hexdigest()

    def close(self) -> None:
        """Close the pooled connections."""
        self._http.close()

    def owns(self, url: str) -> bool:
        """Whether an absolute URL belongs to this Label Studio: same scheme, host and port, under its path prefix.

        The token may only be sent to such URLs. Malformed or ambiguous URLs return False.
        """
        try:
            base, other = httpx.URL(self.url), httpx.URL(url)
        except httpx.InvalidURL:
            return False
        if (base.scheme, base.host, _port(base)) != (other.scheme, other.host, _port(other)) or other.userinfo:
            return False
        return f"{other.path}/".startswith(f"{base.path.rstrip('/')}/") and "/../" not in f"{other.path}/"

    def authorization(self, *, refused: str | None = None) -> str:
        """The current value of the `Authorization` header, for downloads by other clients.

        Args:
            refused: A value that Label Studio answered with 401; it is replaced if the token allows.

        Raises:
            StudioUnauthorized, StudioUnreachable, StudioRefused
        """
        return self._with_retries(lambda: self._header(refused))

    def request(
        self,
        method: str,
        path: str,
        *,
        params: QueryParams | None = None,
        json: Any = None,
        files: Any = None,
        retry: bool | None = None,
        timeout_s: float | None = None,
    ) -> Any:
        """Send a request; returns the response's JSON, or None if it has no body.

        Args:
            method: HTTP method.
            path: Path below Label Studio's URL, with or without a leading slash.
            params: Query parameters; None values are omitted, booleans become `true` and `false`.
            json: JSON body.
            files: Multipart form instead of a JSON body, in httpx's format.
            retry: Whether the request may be sent twice. None: True for GET, PUT, PATCH and DELETE, False for POST.
                Requests that were never sent (connection refused) are always retried.
            timeout_s: Timeout in seconds; None: the client's.

        Raises:
            StudioUnreachable, StudioUnauthorized, StudioNotFound, StudioRefused
        """
        body = self.content(method, path, params=params, json=json, files=files, retry=retry, timeout_s=timeout_s)
        if not body.strip():
            return None
        try:
            return msgspec.json.decode(body)
        except msgspec.DecodeError:
            raise self._not_json(method, path) from None

    def content(
        self,
        method: str,
        path: str,
        *,
        params: QueryParams | None = None,
        json: Any = None,
        files: Any = None,
        retry: bool | None = None,
        timeout_s: float | None = None,
    ) -> bytes:
        """As `request`, but returns the undecoded body."""
        idempotent = method in _IDEMPOTENT if retry is None else retry
        query = {name: _query_value(value) for name, value in (params or {}).items() if value is not None}
        address = f"{self.url}/{path.lstrip('/')}"
        timeout = self._http.timeout if timeout_s is None else httpx.Timeout(timeout_s, connect=10.0)
        attempts = 0

        def attempt_request() -> bytes:
            nonlocal attempts
            attempts += 1
            response = self._send(method, address, idempotent, params=query, json=json, files=files, timeout=timeout)
            if response.is_success:
                return response.content
            if response.status_code == 404 and method == "DELETE" and attempts > 1:
                return b""  # the first attempt succeeded, only its response was lost
            error = self._error(method, path, response)
            if response.status_code == 429 or (idempotent and _is_transient(response)):
                raise _RetryableError(error, _retry_after(response))
            raise error

        return self._with_retries(attempt_request)

    def download(
        self,
        path: str,
        to: Path,
        *,
        params: QueryParams | None = None,
        timeout_s: float | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> None:
        """Stream a GET response of any size into a file, which is replaced once the response is complete.

        Args:
            path: Path below Label Studio's URL.
            to: The file.
            params: As in `request`.
            timeout_s: Read timeout in seconds.
            progress: Called with the number of bytes received so far.

        Raises:
            StudioUnreachable, StudioUnauthorized, StudioNotFound, StudioRefused
        """
        query = {name: _query_value(value) for name, value in (params or {}).items() if value is not None}
        address = f"{self.url}/{path.lstrip('/')}"
        timeout = self._http.timeout if timeout_s is None else httpx.Timeout(timeout_s, connect=10.0)
        part = to.with_name(f"{to.name}.part")

        def attempt_request() -> None:
            header = self._header()
            try:
                headers = {"Authorization": header}
                with self._http.stream("GET", address, headers=headers, params=query, timeout=timeout) as answer:
                    if answer.status_code == 401 and self._authorization.renewable:
                        self._header(header)  # the next attempt uses a new header
                        raise _RetryableError(self._authorization.unauthorized_error(401, ""))
                    if not answer.is_success:
                        answer.read()
                        error = self._error("GET", path, answer)
                        if answer.status_code == 429 or _is_transient(answer):
                            raise _RetryableError(error, _retry_after(answer))
                        raise error
                    with part.open("wb") as file:
                        for chunk in answer.iter_bytes(1 << 20):
                            file.write(chunk)
                            if progress:
                                progress(file.tell())
            except httpx.TransportError as error:
                raise _RetryableError(StudioUnreachable(url=self.url, reason=_reason(error))) from None
            part.replace(to)

        try:
            self._with_retries(attempt_request)
        finally:
            part.unlink(missing_ok=True)

    def _send(self, method: str, address: str, idempotent: bool, **kwargs: Any) -> httpx.Response:
        header = self._header()
        try:
            response = self._http.request(method, address, headers={"Authorization": header}, **kwargs)
            if response.status_code == 401 and self._authorization.renewable:
                # The access token expired, or a clock is wrong. Nothing was executed: any method may be retried.
                header = self._header(header)
                response = self._http.request(method, address, headers={"Authorization": header}, **kwargs)
        except httpx.TransportError as error:
            unreachable = StudioUnreachable(url=self.url, reason=_reason(error))
            if idempotent or isinstance(error, _NEVER_SENT):
                raise _RetryableError(unreachable) from None
            raise unreachable from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise StudioUnreachable(url=self.url, reason=_reason(error)) from None
        return response

    def _header(self, refused: str | None = None) -> str:
        try:
            return self._authorization.header(refused=refused)
        except httpx.TransportError as error:  # a token exchange may always be retried
            raise _RetryableError(StudioUnreachable(url=self.url, reason=_reason(error))) from None

    def _with_retries(self, call: Callable[[], _T]) -> _T:
        try:
            for attempt in stamina.retry_context(
                on=_retry_delay, attempts=_ATTEMPTS, wait_initial=0.2, wait_max=5.0, wait_jitter=0.3, timeout=None
            ):
                with attempt:
                    return call()
        except _RetryableError as error:
            raise error.error from None
        raise AssertionError  # pragma: no cover - the loop returns or raises

    def _error(self, method: str, path: str, response: httpx.Response) -> StudioError:
        status, what = response.status_code, f"{method} /{path.lstrip('/').partition('?')[0]}"
        detail = _detail(response)
        if status == 401:
            return self._authorization.unauthorized_error(status, detail)
        if response.is_redirect:
            location = urlunsplit((*urlsplit(response.headers.get("location", ""))[:3], "", ""))
            return StudioRefused(
                what,
                status,
                f"and redirects to {location}",
                fix="Set LABELLOOP_LABEL_STUDIO_URL to the URL that it redirects to.",
            )
        fix = next((fix for words, fix in _FIXES.items() if words in detail), "")
        return (StudioNotFound if status == 404 else StudioRefused)(what, status, detail, fix=fix)

    def _not_json(self, method: str, path: str) -> StudioUnreachable:
        what = f"{method} /{path.lstrip('/').partition('?')[0]}"
        return StudioUnreachable(url=self.url, reason=f"the response to {what} is not Label Studio's JSON")


def clean_url(url: str) -> str:
    """The base URL without user, query, fragment and trailing slash; a path prefix is kept.

    Raises:
        StudioUnreachable: It is not an http(s) URL.
    """
    parts = urlsplit(url.strip())
    host = parts.netloc.rpartition("@")[2]
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise StudioUnreachable(url=host or url[:100], reason="it is not an http:// or https:// URL")
    return urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))


def _port(url: httpx.URL) -> int:
    return url.port or {"http": 80, "https": 443}.get(url.scheme, 0)


def _query_value(value: str | float | bool | None) -> str:
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


def _reason(error: Exception) -> str:
    if isinstance(error, httpx.TimeoutException):
        return f"no answer in time ({type(error).__name__})"
    if "WRONG_VERSION_NUMBER" in str(error):
        return "its port speaks http, not https"
    return re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or type(error).__name__


def _is_transient(response: httpx.Response) -> bool:
    # Label Studio on SQLite responds 500 while another request writes.
    return response.status_code in _TRANSIENT or (
        response.status_code == 500 and b"database is locked" in response.content[:20_000]
    )


def _retry_after(response: httpx.Response) -> float | None:
    value = response.headers.get("retry-after", "")
    return min(float(value), _MAX_RETRY_AFTER_S) if re.fullmatch(r"\d{1,9}", value) else None


def _detail(response: httpx.Response) -> str:
    """Label Studio's message: `detail` and `validation_errors` of its JSON, or the title of an HTML page."""
    try:
        body = msgspec.json.decode(response.content)
    except msgspec.DecodeError:
        title = re.search(r"<title>([^<]{1,200})", response.text[:100_000])
        return f"(a web page: {title.group(1).strip()})" if title else response.text[:_DETAIL_CHARS].strip()
    if isinstance(body, dict):
        messages = [str(body[key]) for key in ("detail", "validation_errors", "error") if body.get(key)]
        return ": ".join(messages)[:_DETAIL_CHARS] or str(body)[:_DETAIL_CHARS]
    return str(body)[:_DETAIL_CHARS]


def _retry_delay(error: Exception) -> bool | float:
    if not isinstance(error, _RetryableError):
        return False
    return error.after_s or True
