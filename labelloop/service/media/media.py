"""`Media`: the image behind an address that Label Studio stores in a task's data, decoded or as a cached file."""

from pathlib import Path

from labelloop.service.media.photo import Photo
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio


class Media:
    """Gets images. Thread-safe; several processes may share its cache folder.

    Args:
        settings: Limits, allowed hosts, cache size and S3 access.
        studio: Label Studio, for uploads and for buckets that only it can read; None: those addresses are refused.
    """

    def __init__(self, settings: Settings, studio: Studio | None) -> None:
        self._settings = settings
        self._studio = studio

    def photo(self, url: str, *, task_id: int | None = None, max_side: int | None = None) -> Photo:
        """The image, decoded by `load_photo`. Raises `MediaError`."""
        raise NotImplementedError

    def size(self, url: str, *, task_id: int | None = None) -> tuple[int, int]:
        """Upright (width, height) in pixels, from the header. Raises `MediaError`."""
        raise NotImplementedError

    def path(self, url: str, *, task_id: int | None = None) -> Path:
        """The image file, in the cache or where it lies. Read it soon: the cache may drop it. Raises `MediaError`."""
        raise NotImplementedError
