"""The one connection to Label Studio: JSON calls, retries on what is safe, errors in plain words."""

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

from labelloop.service.studio.auth import Tokens
from labelloop.service.studio.errors import NotFound, StudioError, StudioRefused, StudioUnreachable

Params = Mapping[str, str | int | float | bool | None]
_T = TypeVar("_T")

_REPEATABLE = frozenset({"GET", "HEAD", "PUT", "PATCH", "DELETE"})  # sent twice, they leave things as sent once
_PASSING = frozenset({502, 503, 504})
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_ATTEMPTS = 4
_DETAIL = 500
_LONGEST_WAIT_S = 30.0

_FIXES = {  # what Label Studio says: what to do
    "resolves to a reserved network address": (
        "Label Studio forbids private addresses. Start it with USE_DEFAULT_BANNED_SUBNETS=false and "
        "USER_ADDITIONAL_BANNED_SUBNETS=169.254.0.0/16: your network opens, the metadata address stays closed."
    ),
    "Enter a valid URL": (
        "Label Studio takes no host of a single word here: use localhost, an IP address or a name with a dot."
    ),
    "Can't resolve hostname": "Use a host name or an address that Label Studio's machine can reach.",
    "health check failed": ("Start the ML backend, and give the address at which Label Studio's machine reaches it."),
    "authentication parameters were either not provided": "Give the backend's user and password.",
}


class _Again(Exception):
    """The next try may succeed; `error` is what to raise if it does not, `after_s` what the server asked us to wait."""

    def __init__(self, error: StudioError, after_s: float | None = None) -> None:
        super().__init__(type(error).__name__)
        self.error = error
        self.after_s = after_s


class StudioClient:
    """Speaks JSON with one Label Studio as one user. Thread-safe; connections are pooled."""

    def __init__(self, url: str, api_key: str, *, timeout_s: float = 30.0) -> None:
        self.url = clean_url(url)
        self._http = httpx.Client(timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, 10.0)))
        weakref.finalize(self, self._http.close)  # connections end with their owner, without a warning
        self._api_key = api_key.strip()
        self._tokens = Tokens(self.url, self._api_key, self._http)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    @property
    def fingerprint(self) -> str:
        """Tells this Label Studio and token from others without telling the token: caches keep files apart by it."""
        return hashlib.sha256(f"{self.url} {self._api_key}".encode()).hexdigest()

    def close(self) -> None:
        """Closes the pooled connections."""
        self._http.close()

    def owns(self, url: str) -> bool:
        """Whether an absolute address is Label Studio's own: its scheme, host and port, under its path prefix.

        Only such an address may be sent our token. A wrong or doubtful one is not ours.
        """
        try:
            ours, theirs = httpx.URL(self.url), httpx.URL(url)
        except httpx.InvalidURL:
            return False
        if (ours.scheme, ours.host, _port(ours)) != (theirs.scheme, theirs.host, _port(theirs)) or theirs.userinfo:
            return False
        return f"{theirs.path}/".startswith(f"{ours.path.rstrip('/')}/") and "/../" not in f"{theirs.path}/"

    def authorization(self, *, refused: str | None = None) -> str:
        """The `Authorization` header's value now, exchanged first where needed; for downloads made elsewhere.

        Args:
            refused: A value that Label Studio answered with 401: it is replaced where the token allows it.

        Raises:
            StudioUnauthorized, StudioUnreachable, StudioRefused
        """
        return self._retried(lambda: self._header(refused))

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        json: Any = None,
        files: Any = None,
        retry: bool | None = None,
        timeout_s: float | None = None,
    ) -> Any:
        """One call; the answer's JSON, or None where the answer has no body.

        Args:
            method: HTTP method.
            path: Path below Label Studio's address, with or without a leading slash.
            params: Query; None values are left out, booleans become `true` and `false`.
            json: Body.
            files: Multipart form instead of a JSON body, as httpx takes it.
            retry: Whether sending it twice does no harm. None: true of GET, PUT, PATCH and DELETE, not of POST.
                What never left this machine (connection refused) is sent again in any case.
            timeout_s: Longest wait for an answer, where it is not the client's own.

        Raises:
            StudioUnreachable, StudioUnauthorized, NotFound, StudioRefused
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
        params: Params | None = None,
        json: Any = None,
        files: Any = None,
        retry: bool | None = None,
        timeout_s: float | None = None,
    ) -> bytes:
        """As `request`, with the answer's body as it came."""
        repeatable = method in _REPEATABLE if retry is None else retry
        query = {name: _text(value) for name, value in (params or {}).items() if value is not None}
        address = f"{self.url}/{path.lstrip('/')}"
        timeout = self._http.timeout if timeout_s is None else httpx.Timeout(timeout_s, connect=10.0)
        tries = 0

        def once() -> bytes:
            nonlocal tries
            tries += 1
            response = self._send(method, address, repeatable, params=query, json=json, files=files, timeout=timeout)
            if response.is_success:
                return response.content
            if response.status_code == 404 and method == "DELETE" and tries > 1:
                return b""  # the first try was carried out, only its answer was lost
            error = self._error(method, path, response)
            if response.status_code == 429 or (repeatable and _may_pass(response)):
                raise _Again(error, _retry_after(response))
            raise error

        return self._retried(once)

    def download(
        self,
        path: str,
        to: Path,
        *,
        params: Params | None = None,
        timeout_s: float | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> None:
        """GETs an answer of any size into a file, which is replaced when the whole answer is there.

        Args:
            path: Path below Label Studio's address.
            to: The file.
            params: As in `request`.
            timeout_s: Longest silence.
            progress: Told the bytes so far.

        Raises:
            StudioUnreachable, StudioUnauthorized, NotFound, StudioRefused
        """
        query = {name: _text(value) for name, value in (params or {}).items() if value is not None}
        address = f"{self.url}/{path.lstrip('/')}"
        timeout = self._http.timeout if timeout_s is None else httpx.Timeout(timeout_s, connect=10.0)
        part = to.with_name(f"{to.name}.part")

        def once() -> None:
            header = self._header()
            try:
                headers = {"Authorization": header}
                with self._http.stream("GET", address, headers=headers, params=query, timeout=timeout) as answer:
                    if answer.status_code == 401 and self._tokens.renewable:
                        self._header(header)  # the next try goes with a fresh one
                        raise _Again(self._tokens.explain(401, ""))
                    if not answer.is_success:
                        answer.read()
                        error = self._error("GET", path, answer)
                        if answer.status_code == 429 or _may_pass(answer):
                            raise _Again(error, _retry_after(answer))
                        raise error
                    with part.open("wb") as file:
                        for chunk in answer.iter_bytes(1 << 20):
                            file.write(chunk)
                            if progress:
                                progress(file.tell())
            except httpx.TransportError as error:
                raise _Again(StudioUnreachable(self.url, _reason(error))) from None
            part.replace(to)

        try:
            self._retried(once)
        finally:
            part.unlink(missing_ok=True)

    def _send(self, method: str, address: str, repeatable: bool, **kwargs: Any) -> httpx.Response:
        header = self._header()
        try:
            response = self._http.request(method, address, headers={"Authorization": header}, **kwargs)
            if response.status_code == 401 and self._tokens.renewable:
                # The access token ran out on the way, or a clock is wrong. Nothing was done: any method may go again.
                header = self._header(header)
                response = self._http.request(method, address, headers={"Authorization": header}, **kwargs)
        except httpx.TransportError as error:
            plain = StudioUnreachable(self.url, _reason(error))
            if repeatable or isinstance(error, _NEVER_SENT):
                raise _Again(plain) from None
            raise plain from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise StudioUnreachable(self.url, _reason(error)) from None
        return response

    def _header(self, refused: str | None = None) -> str:
        try:
            return self._tokens.header(refused=refused)
        except httpx.TransportError as error:  # an exchange may always be repeated
            raise _Again(StudioUnreachable(self.url, _reason(error))) from None

    def _retried(self, call: Callable[[], _T]) -> _T:
        try:
            for attempt in stamina.retry_context(
                on=_wait, attempts=_ATTEMPTS, wait_initial=0.2, wait_max=5.0, wait_jitter=0.3, timeout=None
            ):
                with attempt:
                    return call()
        except _Again as again:
            raise again.error from None
        raise AssertionError  # pragma: no cover - the loop returns or raises

    def _error(self, method: str, path: str, response: httpx.Response) -> StudioError:
        status, what = response.status_code, f"{method} /{path.lstrip('/').partition('?')[0]}"
        detail = _detail(response)
        if status == 401:
            return self._tokens.explain(status, detail)
        if response.is_redirect:
            to = urlunsplit((*urlsplit(response.headers.get("location", ""))[:3], "", ""))
            return StudioRefused(
                what, status, f"and sends us to {to}", fix="Set LABELLOOP_LABEL_STUDIO_URL to the address it sends to."
            )
        fix = next((fix for words, fix in _FIXES.items() if words in detail), "")
        return (NotFound if status == 404 else StudioRefused)(what, status, detail, fix=fix)

    def _not_json(self, method: str, path: str) -> StudioUnreachable:
        what = f"{method} /{path.lstrip('/').partition('?')[0]}"
        return StudioUnreachable(self.url, f"{what} was answered with something else than Label Studio's JSON")


def clean_url(url: str) -> str:
    """The base address without user, query, fragment and trailing slash; a path prefix is kept.

    Raises:
        StudioUnreachable: It is not an http(s) address.
    """
    parts = urlsplit(url.strip())
    host = parts.netloc.rpartition("@")[2]
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise StudioUnreachable(host or url[:100], "that is not an http:// or https:// address")
    return urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))


def _port(url: httpx.URL) -> int:
    return url.port or {"http": 80, "https": 443}.get(url.scheme, 0)


def _text(value: str | float | bool | None) -> str:
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


def _reason(error: Exception) -> str:
    if isinstance(error, httpx.TimeoutException):
        return f"no answer in time ({type(error).__name__})"
    return str(error) or type(error).__name__


def _may_pass(response: httpx.Response) -> bool:
    # Label Studio on SQLite answers 500 while another request writes.
    return response.status_code in _PASSING or (
        response.status_code == 500 and b"database is locked" in response.content[:20_000]
    )


def _retry_after(response: httpx.Response) -> float | None:
    value = response.headers.get("retry-after", "")
    return min(float(value), _LONGEST_WAIT_S) if re.fullmatch(r"\d{1,9}", value) else None


def _detail(response: httpx.Response) -> str:
    """Label Studio's own words: `detail` and `validation_errors` of its JSON; of an HTML page only its title."""
    try:
        body = msgspec.json.decode(response.content)
    except msgspec.DecodeError:
        title = re.search(r"<title>([^<]{1,200})", response.text[:100_000])
        return f"(a web page: {title.group(1).strip()})" if title else response.text[:_DETAIL].strip()
    if isinstance(body, dict):
        words = [str(body[key]) for key in ("detail", "validation_errors", "error") if body.get(key)]
        return ": ".join(words)[:_DETAIL] or str(body)[:_DETAIL]
    return str(body)[:_DETAIL]


def _wait(error: Exception) -> bool | float:
    if not isinstance(error, _Again):
        return False
    return error.after_s or True
