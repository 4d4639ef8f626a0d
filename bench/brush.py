"""The brush codec against label-studio-sdk's, on 1080p masks: CPU seconds, and whether the pixels are the same."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from label_studio_sdk.converter import brush as sdk

from labelloop.labeling.geometry.brush_codec import decode_rle, encode_rle

WIDTH, HEIGHT = 1920, 1080


def run() -> str:
    """Decode and encode each mask with both; the SDK once, as it takes seconds, ours best of five."""
    lines = [
        "One 1920 x 1080 brush stroke, CPU seconds (ours: best of 5; label-studio-sdk: once). RGBA words, as Label",
        "Studio stores them. Both decoders give identical pixels, both encoders identical bytes: compared here.",
        "",
        "| mask | code | decode, sdk | decode, labelloop | faster | encode, sdk | encode, labelloop | faster |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, words in masks():
        ours, code = clock(lambda words=words: encode_rle(words), 5)
        theirs, expected = clock(lambda words=words: sdk.encode_rle(words.astype(int)), 1)
        assert code == expected, name
        our_decode, pixels = clock(lambda code=code: decode_rle(code), 5)
        their_decode, referee = clock(lambda code=code: sdk.decode_rle(code), 1)
        assert (pixels == referee).all(), name
        assert (pixels == words).all(), name
        size = f"{len(code) / 1e6:.2f} MB" if len(code) > 100_000 else f"{len(code) / 1e3:.1f} kB"
        lines.append(
            f"| {name} | {size} | {their_decode:.2f} | {our_decode:.4f} | **{their_decode / our_decode:.0f}x** "
            f"| {theirs:.2f} | {ours:.4f} | {theirs / ours:.0f}x |"
        )
    return "\n".join(lines)


def masks() -> Iterator[tuple[str, Any]]:
    """Strokes as they occur: RGBA words, flat."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    distance = np.hypot((columns - 960) / 700, (rows - 540) / 190)
    inside = distance < 1
    rng = np.random.default_rng(0)
    strokes = np.zeros((HEIGHT, WIDTH), dtype=bool)
    for x, y, radius in rng.integers((100, 100, 10), (1820, 980, 60), (60, 3)):
        strokes |= (columns - x) ** 2 + (rows - y) ** 2 < radius**2
    yield "alpha only, an ellipse of 20 % of the image", rgba((0, 0, 0), inside * 255)
    yield "alpha only, 60 dabs of a brush", rgba((0, 0, 0), strokes * 255)
    yield "alpha only, soft edges", rgba((0, 0, 0), np.clip((1.05 - distance) * 5100, 0, 255))
    yield (
        "soft alpha everywhere (a model's confidence)",
        rgba((0, 0, 0), np.clip(255 * np.exp(-(distance**2)) + rng.normal(0, 2, distance.shape), 0, 255)),
    )
    yield "one colour, binary alpha (all channels alike)", np.repeat((inside * 255).astype(np.uint8).ravel(), 4)


def rgba(colour: tuple[int, int, int], alpha: Any) -> Any:
    """Words of one colour under an alpha channel."""
    image = np.zeros((*alpha.shape, 4), dtype=np.uint8)
    image[..., :3], image[..., 3] = colour, alpha
    return image.ravel()


def clock(work: Callable[[], Any], times: int) -> tuple[float, Any]:
    """The least CPU seconds of some runs, and what they gave."""
    best, result = float("inf"), None
    for _ in range(times):
        start = time.process_time()
        result = work()
        best = min(best, time.process_time() - start)
    return best, result
