"""The photos of the dashboard: through Media's cache, scaled to a few widths, only of tasks that we know."""

from typing import BinaryIO

import sqlalchemy as sa

from labelloop.service.errors import LabelloopError
from labelloop.service.media import Media
from labelloop.service.media.disk_cache import DiskCache
from labelloop.service.settings import MIB, Settings
from labelloop.service.studio import Studio
from qc_webhooks.store.task_facts import FactStore

# Few widths, so that the cache serves most requests, and nobody makes us scale a photo a thousand times.
WIDTHS = (480, 960, 1920, 3840)
_CACHE_BYTES = 512 * MIB
_QUALITY = 85


class PhotoUnknown(LabelloopError):
    """There is no such photo of a task that quality control knows."""

    code = "photo_unknown"
    status = 404


class Photos:
    """Scaled photos. Thread-safe; made when the first one is asked for.

    Args:
        settings: Where Label Studio and the caches are.
        engine: The migrated database: the addresses of the photos are in the facts of the tasks.
    """

    def __init__(self, settings: Settings, engine: sa.Engine) -> None:
        self._media = Media(settings, Studio.from_settings(settings))
        self._facts = FactStore(engine)
        self._cache = DiskCache(settings.home / "thumbnails", min(_CACHE_BYTES, settings.media_cache_bytes))

    def jpeg(self, project: int, task: int, place: int, width: int) -> bytes:
        """A photo of a task as JPEG, upright, at most so wide.

        Args:
            project: The project's id.
            task: The task's id.
            place: Which of its photos, from 0.
            width: One of WIDTHS.

        Raises:
            PhotoUnknown: There is no such photo.
            LabelloopError: It cannot be had.
        """
        facts = self._facts.facts(project, task)
        if facts is None or not 0 <= place < len(facts.photos) or width not in WIDTHS:
            raise PhotoUnknown(f"Task {task} of project {project} has no photo {place} of width {width}.")
        address = facts.photos[place]

        def scale(into: BinaryIO) -> None:
            from PIL import Image

            size = self._media.size(address, task_id=task)
            photo = self._media.photo(address, task_id=task, max_side=_side(size, width))
            Image.fromarray(photo.image).save(into, "JPEG", quality=_QUALITY)

        with self._cache.opened(f"{project}/{task}/{width}/{address}", scale) as file:
            return file.read()


def _side(size: tuple[int, int], width: int) -> int:
    """The longer side of a photo that is scaled to a width."""
    return max(1, round(max(size) * min(1.0, width / size[0])))


def refusal(width: int = 480, height: int = 320) -> str:
    """A picture (SVG) that says that the photo is not to be had."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
        f'<rect width="{width}" height="{height}" fill="#3b3f45"/>'
        f'<text x="50%" y="50%" fill="#c9ccd1" font-family="sans-serif" font-size="{width // 24}"'
        ' text-anchor="middle">The photo cannot be shown</text></svg>'
    )
