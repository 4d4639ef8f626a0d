"""Images with many details, drawn from a seed, and what people do to images."""

import io

import numpy as np
from PIL import Image, ImageEnhance


def drawn(seed: int, width: int = 320, height: int = 240) -> Image.Image:
    """Fifty rectangles in random places and colours on a ramp, unlike any other seed's."""
    rng = np.random.default_rng(seed)
    pixels = np.empty((height, width, 3), np.float64)
    pixels[:] = np.linspace(60, 160, width)[None, :, None] * rng.uniform(0.6, 1.2, 3)
    for _ in range(50):
        x, y = rng.integers(0, width), rng.integers(0, height)
        w, h = rng.integers(8, 90), rng.integers(8, 90)
        pixels[y : y + h, x : x + w] = rng.integers(20, 200, 3)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _cropped(image: Image.Image, share: float) -> Image.Image:
    width, height = image.size
    x, y = round(width * share / 2), round(height * share / 2)
    return image.crop((x, y, width - x, height - y))


CHANGES = {
    "half the size": lambda image: encoded(image.resize((image.width // 2, image.height // 2)), quality=90),
    "a quarter of the size, PNG": lambda image: encoded(image.resize((image.width // 4, image.height // 4)), "PNG"),
    "JPEG quality 30": lambda image: encoded(image, quality=30),
    "crop of 3 %": lambda image: encoded(_cropped(image, 0.03), quality=90),
    "brighter": lambda image: encoded(ImageEnhance.Brightness(image).enhance(1.25), quality=90),
    "darker": lambda image: encoded(ImageEnhance.Brightness(image).enhance(0.7), quality=90),
    "grey": lambda image: encoded(image.convert("L"), quality=90),
    "all of it": lambda image: encoded(
        ImageEnhance.Brightness(_cropped(image.resize((image.width // 2, image.height // 2)), 0.03)).enhance(1.15),
        quality=60,
    ),
}
