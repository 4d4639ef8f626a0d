"""Locate the key points of an object on frozen feature maps of its crop: heat maps with a shape prior.

Each key point has a linear filter over the feature maps, fitted by ridge regression on Gaussian targets in closed form.
A Gaussian over the positions of all points relative to the crop (pictorial structures, Felzenszwalb and Huttenlocher
2005, https://doi.org/10.1023/B:VISI.0000042934.15159.49, with a full covariance instead of a tree) joins the heat maps:
a point is searched where the others expect it. Everything is numpy; coordinates are those of the crop, 0 to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve
from scipy.special import expit, logit

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# Distance in sizes of the object up to which a point is correct: PCK@.1 (Yang and Ramanan 2013,
# https://doi.org/10.1109/TPAMI.2012.261).
PCK_DISTANCE = 0.1

# Standard deviation of a target's peak, in cells of the maps.
PEAK = 1.25

# Ridge penalties on standardised features; the best is chosen by cross-validation.
PENALTIES = (0.001, 0.01, 0.1)

# Nats per unit of a heat map.
SHARPNESS = 100.0

# By this the sharpness is divided for the last step to a part of a cell, and for the spread.
TEMPERATURE = 8.0

# Standard deviations of the broad prior of the first pass, relative to the shape prior.
BROAD = 3.0

# Deviation that the shape prior always allows, in crops: the shapes of a few objects are too much alike.
MIN_DEVIATION, SEARCH_DEVIATION = 0.02, 0.04

# Folds of the cross-validation.
FOLDS = 5


@dataclass(frozen=True, eq=False)
class PointExamples:
    """Objects with labelled points.

    Attributes:
        features: (n, cells, c) float16 maps of the crops.
        points: (n, k, 2) float64 in crop coordinates; NaN where a point is not labelled.
        sizes: (n,) float64 size of each object, in crops: the longer side of its box.
        groups: (n,) int64 objects of one group (task) are in one fold.
    """

    features: npt.NDArray[np.float16]
    points: Floats
    sizes: Floats
    groups: Ints

    def __len__(self) -> int:
        """Number of objects."""
        return len(self.points)

    @property
    def labelled(self) -> npt.NDArray[np.bool_]:
        """(n, k) whether a point is labelled."""
        return np.isfinite(self.points[..., 0])


@dataclass(frozen=True, eq=False)
class PointEstimates:
    """Estimated points of n objects, each with k points.

    Attributes:
        points: (n, k, 2) float64 in crop coordinates.
        peaks: (n, k) float64 heat map at the point; about 1 where it is certain. 0 without heat maps.
        spread: (n, k) float64 standard deviation of the position, in crops.
    """

    points: Floats
    peaks: Floats
    spread: Floats


@dataclass(frozen=True, eq=False)
class PointModel:
    """Learned points of one kind of object.

    Attributes:
        labels: Label of each of the k points.
        side: Side of the crops in pixels.
        mean: (k, 2) float64 mean position.
        covariance: (2k, 2k) float64 of the positions x, y of all points.
        weights: (c + 1, k) float32 filters of the heat maps, the last row is the bias; empty: the mean shape.
        present: (k,) float64 share of objects on which the point is labelled.
        presence: (4,) float64 logistic regression: whether a point is labelled, see `_signals`.
        correctness: (4,) float64 logistic regression: whether a labelled point is correct.
        accuracy: (k,) float64 share of correct points in the cross-validation.
    """

    labels: tuple[str, ...]
    side: int
    mean: Floats
    covariance: Floats
    weights: npt.NDArray[np.float32]
    present: Floats
    presence: Floats
    correctness: Floats
    accuracy: Floats

    @property
    def has_heat_maps(self) -> bool:
        """Whether points are found on the image; else they are the mean shape."""
        return bool(self.weights.size)

    def locate(self, features: npt.NDArray[np.float16] | None, count: int) -> PointEstimates:
        """Locate the points of objects.

        Args:
            features: (n, cells, c) of their crops; None for a mean shape.
            count: Number of objects.
        """
        if not self.has_heat_maps or features is None:
            deviations = np.sqrt(np.diag(self.covariance).reshape(-1, 2).sum(1))
            shape = (count, len(self.labels))
            points = np.broadcast_to(self.mean, (*shape, 2)).copy()
            return PointEstimates(points, np.zeros(shape), np.broadcast_to(deviations, shape).copy())
        return locate(_heat_maps(features, self.weights), self.mean, self.covariance)

    def confidence(self, located: PointEstimates) -> tuple[Floats, Floats]:
        """(n, k) float64 probability that each point is labelled, and that it is correct where it is."""
        presence = expit(_signals(located, self.present) @ self.presence)
        return presence, expit(_signals(located, self.accuracy) @ self.correctness)


@dataclass(frozen=True, eq=False)
class FittedPoints:
    """A fitted model and its cross-validation.

    Attributes:
        model: The model.
        located: Out-of-fold points of the examples.
        correct: (n, k) whether each out-of-fold point is correct; False where it is not labelled.
        pck: PCK@.1 by candidate: "mean shape" and "heat maps".
    """

    model: PointModel
    located: PointEstimates
    correct: npt.NDArray[np.bool_]
    pck: dict[str, float]


def fit_points(examples: PointExamples, labels: Sequence[str], side: int) -> FittedPoints:
    """Fit a model; whether it uses heat maps, and their penalty, are chosen by cross-validation.

    Args:
        examples: At least two groups.
        labels: Label of each point.
        side: Side of the crops in pixels.
    """
    folds = _folds(examples.groups)
    sums = _GramSums(examples)
    everything = np.arange(len(examples))
    candidates: dict[float | None, PointEstimates] = {}
    for penalty in (None, *PENALTIES):
        parts: list[PointEstimates] = []
        for fold in range(int(folds.max()) + 1):
            train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
            mean, covariance = shape_prior(examples.points[train])
            weights = sums.fit(train, penalty) if penalty is not None else _NO_WEIGHTS
            bare = _bare(labels, side, mean, covariance, weights)
            parts.append(bare.locate(examples.features[test] if penalty is not None else None, len(test)))
        order = np.argsort(np.concatenate([np.flatnonzero(folds == fold) for fold in range(int(folds.max()) + 1)]))
        candidates[penalty] = PointEstimates(
            *(np.concatenate([getattr(part, name) for part in parts])[order] for name in ("points", "peaks", "spread"))
        )
    correct = {penalty: correct_points(fold_model.points, examples) for penalty, fold_model in candidates.items()}
    count = max(1, int(examples.labelled.sum()))
    scores = {penalty: float(right.sum()) / count for penalty, right in correct.items()}
    best = max(scores, key=lambda penalty: (scores[penalty], penalty is None))
    mean, covariance = shape_prior(examples.points)
    weights = sums.fit(everything, best) if best is not None else _NO_WEIGHTS
    model = _calibrated(_bare(labels, side, mean, covariance, weights), candidates[best], correct[best], examples)
    maps = max(score for penalty, score in scores.items() if penalty is not None)
    return FittedPoints(model, candidates[best], correct[best], {"mean shape": scores[None], "heat maps": maps})


def correct_points(points: Floats, examples: PointExamples) -> npt.NDArray[np.bool_]:
    """(n, k) whether points are within `PCK_DISTANCE` sizes of the labelled ones; False where none is labelled."""
    distance = np.linalg.norm(points - np.nan_to_num(examples.points), axis=-1)
    return np.asarray((distance <= PCK_DISTANCE * examples.sizes[:, None]) & examples.labelled)


def shape_prior(points: Floats) -> tuple[Floats, Floats]:
    """Mean (k, 2) and shrunk covariance (2k, 2k) of positions (n, k, 2) with missing ones as NaN."""
    count = len(points)
    finite = np.isfinite(points)
    filled = np.where(finite, points, 0.0)
    mean = filled.sum(0) / np.maximum(finite.sum(0), 1)
    mean = np.where(finite.any(0), mean, 0.5)
    offsets = np.where(finite, points - mean, 0.0).reshape(count, -1)
    deviation = np.sqrt((offsets**2).sum(0) / np.maximum(finite.reshape(count, -1).sum(0) - 1, 1))
    deviation = np.maximum(deviation, MIN_DEVIATION)
    scaled = offsets / deviation
    share = min(1.0, 0.1 + 2 / max(count, 1))
    correlation = (1 - share) * scaled.T @ scaled / max(count - 1, 1)
    np.fill_diagonal(correlation, 1.0)
    covariance = correlation * np.outer(deviation, deviation) + MIN_DEVIATION**2 * np.eye(len(deviation))
    return mean, np.asarray(covariance, np.float64)


def locate(maps: Floats, mean: Floats, covariance: Floats) -> PointEstimates:
    """Locate points on heat maps (n, k, grid, grid) with a shape prior.

    The heat maps under a broad prior give each point's evidence as a Gaussian; evidence and shape prior are fused; then
    each point is searched again around its fused position.
    """
    points = len(mean)
    blocks = _blocks(covariance, points)
    position, spread, _ = _peak(maps, mean[None], BROAD**2 * blocks[None])
    precision = np.linalg.inv(covariance)
    fused, around = np.empty_like(position), np.empty_like(spread)
    pull = precision @ mean.ravel()
    for index in range(len(maps)):
        evidence = np.zeros_like(precision)
        inverse = np.linalg.inv(spread[index])
        for point in range(points):
            evidence[2 * point : 2 * point + 2, 2 * point : 2 * point + 2] = inverse[point]
        posterior = np.linalg.inv(precision + evidence)
        fused[index] = (posterior @ (pull + evidence @ position[index].ravel())).reshape(points, 2)
        around[index] = _blocks(posterior, points)
    search = around + SEARCH_DEVIATION**2 * np.eye(2)
    _, posterior_spread, mode = _peak(maps, fused, search, temperature=TEMPERATURE)
    grid = maps.shape[-1]
    cells = np.clip((mode * grid).astype(int), 0, grid - 1)
    rows, columns = np.ogrid[: len(maps), :points]
    peaks = maps[rows, columns, cells[..., 1], cells[..., 0]]
    return PointEstimates(mode, peaks, np.sqrt(np.trace(posterior_spread, axis1=2, axis2=3)))


def _peak(
    maps: Floats, centre: Floats, covariance: Floats, *, temperature: float = 1.0
) -> tuple[Floats, Floats, Floats]:
    """Posterior mean (n, k, 2), covariance (n, k, 2, 2) and refined mode (n, k, 2) of heat maps with Gaussian priors.

    The prior's exponent is quadratic in x and y, so it is assembled from rows and columns.
    """
    count, points, grid, _ = maps.shape
    line = (np.arange(grid) + 0.5) / grid
    centre = np.broadcast_to(centre, (count, points, 2))
    inverse = np.broadcast_to(np.linalg.inv(covariance), (count, points, 2, 2))
    x, y = line - centre[..., :1], line - centre[..., 1:]  # (n, k, grid)
    exponent = SHARPNESS * maps
    exponent = exponent - 0.5 * (inverse[..., 0, 0, None] * x**2)[:, :, None, :]
    exponent -= 0.5 * (inverse[..., 1, 1, None] * y**2)[:, :, :, None]
    exponent -= inverse[..., 0, 1, None, None] * x[:, :, None, :] * y[:, :, :, None]
    flat = exponent.reshape(count, points, -1)
    best = flat.argmax(-1)
    flat -= np.take_along_axis(flat, best[..., None], -1)
    flat /= temperature
    density = np.exp(flat, out=flat).reshape(exponent.shape)
    density /= density.sum((2, 3), keepdims=True)
    by_x, by_y = density.sum(2), density.sum(3)
    mean = np.stack([by_x @ line, by_y @ line], -1)
    xx = by_x @ line**2 - mean[..., 0] ** 2
    yy = by_y @ line**2 - mean[..., 1] ** 2
    xy = np.einsum("nkyx,x,y->nk", density, line, line, optimize=True) - mean[..., 0] * mean[..., 1]
    spread = np.stack([np.stack([xx, xy], -1), np.stack([xy, yy], -1)], -2) + (0.3 / grid) ** 2 * np.eye(2)
    row, column = best // grid, best % grid
    near_x = np.abs(np.arange(grid) - column[..., None]) <= 2
    near_y = np.abs(np.arange(grid) - row[..., None]) <= 2
    local = density * near_y[..., None] * near_x[:, :, None]
    total = local.sum((2, 3))
    mode = np.stack([local.sum(2) @ line / total, local.sum(3) @ line / total], -1)
    return mean, spread, mode


def _heat_maps(features: npt.NDArray[np.float16], weights: npt.NDArray[np.float32]) -> Floats:
    """(n, k, grid, grid) float64 responses of the filters."""
    grid = round(features.shape[1] ** 0.5)
    maps = features.astype(np.float32) @ weights[:-1] + weights[-1]
    return np.ascontiguousarray(maps.reshape(len(features), grid, grid, -1).transpose(0, 3, 1, 2), np.float64)


class _GramSums:
    """Sums per object from which the ridge regression of any subset of objects is solved."""

    def __init__(self, examples: PointExamples) -> None:
        features = examples.features
        self._labelled = examples.labelled
        self._cells = features.shape[1]
        grid = round(self._cells**0.5)
        sample = features[:: max(1, len(features) // 50)].astype(np.float32)
        self._mean, self._scale = sample.mean((0, 1)), sample.std((0, 1)) + 1e-6
        line = (np.arange(grid) + 0.5) / grid
        second, first, cross = [], [], []
        targets = []
        for maps, points in zip(features, examples.points, strict=True):
            rows = (maps.astype(np.float32) - self._mean) / self._scale
            x = np.exp(-((line - points[:, :1]) ** 2) / (2 * (PEAK / grid) ** 2))
            y = np.exp(-((line - points[:, 1:]) ** 2) / (2 * (PEAK / grid) ** 2))
            target = np.nan_to_num(y[:, :, None] * x[:, None, :]).reshape(len(points), -1).astype(np.float32)
            second.append(rows.T @ rows)
            first.append(rows.sum(0))
            cross.append(rows.T @ target.T)
            targets.append(target.sum(1))
        self._second, self._first = np.stack(second), np.stack(first)
        self._cross, self._targets = np.stack(cross), np.stack(targets)

    def fit(self, indices: Ints, penalty: float) -> npt.NDArray[np.float32]:
        """Solve the ridge regression on some objects: (c + 1, k) float32 weights of raw features."""
        points = self._targets.shape[1]
        weights = np.zeros((self._mean.size + 1, points))
        solved: dict[bytes, tuple[object, Floats]] = {}
        for point in range(points):
            labelled = indices[self._labelled[indices, point]]
            if not len(labelled):
                continue
            total = self._cells * len(labelled)
            key = labelled.tobytes()
            if key not in solved:
                first = self._first[labelled].sum(0, dtype=np.float64) / total
                matrix = self._second[labelled].sum(0, dtype=np.float64) / total - np.outer(first, first)
                matrix[np.diag_indices_from(matrix)] += penalty
                solved[key] = cho_factor(matrix, lower=True), first
            factor, first = solved[key]
            target = self._targets[labelled, point].sum() / total
            weight = cho_solve(
                factor, self._cross[labelled, :, point].sum(0, dtype=np.float64) / total - first * target
            )
            weights[:-1, point] = weight / self._scale
            weights[-1, point] = target - first @ weight - weights[:-1, point] @ self._mean
        return weights.astype(np.float32)


_NO_WEIGHTS: npt.NDArray[np.float32] = np.zeros((0, 0), np.float32)


def _bare(
    labels: Sequence[str], side: int, mean: Floats, covariance: Floats, weights: npt.NDArray[np.float32]
) -> PointModel:
    """A model that is not calibrated yet."""
    half, zeros = np.full(len(labels), 0.5), np.zeros(4)
    return PointModel(tuple(labels), side, mean, covariance, weights, half, zeros, zeros, half)


def _calibrated(
    model: PointModel, located: PointEstimates, correct: npt.NDArray[np.bool_], examples: PointExamples
) -> PointModel:
    """Add the probabilities, fitted on out-of-fold points."""
    labelled = examples.labelled
    present = (labelled.sum(0) + 0.5) / (len(examples) + 1)
    share = (correct.sum() + 1) / (labelled.sum() + 2)
    accuracy = (correct.sum(0) + 4 * share) / (labelled.sum(0) + 4)
    model = replace(model, present=present, accuracy=accuracy)
    presence = _logistic(_signals(located, present).reshape(-1, 4), labelled.ravel())
    chosen = labelled.ravel()
    right = _logistic(_signals(located, accuracy).reshape(-1, 4)[chosen], correct.ravel()[chosen])
    return replace(model, presence=presence, correctness=right)


def _signals(located: PointEstimates, rates: Floats) -> Floats:
    """(n, k, 4): 1, logit of the point's own rate, heat map at the point, log of its spread."""
    own = np.broadcast_to(logit(np.clip(rates, 0.01, 0.99)), located.peaks.shape)
    spread = np.log(np.maximum(located.spread, 1e-4)) + 3
    return np.stack([np.ones_like(own), own, located.peaks * 4, spread], -1)


def _logistic(signals: Floats, truth: npt.NDArray[np.bool_]) -> Floats:
    """Logistic regression with a penalty towards the point's own rate: (4,) float64."""
    start = np.array([0.0, 1.0, 0.0, 0.0])
    weights = start.copy()
    if not len(truth):
        return weights
    for _ in range(20):
        probability = expit(signals @ weights)
        gradient = signals.T @ (probability - truth) + 2.0 * (weights - start)
        hessian = (signals * (probability * (1 - probability))[:, None]).T @ signals + 2.0 * np.eye(4)
        step = np.linalg.solve(hessian, gradient)
        weights = weights - step
        if np.abs(step).max() < 1e-4:
            break
    return weights


def _blocks(covariance: Floats, points: int) -> Floats:
    """(k, 2, 2) covariance of each point by itself."""
    return covariance.reshape(points, 2, points, 2)[np.arange(points), :, np.arange(points), :]


def _folds(groups: Ints) -> Ints:
    """(n,) fold of each object: groups are dealt out in turn."""
    _, numbers = np.unique(groups, return_inverse=True)
    count = int(numbers.max()) + 1 if len(numbers) else 1
    order = np.random.default_rng(0).permutation(count)
    return np.asarray(order[numbers] % min(FOLDS, count), np.int64)
