"""Conditional writes to S3 (If-None-Match, If-Match), and detection of the conditions that a server supports.

| server                         | If-None-Match: * on an existing key | If-Match with an old etag |
|--------------------------------|-------------------------------------|---------------------------|
| AWS S3                         | 412                                 | 412                       |
| OpenStack Swift 2.38 (s3api)   | 412, but see `ConditionalWrites`    | 501                       |
| OpenStack Swift 2.30 (s3api)   | 501                                 | 501                       |
| `rclone serve s3` 1.75         | silently overwrites                 | silently overwrites       |

(Measured with boto3 1.44, except AWS, which documents it: "Conditional writes", S3 user guide.)
"""

import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from labelloop.service.store.errors import ObjectChanged, ObjectExists, ObjectNotFound, StoreError
from labelloop.service.store.keys import INTERNAL_PREFIX
from labelloop.service.store.s3_client import S3Location
from labelloop.service.store.s3_errors import error_code, error_status, translate_errors

_PRECONDITION_FAILED = frozenset({409, 412})  # 409: AWS, during another write of the key
_WRITER_METADATA = "labelloop-writer"
SETTLE_S, _SETTLE_TIMES, _SETTLE_MAX_S = 0.3, 4.0, 10.0
Header = Literal["IfNoneMatch", "IfMatch"]


@dataclass(frozen=True, slots=True)
class Conditions:
    """The conditions that the server checks: If-None-Match (create) and If-Match (swap)."""

    create: bool
    swap: bool


class ConditionalWrites:
    """Conditional puts to one bucket.

    Swift checks the condition when a put BEGINS: several concurrent puts may succeed, and the last to finish stays. A
    server without conditional writes accepts every put. So, except on AWS, a writer whose put was accepted waits for
    concurrent writers to finish and checks that its object is the one that stayed.

    Args:
        location: The bucket and prefix.
    """

    def __init__(self, location: S3Location) -> None:
        self._location = location
        self._client = location.client
        self._url = location.url

    def create(self, key: str, data: bytes, *, server_checks: bool, exclusive_until: float = 0.0) -> str:
        """Write a new object; of concurrent writers exactly one succeeds.

        Args:
            key: Its key.
            data: The content.
            server_checks: Whether the server checks If-None-Match; if not, a HEAD request checks the key first.
            exclusive_until: See `Store.create`.

        Returns:
            The new etag.

        Raises:
            ObjectExists: The key exists.
        """
        writer = uuid.uuid4().hex
        started = time.monotonic()
        if server_checks:
            etag = self._put(key, data, "IfNoneMatch", "*", writer)
        else:
            etag = None if self._exists(key) else self._put(key, data, None, "", writer)
        if etag is None or not self.is_final(key, etag, writer, started=started, exclusive_until=exclusive_until):
            raise ObjectExists(self._url, key)
        return etag

    def replace(self, key: str, data: bytes, *, exclusive_until: float) -> str:
        """Write an object that no other process writes before `exclusive_until`.

        Raises:
            ObjectChanged: The write took longer, and another writer's object stayed.
        """
        writer = uuid.uuid4().hex
        started = time.monotonic()
        etag = self._put(key, data, None, "", writer)
        if etag is None or not self.is_final(key, etag, writer, started=started, exclusive_until=exclusive_until):
            raise ObjectChanged(self._url, key)
        return etag

    def is_final(self, key: str, etag: str, writer: str, *, started: float, exclusive_until: float) -> bool:
        """Whether the written object stays; checked after a settle delay unless concurrent writers are excluded."""
        if self._location.is_aws or time.monotonic() < exclusive_until:
            return True
        time.sleep(min(_SETTLE_MAX_S, max(SETTLE_S, _SETTLE_TIMES * (time.monotonic() - started))))
        return self._etag_of(key, writer) == etag

    def create_by_server(self, key: str, data: bytes) -> str:
        """As `create`, relying on the server only."""
        etag = self._put(key, data, "IfNoneMatch", "*", uuid.uuid4().hex)
        if etag is None:
            raise ObjectExists(self._url, key)
        return etag

    def swap_by_server(self, key: str, data: bytes, etag: str) -> str:
        """Replace an object if its etag is unchanged.

        Raises:
            ObjectChanged: The server refused, or the object does not exist.
            NotImplementedError: The server does not support the condition.
        """
        new = self._put(key, data, "IfMatch", etag, uuid.uuid4().hex)
        if new is None:
            raise ObjectChanged(self._url, key)
        return new

    def probe_capabilities(self) -> Conditions:
        """Test both conditions on a new internal key: four small requests."""
        key = f"{INTERNAL_PREFIX}probe/{uuid.uuid4().hex}"
        with translate_errors(self._url, key):
            self._client.put_object(**self._location.object_args(key), Body=b"")
        try:
            return Conditions(
                create=self._checks(key, "IfNoneMatch", "*"),
                swap=self._checks(key, "IfMatch", '"00000000000000000000000000000000"'),
            )
        finally:
            with suppress(StoreError), translate_errors(self._url, key):
                self._client.delete_object(**self._location.object_args(key))

    def _checks(self, key: str, header: Header, value: str) -> bool:
        try:
            return self._put(key, b"x", header, value, "probe") is None
        except NotImplementedError:
            return False

    def _put(self, key: str, data: bytes, header: Header | None, value: str, writer: str) -> str | None:
        """Put an object with its writer's id as metadata; return the new etag, or None if the server refused."""
        from botocore.exceptions import ClientError

        condition = {header: value} if header else {}
        with translate_errors(self._url, key):
            try:
                answer = self._client.put_object(
                    **self._location.object_args(key), Body=data, Metadata={_WRITER_METADATA: writer}, **condition
                )
            except ClientError as error:
                if error_status(error) == 501 or error_code(error) == "NotImplemented":
                    raise NotImplementedError(header) from None
                if error_status(error) not in _PRECONDITION_FAILED and not (
                    header == "IfMatch" and error_code(error) == "NoSuchKey"
                ):
                    raise
                # If botocore retried, the refusal may be caused by our own first write, whose response was lost.
                repeated = error.response.get("ResponseMetadata", {}).get("RetryAttempts")
                return self._etag_of(key, writer) if repeated else None
        return str(answer["ETag"])

    def _exists(self, key: str) -> bool:
        try:
            with translate_errors(self._url, key):
                self._client.head_object(**self._location.object_args(key))
        except ObjectNotFound:
            return False
        return True

    def _etag_of(self, key: str, writer: str) -> str | None:
        """The object's etag if this writer wrote it; servers that drop metadata count as this writer."""
        try:
            with translate_errors(self._url, key):
                answer = self._client.head_object(**self._location.object_args(key))
        except ObjectNotFound:
            return None
        return str(answer["ETag"]) if answer.get("Metadata", {}).get(_WRITER_METADATA, writer) == writer else None
