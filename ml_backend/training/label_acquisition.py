"""Active learning of answers about whole images: choose the images to label next. Pure functions.

An image is worth labelling where the model is uncertain, where it stands for many others (density: uncertain outliers
teach little), and where nothing like it is labelled (diversity). Each of the three alone chooses worse than all
together; margins alone choose worse than chance while there are few answers. Figures: `bench/results/image_labels.md`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ml_backend.detection.detections import Floats
from ml_backend.training.label_model import Doubles, Kind

# Added to the density (0 to 1), so that it does not decide alone.
DENSITY_FLOOR = 0.3

# Nearest neighbours whose mean similarity is the density of an image.
NEIGHBOURS = 20

# Images that are compared with each other at most; further ones have the density of their nearest compared image.
MAX_COMPARED = 2000

# Share of the mean standard deviation of the features that is added to each, and the power of it they are divided by.
MIN_SPREAD, SPREAD_POWER = 0.1, 0.75


def label_vectors(features: Floats) -> Floats:
    """Centred and scaled features of images (n, g), of length 1: their products are similarities in [-1, 1]."""
    centred = features - features.mean(axis=0) if len(features) else features
    spread = centred.std(axis=0) if len(features) else np.ones(features.shape[1:], np.float32)
    scaled = centred / (spread + MIN_SPREAD * spread.mean() + 1e-9) ** SPREAD_POWER
    return np.asarray(scaled / (np.linalg.norm(scaled, axis=1, keepdims=True) + 1e-12), np.float32)


def uncertainty_of(probabilities: Doubles, kind: Kind) -> Doubles:
    """1 - margin of each row (n,) in [0, 1]: between the best two classes, or of the most uncertain tag."""
    if kind == "multiple":
        return np.asarray((1 - np.abs(2 * probabilities - 1)).max(axis=1, initial=0.0))
    best = np.sort(probabilities, axis=1)
    runner_up = best[:, -2] if probabilities.shape[1] > 1 else np.zeros(len(best))
    return np.asarray(1 - (best[:, -1] - runner_up))


def density(vectors: Floats) -> Doubles:
    """Mean similarity of each image to its `NEIGHBOURS` nearest ones, rescaled to [0, 1]; (n,)."""
    count = len(vectors)
    if count < 3:
        return np.ones(count)
    compared = vectors if count <= MAX_COMPARED else vectors[np.linspace(0, count - 1, MAX_COMPARED).astype(int)]
    nearest = min(NEIGHBOURS, len(compared) - 1)
    means = np.empty(count)
    for start in range(0, count, 500):
        similar = vectors[start : start + 500] @ compared.T
        top = np.partition(similar, len(compared) - nearest - 1, axis=1)[:, len(compared) - nearest - 1 :]
        means[start : start + 500] = (top.sum(axis=1) - top.max(axis=1)) / nearest  # itself is the most similar
    return np.asarray((means - means.min()) / (np.ptp(means) + 1e-12))


def next_labels(uncertainties: Sequence[float] | Doubles, vectors: Floats, labelled: Floats, count: int) -> list[int]:
    """Choose the images to label next, best first.

    The value is (uncertainty) x (density) x (distance to the nearest labelled or chosen image).

    Args:
        uncertainties: (n,) of each image, see `uncertainty_of`; all 0 without a model.
        vectors: (n, d) of them, see `label_vectors`.
        labelled: (m, d) of the labelled images.
        count: Number of images.

    Returns:
        Indices into `vectors`.
    """
    if not len(vectors):
        return []
    doubts = np.asarray(uncertainties, np.float64)
    doubts = doubts if doubts.any() else np.ones(len(vectors))  # without a model only the images themselves count
    value = doubts * (DENSITY_FLOOR + density(vectors))
    nearest = (vectors @ labelled.T).max(axis=1) if len(labelled) else np.zeros(len(vectors), np.float32)
    free = np.ones(len(vectors), bool)
    chosen: list[int] = []
    while len(chosen) < min(count, len(vectors)):
        best = int(np.where(free, value * np.maximum(1 - nearest, 0.0), -1.0).argmax())
        chosen.append(best)
        free[best] = False
        nearest = np.maximum(nearest, vectors @ vectors[best])
    return chosen
