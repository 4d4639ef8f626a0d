"""Serves scaled images of judged tasks to the dashboard, through a disk cache."""

from typing import BinaryIO

import sqlalchemy as sa

from labelloop.service.errors import LabelloopError
from labelloop.service.media import Media
from labelloop.service.media.disk_cache import DiskCache
from labelloop.service.settings import MIB, Settings
from labelloop.service.studio import Studio
from qc_webhooks.store.task_facts import FactStore

# Few fixed widths, so that the cache serves most requests and clients cannot request arbitrary scaling.
WIDTHS = (480, 960, 1920, 3840)
_CACHE_BYTES = 512 * MIB
_QUALITY = 85


class TaskImages:
    """Scaled images. Thread-safe.

    Args:
        settings: Locations of Label Studio and the caches.
        engine: The migrated database, whose facts hold the image URLs.
    """

    def __init__(self, settings: Settings, engine: sa.Engine) -> None:
        self._media = Media(settings, Studio.from_settings(settings))
        self._facts = FactStore(engine)
        self._cache = DiskCache(settings.home / "thumbnails", min(_CACHE_BYTES, settings.media_cache_bytes))

    def jpeg(self, project: int, task: int, index: int, width: int) -> bytes:
        """A task's image as JPEG, upright, scaled down to a width.

        Args:
            project: The project's id.
            task: The task's id.
            index: Index of the image in the task, from 0.
            width: Maximum width in pixels; one of WIDTHS.

        Raises:
            LabelloopError: The task is not judged, it has no such image, or the image cannot be read.
        """
        facts = self._facts.load(project, task)
        if facts is None or not 0 <= index < len(facts.image_urls) or width not in WIDTHS:
            raise LabelloopError(
                f"Task {task} of project {project} has no image {index} of width {width}.",
                code="photo_unknown",
                status=404,
            )
        address = facts.image_urls[index]

        def scale(into: BinaryIO) -> None:
            from PIL import Image

            size = self._media.size(address, task_id=task)
            image = self._media.photo(address, task_id=task, max_side=_side(size, width))
            Image.fromarray(image.pixels).save(into, "JPEG", quality=_QUALITY)

        with self._cache.open(f"{project}/{task}/{width}/{address}", scale) as file:
            return file.read()


def _side(size: tuple[int, int], width: int) -> int:
    """Longer side of an image after scaling to a width, in pixels."""
    return max(1, round(max(size) * min(1.0, width / size[0])))


def placeholder_svg(width: int = 480, height: int = 320) -> str:
    """SVG placeholder for an image that cannot be read."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
        f'<rect width="{width}" height="{height}" fill="#3b3f45"/>'
        f'<text x="50%" y="50%" fill="#c9ccd1" font-family="sans-serif" font-size="{width // 24}"'
        ' text-anchor="middle">The image cannot be shown</text></svg>'
    )
