"""Copies of the photos in the data set, each there once: made by the S3 server itself, or read and named by content."""

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from pathlib import Path

import msgspec

from exporters.convert.loss_recorder import MOVED, moved_image_loss
from exporters.dataset.shards import ObjectUploader
from exporters.model.accounting import Ledger, Loss
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
    """A photo on its way: a copy that the server made (``entry``), or a file of ours that is still to be sent."""

    sha256: str = ""
    size: int = 0
    path: Path | None = None
    entry: ObjectInfo | None = None


class ImageCopier:
    """Copies photos as their tasks pass by, several at a time.

    A photo that lies on the S3 server of the data set is copied there: nothing of it comes here. It is known by its
    address and the server's etag, so that the same object is the same copy, in every version.

    Args:
        media: reads photos from wherever else they are.
        store: where the data set lives.
        objects: puts files into the store.
        scratch: a folder for files on their way.
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
        for split, photo in before:
            self._splits.add(with_split(hash_key(photo.content_key), split))
        self._media, self._store, self._objects, self._scratch = media, store, objects, scratch
        self._numbers = count()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="photos")
        self._coming: dict[tuple[str, int], Future[FetchedImage]] = {}

    def prefetch(self, photos: Iterable[tuple[str, int]]) -> None:
        """Begin to bring the photos of the next tasks: (address, task)."""
        self._coming = {each: self._threads.submit(self._bring, *each) for each in dict.fromkeys(photos)}

    def copy(self, item: Item, ledger: Ledger, lose: Callable[[Loss], None]) -> tuple[ImageCopy | None, str]:
        """Copy the photo of an image; gives the copy and its split, which is that of the first of the same bytes.

        None, with a note and a loss, where it cannot be had.
        """
        image = item.image
        photo = self._copy(item, ledger, lose)
        if photo is None or image.split not in SPLITS:
            return photo, image.split
        key = hash_key(photo.content_key)
        split = self._splits.split(key)
        if not split:
            self._splits.add(with_split(key, image.split))
        elif split != image.split:
            ledger.notes[MOVED] += 1
            lose(moved_image_loss(image.task, image.url, split, image.split, "whose photo has the same bytes"))
        return photo, split or image.split

    def _copy(self, item: Item, ledger: Ledger, lose: Callable[[Loss], None]) -> ImageCopy | None:
        image = item.image
        coming = self._coming.pop((item.source, image.task), None)
        try:
            found = coming.result() if coming else self._bring(item.source, image.task)
        except (MediaError, OSError) as error:
            ledger.notes[NOT_COPIED] += 1
            ledger.failed["others"] += 1
            why = f"{error.reason}. {error.fix}".rstrip() if isinstance(error, MediaError) else str(error)
            lose(Loss("photo", "could not be copied", task=image.task, detail=f"{image.url}: {why}"))
            return None
        if found.entry is not None:
            return ImageCopy(image.file_name, "", found.entry.size, found.entry.key, found.entry.tag.strip('"'))
        assert found.path is not None
        self._objects.put_file(found.path, found.sha256)
        return ImageCopy(image.file_name, found.sha256, found.size)

    def close(self) -> None:
        """End the threads; what was not asked for is given up."""
        self._threads.shutdown(cancel_futures=True)

    def _bring(self, url: str, task: int) -> FetchedImage:
        entry = self._store.copy_from(url, lambda source: _key(url, source))
        if entry is not None:
            return FetchedImage(entry=entry)
        data = self._media.path(url, task_id=task).read_bytes()  # at once: the cache may drop it
        part = self._scratch / f"photo-{next(self._numbers)}"
        part.write_bytes(data)
        return FetchedImage(hashlib.sha256(data).hexdigest(), len(data), part)


def _key(url: str, source: ObjectInfo) -> str:
    """The key of a copy: another one whenever the object is."""
    if not source.size:
        return ""  # no photo: reading it says so
    digest = hashlib.sha256(f"{url} {source.tag} {source.size}".encode()).hexdigest()
    return f"photos/{digest[:2]}/{digest}"
