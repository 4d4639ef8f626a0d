"""Fetch and decode the images of tasks, for every form of address that Label Studio stores."""

from labelloop.service.media.errors import (
    MediaError,
    MediaHostRefused,
    MediaMissing,
    MediaTooLarge,
    MediaUnreachable,
    NotAnImage,
)
from labelloop.service.media.image import DecodedImage, image_size, load_image
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
