"""`Media`: get the image of an address in a task's data, decoded or as a cached file."""

import base64
import binascii
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote_to_bytes, urlsplit

from labelloop.service.media.circuit_breaker import HostCircuitBreaker
from labelloop.service.media.cloud import CloudDownloader
from labelloop.service.media.disk_cache import DiskCache
from labelloop.service.media.download import Downloader, too_many_bytes
from labelloop.service.media.errors import MediaMissing, NotAnImage
from labelloop.service.media.image import DecodedImage, image_size, load_image
from labelloop.service.media.s3 import S3Downloader
from labelloop.service.media.url import ImageAddress, parse_address, via_label_studio
from labelloop.service.memory_budget import MemoryBudget, never_abandoned
from labelloop.service.settings import Settings
from labelloop.service.store.addresses import to_studio_url
from labelloop.service.studio import Studio

# Bytes of an object in a bucket that are read for its size: more than the metadata of nearly all photos.
_START_BYTES = 1 << 16
# The first bytes of a JPEG, whose size and orientation come before its pixels; other formats have them anywhere.
_JPEG = b"\xff\xd8"


class Media:
    """Fetches and decodes images. Thread-safe; processes share its cache, the folder `media` of the home folder.

    An image is fetched once and cached with LRU eviction. It is not revalidated, so an object that is overwritten in
    its bucket keeps its old pixels here. Failures are not cached.

    Args:
        settings: Limits, allowed hosts, cache size and S3 access.
        studio: Label Studio, for uploads and for buckets that only it can read; None: those addresses are refused.
        decode_wait_s: Maximum seconds that a decode waits for memory before `Busy` is raised; None: no limit.
    """

    def __init__(self, settings: Settings, studio: Studio | None, *, decode_wait_s: float | None = None) -> None:
        self._settings = settings
        self._budget = MemoryBudget(settings.media_memory_bytes, wait_s=decode_wait_s)
        self._studio = studio
        self._downloader = Downloader(settings, studio)
        self._buckets: Mapping[str, S3Downloader | CloudDownloader] = {
            "s3": S3Downloader(settings),
            "cloud": CloudDownloader(settings),
        }
        self._circuit_breaker = HostCircuitBreaker()
        self._cache = DiskCache(settings.home / "media", settings.media_cache_bytes)

    @property
    def budget(self) -> MemoryBudget:
        """The memory budget of all decodes, for other work on whole images."""
        return self._budget

    def close(self) -> None:
        """Close pooled connections."""
        self._downloader.close()

    def photo(
        self,
        url: str,
        *,
        task_id: int | None = None,
        max_side: int | None = None,
        abandoned: Callable[[], bool] = never_abandoned,
    ) -> DecodedImage:
        """Fetch and decode an image with `load_image`; all decodes share the budget `media_memory_bytes`.

        Args:
            url: The address in the task's data.
            task_id: The task; Label Studio resolves `s3://` and similar addresses for a task only.
            max_side: See `load_image`.
            abandoned: Polled while waiting for memory; True ends the wait.

        Raises:
            MediaError: The image cannot be fetched or decoded.
            Busy, Abandoned: See `MemoryBudget.lease`.
        """
        with self._opened(url, task_id) as (file, name):
            return load_image(
                file,
                max_side=max_side,
                name=name,
                max_pixels=self._settings.media_max_pixels,
                budget=self._budget,
                abandoned=abandoned,
            )

    def size(self, url: str, *, task_id: int | None = None) -> tuple[int, int]:
        """Upright (width, height) in pixels from the file header. Of a JPEG in a bucket the start is read alone.

        Raises `MediaError`.
        """
        address = self._locate(url, task_id)
        if address.kind in self._buckets and not self._cache.has(address.identity):
            with suppress(NotAnImage, MediaMissing), self._circuit_breaker.guard(self._host(address), url):
                start = self._buckets[address.kind].start(address.target, _START_BYTES)
                if len(start) < _START_BYTES or start.startswith(_JPEG):
                    return image_size(start, name=url, max_pixels=self._settings.media_max_pixels)
        with self._opened(url, task_id) as (file, name):
            return image_size(file, name=name, max_pixels=self._settings.media_max_pixels)

    def path(self, url: str, *, task_id: int | None = None) -> Path:
        """The image file, local or in the cache, which may evict it later. Raises `MediaError`."""
        address = self._locate(url, task_id)
        if address.kind == "file":
            return self._local_file(address)
        return self._cache.path(address.identity, self._fetch(address, task_id))

    def is_local(self, url: str) -> bool:
        """Whether the image is a local file outside the cache. Raises `MediaError`."""
        return self._locate(url, None).kind == "file"

    @contextmanager
    def _opened(self, url: str, task_id: int | None) -> Iterator[tuple[BinaryIO, str]]:
        address = self._locate(url, task_id)
        if address.kind == "file":
            with self._local_file(address).open("rb") as file:
                yield file, url
            return
        with self._cache.open(address.identity, self._fetch(address, task_id)) as file:
            try:
                yield file, url
            except NotAnImage:
                self._cache.remove(address.identity)  # truncated by a crash or damaged at its source: fetch it again
                raise

    def _locate(self, url: str, task_id: int | None) -> ImageAddress:
        if not isinstance(url, str):
            raise NotAnImage(str(url)[:100], "not an address")
        return parse_address(url, self._settings, self._studio, task_id)

    def _local_file(self, address: ImageAddress) -> Path:
        path = Path(address.target)
        if path.stat().st_size > self._settings.media_max_bytes:
            raise too_many_bytes(address.url, self._settings.media_max_bytes)
        return path

    def _fetch(self, address: ImageAddress, task_id: int | None) -> Callable[[BinaryIO], None]:
        def fetch(into: BinaryIO) -> None:
            with self._circuit_breaker.guard(self._host(address), address.url):
                self._download(address, task_id, into)
            into.seek(0)  # only images are cached
            image_size(into, name=address.url, max_pixels=self._settings.media_max_pixels)

        return fetch

    def _host(self, address: ImageAddress) -> str:
        if address.kind == "s3":
            return urlsplit(self._settings.s3_endpoint_url).netloc or "S3"
        if address.kind == "cloud":
            return address.target.partition("://")[0]
        return urlsplit(address.target).netloc.rpartition("@")[2] if address.kind != "inline" else ""

    def _download(self, address: ImageAddress, task_id: int | None, into: BinaryIO) -> None:
        if address.kind == "inline":
            into.write(_inline(address.url, self._settings.media_max_bytes))
        elif address.kind in self._buckets:
            try:
                self._buckets[address.kind].fetch(address.target, into)
            except MediaMissing:
                if self._studio is None or task_id is None:
                    raise
                # The settings may be for another bucket; Label Studio may have a storage for this one.
                url = to_studio_url(address.url)
                self._downloader.fetch(via_label_studio(url, self._studio, task_id).target, into)
        else:
            self._downloader.fetch(address.target, into)


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
