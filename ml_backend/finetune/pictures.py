"""Labelled images in memory, at the size that training needs, and their split into trained and held out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import cv2
import numpy as np

from labelloop.service.media import MediaError, load_image
from ml_backend.detection.detections import Floats
from ml_backend.detection.preprocess import InputSpec
from ml_backend.finetune.augment import Picture
from ml_backend.training.datasets import LocalImage

# Share of the images that early stopping is decided on, and its bounds.
HELD_OUT = 0.1
MIN_HELD_OUT, MAX_HELD_OUT = 2, 200

# Fewest images to hold any out: below it, each is needed for training.
MIN_TO_HOLD_OUT = 10

# Fewest held-out images that may end a training or choose its result: with two, AP50 moves by .15 from one evaluation
# to the next while the AP50 on 87 test images rises steadily.
ENOUGH_TO_DECIDE = 8

# Bytes of decoded images in memory; beyond it images are decoded again whenever they are drawn.
IN_MEMORY_BYTES = 2 * 2**30


class Album:
    """Decoded images, the first of them kept in memory."""

    def __init__(
        self, images: Sequence[LocalImage], names: Sequence[str], spec: InputSpec, *, side: float, keep: bool = True
    ) -> None:
        """Decode nothing yet.

        Args:
            images: The images.
            names: Class names; labels of other classes are left out.
            spec: Input format of the network.
            side: Longest side in memory, as a factor of the input's.
            keep: Whether decoded images are kept.
        """
        self._images, self._spec = list(images), spec
        self.digest = images_digest(images)
        self._numbers = {name: index for index, name in enumerate(names)}
        self._max_side = round(max(spec.width, spec.height) * side)
        self._kept: dict[int, Picture] = {}
        self._bytes = 0
        self._most = IN_MEMORY_BYTES if keep else 0

    def __len__(self) -> int:
        """Number of images."""
        return len(self._images)

    def __getitem__(self, index: int) -> Picture:
        """Decode an image.

        Raises:
            MediaError: It cannot be decoded.
        """
        if index in self._kept:
            return self._kept[index]
        image = self._images[index]
        loaded = load_image(image.path.read_bytes(), max_side=self._max_side, name=image.path.name)
        pixels = loaded.pixels
        longest = max(pixels.shape[:2])
        if longest > self._max_side:
            scale = self._max_side / longest
            sides = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
            pixels = np.asarray(cv2.resize(pixels, sides, interpolation=cv2.INTER_AREA), np.uint8)
        factors = np.array([pixels.shape[1] / loaded.width, pixels.shape[0] / loaded.height] * 2, np.float32)
        trainable = [at for at, label in enumerate(image.labels) if label in self._numbers]
        boxes = np.asarray(image.boxes, np.float32).reshape(-1, 4)[trainable] * factors
        classes = np.array([self._numbers[image.labels[at]] for at in trainable], np.int64)
        picture = Picture(pixels, boxes, classes, image.name, (loaded.width, loaded.height))
        if self._bytes + pixels.nbytes <= self._most:
            self._kept[index] = picture
            self._bytes += pixels.nbytes
        return picture

    def input_sides(self, index: int) -> Floats:
        """Width and height (boxes, 2) of an image's objects in pixels of the network's input.

        Raises:
            MediaError: It cannot be decoded.
        """
        picture = self[index]
        height, width = picture.pixels.shape[:2]
        across, down = self._spec.width / width, self._spec.height / height
        if self._spec.placement != "stretch":
            across = down = min(across, down)
        return np.asarray((picture.boxes[:, 2:] - picture.boxes[:, :2]) * (across, down), np.float32)


def images_digest(images: Sequence[LocalImage]) -> str:
    """Identifies labelled images in their order."""
    return hashlib.sha256(repr([(image.name, image.boxes, image.labels) for image in images]).encode()).hexdigest()[:16]


def decodable(album: Album, images: Sequence[LocalImage]) -> tuple[list[LocalImage], list[str], Floats]:
    """Decode every image once.

    Returns:
        Those that can be decoded, messages for the others, and the sides (boxes, 2) of all objects in pixels of the
        network's input.
    """
    good, bad = [], []
    sides: list[Floats] = [np.zeros((0, 2), np.float32)]
    for index, image in enumerate(images):
        try:
            sides.append(album.input_sides(index))
        except (MediaError, OSError) as error:
            bad.append(f"{image.name}: {error}")
        else:
            good.append(image)
    return good, bad, np.concatenate(sides)


def split(
    images: Sequence[LocalImage], *, seed: int, only_to_decide: bool = False
) -> tuple[list[LocalImage], list[LocalImage]]:
    """Split images into (trained on, held out), the same for the same seed whatever their order.

    Args:
        images: Labelled images.
        seed: Of the order.
        only_to_decide: Whether the held-out images serve to end the training alone, because others are evaluated on:
            then none is held out where they would be too few to decide.
    """
    from ml_backend.training.simulate import hash_order

    ordered = hash_order(images, seed=seed)
    count = min(max(round(HELD_OUT * len(images)), MIN_HELD_OUT), MAX_HELD_OUT)
    if len(images) < MIN_TO_HOLD_OUT or (only_to_decide and count < ENOUGH_TO_DECIDE):
        return ordered, []
    return ordered[count:], ordered[:count]
