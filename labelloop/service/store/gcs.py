"""`GcsBucket`: a bucket of Google Cloud Storage, with generation match as compare-and-swap.

Credentials are Google's Application Default Credentials; STORAGE_EMULATOR_HOST names an emulator. The etag is the
object's generation.
"""

import base64
import os
import re
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from labelloop.service.store.base import ObjectInfo
from labelloop.service.store.bucket import ABSENT
from labelloop.service.store.errors import (
    AccessDenied,
    ObjectChanged,
    ObjectNotFound,
    StoreError,
    StoreSilent,
    StoreUnreachable,
    missing_extra,
)

if TYPE_CHECKING:
    from google.cloud.storage import Blob, Client

Action = Literal["get", "create", "list", "delete"]

_CONNECTIONS = 32
_TIMEOUT_S = (10.0, 25.0)  # connect, read
_RETRY_S = 12.0
_REMEMBER_FAILURE_S = 60.0
_PART_BYTES = 16 << 20
_WRITER = "labelloop-writer"
_LISTED = "items(name,size,updated,md5Hash,etag,generation),nextPageToken"
_PERMISSION = re.compile(r"storage\.[a-z]+\.[A-Za-z]+")
_LOG_IN = (
    "Set GOOGLE_APPLICATION_CREDENTIALS to the JSON file of a service account, or run: gcloud auth"
    " application-default login"
)
_ROLE = "Grant it on the bucket; the role Storage Object User (roles/storage.objectUser) has all that labelloop needs."


def open_bucket(name: str, *, timeout_s: float = _TIMEOUT_S[1]) -> "GcsBucket":
    """Open a bucket without a request.

    Args:
        name: Its name.
        timeout_s: Seconds to wait for a response, and for each part of it.

    Raises:
        StoreError: google-cloud-storage is not installed.
    """
    try:
        import google.cloud.storage  # noqa: F401
    except ImportError:
        raise missing_extra(f"gs://{name}", "gcs") from None
    return GcsBucket(name, _Connection(timeout_s))


class _Connection:
    """A client that is made on first use; thread-safe."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout = (min(_TIMEOUT_S[0], timeout_s), timeout_s)
        self._lock = threading.Lock()
        self._client: Client | None = None
        self._failure: Exception | None = None
        self._failed_at = 0.0

    def client(self) -> "Client":
        """The client. Raises `DefaultCredentialsError`, whose search takes seconds, from memory for a minute."""
        from google.auth.exceptions import DefaultCredentialsError
        from google.cloud.storage import Client
        from requests.adapters import HTTPAdapter

        with self._lock:
            if self._failure is not None and time.monotonic() - self._failed_at < _REMEMBER_FAILURE_S:
                raise self._failure
            if self._client is None:
                try:
                    client = Client(project=os.environ.get("GOOGLE_CLOUD_PROJECT") or None)
                except DefaultCredentialsError as error:
                    self._failure, self._failed_at = error, time.monotonic()
                    raise
                adapter = HTTPAdapter(pool_maxsize=_CONNECTIONS)
                for scheme in ("https://", "http://"):
                    client._http.mount(scheme, adapter)  # noqa: SLF001 - its pool of 10 is smaller than our threads
                client._bucket_metadata_cache = None  # noqa: SLF001 - a request for traces, which needs one more right
                self._client = client
            return self._client

    def options(self) -> dict[str, Any]:
        """The timeout and retries of a request. Every request of ours may be repeated."""
        from google.cloud.storage.retry import DEFAULT_RETRY

        retry = DEFAULT_RETRY.with_delay(initial=0.2, maximum=4.0, multiplier=2.0).with_timeout(_RETRY_S)
        return {"timeout": self.timeout, "retry": retry}


class GcsBucket:
    """See `Bucket`."""

    def __init__(self, name: str, connection: _Connection) -> None:
        self._name = name
        self._connection = connection

    @property
    def url(self) -> str:
        """`gs://bucket`."""
        return f"gs://{self._name}"

    def write(self, name: str, data: bytes | Path, *, content_type: str, match: str | None = None) -> str:
        """See `Bucket.write`. A file of more than 8 MB is sent in parts."""
        writer = uuid.uuid4().hex
        with self._errors(name, "create"):
            blob = self._blob(name)
            options = self._connection.options()
            if match is not None:
                blob.metadata = {_WRITER: writer}
                options["if_generation_match"] = _generation(match)
            try:
                if isinstance(data, Path):
                    blob.chunk_size = _PART_BYTES
                    blob.upload_from_filename(str(data), content_type=content_type, **options)
                else:
                    blob.upload_from_string(data, content_type=content_type, **options)
            except Exception as error:
                # A repeated request may be refused because of its own first try, whose response was lost.
                if match is None or getattr(error, "code", 0) != 412 or not self._is_by(blob, writer):
                    raise
            return str(blob.generation)

    def read(self, name: str) -> tuple[bytes, str]:
        """See `Bucket.read`."""
        with self._errors(name, "get"):
            blob = self._blob(name)
            data = blob.download_as_bytes(**self._connection.options())
            return data, str(blob.generation)

    def start(self, name: str, size: int) -> bytes:
        """See `Bucket.start`."""
        from google.api_core.exceptions import RequestRangeNotSatisfiable

        with self._errors(name, "get"):
            try:  # the last byte of a range is part of it
                data = self._blob(name).download_as_bytes(end=max(size, 1) - 1, **self._connection.options())
                return bytes(data[:size])
            except RequestRangeNotSatisfiable:  # the object is empty
                return b""

    def download(self, name: str, into: BinaryIO) -> None:
        """See `Bucket.download`. The checksum is verified."""
        with self._errors(name, "get"):
            self._blob(name).download_to_file(into, **self._connection.options())

    def head(self, name: str) -> ObjectInfo | None:
        """See `Bucket.head`."""
        try:
            with self._errors(name, "get"):
                blob = self._blob(name)
                blob.reload(**self._connection.options())
                return _info(blob)
        except ObjectNotFound:
            return None

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `Bucket.list`. 1,000 objects a request."""
        with self._errors(prefix, "list"):
            client = self._connection.client()
            for blob in client.list_blobs(self._name, prefix=prefix, fields=_LISTED, **self._connection.options()):
                yield _info(blob)

    def copy(self, name: str, to: str, *, bucket: str = "", state: ObjectInfo | None = None) -> ObjectInfo:
        """See `Bucket.copy`. Of any size, also from another bucket."""
        with self._errors(name, "get"):
            origin = self._connection.client().bucket(bucket.removeprefix("gs://") or self._name).blob(name)
            target = self._blob(to)
            options = self._connection.options()
            if state is not None:
                options["if_source_generation_match"] = int(state.etag)
            token = None
            while True:
                token, _, _ = target.rewrite(origin, token=token, **options)
                if token is None:
                    return _info(target)

    def sibling(self, url: str) -> "GcsBucket | None":
        """See `Bucket.sibling`."""
        scheme, _, name = url.partition("://")
        return GcsBucket(name, self._connection) if scheme == "gs" and name else None

    def delete(self, name: str) -> None:
        """See `Bucket.delete`."""
        try:
            with self._errors(name, "delete"):
                self._blob(name).delete(**self._connection.options())
        except ObjectNotFound:
            return

    def sign(self, name: str, seconds: int) -> str:
        """See `Bucket.sign`. Without a request where the credentials have a private key; else Google's IAM signs."""
        import google.auth
        from google.auth.credentials import Signing
        from google.auth.transport.requests import Request

        with self._errors(name, "get"):
            credentials, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
            options: dict[str, Any] = {"credentials": credentials}
            if not isinstance(credentials, Signing):
                email = str(getattr(credentials, "service_account_email", ""))
                if "@" not in email:
                    raise StoreError(
                        self.url,
                        name,
                        "it cannot be signed: these credentials are of no service account",
                        fix="Set GOOGLE_APPLICATION_CREDENTIALS to the JSON file of a service account.",
                    )
                credentials.refresh(Request())  # type: ignore[no-untyped-call]
                options = {"service_account_email": email, "access_token": credentials.token}
            lasts = timedelta(seconds=seconds)
            blob = self._blob(name)
            return str(
                blob.generate_signed_url(version="v4", expiration=lasts, api_access_endpoint=_emulator(), **options)
            )

    def _blob(self, name: str) -> "Blob":
        return self._connection.client().bucket(self._name).blob(name)

    def _is_by(self, blob: "Blob", writer: str) -> bool:
        """Whether an object is there as a writer wrote it."""
        from google.api_core.exceptions import NotFound

        try:
            blob.reload(**self._connection.options())
        except NotFound:
            return False
        return (blob.metadata or {}).get(_WRITER) == writer

    @contextmanager
    def _errors(self, name: str, action: Action) -> Iterator[None]:
        """Raise errors of the block as `StoreError`."""
        from google.api_core.exceptions import GoogleAPIError
        from google.auth.exceptions import GoogleAuthError
        from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
        from requests.exceptions import RequestException

        try:
            yield
        except (GoogleAPIError, GoogleAuthError, RequestException, InvalidResponse, DataCorruption) as error:
            raise _store_error(self.url, name, action, error) from None


def _info(blob: "Blob") -> ObjectInfo:
    """The tag is the MD5 in hexadecimal, like that of S3; composite objects have none."""
    tag = base64.b64decode(blob.md5_hash).hex() if blob.md5_hash else str(blob.etag)
    modified = blob.updated.timestamp() if blob.updated else 0.0
    return ObjectInfo(str(blob.name), int(blob.size or 0), modified, tag, str(blob.generation))


def _generation(match: str) -> int:
    """The generation that a write must find: 0, no object; 1, which no object has, for an etag that is none."""
    return int(match) if match.isdecimal() else int(match != ABSENT)


def _emulator() -> str | None:
    return os.environ.get("STORAGE_EMULATOR_HOST") or None


def _store_error(url: str, name: str, action: Action, error: Exception) -> StoreError:
    """The error with its fix."""
    from google.api_core.exceptions import RetryError
    from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
    from google.cloud.storage.exceptions import DataCorruption
    from requests.exceptions import RequestException

    cause = error.cause if isinstance(error, RetryError) else None
    if isinstance(cause, Exception):
        return _store_error(url, name, action, cause)
    if isinstance(error, DefaultCredentialsError):
        return StoreUnreachable(url, name, "no credentials were found", fix=_LOG_IN)
    if isinstance(error, GoogleAuthError):
        return StoreUnreachable(url, name, f"the credentials are refused ({_text(error)})", fix=_LOG_IN)
    if isinstance(error, RequestException):
        host = _emulator() or "storage.googleapis.com"
        return StoreSilent(
            url,
            name,
            f"{host} does not answer ({type(error).__name__})",
            fix="Check the network, and STORAGE_EMULATOR_HOST if it is set.",
        )
    if isinstance(error, DataCorruption):
        return StoreError(url, name, "its content does not match its checksum", fix="Run it again.")
    return _status_error(url, name, action, error)


def _status_error(url: str, name: str, action: Action, error: Exception) -> StoreError:
    """The error for an answer of the server."""
    status = int(getattr(error, "code", 0) or getattr(getattr(error, "response", None), "status_code", 0) or 0)
    text = _text(error)
    if status == 412:
        return ObjectChanged(url, name)
    if status == 404 and (action in {"create", "list"} or "bucket does not exist" in text):
        fix = "Create the bucket, or correct its name in the address (LABELLOOP_STORE_URL by default)."
        return StoreUnreachable(url, name, "the bucket does not exist", fix=fix)
    if status == 404:
        return ObjectNotFound(url, name)
    if status == 401:
        return StoreUnreachable(url, name, f"the credentials are refused ({text})", fix=_LOG_IN)
    if status == 403:
        stated = _PERMISSION.search(text)
        return AccessDenied(url, name, stated[0] if stated else f"storage.objects.{action}", detail=text, fix=_ROLE)
    fix = "The server failed several times in a row: try again later." if status >= 500 or status == 429 else ""
    return StoreError(url, name, f"the server answered {status}: {text}", fix=fix)


def _text(error: Exception) -> str:
    """What the server said, without addresses, which may have upload tokens."""
    errors = getattr(error, "errors", None) or [{}]
    stated = errors[0].get("message", "") if isinstance(errors[0], dict) else ""
    text = stated or str(getattr(error, "message", "") or error)
    return " ".join(re.sub(r"https?://\S+", "", text).split())[:200].strip(" :.")
