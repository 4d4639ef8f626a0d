"""`AzureBucket`: a container of Azure Blob Storage, with ETags as compare-and-swap; the client is obstore."""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from io import BytesIO
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, BinaryIO, Literal
from urllib.parse import quote
from uuid import uuid4

from labelloop.service.store.azure_account import CREDENTIALS_FIX, AzureAccount
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
    from obstore import GetOptions, ObjectMeta
    from obstore.store import AzureStore

Action = Literal["read", "write", "list", "delete"]

_TIMEOUT_S = 30.0
_RETRIES, _RETRY_S = 6, 15.0
_PART_BYTES = 8 << 20
_CONCURRENT_PARTS = 4
_LISTED = 1000
_COPY_S = 60.0
_WRITER = "labelloop_writer"  # names of metadata are identifiers
# What a role calls the right, and the letter of a SAS.
_RIGHTS: dict[Action, str] = {
    "read": "blobs/read (SAS: r)",
    "write": "blobs/write (SAS: c and w)",
    "list": "blobs/read on the container (SAS: l)",
    "delete": "blobs/delete (SAS: d)",
}
_ROLE = (
    "Assign the role Storage Blob Data Contributor on the container, or use a SAS of the container with the"
    " permissions rcwdl; and let the account's firewall accept this machine."
)
_DENIED = frozenset(
    {
        "AuthorizationPermissionMismatch",
        "AuthorizationResourceTypeMismatch",
        "AuthorizationServiceMismatch",
        "AuthorizationFailure",
        "InsufficientAccountPermissions",
        "UnauthorizedBlobOverwrite",
    }
)


def open_container(name: str, *, timeout_s: float = _TIMEOUT_S) -> "AzureBucket":
    """Open a container of the account that the environment names, without a request.

    Args:
        name: Its name.
        timeout_s: Seconds to wait for a response of at most 8 MiB.

    Raises:
        StoreError: obstore is not installed, or no account is named.
    """
    try:
        import obstore  # noqa: F401
    except ImportError:
        raise missing_extra(f"az://{name}", "azure") from None
    return AzureBucket(name, AzureAccount.of(os.environ, f"az://{name}"), timeout_s=timeout_s)


class AzureBucket:
    """See `Bucket`."""

    def __init__(self, name: str, account: AzureAccount, *, timeout_s: float = _TIMEOUT_S) -> None:
        self._name = name
        self._account = account
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._cached_client: AzureStore | None = None

    @property
    def url(self) -> str:
        """`az://container`."""
        return f"az://{self._name}"

    def write(self, name: str, data: bytes | Path, *, content_type: str, match: str | None = None) -> str:
        """See `Bucket.write`. More than 8 MiB is sent in parts."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        attributes = {"Content-Type": content_type}
        if match is None:
            with self._errors(name, "write"):
                written = obstore.put(
                    self._client(),
                    name,
                    data,
                    attributes=attributes,
                    chunk_size=_PART_BYTES,
                    max_concurrency=_CONCURRENT_PARTS,
                )
                return str(written["e_tag"])
        writer = uuid4().hex
        with self._errors(name, "write"):
            try:
                mode: Any = "create" if match == ABSENT else {"e_tag": match}
                written = obstore.put(self._client(), name, data, attributes={**attributes, _WRITER: writer}, mode=mode)
                return str(written["e_tag"])
            except (AlreadyExistsError, PreconditionError):
                # A repeated request may be refused because of its own first try, whose response was lost.
                etag = self._etag_by(name, writer)
        if etag is None:
            raise ObjectChanged(self.url, name)
        return etag

    def read(self, name: str) -> tuple[bytes, str]:
        """See `Bucket.read`."""
        into = BytesIO()
        etag = self._download(name, into)
        return into.getvalue(), etag

    def start(self, name: str, size: int) -> bytes:
        """See `Bucket.start`."""
        import obstore

        with self._errors(name, "read"):
            options: GetOptions = {"range": (0, max(size, 1))}
            try:
                return bytes(obstore.get(self._client(), name, options=options).bytes())[:size]
            except obstore.exceptions.GenericError:
                answer = obstore.get(self._client(), name, options={"head": True})
                if answer.meta["size"]:
                    raise
                return b""  # an empty object has no range

    def download(self, name: str, into: BinaryIO) -> None:
        """See `Bucket.download`."""
        self._download(name, into)

    def head(self, name: str) -> ObjectInfo | None:
        """See `Bucket.head`."""
        import obstore

        try:
            with self._errors(name, "read"):
                return _info(obstore.head(self._client(), name))
        except ObjectNotFound:
            return None

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `Bucket.list`. obstore lists folders, so of a longer prefix the folder is listed."""
        import obstore

        folder = prefix.rpartition("/")[0]
        with self._errors(prefix, "list"):
            for page in obstore.list(self._client(), folder or None, chunk_size=_LISTED):
                for meta in page:
                    if meta["path"].startswith(prefix):
                        yield _info(meta)

    def copy(self, name: str, to: str, *, bucket: str = "", state: ObjectInfo | None = None) -> ObjectInfo:
        """See `Bucket.copy`. Within the container only."""
        import obstore

        if bucket not in {"", self.url}:
            raise StoreError(self.url, to, "obstore copies within a container only")
        source = state or self.head(name)
        if source is None:
            raise ObjectNotFound(self.url, name)
        with self._errors(name, "write"):
            obstore.copy(self._client(), name, to)
        if state is not None and self.head(name) != state:  # obstore has no condition on the source
            self.delete(to)
            raise ObjectChanged(self.url, name)
        deadline = monotonic() + _COPY_S
        while (copied := self.head(to)) is not None and copied.size != source.size:  # the server still copies
            if monotonic() > deadline:
                raise StoreError(self.url, to, f"the server did not copy it within {_COPY_S:.0f} s")
            sleep(0.2)
        if copied is None:
            raise StoreError(self.url, to, "the server did not copy an object")
        return copied

    def sibling(self, url: str) -> "AzureBucket | None":
        """See `Bucket.sibling`."""
        return self if url == self.url else None

    def delete(self, name: str) -> None:
        """See `Bucket.delete`."""
        import obstore

        try:
            with self._errors(name, "delete"):
                obstore.delete(self._client(), name)
        except ObjectNotFound:
            return

    def sign(self, name: str, seconds: int) -> str:
        """See `Bucket.sign`. By the account key; without one by a key that Azure delegates to the identity."""
        if self._account.key:
            return self._account.signed_url(self._name, name, seconds)
        import obstore

        if self._account.sas or quote(name) != name:
            reason = "it cannot be signed without the account key"
            raise StoreError(self.url, name, reason, fix="Set AZURE_STORAGE_ACCOUNT_KEY.")
        with self._errors(name, "read"):
            return str(obstore.sign(self._client(), "GET", name, timedelta(seconds=seconds)))

    def _download(self, name: str, into: BinaryIO) -> str:
        """Download an object in parts, each within the timeout; return its etag."""
        import obstore

        with self._errors(name, "read"):
            answer = obstore.get(self._client(), name)
            size, etag = answer.meta["size"], str(answer.meta["e_tag"])
            if size <= _PART_BYTES:
                into.write(answer.bytes())
                return etag
            del answer
            for start in range(0, size, _PART_BYTES):
                options: GetOptions = {"range": (start, min(start + _PART_BYTES, size)), "if_match": etag}
                into.write(obstore.get(self._client(), name, options=options).bytes())
            return etag

    def _etag_by(self, name: str, writer: str) -> str | None:
        """The etag of an object as a writer wrote it; None if there is none."""
        import obstore

        try:
            response = obstore.get(self._client(), name, options={"head": True})
        except FileNotFoundError:
            return None
        return str(response.meta["e_tag"]) if response.attributes.get(_WRITER) == writer else None

    def _client(self) -> "AzureStore":
        from obstore.store import AzureStore

        if _first_process() != os.getpid():
            raise StoreError(self.url, "", "obstore was used before this process was forked", fix="Use spawn.")
        with self._lock:
            if self._cached_client is None:
                self._cached_client = AzureStore(
                    self._name,
                    **self._account.client_options(),
                    client_options={
                        "allow_http": self._account.endpoint.startswith("http://"),
                        "timeout": timedelta(seconds=self._timeout_s),
                        "connect_timeout": timedelta(seconds=min(self._timeout_s, 5.0)),
                    },
                    retry_config={"max_retries": _RETRIES, "retry_timeout": timedelta(seconds=_RETRY_S)},
                )
            return self._cached_client

    @contextmanager
    def _errors(self, name: str, action: Action) -> Iterator[None]:
        """Raise errors of the block as `StoreError`."""
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, FileNotFoundError, ValueError) as error:
            raise _store_error(self.url, name, action, error) from None


@cache
def _first_process() -> int:
    """The process that first used obstore: its threads do not exist in a fork, which would wait for ever."""
    return os.getpid()


def _info(meta: "ObjectMeta") -> ObjectInfo:
    tag = str(meta["e_tag"]).strip('"')
    return ObjectInfo(meta["path"], meta["size"], meta["last_modified"].timestamp(), tag)


def _store_error(url: str, name: str, action: Action, error: Exception) -> StoreError:
    """The error with its fix. obstore's text has the server's answer, and details that are left out."""
    from obstore.exceptions import PreconditionError, UnauthenticatedError

    text = str(error).partition("\n\nDebug source")[0]
    code = _found(r"<Code>(\w+)</Code>", text) or _found(r"(?:status code|\(code): (\d+)", text)
    message = _found(r"<Message>([^<\n]*)", text) or " ".join(re.sub(r"https?://\S+", "", text).split())[:200]
    if code == "ContainerNotFound":
        fix = "Create the container, or correct its name in the address (LABELLOOP_STORE_URL by default)."
        return StoreUnreachable(url, name, "the container does not exist", fix=fix)
    if isinstance(error, FileNotFoundError):
        return ObjectNotFound(url, name)
    if isinstance(error, UnauthenticatedError) or "authenticate" in message or code == "401":
        return StoreUnreachable(url, name, f"the credentials are refused ({message})", fix=CREDENTIALS_FIX)
    if code in _DENIED or code == "403":
        return AccessDenied(url, name, _RIGHTS[action], detail=code, fix=_ROLE)
    if "invalid path" in text:
        reason = f"it has an object whose name obstore cannot read ({message})"
        return StoreError(url, name, reason, fix="Rename that object: names must not have `//`, `.` or `..` as parts.")
    if "token request" in text:
        return StoreUnreachable(url, name, "no credentials were found", fix=CREDENTIALS_FIX)
    if "HTTP error" in text:
        fix = "Check AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ENDPOINT and the network."
        return StoreSilent(url, name, "the server does not answer", fix=fix)
    if isinstance(error, PreconditionError):
        return StoreError(url, name, f"it changed while it was read, or is leased ({code})", fix="Run it again.")
    fix = "The server failed several times in a row: try again later." if code.startswith("5") else ""
    return StoreError(url, name, f"the server answered {code}: {message}" if code else message, fix=fix)


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    return match[1] if match else ""
