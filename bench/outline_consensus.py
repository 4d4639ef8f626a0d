"""Consensus of outlines, masks and ellipses against known shapes: beside the medoid and the best annotator.

The true outlines are rings of 5 to 15 corners. Annotators move every corner at random, leave out or clip corners, and
set further points on edges; masks have a wavering edge. A careless annotator scales, shifts and coarsens. shapely
measures IoU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter, shift

from labelloop.labeling.consensus.merge import medoid, merge_shapes
from labelloop.labeling.geometry.raster import rasterise
from labelloop.labeling.geometry.shapes import Ellipse, Geometry, Mask, Polygon

SIDE, CENTRE = 400, 200.0
DRAWS = {"polygon": 100, "mask": 25, "ellipse": 100}
# (annotators, noise in pixels, the last one is careless)
CROWDS = ((2, 3.0, False), (3, 1.5, False), (3, 4.0, False), (3, 1.5, True), (3, 4.0, True), (5, 1.5, False),
          (5, 4.0, False), (5, 1.5, True), (5, 4.0, True))  # fmt: skip

VERTICES = "vertices | of annotators"

Draw = np.random.Generator
Crowd = tuple[Geometry, list[Geometry]]


def run() -> str:
    """Measure all kinds and give the tables."""
    return "\n\n".join(_table(name, simulate) for name, simulate in SIMULATIONS.items())


def _table(name: str, simulate: Callable[[Draw, int, float, bool], Crowd]) -> str:
    rows = [
        f"| {DRAWS[name]} {name}s: mean IoU | annotators | best one | medoid | consensus | .01 below it | {VERTICES} |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for annotators, noise, careless in CROWDS:
        figures = []
        for seed in range(DRAWS[name]):
            truth, shapes = simulate(np.random.default_rng(seed), annotators, noise, careless)
            merged = merge_shapes(shapes)
            given = [_iou(shape, truth) for shape in shapes]
            middle, own = given[medoid(shapes)], _iou(merged, truth)
            counts = [_vertices(merged), float(np.mean([_vertices(shape) for shape in shapes]))]
            figures.append((np.mean(given), max(given), middle, own, own < middle - 0.01, *counts))
        mean = np.mean(figures, axis=0)
        title = f"{annotators} annotators, noise of {noise:g} pixels{', one careless' if careless else ''}"
        named = [f"{figure:.3f}" for figure in mean[:4]] + [f"{mean[4]:.0%}"]
        named += [f"{figure:.0f}" if figure else "" for figure in mean[5:]]
        rows.append(f"| {title} | " + " | ".join(named) + " |")
    return "\n".join(rows)


def _iou(a: Geometry, b: Geometry) -> float:
    if isinstance(a, Mask) and isinstance(b, Mask):
        left, right = a.array(), b.array()
        return float((left & right).sum() / max((left | right).sum(), 1))
    first, second = a.polygon(), b.polygon()
    union = first.union(second).area
    return float(first.intersection(second).area / union) if union else 0.0


def _vertices(shape: Geometry) -> int:
    return len(shape.points) if isinstance(shape, Polygon) else 0


def _ring(draw: Draw) -> np.ndarray[Any, Any]:
    corners = int(draw.integers(5, 16))
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False) + draw.uniform(-0.3, 0.3, corners) * 2 * np.pi / corners
    radii = draw.uniform(45, 100, corners)
    return np.column_stack((CENTRE + radii * np.cos(angles), CENTRE + draw.uniform(0.5, 1) * radii * np.sin(angles)))


def _polygons(draw: Draw, annotators: int, noise: float, careless: bool) -> Crowd:
    ring = _ring(draw)
    drawn = [_drawn(draw, ring, noise, careless and who == annotators - 1) for who in range(annotators)]
    return _polygon(ring), [_polygon(points) for points in drawn]


def _drawn(draw: Draw, ring: np.ndarray[Any, Any], noise: float, careless: bool) -> np.ndarray[Any, Any]:
    points = []
    for index, corner in enumerate(ring):
        following, before = ring[(index + 1) % len(ring)], ring[index - 1]
        if draw.random() < 0.15:  # a clipped corner
            first, second = draw.uniform(0.05, 0.25, 2)
            points += [corner + first * (before - corner), corner + second * (following - corner)]
        else:
            points.append(corner)
        if draw.random() < 0.4:
            points.append(corner + draw.uniform(0.3, 0.7) * (following - corner))
    moved = np.array(points) + draw.normal(0, noise, (len(points), 2))
    if careless:
        centre = moved.mean(axis=0)
        moved = centre + (moved - centre) * draw.uniform(0.75, 1.3) + draw.normal(0, 10, 2)
        kept = draw.random(len(moved)) > 0.4
        moved = moved[kept] if kept.sum() >= 4 else moved
    return moved


def _polygon(points: np.ndarray[Any, Any]) -> Polygon:
    return Polygon(tuple((float(x), float(y)) for x, y in points.tolist()))


def _masks(draw: Draw, annotators: int, noise: float, careless: bool) -> Crowd:
    truth = rasterise(_polygon(_ring(draw)).polygon(), SIDE, SIDE)
    edge = distance_transform_edt(truth) - distance_transform_edt(~truth)
    masks = []
    for who in range(annotators):
        is_careless = careless and who == annotators - 1
        waves = gaussian_filter(draw.normal(size=truth.shape), 8)
        pixels = edge + waves * noise * (4 if is_careless else 1) / waves.std() > 0
        masks.append(shift(pixels, draw.normal(0, 10, 2), order=0) if is_careless else pixels)
    return Mask.from_array(truth), [Mask.from_array(pixels) for pixels in masks]


def _ellipses(draw: Draw, annotators: int, noise: float, careless: bool) -> Crowd:
    rx = draw.uniform(30, 80)
    truth = Ellipse(CENTRE, CENTRE, rx, rx * draw.uniform(0.3, 1.1), draw.uniform(0, 180))
    shapes: list[Geometry] = []
    for who in range(annotators):
        own = noise * (3 if careless and who == annotators - 1 else 1)
        cx, cy = CENTRE + draw.normal(0, own, 2)
        radii = [radius * math.exp(draw.normal(0, own / 60)) for radius in (truth.rx, truth.ry)]
        rotation = truth.rotation + draw.normal(0, own)
        exchanged = draw.random() < 0.4  # the same ellipse, drawn along its other axis
        shapes.append(Ellipse(cx, cy, *(radii[::-1] if exchanged else radii), (rotation + 90 * exchanged) % 360))
    return truth, shapes


SIMULATIONS: dict[str, Callable[[Draw, int, float, bool], Crowd]] = {
    "polygon": _polygons,
    "mask": _masks,
    "ellipse": _ellipses,
}
