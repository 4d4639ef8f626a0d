"""Per-pixel features of a crop for a project's mask head: position, appearance, contrast, texture and colour.

They complement the frozen features of the segmentation network where images are unlike its training data (microscopy,
defects): there, brightness against the surroundings says more than learned features.
"""

from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ml_backend.detection.logits import expit
from ml_backend.segmentation.crop import CONTEXT

Floats = npt.NDArray[np.float32]

# Standard deviations in pixels of a map of 48 pixels a side, at which colours and textures are smoothed.
SCALES = (1.0, 2.0, 4.0)

# Number of maps of each group, in the order of `local_maps`.
POSITION, APPEARANCE, CONTRAST, TEXTURE, COLOUR = 10, 7, 12, 4 * len(SCALES), 3 + 3 * len(SCALES)
LOCAL_MAPS = POSITION + APPEARANCE + CONTRAST + TEXTURE + COLOUR

# Radius, in half boxes, of the centre whose mean colour stands for the object.
CENTRE_RADIUS = 0.35

# Standard deviation in pixels of a map of 48 pixels a side: the neighbourhood whose colours a pixel is compared with.
NEIGHBOURHOOD = 4.0

# Logits are clipped to +-MAX_LOGIT.
MAX_LOGIT = 5.0


@lru_cache(maxsize=4)
def box_coordinates(side: int) -> tuple[Floats, Floats]:
    """Pixel coordinates x and y of a crop, each (side, side) float32: -1..1 in the box, beyond it in the rest."""
    line = ((np.arange(side) + 0.5) / side * 2 - 1).astype(np.float32) * np.float32(CONTEXT)
    across, down = np.meshgrid(line, line)
    return across, down


def inside_box(side: int) -> npt.NDArray[np.bool_]:
    """Mask (side, side) of the pixels in the box."""
    across, down = box_coordinates(side)
    return (np.abs(across) < 1) & (np.abs(down) < 1)


def local_maps(crops: npt.NDArray[np.uint8], logits: Floats) -> Floats:
    """Compute the maps (n, LOCAL_MAPS, side, side) float32: position, appearance, contrast, texture, colour.

    Args:
        crops: (n, k, k, 3) uint8 RGB, rendered `BoxCrop`s.
        logits: (n, side, side) float32 of the network.
    """
    return np.stack([_of_crop(crop, crop_logits) for crop, crop_logits in zip(crops, logits, strict=True)])


@lru_cache(maxsize=4)
def _position(side: int) -> Floats:
    x, y = box_coordinates(side)
    radius = np.hypot(x, y)
    superellipse = np.cbrt(np.abs(x) ** 3 + np.abs(y) ** 3)
    inside = inside_box(side).astype(np.float32)
    maps = [x**2, y**2, np.abs(x), np.abs(y), x, y, x * y, superellipse, inside, radius**4]
    return np.stack(maps).astype(np.float32)


def _of_crop(crop: npt.NDArray[np.uint8], logits: Floats) -> Floats:
    side = len(logits)
    lab: Any = cv2.cvtColor(crop.astype(np.float32) / 255, cv2.COLOR_RGB2Lab) / np.float32(50)
    lab[..., 0] -= 1
    colour: Any = cv2.resize(lab, (side, side), interpolation=cv2.INTER_AREA)
    texture, colours = _texture(colour)
    return np.concatenate([_position(side), _appearance(colour, logits), _contrast(colour), texture, colours])


def _appearance(colour: Floats, logits: Floats) -> Floats:
    """How much more each pixel looks like what the network takes for the object than like the rest of the crop.

    Colours of both are normal distributions over the crop, and means of the neighbourhood.
    """
    clipped = np.clip(logits, -MAX_LOGIT, MAX_LOGIT)
    probability = expit(clipped)
    scale = len(logits) / 48
    likelihoods, means, local_means = [], [], []
    for weight in (probability**2, (1 - probability) ** 2):
        total = weight.sum() + np.float32(1e-3)
        mean = np.tensordot(weight, colour, 2) / total
        variance = np.tensordot(weight, (colour - mean) ** 2, 2) / total + np.float32(1e-3)
        likelihoods.append(((colour - mean) ** 2 / variance + np.log(variance)).sum(axis=2))
        means.append(mean)
        near = _blur(weight, NEIGHBOURHOOD * scale) + np.float32(1e-3)
        local_means.append(_blur(colour * weight[..., None], NEIGHBOURHOOD * scale) / near[..., None])
    difference, local_difference = means[0] - means[1], local_means[0] - local_means[1]
    along = (colour - (means[0] + means[1]) / 2) @ difference / (difference @ difference + 0.01)
    locally = ((colour - (local_means[0] + local_means[1]) / 2) * local_difference).sum(axis=2)
    to_object, to_rest = (np.linalg.norm(colour - mean, axis=2) for mean in local_means)
    maps = [
        np.clip(likelihoods[1] - likelihoods[0], -10, 10),
        np.clip(along, -2, 2),
        to_rest - to_object,
        (to_rest - to_object) / (to_rest + to_object + 0.05),
        np.clip(locally / ((local_difference**2).sum(axis=2) + 0.01), -2, 2),
        _blur(clipped, 1.5 * scale),
        _blur(clipped, 4 * scale),
    ]
    return np.stack(maps).astype(np.float32)


def _contrast(colour: Floats) -> Floats:
    """Colour and brightness of each pixel against the box's centre, and against the surroundings of the box."""
    side = len(colour)
    light = colour[..., 0]
    x, y = box_coordinates(side)
    inside = inside_box(side)
    centre, around = np.exp(-((np.hypot(x, y) / CENTRE_RADIUS) ** 2) / 2), (~inside).astype(np.float32)
    object_mean = np.tensordot(centre, colour, 2) / centre.sum()
    around_mean = np.tensordot(around, colour, 2) / around.sum()
    to_object = np.linalg.norm(colour - object_mean, axis=2)
    to_around = np.linalg.norm(colour - around_mean, axis=2)
    difference = object_mean - around_mean
    maps = [
        to_object,
        to_around,
        (to_around - to_object) / (to_around + to_object + 0.1),
        light - light[inside].mean(),
        (light - light[inside].mean()) / (light[inside].std() + 0.02),
        light - object_mean[0],
        light - around_mean[0],
        *(colour[..., channel] - around_mean[channel] for channel in (1, 2)),
        *(colour[..., channel] - object_mean[channel] for channel in (1, 2)),
        ((colour - (object_mean + around_mean) / 2) @ difference) / (difference @ difference + 0.02),
    ]
    return np.stack(maps).astype(np.float32)


def _texture(colour: Floats) -> tuple[Floats, Floats]:
    """Texture and colour at several scales."""
    side = len(colour)
    light = np.ascontiguousarray(colour[..., 0])
    x, y = box_coordinates(side)
    radius = np.hypot(x, y)
    texture, colours = [], [colour]
    for scale in SCALES:
        smooth = _blur(colour, scale * side / 48)
        colours.append(smooth)
        level = np.ascontiguousarray(smooth[..., 0])
        across: Any = cv2.Sobel(level, -1, 1, 0)
        down: Any = cv2.Sobel(level, -1, 0, 1)
        variance = _blur(light * light, scale * side / 48) - level * level
        texture += [
            np.hypot(across, down),
            cv2.Laplacian(level, -1),
            np.sqrt(np.maximum(variance, 0)),
            (across * x + down * y) / (radius + 0.1),  # radial slope: positive where it gets lighter outwards
        ]
    return np.stack(texture).astype(np.float32), np.concatenate(colours, axis=2).transpose(2, 0, 1).astype(np.float32)


def _blur(array: Any, sigma: float) -> Floats:
    blurred: Any = cv2.GaussianBlur(np.asarray(array, np.float32), (0, 0), sigma)
    return np.asarray(blurred, np.float32)
