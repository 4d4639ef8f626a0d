"""`BucketStore`: objects in an S3 bucket, with conditional writes of the server or a fallback."""

import logging
import mimetypes
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from labelloop.service.scratch import scratch_folder
from labelloop.service.settings import Settings
from labelloop.service.store.base import Capabilities, Leftovers, ObjectInfo, Progress
from labelloop.service.store.errors import ObjectChanged, ObjectExists, ObjectNotFound, StoreError
from labelloop.service.store.keys import INTERNAL_PREFIX, validate_key
from labelloop.service.store.parallel import put_concurrently
from labelloop.service.store.probe import NO_CREATE, probe
from labelloop.service.store.s3_client import S3Location, s3_client
from labelloop.service.store.s3_conditional_writes import SETTLE_S, ConditionalWrites, Conditions
from labelloop.service.store.s3_errors import to_store_error, translate_errors
from labelloop.service.store.s3_lease import ObjectLease

_UPLOAD_CONCURRENCY = 3
_MULTIPART_THRESHOLD = 16 << 20
_READ_ATTEMPTS = 4
_READ_SIZE = 1 << 20
_log = logging.getLogger(__name__)


class _LargeReads(FileIO):
    """A file that is read at least a megabyte at a time; botocore's reads of 16 KB cost more than the transfer."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(max(size, _READ_SIZE) if size is not None and size >= 0 else -1)


class BucketStore:
    """A bucket or a prefix of it. The etag is the server's.

    The first `create` or `swap` detects with four small requests which conditions the server supports. Without If-Match
    a swap uses a lock object (`s3_lease`). Without If-None-Match a creation checks the key first and logs a warning.
    `self_test` reports both.
    """

    def __init__(self, url: str, bucket: str, prefix: str, settings: Settings) -> None:
        self._url = url
        self._bucket = bucket
        self._prefix = prefix
        self._settings = settings
        self._client_lock, self._probe_lock = threading.Lock(), threading.Lock()
        self._cached_client: Any = None
        self._probed_conditions: Conditions | None = None

    @property
    def url(self) -> str:
        """`s3://bucket/prefix`."""
        return self._url

    @property
    def write_settle_s(self) -> float:
        """See `Store.write_settle_s`."""
        return 0.0 if self._location().is_aws else SETTLE_S

    @property
    def upload_concurrency(self) -> int:
        """See `Store.upload_concurrency`."""
        return _UPLOAD_CONCURRENCY

    def put(self, key: str, data: bytes | Path, *, content_type: str | None = None) -> str:
        """See `Store.put`. A file of 16 MiB or more is uploaded in parallel parts."""
        extra = {"ContentType": content_type or mimetypes.guess_type(key)[0] or "application/octet-stream"}
        target = self._object_args(key)
        with translate_errors(self._url, key):
            if isinstance(data, Path) and data.stat().st_size >= _MULTIPART_THRESHOLD:
                with self._transfer_manager() as transfers:
                    transfers.upload(str(data), target["Bucket"], target["Key"], extra_args=extra).result()
                return str(self._client().head_object(**target)["ETag"])
            if isinstance(data, Path):
                with _LargeReads(data) as body:
                    return str(self._client().put_object(**target, Body=body, **extra)["ETag"])
            return str(self._client().put_object(**target, Body=data, **extra)["ETag"])

    def create(self, key: str, data: bytes, *, exclusive_until: float = 0.0) -> str:
        """See `Store.create`."""
        validate_key(self._url, key)
        return self._conditional_writes().create(
            key, data, server_checks=self._conditions().create, exclusive_until=exclusive_until
        )

    def swap(self, key: str, data: bytes, *, etag: str | None, exclusive_until: float = 0.0) -> str:
        """See `Store.swap`."""
        validate_key(self._url, key)
        if etag is None:
            try:
                return self.create(key, data, exclusive_until=exclusive_until)
            except ObjectExists:
                raise ObjectChanged(self._url, key) from None
        if self._conditions().swap:
            return self._conditional_writes().swap_by_server(key, data, etag)
        if time.monotonic() < exclusive_until:
            return self._conditional_writes().replace(key, data, exclusive_until=exclusive_until)
        lock = self.lease(key)
        with lock.acquire():
            if self._etag(key) != etag or not lock.is_held():
                raise ObjectChanged(self._url, key)
            return self.put(key, data)

    def lease(self, key: str) -> ObjectLease:
        """The lock of a key for servers without If-Match; `swap` takes it."""
        return ObjectLease(self._location(), key, self._create_lock_object)

    def get(self, key: str) -> bytes:
        """See `Store.get`."""
        return self.read(key)[0]

    def start(self, key: str, size: int) -> bytes:
        """See `Store.start`: the connection is closed after that number of bytes."""
        return self._read(key, size)[0]

    def read(self, key: str) -> tuple[bytes, str]:
        """See `Store.read`."""
        return self._read(key, None)

    def _read(self, key: str, size: int | None) -> tuple[bytes, str]:
        from botocore.exceptions import BotoCoreError

        with translate_errors(self._url, key):
            for attempts_left in range(_READ_ATTEMPTS, 0, -1):
                answer = self._client().get_object(**self._object_args(key))
                try:
                    # its own context manager yields the raw, unchecked HTTP response
                    with closing(answer["Body"]) as body:
                        return body.read(size), str(answer["ETag"])
                except BotoCoreError:  # the connection failed within the body
                    if attempts_left == 1:
                        raise
        raise AssertionError

    def exists(self, key: str) -> bool:
        """See `Store.exists`."""
        return self._etag(key) is not None

    def list(self, prefix: str = "") -> Iterator[str]:
        """See `Store.list`."""
        for key, _ in self._list_objects(prefix):
            yield key

    def entries(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Store.entries`."""
        for key, entry in self._list_objects(prefix):
            yield ObjectInfo(key, int(entry["Size"]), entry["LastModified"].timestamp(), str(entry["ETag"]))

    def download(self, key: str, to: Path) -> None:
        """See `Store.download`. Resumes after a connection error."""
        part = to.with_name(f"{to.name}.part")
        try:
            self._download(key, part)
            part.replace(to)
        finally:
            part.unlink(missing_ok=True)

    def copy_from(self, url: str, name: Callable[[ObjectInfo], str]) -> ObjectInfo | None:
        """See `Store.copy_from`. Uses CopyObject, conditional on the etag that was passed to `name`.

        The tag of a copy that the server encrypts with KMS ends with ``-kms``: its etag looks like an MD5 but is none.
        """
        from botocore.exceptions import ClientError

        bucket, _, key = url.removeprefix("s3://").partition("/")
        if not url.startswith("s3://") or not bucket or not key:
            return None
        with translate_errors(self._url, url):
            try:
                head = self._client().head_object(Bucket=bucket, Key=key)
                size, modified = int(head["ContentLength"]), head["LastModified"].timestamp()
                to = name(ObjectInfo(key, size, modified, str(head["ETag"])))
                if not to:
                    return None
                source = {"Bucket": bucket, "Key": key}
                copied = self._client().copy_object(
                    **self._object_args(to), CopySource=source, CopySourceIfMatch=head["ETag"], MetadataDirective="COPY"
                )
            except ClientError:
                return None
        result = copied["CopyObjectResult"]
        tag = str(result["ETag"]).strip('"') + "-kms" * ("kms" in copied.get("ServerSideEncryption", ""))
        return ObjectInfo(to, size, result["LastModified"].timestamp(), tag)

    def copy(self, key: str, to: str) -> None:
        """See `Store.copy`. CopyObject, up to 5 GB."""
        with translate_errors(self._url, key):
            answer = self._client().copy_object(
                **self._object_args(to), CopySource=self._object_args(key), MetadataDirective="COPY"
            )
        if not answer.get("CopyObjectResult", {}).get("ETag"):
            raise StoreError(self._url, to, "the server did not copy an object")

    @contextmanager
    def lock(self, key: str, *, wait_s: float) -> Iterator[Callable[[], bool]]:
        """See `Store.lock`. A lease: see `s3_lease`."""
        lease = self.lease(key)
        with lease.acquire(wait_s):
            yield lease.is_held

    def delete(self, key: str) -> None:
        """See `Store.delete`."""
        with translate_errors(self._url, key):
            self._client().delete_object(**self._object_args(key))

    def put_many(self, items: Iterable[tuple[str, bytes | Path]], progress: Progress | None = None) -> int:
        """See `Store.put_many`. 16 concurrent writes with one connection pool."""
        return put_concurrently(self.put, items, progress)

    def leftovers(self, *, before: float, remove: bool = False) -> Leftovers:
        """See `Store.leftovers`. Incomplete multipart uploads, whose parts are billed until they are aborted.

        If the server cannot or may not list them, a warning is logged and the result is zero.
        """
        from botocore.exceptions import ClientError

        count = size = 0
        client = self._client()
        with translate_errors(self._url, ""):
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
        """The incomplete multipart uploads below the prefix that were started before a time."""
        pages = self._client().get_paginator("list_multipart_uploads")
        for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix):
            for upload in page.get("Uploads", ()):
                if upload["Initiated"].timestamp() < before:
                    yield {"Bucket": self._bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}

    def scratch(self) -> AbstractContextManager[Path]:
        """See `Store.scratch`."""
        return scratch_folder()

    def self_test(self) -> Capabilities:
        """See `Store.self_test`."""
        return probe(self, self._conditional_writes())

    def _create_lock_object(self, key: str, data: bytes) -> str:
        return self._conditional_writes().create(key, data, server_checks=self._conditions().create)

    def _list_objects(self, prefix: str) -> Iterator[tuple[str, Any]]:
        with translate_errors(self._url, prefix):
            pages = self._client().get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix):
                for entry in page.get("Contents", ()):
                    key = entry["Key"].removeprefix(self._prefix)
                    if key and not key.startswith(INTERNAL_PREFIX) and not key.endswith("/"):
                        yield key, entry

    def _etag(self, key: str) -> str | None:
        try:
            with translate_errors(self._url, key):
                return str(self._client().head_object(**self._object_args(key))["ETag"])
        except ObjectNotFound:
            return None

    def _object_args(self, key: str) -> dict[str, str]:
        return self._location().object_args(validate_key(self._url, key))

    def _client(self) -> Any:
        with self._client_lock:
            if self._cached_client is None:
                self._cached_client = s3_client(self._settings)
            return self._cached_client

    def _download(self, key: str, to: Path) -> None:
        from s3transfer.exceptions import RetriesExceededError

        target = self._object_args(key)
        try:
            with translate_errors(self._url, key), to.open("wb") as file, self._transfer_manager() as transfers:
                transfers.download(target["Bucket"], target["Key"], file).result()
        except RetriesExceededError as error:
            raise to_store_error(self._url, key, error.last_exception) from None

    def _transfer_manager(self) -> Any:
        """A manager of multipart transfers; a context manager that stops its threads."""
        from s3transfer.manager import TransferConfig, TransferManager

        config = TransferConfig(
            multipart_threshold=_MULTIPART_THRESHOLD,
            multipart_chunksize=_MULTIPART_THRESHOLD,
            max_request_concurrency=4,
        )
        return TransferManager(self._client(), config)

    def _location(self) -> S3Location:
        return S3Location(self._client(), self._bucket, self._prefix, self._url)

    def _conditional_writes(self) -> ConditionalWrites:
        return ConditionalWrites(self._location())

    def _conditions(self) -> Conditions:
        with self._probe_lock:
            if self._probed_conditions is None:
                self._probed_conditions = self._conditional_writes().probe_capabilities()
                if not self._probed_conditions.create:
                    _log.warning("store_without_conditional_writes", extra={"store": self._url, "detail": NO_CREATE})
            return self._probed_conditions
