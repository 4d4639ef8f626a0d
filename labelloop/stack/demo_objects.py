"""Toys drawn onto the demo images: classes that no served model knows, so that learning them is seen."""

from __future__ import annotations

import colorsys
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Point = tuple[float, float]
Colour = tuple[int, int, int]

# Size of a toy as a share of the image's shorter side.
SMALLEST, LARGEST = 0.24, 0.32
# Drawn larger by this factor, then reduced: smooth edges.
OVERSAMPLED = 3
CANDIDATES = 40
OUTLINE_POINTS = 24
# Hues of the toys, and how far they vary.
RED, YELLOW, GREEN, BLUE, PURPLE = 0.98, 0.14, 0.36, 0.6, 0.8
HUES = 0.04


@dataclass(frozen=True)
class Toy:
    """A toy on an image.

    Attributes:
        label: Its label in the demo's label config, a key of `TOYS`.
        outline: Polygon around it, in pixels of the image.
    """

    label: str
    outline: tuple[Point, ...]

    @property
    def box(self) -> tuple[float, float, float, float]:
        """left, top, right, bottom in pixels."""
        xs, ys = zip(*self.outline, strict=True)
        return min(xs), min(ys), max(xs), max(ys)


def add_toys(image: Image.Image, seed: int) -> tuple[Image.Image, tuple[Toy, ...]]:
    """Draw one toy of each label onto an RGB image, away from its middle and from each other.

    Args:
        image: The image; it is not changed.
        seed: The same image and seed give the same pixels.

    Returns:
        The image with the toys, and where they are.
    """
    chance = random.Random(seed)  # noqa: S311 - no secret
    painted = image.copy()
    toys: list[Toy] = []
    for label, draw in TOYS.items():
        size = chance.uniform(SMALLEST, LARGEST) * min(image.size)
        centre = _free_place(image.size, size, toys, chance)
        picture, outline = draw(round(size), chance)
        left, top = round(centre[0] - picture.width / 2), round(centre[1] - picture.height / 2)
        painted.paste(picture, (left, top), picture)
        toys.append(Toy(label, tuple((left + x, top + y) for x, y in outline)))
    return painted, tuple(toys)


def _free_place(size: tuple[int, int], side: float, toys: Sequence[Toy], chance: random.Random) -> Point:
    """Of some random places for a square: without a toy, and farthest from the middle of the image, as it comes."""
    margin = side * 0.6
    places = [
        (chance.uniform(margin, size[0] - margin), chance.uniform(margin, size[1] - margin)) for _ in range(CANDIDATES)
    ]

    def crowding(place: Point) -> float:
        """How far the place reaches into another toy, or into the middle third."""
        centres = [((toy.box[0] + toy.box[2]) / 2, (toy.box[1] + toy.box[3]) / 2) for toy in toys]
        near = min((math.dist(place, other) for other in centres), default=math.inf)
        middle = max(abs(place[0] / size[0] - 0.5), abs(place[1] / size[1] - 0.5))
        return max(0.0, 1.5 - near / side) * 10 + max(0.0, 0.36 - middle)

    return min(places, key=crowding)


def _balloon(side: int, chance: random.Random) -> tuple[Image.Image, list[Point]]:
    """An egg with a knot and a light."""
    n = side * OVERSAMPLED
    wide = n * chance.uniform(0.72, 0.82)
    canvas, draw = _canvas(n)
    colour = _vivid(chance, RED)
    cx, top, bottom = n / 2, 0.02 * n, 0.92 * n
    egg = []
    for angle in np.linspace(0, 2 * math.pi, OUTLINE_POINTS, endpoint=False).tolist():
        y = (top + bottom) / 2 - math.cos(angle) * (bottom - top) / 2
        # Narrower towards the knot.
        narrow = 1 - 0.28 * max(0.0, (y - n / 2) / (n / 2))
        egg.append((cx + math.sin(angle) * wide / 2 * narrow, y))
    knot = [(cx, 0.90 * n), (cx - 0.05 * n, 0.985 * n), (cx + 0.05 * n, 0.985 * n)]
    draw.polygon(knot, fill=(*_darker(colour, 0.7), 255))
    draw.polygon(egg, fill=(*colour, 255))
    lit = _shaded(canvas, light=(0.36, 0.26))
    return _finished(lit, egg, chance.uniform(-18, 18))


def _parcel(side: int, chance: random.Random) -> tuple[Image.Image, list[Point]]:
    """A parcel seen from above, with a ribbon both ways and a bow."""
    n = side * OVERSAMPLED
    canvas, draw = _canvas(n)
    high = chance.uniform(0.74, 0.94)
    left, top, right, bottom = 0.04 * n, (1 - high) / 2 * n, 0.96 * n, (1 + high) / 2 * n
    paper, ribbon = _vivid(chance, PURPLE), _vivid(chance, YELLOW)
    draw.rectangle((left, top, right, bottom), fill=(*paper, 255))
    draw.rectangle((left, 0.44 * n, right, 0.56 * n), fill=(*ribbon, 255))
    draw.rectangle((0.44 * n, top, 0.56 * n, bottom), fill=(*ribbon, 255))
    for x in (0.36, 0.64):
        draw.ellipse(((x - 0.13) * n, 0.41 * n, (x + 0.13) * n, 0.59 * n), fill=(*_darker(ribbon, 0.85), 255))
    lit = _shaded(canvas, light=(0.3, 0.2))
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    return _finished(lit, corners, chance.uniform(-20, 20))


def _ball(side: int, chance: random.Random) -> tuple[Image.Image, list[Point]]:
    """A beach ball: six sectors, white between colours."""
    n = side * OVERSAMPLED
    canvas, draw = _canvas(n)
    box = (0.03 * n, 0.03 * n, 0.97 * n, 0.97 * n)
    for sector in range(6):
        colour = (245, 245, 240) if sector % 2 else _vivid(chance, (GREEN, BLUE, RED)[sector // 2])
        draw.pieslice(box, 60 * sector, 60 * sector + 60, fill=(*colour, 255))
    draw.ellipse((0.43 * n, 0.43 * n, 0.57 * n, 0.57 * n), fill=(245, 245, 240, 255))
    lit = _shaded(canvas, light=(0.38, 0.3))
    angles = np.linspace(0, 2 * math.pi, OUTLINE_POINTS, endpoint=False).tolist()
    circle = [(n / 2 + 0.47 * n * math.cos(angle), n / 2 + 0.47 * n * math.sin(angle)) for angle in angles]
    return _finished(lit, circle, chance.uniform(0, 60))


# Toys by label. To add one: add its function and its label in the demo's label config.
TOYS: Mapping[str, Callable[[int, random.Random], tuple[Image.Image, list[Point]]]] = {
    "Balloon": _balloon,
    "Parcel": _parcel,
    "Beach ball": _ball,
}


def _canvas(side: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    canvas = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    return canvas, ImageDraw.Draw(canvas)


def _vivid(chance: random.Random, hue: float) -> Colour:
    hue = (hue + chance.uniform(-HUES, HUES)) % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, chance.uniform(0.75, 0.95), chance.uniform(0.75, 0.95))
    return round(255 * red), round(255 * green), round(255 * blue)


def _darker(colour: Colour, factor: float) -> Colour:
    return round(colour[0] * factor), round(colour[1] * factor), round(colour[2] * factor)


def _shaded(canvas: Image.Image, *, light: Point) -> Image.Image:
    """Brighter near `light`, given as shares of the canvas, and darker away from it."""
    pixels = np.asarray(canvas).astype(np.float32)
    y, x = np.mgrid[: canvas.height, : canvas.width] / canvas.height
    distance = np.hypot(x - light[0], y - light[1])
    glint = 150 * np.exp(-((distance / 0.11) ** 2))
    pixels[..., :3] = pixels[..., :3] * (1.08 - 0.55 * distance)[..., None] + glint[..., None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8), "RGBA")


def _finished(canvas: Image.Image, outline: Sequence[Point], degrees: float) -> tuple[Image.Image, list[Point]]:
    """Turn a canvas counter-clockwise about its middle, and reduce it and the outline by `OVERSAMPLED`."""
    turned = canvas.rotate(degrees, Image.Resampling.BICUBIC, expand=True)
    reduced = turned.resize(
        (max(1, turned.width // OVERSAMPLED), max(1, turned.height // OVERSAMPLED)), Image.Resampling.LANCZOS
    ).filter(ImageFilter.SMOOTH)
    middle, angle = canvas.width / 2, -math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    points = [
        (
            (cos * (x - middle) - sin * (y - middle)) / OVERSAMPLED + reduced.width / 2,
            (sin * (x - middle) + cos * (y - middle)) / OVERSAMPLED + reduced.height / 2,
        )
        for x, y in outline
    ]
    return reduced, points
