"""Copy images into the data set, each content once: server-side on S3, or read here and named by content."""

import hashlib
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from pathlib import Path

import msgspec

from exporters.convert.tally import NOTHING, Tally, moved_image
from exporters.dataset.shards import IMAGE_FILE, ObjectUploader
from exporters.model.accounting import Loss
from exporters.model.file_names import hash_key
from exporters.model.manifest import ImageCopy
from exporters.model.records import Item
from exporters.structures.split_keys import SplitKeys, with_split
from labelloop.labeling.splits import SPLITS
from labelloop.service.media import Media, MediaError
from labelloop.service.store import ObjectInfo, Store

NOT_COPIED = "photos that could not be copied (see dropped.jsonl)"
_THREADS = 8


class FetchedImage(msgspec.Struct, frozen=True):
    """A fetched image: a server-side copy (``entry``), or a local file to be uploaded."""

    sha256: str = ""
    size: int = 0
    path: Path | None = None
    entry: ObjectInfo | None = None


class CopyOutcome(msgspec.Struct, frozen=True):
    """The outcome of an image that is to be copied.

    Attributes:
        copy: The copy; None if the image is not available.
        split: Its split, which is that of the first image with the same bytes.
        tally: What is noted about it.
    """

    copy: ImageCopy | None
    split: str
    tally: Tally = NOTHING


class ImageCopier:
    """Copies images while their tasks are converted, several at a time.

    An image on the S3 server of the data set is copied server-side, without a download. Its key is derived from its
    address and the server's etag, so the same object has one copy in all versions.

    Args:
        media: reads images from anywhere else.
        store: where the data set lives.
        objects: uploads files.
        scratch: a folder for files before they are uploaded.
        before: the copies of the version that is built on, each with its split.
    """

    def __init__(
        self,
        media: Media,
        store: Store,
        objects: ObjectUploader,
        scratch: Path,
        before: Iterable[tuple[str, ImageCopy]] = (),
    ) -> None:
        self._splits = SplitKeys()
        for split, copy in before:
            self._splits.add(with_split(hash_key(copy.content_key), split))
        self._media, self._store, self._objects, self._scratch = media, store, objects, scratch
        self._numbers = count()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="photos")
        self._pending: dict[tuple[str, int], Future[FetchedImage]] = {}

    def prefetch(self, images: Iterable[tuple[str, int]]) -> None:
        """Start fetching the images of the next tasks: (address, task id)."""
        self._pending = {image: self._threads.submit(self._fetch, *image) for image in dict.fromkeys(images)}

    def copy(self, item: Item) -> CopyOutcome:
        """Copy an image of a task."""
        image = item.image
        try:
            fetched = self._fetched(item.source, image.task)
        except (MediaError, OSError) as error:
            reason = f"{error.reason}. {error.fix}".rstrip() if isinstance(error, MediaError) else str(error)
            loss = Loss("photo", "could not be copied", task=image.task, detail=f"{image.url}: {reason}")
            lines = ((("notes", NOT_COPIED), 1), (("failed", "others"), 1))
            return CopyOutcome(None, image.split, Tally(lines, (loss,)))
        copy = self._store_copy(image.file_name, fetched)
        if image.split not in SPLITS:
            return CopyOutcome(copy, image.split)
        key = hash_key(copy.content_key)
        split = self._splits.split(key)
        if not split:
            self._splits.add(with_split(key, image.split))
        elif split != image.split:
            moved = moved_image(image.task, image.url, split, image.split, "whose photo has the same bytes")
            return CopyOutcome(copy, split, moved)
        return CopyOutcome(copy, image.split)

    def _store_copy(self, name: str, fetched: FetchedImage) -> ImageCopy:
        """Upload a fetched image, unless the server copied it."""
        if fetched.entry is not None:
            return ImageCopy(name, "", fetched.entry.size, fetched.entry.key, fetched.entry.tag.strip('"'))
        assert fetched.path is not None
        self._objects.put_file(fetched.path, fetched.sha256)
        return ImageCopy(name, fetched.sha256, fetched.size)

    def _fetched(self, url: str, task: int) -> FetchedImage:
        """Return an image that is being fetched already, or fetch it now."""
        pending = self._pending.pop((url, task), None)
        return pending.result() if pending else self._fetch(url, task)

    def close(self) -> None:
        """Stop the threads; pending images are abandoned."""
        self._threads.shutdown(cancel_futures=True)

    def _fetch(self, url: str, task: int) -> FetchedImage:
        entry = self._store.copy_from(url, lambda source: _copy_key(url, source))
        if entry is not None:
            return FetchedImage(entry=entry)
        data = self._media.path(url, task_id=task).read_bytes()  # at once: the cache may drop it
        part = self._scratch / f"{IMAGE_FILE}{next(self._numbers)}"
        part.write_bytes(data)
        return FetchedImage(hashlib.sha256(data).hexdigest(), len(data), part)


def _copy_key(url: str, source: ObjectInfo) -> str:
    """Return the key of a copy; it changes whenever the source object does."""
    if not source.size:
        return ""  # not an image: reading it reports the error
    digest = hashlib.sha256(f"{url} {source.tag} {source.size}".encode()).hexdigest()
    return f"photos/{digest[:2]}/{digest}"
