"""Copies of the photos in the data set: objects named by their content, so that each is there once."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from exporters.accounting import Ledger, Loss
from exporters.dataset import Item
from exporters.manifest import Photo
from exporters.tables import Objects
from labelloop.service.media import Media, MediaError

NOT_COPIED = "photos that could not be copied (see dropped.jsonl)"


class Photos:
    """Copies photos as their tasks pass by."""

    def __init__(self, media: Media, objects: Objects, scratch: Path) -> None:
        self._media, self._objects, self._scratch = media, objects, scratch
        self._number = 0

    def copy(self, item: Item, ledger: Ledger, lose: Callable[[Loss], None]) -> Photo | None:
        """Copy the photo of an image; None, with a note and a loss, where it cannot be had."""
        image = item.image
        try:
            data = self._media.path(item.source, task_id=image.task).read_bytes()  # at once: the cache may drop it
        except (MediaError, OSError) as error:
            ledger.notes[NOT_COPIED] += 1
            lose(Loss("photo", "could not be copied", task=image.task, detail=f"{image.url}: {error}"))
            return None
        self._number += 1
        part = self._scratch / f"photo-{self._number}"
        part.write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        self._objects.put_file(part, digest)
        return Photo(image.file_name, digest, len(data))
