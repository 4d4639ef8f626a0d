"""One image over HTTP: our token to Label Studio alone, hop by hop; limits on bytes and time while it streams."""

import re
import time
import weakref
from collections.abc import Iterable
from typing import BinaryIO
from urllib.parse import urlsplit

import httpx
import stamina

from labelloop.service.media.errors import (
    HostRefused,
    MediaError,
    MediaMissing,
    MediaTooLarge,
    MediaUnreachable,
    NoAnswer,
)
from labelloop.service.media.ssrf_guard import AddressForbidden, GuardedTransport
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio, StudioError, StudioUnreachable

_HOPS = 5
_CHUNK = 1 << 16
_ATTEMPTS = 3
_MEDIA_PATHS = re.compile(
    r"/(?:data/(?:upload|local-files|avatars)/|storage-data/uploaded/|static/|"
    r"(?:api/)?(?:tasks|projects)/\d+/(?:resolve|presign)/)"
)
"""Where Label Studio serves media. Nothing else of it is asked with our token, whatever a task's data says."""


_STUDIO_SAYS = (  # status, part of the path, part of the answer -> what it means, and the fix
    (
        401,
        "",
        "",
        "Label Studio does not accept our token",
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
        "Label Studio finds no such file in a Local Files storage of its projects",
        "Give the project a Local Files storage on its folder, or set LABELLOOP_LOCAL_FILES_ROOT.",
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
        "the bucket does not give it to Label Studio",
        "Check the key and the storage's credentials.",
    ),
)


class _Again(Exception):
    def __init__(self, error: MediaUnreachable) -> None:
        super().__init__(error.reason)
        self.error = error


class Downloader:
    """Fetches images by http(s). Thread-safe; connections are pooled by host.

    Args:
        settings: Limits and allowed hosts.
        studio: Who may be sent the token; None: nobody.
    """

    def __init__(self, settings: Settings, studio: Studio | None) -> None:
        self._settings = settings
        self._studio = studio
        self._transport = GuardedTransport(_trusted(settings, studio), allow_private=settings.media_allow_private_hosts)
        # Label Studio answers 406 to a bare image/* where it wants to answer with JSON.
        headers = {"Accept": "image/*,*/*;q=0.1", "Accept-Encoding": "identity"}
        self._http = httpx.Client(transport=self._transport, trust_env=False, headers=headers)
        weakref.finalize(self, self._http.close)  # connections end with their owner, without a warning

    def close(self) -> None:
        """Closes the pooled connections."""
        self._http.close()

    def fetch(self, url: str, into: BinaryIO) -> None:
        """Writes the bytes behind an absolute address into a file.

        Raises:
            MediaError: One of the family; what was written so far is worth nothing.
        """
        deadline = time.monotonic() + self._settings.media_timeout_s
        self._transport.end_by(deadline)
        try:
            for attempt in stamina.retry_context(
                on=_Again, attempts=_ATTEMPTS, wait_initial=0.2, wait_max=2.0, wait_jitter=0.2, timeout=None
            ):
                with attempt:
                    into.seek(0)
                    into.truncate()
                    self._once(url, into, deadline)
        except _Again as again:
            raise again.error from None

    def _once(self, url: str, into: BinaryIO, deadline: float) -> None:
        here = url
        for _ in range(_HOPS):
            try:
                step = self._hop(url, here, into, deadline)
            except AddressForbidden as error:
                raise HostRefused(
                    url,
                    str(error),
                    fix=f"If it is meant, add {error.host} to LABELLOOP_MEDIA_HOSTS.",
                ) from None
            except (httpx.InvalidURL, httpx.UnsupportedProtocol, ValueError) as error:
                raise HostRefused(url, f"not an address that can be read ({error})") from None
            except httpx.TransportError as error:
                reason = "not there in time" if isinstance(error, httpx.TimeoutException) else str(error)
                silent = isinstance(error, (httpx.TimeoutException, httpx.ConnectError))
                kind = NoAnswer if silent else MediaUnreachable
                raise self._passing(kind, url, reason or type(error).__name__, deadline) from None
            except httpx.HTTPError as error:
                raise MediaUnreachable(url, str(error)) from None
            if step is None:
                return
            here = step
        raise MediaUnreachable(url, f"more than {_HOPS} redirects")

    def _hop(self, url: str, here: str, into: BinaryIO, deadline: float) -> str | None:
        """One request; the address it sends us on to, or None when the bytes are there."""
        if urlsplit(here).scheme not in {"http", "https"}:
            raise HostRefused(url, "it leads to something else than http or https")
        token = self._token(url, here)
        with self._http.stream("GET", here, headers=token, timeout=self._timeout(deadline)) as response:
            if response.status_code != 401 or not token:
                return self._take(url, response, into, deadline)
        token = self._token(url, here, refused=token["Authorization"])
        with self._http.stream("GET", here, headers=token, timeout=self._timeout(deadline)) as response:
            return self._take(url, response, into, deadline)

    def _token(self, url: str, here: str, refused: str | None = None) -> dict[str, str]:
        studio = self._studio
        if studio is None or not studio.owns(here):
            return {}
        below = httpx.URL(here).path[len(urlsplit(studio.url).path) :]
        if not _MEDIA_PATHS.match(below):
            return {}
        try:
            return {"Authorization": studio.authorization(refused=refused)}
        except StudioError as error:
            kind = NoAnswer if isinstance(error, StudioUnreachable) else MediaUnreachable
            raise kind(url, error.message.rstrip("."), fix=error.fix) from None

    def _take(self, url: str, response: httpx.Response, into: BinaryIO, deadline: float) -> str | None:
        if response.is_redirect:
            return str(response.request.url.join(response.headers["location"]))
        if not response.is_success:
            raise self._refusal(url, response, deadline)
        limit = self._settings.media_max_bytes
        if int(response.headers.get("content-length") or 0) > limit:
            raise too_many_bytes(url, limit)
        copy_limited(response.iter_bytes(_CHUNK), into, url, limit, deadline)
        return None

    def _refusal(self, url: str, response: httpx.Response, deadline: float) -> MediaError | _Again:
        status, address = response.status_code, response.request.url
        if self._studio is not None and self._studio.owns(str(address)):
            text = response.read()[:2000].decode(errors="replace")
            for answer, path, words, reason, fix in _STUDIO_SAYS:
                if status == answer and path in address.path and words in text:
                    return MediaMissing(url, reason, fix=fix)
        if status == 429 or status >= 500:
            return self._passing(MediaUnreachable, url, f"the host answered {status}", deadline)
        if status in {401, 403}:
            return MediaMissing(url, f"the host does not let us read it ({status})")
        return MediaMissing(url, f"the host answered {status}")

    @staticmethod
    def _passing(kind: type[MediaUnreachable], url: str, reason: str, deadline: float) -> MediaUnreachable | _Again:
        error = kind(url, reason, fix="Check that the host answers from this machine.")
        return error if time.monotonic() + 0.5 > deadline else _Again(error)

    def _timeout(self, deadline: float) -> httpx.Timeout:
        left = max(0.01, deadline - time.monotonic())
        return httpx.Timeout(left, connect=min(left, 5.0), read=min(left, 15.0))


def copy_limited(chunks: Iterable[bytes], into: BinaryIO, url: str, limit: int, deadline: float) -> None:
    """Writes the chunks, never more than `limit` bytes nor longer than the deadline.

    Raises:
        MediaTooLarge, MediaUnreachable
    """
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > limit:
            raise too_many_bytes(url, limit)
        into.write(chunk)
        if time.monotonic() > deadline:
            raise MediaUnreachable(url, "not there in time", fix="Raise LABELLOOP_MEDIA_TIMEOUT_S.")


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
