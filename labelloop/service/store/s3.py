"""`BucketStore`: objects in an S3 bucket, by botocore; conditional writes by the server where it has them."""

import logging
import mimetypes
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing
from io import FileIO
from pathlib import Path
from typing import Any

from labelloop.service.scratch import scratch_folder
from labelloop.service.settings import Settings
from labelloop.service.store.base import Capabilities, Entry, Leftovers, Progress
from labelloop.service.store.errors import AlreadyThere, Changed, NotThere
from labelloop.service.store.keys import OWN, checked
from labelloop.service.store.probe import NO_CREATE, probe
from labelloop.service.store.s3_client import Place, s3_client
from labelloop.service.store.s3_conditional_writes import SETTLE_S, ConditionalWrites, Conditions
from labelloop.service.store.s3_errors import plain, plainly
from labelloop.service.store.s3_lease import ObjectLease
from labelloop.service.store.s3_transfer import put_all

_THREADS = 16
_LANES = 3
_PARTS_FROM = 16 << 20
_READS = 4
_BLOCK = 1 << 20
_log = logging.getLogger(__name__)


class _Blocks(FileIO):
    """A file that is sent a megabyte at a time: botocore asks for 16 KB, which costs more than the sending."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(max(size, _BLOCK) if size is not None and size >= 0 else -1)


class BucketStore:
    """A bucket, or what is below a prefix of it. The etag is the server's.

    Before its first `create` or `swap` it finds out, by four small requests, which conditions the server checks.
    Without If-Match a swap takes a lock object (`s3_lock`). Without If-None-Match a creation looks first, and the log
    says so; `self_test` says both.
    """

    def __init__(self, url: str, bucket: str, prefix: str, settings: Settings) -> None:
        self._url = url
        self._bucket = bucket
        self._prefix = prefix
        self._settings = settings
        self._lock, self._asking = threading.Lock(), threading.Lock()
        self._made: Any = None
        self._found: Conditions | None = None

    @property
    def url(self) -> str:
        """`s3://bucket/prefix`."""
        return self._url

    @property
    def write_settle_s(self) -> float:
        """See `Store.write_settle_s`."""
        return 0.0 if self._at().decides else SETTLE_S

    @property
    def upload_concurrency(self) -> int:
        """See `Store.upload_concurrency`."""
        return _LANES

    def put(self, key: str, data: bytes | Path, *, content_type: str | None = None) -> str:
        """See `Store.put`. A file of 16 MiB or more goes in parts, several at a time."""
        extra = {"ContentType": content_type or mimetypes.guess_type(key)[0] or "application/octet-stream"}
        place = self._place(key)
        with plainly(self._url, key):
            if isinstance(data, Path) and data.stat().st_size >= _PARTS_FROM:
                with self._transfers() as transfers:
                    transfers.upload(str(data), place["Bucket"], place["Key"], extra_args=extra).result()
                return str(self._client().head_object(**place)["ETag"])
            if isinstance(data, Path):
                with _Blocks(data) as body:
                    return str(self._client().put_object(**place, Body=body, **extra)["ETag"])
            return str(self._client().put_object(**place, Body=data, **extra)["ETag"])

    def create(self, key: str, data: bytes, *, alone_until: float = 0.0) -> str:
        """See `Store.create`."""
        checked(self._url, key)
        return self._writes().create(key, data, asked=self._conditions().create, alone_until=alone_until)

    def swap(self, key: str, data: bytes, *, etag: str | None, alone_until: float = 0.0) -> str:
        """See `Store.swap`."""
        checked(self._url, key)
        if etag is None:
            try:
                return self.create(key, data, alone_until=alone_until)
            except AlreadyThere:
                raise Changed(self._url, key) from None
        if self._conditions().swap:
            return self._writes().swap_by_server(key, data, etag)
        if time.monotonic() < alone_until:
            return self._writes().replace(key, data, alone_until=alone_until)
        lock = ObjectLease(self._at(), key, self._lock_object)
        with lock.held():
            if self._etag(key) != etag or not lock.mine():
                raise Changed(self._url, key)
            return self.put(key, data)

    def get(self, key: str) -> bytes:
        """See `Store.get`."""
        return self.read(key)[0]

    def read(self, key: str) -> tuple[bytes, str]:
        """See `Store.read`."""
        from botocore.exceptions import BotoCoreError

        with plainly(self._url, key):
            for left in range(_READS, 0, -1):
                answer = self._client().get_object(**self._place(key))
                try:
                    # its own context manager gives the bare, unchecked HTTP response
                    with closing(answer["Body"]) as body:
                        return body.read(), str(answer["ETag"])
                except BotoCoreError:  # the connection broke in the middle of the object
                    if left == 1:
                        raise
        raise AssertionError

    def exists(self, key: str) -> bool:
        """See `Store.exists`."""
        return self._etag(key) is not None

    def list(self, prefix: str = "") -> Iterator[str]:
        """See `Store.list`."""
        for key, _ in self._listed(prefix):
            yield key

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """See `Store.entries`."""
        for key, entry in self._listed(prefix):
            yield Entry(key, int(entry["Size"]), entry["LastModified"].timestamp(), str(entry["ETag"]))

    def download(self, key: str, to: Path) -> None:
        """See `Store.download`. A connection that breaks is taken up where it broke."""
        part = to.with_name(f"{to.name}.part")
        try:
            self._download(key, part)
            part.replace(to)
        finally:
            part.unlink(missing_ok=True)

    def copy_in(self, url: str, name: Callable[[Entry], str]) -> Entry | None:
        """See `Store.copy_in`. By CopyObject, of the object as it was when it was named."""
        from botocore.exceptions import ClientError

        bucket, _, key = url.removeprefix("s3://").partition("/")
        if not url.startswith("s3://") or not bucket or not key:
            return None
        with plainly(self._url, url):
            try:
                found = self._client().head_object(Bucket=bucket, Key=key)
                size, modified = int(found["ContentLength"]), found["LastModified"].timestamp()
                to = name(Entry(key, size, modified, str(found["ETag"])))
                if not to:
                    return None
                source = {"Bucket": bucket, "Key": key}
                made = self._client().copy_object(
                    **self._place(to), CopySource=source, CopySourceIfMatch=found["ETag"], MetadataDirective="COPY"
                )
            except ClientError:
                return None
        result = made["CopyObjectResult"]
        return Entry(to, size, result["LastModified"].timestamp(), str(result["ETag"]))

    def delete(self, key: str) -> None:
        """See `Store.delete`."""
        with plainly(self._url, key):
            self._client().delete_object(**self._place(key))

    def put_many(self, items: Iterable[tuple[str, bytes | Path]], progress: Progress | None = None) -> int:
        """See `Store.put_many`. 16 writes at a time on one pool of connections."""
        return put_all(self.put, items, progress, threads=_THREADS)

    def leftovers(self, *, before: float, remove: bool = False) -> Leftovers:
        """See `Store.leftovers`. Multipart uploads: the bucket bills their parts until they are aborted.

        A server that does not list them, or does not let us, is named in the log; nothing is known of them then.
        """
        from botocore.exceptions import ClientError

        count = size = 0
        client = self._client()
        with plainly(self._url, ""):
            try:
                for upload in self._uploads(before):
                    parts = client.get_paginator("list_parts").paginate(**upload)
                    size += sum(part["Size"] for page in parts for part in page.get("Parts", ()))
                    count += 1
                    if remove:
                        client.abort_multipart_upload(**upload)
            except ClientError as error:
                _log.warning("store_uploads_not_listed", extra={"store": self._url, "detail": str(error)})
        return Leftovers(count, size)

    def _uploads(self, before: float) -> Iterator[dict[str, str]]:
        """The multipart uploads below our prefix that were begun before a time and never completed."""
        pages = self._client().get_paginator("list_multipart_uploads")
        for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix):
            for each in page.get("Uploads", ()):
                if each["Initiated"].timestamp() < before:
                    yield {"Bucket": self._bucket, "Key": each["Key"], "UploadId": each["UploadId"]}

    def scratch(self) -> AbstractContextManager[Path]:
        """See `Store.scratch`."""
        return scratch_folder()

    def self_test(self) -> Capabilities:
        """See `Store.self_test`."""
        return probe(self, self._writes())

    def _lock_object(self, key: str, data: bytes) -> str:
        return self._writes().create(key, data, asked=self._conditions().create)

    def _listed(self, prefix: str) -> Iterator[tuple[str, Any]]:
        with plainly(self._url, prefix):
            pages = self._client().get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix):
                for entry in page.get("Contents", ()):
                    key = entry["Key"].removeprefix(self._prefix)
                    if key and not key.startswith(OWN) and not key.endswith("/"):
                        yield key, entry

    def _etag(self, key: str) -> str | None:
        try:
            with plainly(self._url, key):
                return str(self._client().head_object(**self._place(key))["ETag"])
        except NotThere:
            return None

    def _place(self, key: str) -> dict[str, str]:
        return self._at().of(checked(self._url, key))

    def _client(self) -> Any:
        with self._lock:
            if self._made is None:
                self._made = s3_client(self._settings)
            return self._made

    def _download(self, key: str, to: Path) -> None:
        from s3transfer.exceptions import RetriesExceededError

        place = self._place(key)
        try:
            with plainly(self._url, key), to.open("wb") as file, self._transfers() as transfers:
                transfers.download(place["Bucket"], place["Key"], file).result()
        except RetriesExceededError as error:
            raise plain(self._url, key, error.last_exception) from None

    def _transfers(self) -> Any:
        """What brings large objects here and there, in parts; a context that ends its threads."""
        from s3transfer.manager import TransferConfig, TransferManager

        parts = TransferConfig(
            multipart_threshold=_PARTS_FROM, multipart_chunksize=_PARTS_FROM, max_request_concurrency=4
        )
        return TransferManager(self._client(), parts)

    def _at(self) -> Place:
        return Place(self._client(), self._bucket, self._prefix, self._url)

    def _writes(self) -> ConditionalWrites:
        return ConditionalWrites(self._at())

    def _conditions(self) -> Conditions:
        with self._asking:
            if self._found is None:
                self._found = self._writes().probe_capabilities()
                if not self._found.create:
                    _log.warning("store_without_conditional_writes", extra={"store": self._url, "detail": NO_CREATE})
            return self._found
