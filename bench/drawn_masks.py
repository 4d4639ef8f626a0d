"""Drawn images with known masks: plain and textured shapes, many of one kind, as cells and parts often are."""

from __future__ import annotations

import random

import cv2
import numpy as np

from bench.coco_masks import MaskedImage

SOURCE = "drawn"


def draw_masks(count: int, seed: int = 0) -> list[MaskedImage]:
    """Draw images; those without an object are left out.

    Args:
        count: Images.
        seed: Equal seeds give equal images.
    """
    chance, numbers, images = random.Random(seed), np.random.default_rng(seed), []
    for index in range(count):
        height, width = chance.randint(160, 400), chance.randint(160, 400)
        pixels = _texture(chance, numbers, height, width)
        taken = np.zeros((height, width), np.uint8)
        objects: list[tuple[np.ndarray, ...]] = []
        common = _texture(chance, numbers, height, width) if chance.random() < 0.6 else None
        size = chance.uniform(8, 70)
        for _ in range(chance.randint(1, 14)):
            across = size * chance.uniform(0.7, 1.4) if chance.random() < 0.8 else chance.uniform(6, 90)
            down = across * chance.uniform(0.5, 1)
            polygon = _outline(chance, chance.uniform(0, width), chance.uniform(0, height), across, down)
            mask = np.zeros((height, width), np.uint8)
            cv2.fillPoly(mask, [np.round(polygon * 16 - 8).astype(np.int32)], 1, cv2.LINE_8, 4)
            if mask.sum() < 40 or (mask & taken).any():
                continue
            taken |= mask
            objects.append((polygon,))
            surface = common if common is not None and chance.random() < 0.9 else None
            surface = _texture(chance, numbers, height, width) if surface is None else surface
            share = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), chance.uniform(0.4, 1.6))[..., None]
            if chance.random() < 0.3:  # a rim
                depth = cv2.distanceTransform(mask, cv2.DIST_L2, 3)
                surface = surface + (chance.uniform(-50, 50) * np.exp(-depth / chance.uniform(2, 8)))[..., None]
            pixels = pixels * (1 - share) + surface * share
        pixels += numbers.standard_normal(pixels.shape).astype(np.float32) * chance.uniform(0, 10)
        if objects:
            images.append(MaskedImage(SOURCE, -1 - index, pixels.clip(0, 255).astype(np.uint8), tuple(objects)))
    return images


def _texture(chance: random.Random, numbers: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A colour with a gradient and noise of some scales: (height, width, 3) float32."""
    colour = np.array([chance.uniform(10, 245) for _ in range(3)], np.float32)
    if chance.random() < 0.4:
        colour[:] = colour.mean()
    texture = np.tile(colour, (height, width, 1))
    texture += np.linspace(-1, 1, width, dtype=np.float32)[None, :, None] * chance.uniform(-30, 30)
    texture += np.linspace(-1, 1, height, dtype=np.float32)[:, None, None] * chance.uniform(-30, 30)
    for _ in range(chance.randint(0, 2)):
        scale = chance.choice([4, 8, 16, 40])
        rows, columns = max(2, height // scale), max(2, width // scale)
        noise = numbers.standard_normal((rows, columns, chance.choice([1, 3]))).astype(np.float32)
        noise = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC).reshape(height, width, -1)
        texture += noise * chance.uniform(2, 25)
    return texture


def _outline(chance: random.Random, x: float, y: float, across: float, down: float) -> np.ndarray:
    """An ellipse, rectangle, polygon or blob around (x, y), half-axes `across` and `down`: (n, 2) float32."""
    kind, angle = chance.random(), chance.uniform(0, 2 * np.pi)
    turns = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    circle = np.column_stack([across * np.cos(turns), down * np.sin(turns)])
    if kind < 0.45:
        points = circle
    elif kind < 0.6:
        points = np.array([[-across, -down], [across, -down], [across, down], [-across, down]]) * 0.8
        angle = angle if chance.random() < 0.5 else 0
    elif kind < 0.7:
        corners = chance.randint(3, 7)
        at = np.linspace(0, 2 * np.pi, corners, endpoint=False)
        reach = np.array([chance.uniform(0.6, 1) for _ in range(corners)])
        points = np.column_stack([across * np.cos(at), down * np.sin(at)]) * reach[:, None]
    else:
        waves = [chance.uniform(-0.2, 0.2) * np.cos(k * turns + chance.uniform(0, 6.3)) for k in (2, 3, 4, 5)]
        points = circle * (1 + np.sum(waves, axis=0))[:, None]
    cos, sin = np.cos(angle), np.sin(angle)
    return (points @ np.array([[cos, sin], [-sin, cos]]) + [x, y]).astype(np.float32)
