"""`Media`: the image behind an address that Label Studio stores in a task's data, decoded or as a cached file."""

import base64
import binascii
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote_to_bytes, urlsplit

from labelloop.service.media.circuit_breaker import HostCircuitBreaker
from labelloop.service.media.disk_cache import DiskCache
from labelloop.service.media.download import Downloader, too_many_bytes
from labelloop.service.media.errors import MediaMissing, NotAnImage
from labelloop.service.media.image import Photo, load_photo, photo_size
from labelloop.service.media.s3 import Bucket
from labelloop.service.media.url import Address, locate, resolved
from labelloop.service.memory_budget import MemoryBudget, never
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio


class Media:
    """Gets images. Thread-safe; several processes may share its cache, the folder `media` of the home folder.

    An image is fetched once and kept until the cache is full and others were used since; it is not asked for again, so
    an object that is overwritten in its bucket keeps its old pixels here. Failures are not kept.

    Args:
        settings: Limits, allowed hosts, cache size and S3 access.
        studio: Label Studio, for uploads and for buckets that only it can read; None: those addresses are refused.
        decode_wait_s: Longest wait of a decode for memory, after which `Busy` is raised; None: as long as it takes.
    """

    def __init__(self, settings: Settings, studio: Studio | None, *, decode_wait_s: float | None = None) -> None:
        self._settings = settings
        self._budget = MemoryBudget(settings.media_memory_bytes, wait_s=decode_wait_s)
        self._studio = studio
        self._downloader = Downloader(settings, studio)
        self._bucket = Bucket(settings)
        self._hosts = HostCircuitBreaker()
        self._cache = DiskCache(settings.home / "media", settings.media_cache_bytes)

    @property
    def budget(self) -> MemoryBudget:
        """The memory that this object's decodes share, for other work on whole images."""
        return self._budget

    def close(self) -> None:
        """Closes pooled connections."""
        self._downloader.close()

    def photo(
        self,
        url: str,
        *,
        task_id: int | None = None,
        max_side: int | None = None,
        abandoned: Callable[[], bool] = never,
    ) -> Photo:
        """The image, decoded by `load_photo`; all decodes of this object share `media_memory_bytes`.

        Args:
            url: As it stands in the task's data.
            task_id: The task; Label Studio resolves `s3://` and its kin for a task only.
            max_side: As `load_photo` takes it.
            abandoned: Asked while waiting for memory; True ends the wait.

        Raises:
            MediaError: One of the family.
            Busy, Abandoned: As `MemoryBudget.lease`.
        """
        with self._opened(url, task_id) as (file, name):
            return load_photo(
                file,
                max_side=max_side,
                name=name,
                max_pixels=self._settings.media_max_pixels,
                budget=self._budget,
                abandoned=abandoned,
            )

    def size(self, url: str, *, task_id: int | None = None) -> tuple[int, int]:
        """Upright (width, height) in pixels, from the file's header. Raises `MediaError`."""
        with self._opened(url, task_id) as (file, name):
            return photo_size(file, name=name, max_pixels=self._settings.media_max_pixels)

    def path(self, url: str, *, task_id: int | None = None) -> Path:
        """The image file, in the cache or where it lies. Read it soon: the cache may drop it. Raises `MediaError`."""
        address = self._locate(url, task_id)
        if address.kind == "file":
            return self._on_disk(address)
        return self._cache.path(address.identity, self._fetch(address, task_id))

    def lies_here(self, url: str) -> bool:
        """Whether the image is a file of this machine, outside of the cache. Raises `MediaError`."""
        return self._locate(url, None).kind == "file"

    @contextmanager
    def _opened(self, url: str, task_id: int | None) -> Iterator[tuple[BinaryIO, str]]:
        address = self._locate(url, task_id)
        if address.kind == "file":
            with self._on_disk(address).open("rb") as file:
                yield file, url
            return
        with self._cache.opened(address.identity, self._fetch(address, task_id)) as file:
            try:
                yield file, url
            except NotAnImage:
                self._cache.drop(address.identity)  # cut short by a crash, or damaged where it came from: ask again
                raise

    def _locate(self, url: str, task_id: int | None) -> Address:
        if not isinstance(url, str):
            raise NotAnImage(str(url)[:100], "not an address but something else")
        return locate(url, self._settings, self._studio, task_id)

    def _on_disk(self, address: Address) -> Path:
        path = Path(address.at)
        if path.stat().st_size > self._settings.media_max_bytes:
            raise too_many_bytes(address.url, self._settings.media_max_bytes)
        return path

    def _fetch(self, address: Address, task_id: int | None) -> Callable[[BinaryIO], None]:
        def fetch(into: BinaryIO) -> None:
            with self._hosts.guard(self._host(address), address.url):
                self._fill(address, task_id, into)
            into.seek(0)  # only what is an image is kept
            photo_size(into, name=address.url, max_pixels=self._settings.media_max_pixels)

        return fetch

    def _host(self, address: Address) -> str:
        if address.kind == "s3":
            return urlsplit(self._settings.s3_endpoint_url).netloc or "S3"
        return urlsplit(address.at).netloc.rpartition("@")[2] if address.kind != "inline" else ""

    def _fill(self, address: Address, task_id: int | None, into: BinaryIO) -> None:
        if address.kind == "inline":
            into.write(_inline(address.url, self._settings.media_max_bytes))
        elif address.kind == "s3":
            try:
                self._bucket.fetch(address.at, into)
            except MediaMissing:
                if self._studio is None or task_id is None:
                    raise
                # Another bucket than the one that our settings are for: Label Studio may have a storage for it.
                self._downloader.fetch(resolved(address.url, self._studio, task_id).at, into)
        else:
            self._downloader.fetch(address.at, into)


def _inline(url: str, limit: int) -> bytes:
    """The bytes of a data URI (RFC 2397)."""
    head, comma, body = url.partition(",")
    if not comma:
        raise NotAnImage(url, "a data: URI without data")
    if len(body) > limit * 3:  # at most three characters a byte
        raise too_many_bytes(url, limit)
    data = unquote_to_bytes(body)
    if head.rpartition(";")[2].strip().lower() == "base64":
        try:
            data = base64.b64decode(bytes(data).translate(None, b" \t\r\n"), validate=True)
        except binascii.Error:
            raise NotAnImage(url, "a data: URI whose base64 is damaged") from None
    if len(data) > limit:
        raise too_many_bytes(url, limit)
    return data
