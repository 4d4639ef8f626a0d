"""A task's image, by every form of address that Label Studio stores: `Media`, and the one decode function."""

from labelloop.service.media.errors import (
    HostRefused,
    MediaError,
    MediaMissing,
    MediaTooLarge,
    MediaUnreachable,
    NotAnImage,
)
from labelloop.service.media.image import Photo, load_photo, photo_size
from labelloop.service.media.media import Media

__all__ = [
    "HostRefused",
    "Media",
    "MediaError",
    "MediaMissing",
    "MediaTooLarge",
    "MediaUnreachable",
    "NotAnImage",
    "Photo",
    "load_photo",
    "photo_size",
]
