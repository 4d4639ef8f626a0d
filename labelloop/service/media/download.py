"""Download one image over HTTP with limits on size and time; the token goes to Label Studio only, on each redirect."""

import contextlib
import re
import time
import weakref
from collections.abc import Iterable
from typing import BinaryIO
from urllib.parse import urlsplit

import httpx
import stamina

from labelloop.service.media.errors import (
    MediaError,
    MediaHostRefused,
    MediaHostSilent,
    MediaMissing,
    MediaTooLarge,
    MediaUnreachable,
)
from labelloop.service.media.ssrf_guard import AddressForbidden, GuardedTransport
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio, StudioError, StudioUnreachable

_HOPS = 5
_CHUNK = 1 << 16
_ATTEMPTS = 3
# Paths where Label Studio serves media. The token is not sent to other paths, whatever a task's data contains.
_MEDIA_PATHS = re.compile(
    r"/(?:data/(?:upload|local-files|avatars)/|storage-data/uploaded/|static/|"
    r"(?:api/)?(?:tasks|projects)/\d+/(?:resolve|presign)/)"
)


_STUDIO_REASONS = (  # (status, part of the path, part of the response, reason, fix)
    (
        401,
        "",
        "",
        "Label Studio rejects the token",
        "Set LABELLOOP_LABEL_STUDIO_API_KEY to one of Account & Settings > Personal Access Token.",
    ),
    (500, "/data/upload/", "has_permission", "Label Studio has no such upload", "Import the image again."),
    (404, "/data/upload/", "", "Label Studio has no such upload", "Import the image again."),
    (
        403,
        "/data/local-files/",
        "disabled by default",
        "Label Studio does not serve local files",
        "Start it with LOCAL_FILES_SERVING_ENABLED=true, or set LABELLOOP_LOCAL_FILES_ROOT.",
    ),
    (
        404,
        "/data/local-files/",
        "",
        "no Local Files storage of a Label Studio project has this file",
        "Add a Local Files storage with its folder to the project, or set LABELLOOP_LOCAL_FILES_ROOT.",
    ),
    (
        404,
        "/resolve/",
        "",
        "Label Studio cannot resolve it: no storage of the task's project matches, or its credentials fail",
        "Add the bucket to the project (Settings > Cloud Storage).",
    ),
    (
        424,
        "/resolve/",
        "",
        "Label Studio cannot read it from the bucket",
        "Check the key and the storage's credentials.",
    ),
)


class _Retry(Exception):
    def __init__(self, error: MediaUnreachable) -> None:
        super().__init__(error.reason)
        self.error = error


class Downloader:
    """Downloads images over HTTP(S). Thread-safe; connections are pooled by host.

    Args:
        settings: Limits and allowed hosts.
        studio: The only server that the token is sent to; None: no token is sent.
    """

    def __init__(self, settings: Settings, studio: Studio | None) -> None:
        self._settings = settings
        self._studio = studio
        self._transport = GuardedTransport(_trusted(settings, studio), allow_private=settings.media_allow_private_hosts)
        # Label Studio answers 406 to `image/*` alone if its response would be JSON.
        headers = {"Accept": "image/*,*/*;q=0.1", "Accept-Encoding": "identity"}
        self._http = httpx.Client(transport=self._transport, trust_env=False, headers=headers)
        weakref.finalize(self, self._http.close)  # closes connections with their owner, without a ResourceWarning

    def close(self) -> None:
        """Close the pooled connections."""
        self._http.close()

    def fetch(self, url: str, into: BinaryIO) -> None:
        """Download an absolute address into a file.

        Raises:
            MediaError: The download failed; the file has partial content.
        """
        deadline = time.monotonic() + self._settings.media_timeout_s
        self._transport.end_by(deadline)
        try:
            for attempt in stamina.retry_context(
                on=_Retry, attempts=_ATTEMPTS, wait_initial=0.2, wait_max=2.0, wait_jitter=0.2, timeout=None
            ):
                with attempt:
                    into.seek(0)
                    into.truncate()
                    self._attempt(url, into, deadline)
        except _Retry as retry:
            raise retry.error from None

    def _attempt(self, url: str, into: BinaryIO, deadline: float) -> None:
        current = url
        for _ in range(_HOPS):
            try:
                redirect = self._hop(url, current, into, deadline)
            except AddressForbidden as error:
                raise MediaHostRefused(
                    url,
                    str(error),
                    fix=f"If it is intended, add {error.host} to LABELLOOP_MEDIA_HOSTS.",
                ) from None
            except (httpx.InvalidURL, httpx.UnsupportedProtocol, ValueError) as error:
                raise MediaHostRefused(url, f"the address is invalid ({error})") from None
            except httpx.TransportError as error:
                reason = "timed out" if isinstance(error, httpx.TimeoutException) else str(error)
                silent = isinstance(error, (httpx.TimeoutException, httpx.ConnectError))
                kind = MediaHostSilent if silent else MediaUnreachable
                raise self._transient(kind, url, reason or type(error).__name__, deadline) from None
            except httpx.HTTPError as error:
                raise MediaUnreachable(url, str(error)) from None
            if redirect is None:
                return
            current = redirect
        raise MediaUnreachable(url, f"more than {_HOPS} redirects")

    def _hop(self, url: str, current: str, into: BinaryIO, deadline: float) -> str | None:
        """Send one request; return the redirect address, or None after the download."""
        if urlsplit(current).scheme not in {"http", "https"}:
            raise MediaHostRefused(url, "it redirects to a scheme other than http or https")
        token = self._token(url, current)
        with self._stream(current, token, deadline) as response:
            if response.status_code != 401 or not token:
                return self._save(url, response, into, deadline)
        token = self._token(url, current, refused=token["Authorization"])
        with self._stream(current, token, deadline) as response:
            return self._save(url, response, into, deadline)

    def _stream(
        self, address: str, token: dict[str, str], deadline: float
    ) -> contextlib.AbstractContextManager[httpx.Response]:
        """Send one request; one to Label Studio over HTTP ends its connection, see `StudioClient`."""
        studio = self._studio
        ends = studio is not None and studio.url.startswith("http:") and studio.owns(address)
        headers = {**token, **({"Connection": "close"} if ends else {})}
        return self._http.stream("GET", address, headers=headers, timeout=self._timeout(deadline))

    def _token(self, url: str, current: str, refused: str | None = None) -> dict[str, str]:
        studio = self._studio
        if studio is None or not studio.owns(current):
            return {}
        path = httpx.URL(current).path[len(urlsplit(studio.url).path) :]
        if not _MEDIA_PATHS.match(path):
            return {}
        try:
            return {"Authorization": studio.authorization(refused=refused)}
        except StudioError as error:
            kind = MediaHostSilent if isinstance(error, StudioUnreachable) else MediaUnreachable
            raise kind(url, error.message.rstrip("."), fix=error.fix) from None

    def _save(self, url: str, response: httpx.Response, into: BinaryIO, deadline: float) -> str | None:
        if response.is_redirect:
            return str(response.request.url.join(response.headers["location"]))
        if not response.is_success:
            raise self._refusal(url, response, deadline)
        limit = self._settings.media_max_bytes
        if int(response.headers.get("content-length") or 0) > limit:
            raise too_many_bytes(url, limit)
        copy_limited(response.iter_bytes(_CHUNK), into, url, limit, deadline)
        return None

    def _refusal(self, url: str, response: httpx.Response, deadline: float) -> MediaError | _Retry:
        status, address = response.status_code, response.request.url
        if self._studio is not None and self._studio.owns(str(address)):
            text = response.read()[:2000].decode(errors="replace")
            for code, path, words, reason, fix in _STUDIO_REASONS:
                if status == code and path in address.path and words in text:
                    return MediaMissing(url, reason, fix=fix)
        if status == 429 or status >= 500:
            return self._transient(MediaUnreachable, url, f"the host answered {status}", deadline)
        if status in {401, 403}:
            return MediaMissing(url, f"the host denies access ({status})")
        return MediaMissing(url, f"the host answered {status}")

    @staticmethod
    def _transient(kind: type[MediaUnreachable], url: str, reason: str, deadline: float) -> MediaUnreachable | _Retry:
        error = kind(url, reason, fix="Check that the host is reachable from this machine.")
        return error if time.monotonic() + 0.5 > deadline else _Retry(error)

    def _timeout(self, deadline: float) -> httpx.Timeout:
        remaining = max(0.01, deadline - time.monotonic())
        return httpx.Timeout(remaining, connect=min(remaining, 5.0), read=min(remaining, 15.0))


def copy_limited(chunks: Iterable[bytes], into: BinaryIO, url: str, limit: int, deadline: float) -> None:
    """Write chunks to a file.

    Raises:
        MediaTooLarge: More than `limit` bytes.
        MediaUnreachable: The deadline (`time.monotonic`) has passed.
    """
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > limit:
            raise too_many_bytes(url, limit)
        into.write(chunk)
        if time.monotonic() > deadline:
            raise MediaUnreachable(url, "timed out", fix="Raise LABELLOOP_MEDIA_TIMEOUT_S.")


def too_many_bytes(url: str, limit: int) -> MediaTooLarge:
    """The error for a file of more than `limit` bytes."""
    return MediaTooLarge(url, f"more than {limit:,} bytes", fix="Make it smaller, or raise LABELLOOP_MEDIA_MAX_BYTES.")


def _trusted(settings: Settings, studio: Studio | None) -> frozenset[str]:
    servers = [studio.url if studio else "", settings.s3_endpoint_url]
    named = {httpx.URL(server) for server in servers if server}
    ports = {"http": 80, "https": 443}
    return frozenset(
        {f"{url.raw_host.decode()}:{url.port or ports.get(url.scheme)}" for url in named}
        | {host.strip().lower() for host in settings.media_hosts}
    )
