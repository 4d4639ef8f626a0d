"""Writes under a condition that the S3 server checks, and the finding of which conditions it checks at all.

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

from labelloop.service.store.errors import AlreadyThere, Changed, NotThere, StoreError
from labelloop.service.store.keys import OWN
from labelloop.service.store.s3_client import Place
from labelloop.service.store.s3_errors import code, plainly, status

_REFUSED = frozenset({409, 412})  # 409: AWS, when another write of the key is under way
_WRITER = "labelloop-writer"
SETTLE_S, _SETTLE_TIMES, _SETTLE_MAX_S = 0.3, 4.0, 10.0
Header = Literal["IfNoneMatch", "IfMatch"]


@dataclass(frozen=True, slots=True)
class Conditions:
    """Which conditions the server checks."""

    create: bool
    swap: bool


class ConditionalWrites:
    """Conditional puts to one bucket.

    Swift looks whether the key is taken when a put BEGINS: of several at the same moment more than one may succeed, and
    the last to finish stays. A server that knows no conditions lets everybody through. So, except on AWS, whoever was
    let through waits until the others must have finished and looks whose object stayed: that one has created it.

    Args:
        place: The bucket.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._client = place.client
        self._url = place.url

    def create(self, key: str, data: bytes, *, asked: bool, alone_until: float = 0.0) -> str:
        """Writes a new object; of any number of creators at once exactly one gets its etag.

        Args:
            key: Where.
            data: The bytes.
            asked: Whether the server checks If-None-Match; where it does not, the key is looked at first.
            alone_until: See `Store.create`.

        Raises:
            AlreadyThere: Another has it.
        """
        writer = uuid.uuid4().hex
        started = time.monotonic()
        if asked:
            etag = self._put(key, data, "IfNoneMatch", "*", writer)
        else:
            etag = None if self._is_there(key) else self._put(key, data, None, "", writer)
        if etag is None or not self.stays(key, etag, writer, started=started, alone_until=alone_until):
            raise AlreadyThere(self._url, key)
        return etag

    def replace(self, key: str, data: bytes, *, alone_until: float) -> str:
        """Writes an object that nobody else writes until then.

        Raises:
            Changed: It took longer, and another's object stayed.
        """
        writer = uuid.uuid4().hex
        started = time.monotonic()
        etag = self._put(key, data, None, "", writer)
        if etag is None or not self.stays(key, etag, writer, started=started, alone_until=alone_until):
            raise Changed(self._url, key)
        return etag

    def stays(self, key: str, etag: str, writer: str, *, started: float, alone_until: float) -> bool:
        """Whether an object that was just written is there for good: at once where nobody else can have written."""
        if self._place.decides or time.monotonic() < alone_until:
            return True
        time.sleep(min(_SETTLE_MAX_S, max(SETTLE_S, _SETTLE_TIMES * (time.monotonic() - started))))
        return self._etag_of(key, writer) == etag

    def create_by_server(self, key: str, data: bytes) -> str:
        """As `create`, trusting the server alone."""
        etag = self._put(key, data, "IfNoneMatch", "*", uuid.uuid4().hex)
        if etag is None:
            raise AlreadyThere(self._url, key)
        return etag

    def swap_by_server(self, key: str, data: bytes, etag: str) -> str:
        """Writes an object whose etag is still this one.

        Raises:
            Changed: The server refused, or the object is gone.
            NotImplementedError: The server does not know the condition.
        """
        new = self._put(key, data, "IfMatch", etag, uuid.uuid4().hex)
        if new is None:
            raise Changed(self._url, key)
        return new

    def probe_capabilities(self) -> Conditions:
        """Tries both on a fresh key of the store's own: four small requests."""
        key = f"{OWN}probe/{uuid.uuid4().hex}"
        with plainly(self._url, key):
            self._client.put_object(**self._place.of(key), Body=b"")
        try:
            return Conditions(
                create=self._checks(key, "IfNoneMatch", "*"),
                swap=self._checks(key, "IfMatch", '"00000000000000000000000000000000"'),
            )
        finally:
            with suppress(StoreError), plainly(self._url, key):
                self._client.delete_object(**self._place.of(key))

    def _checks(self, key: str, header: Header, value: str) -> bool:
        try:
            return self._put(key, b"x", header, value, "probe") is None
        except NotImplementedError:
            return False

    def _put(self, key: str, data: bytes, header: Header | None, value: str, writer: str) -> str | None:
        """The new etag, or None where the server refused. The object carries who wrote it."""
        from botocore.exceptions import ClientError

        condition = {header: value} if header else {}
        with plainly(self._url, key):
            try:
                answer = self._client.put_object(
                    **self._place.of(key), Body=data, Metadata={_WRITER: writer}, **condition
                )
            except ClientError as error:
                if status(error) == 501 or code(error) == "NotImplemented":
                    raise NotImplementedError(header) from None
                if status(error) not in _REFUSED and not (header == "IfMatch" and code(error) == "NoSuchKey"):
                    raise
                # The refusal of a request that botocore had repeated may be of our own write, whose answer was lost.
                repeated = error.response.get("ResponseMetadata", {}).get("RetryAttempts")
                return self._etag_of(key, writer) if repeated else None
        return str(answer["ETag"])

    def _is_there(self, key: str) -> bool:
        try:
            with plainly(self._url, key):
                self._client.head_object(**self._place.of(key))
        except NotThere:
            return False
        return True

    def _etag_of(self, key: str, writer: str) -> str | None:
        """The object's etag if it is this writer's, as far as the server keeps who wrote it."""
        try:
            with plainly(self._url, key):
                answer = self._client.head_object(**self._place.of(key))
        except NotThere:
            return None
        return str(answer["ETag"]) if answer.get("Metadata", {}).get(_WRITER, writer) == writer else None
