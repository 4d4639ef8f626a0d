"""Fetch and decode the images of tasks, for every form of address that Label Studio stores.

`Media` is imported on first use: its HTTP client takes a tenth of a second.
"""

from typing import TYPE_CHECKING, Any

from labelloop.service.media.errors import (
    MediaError,
    MediaHostRefused,
    MediaMissing,
    MediaTooLarge,
    MediaUnreachable,
    NotAnImage,
)
from labelloop.service.media.image import DecodedImage, image_size, load_image

if TYPE_CHECKING:
    from labelloop.service.media.media import Media

__all__ = [
    "DecodedImage",
    "Media",
    "MediaError",
    "MediaHostRefused",
    "MediaMissing",
    "MediaTooLarge",
    "MediaUnreachable",
    "NotAnImage",
    "image_size",
    "load_image",
]


def __getattr__(name: str) -> Any:
    if name == "Media":
        from labelloop.service.media.media import Media

        return Media
    raise AttributeError(name)
