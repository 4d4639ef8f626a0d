"""Align pairs of thumbnails and compare them: the second look at pairs whose hashes are close.

One image of a pair may be a light crop of the other, and brighter or flatter. Gauss-Newton steps find the scale and
shift per axis, the gain and the offset that map one onto the other (Lucas and Kanade 1981; Baker and Matthews 2004,
https://doi.org/10.1023/B:VISI.0000011205.11775.fd): first at half size, then at full size. What is left is compared.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

# Steps at half size and at full size.
_COARSE_STEPS, _FINE_STEPS = 5, 2
# Largest change of scale and largest shift, in half sides of the image: a crop of about 10 % on one side.
_LIMITS = np.array([0.15, 0.15, 0.15, 0.15], np.float32)
# A pair is not aligned where its details agree this well with no block that differs more, or where it is too unlike.
_DECIDED, _UNEXPLAINED, _HOPELESS = 0.9, 0.3, 0.5
# Pairs aligned at once; bounds memory.
_BATCH = 256
# Blocks per side in which the residual is measured.
_BLOCKS = 4
# Grey values beyond which an image may be cut off: such pixels are not compared.
_DARKEST, _BRIGHTEST = 2, 252
# Share of the pixels that must be left to compare.
_MIN_VALID = 0.25
# Share of usable pixels below which an image counts as a drawing, all black and white: all pixels are compared.
_DRAWING = 0.5


@dataclass(frozen=True, eq=False)
class Likeness:
    """How alike the images of pairs are after alignment.

    Attributes:
        correlation: (n,) float32, Pearson's correlation of their grey values, -1 to 1.
        detail: (n,) float32, that of their details: what is finer than 1/10 of the image.
        worst_block: (n,) float32, the largest residual (RMS) of a block of 1/4 x 1/4 of the image, in standard
            deviations of the image; large where something is in one image only.
    """

    correlation: Floats
    detail: Floats
    worst_block: Floats


def compare(first: NDArray[np.uint8], second: NDArray[np.uint8], *, promising: float = -1.0) -> Likeness:
    """Align each image of ``second`` (n, s, s) to that of ``first`` (n, s, s), and compare them.

    Args:
        first: Grey thumbnails; ``s`` is divisible by 8.
        second: Grey thumbnails.
        promising: Correlation at half size below which a pair is not compared at full size; its detail is then -1.
    """
    correlation = np.full(len(first), -1, np.float32)
    detail, worst = correlation.copy(), np.full(len(first), np.inf, np.float32)
    for start in range(0, len(first), _BATCH):
        part: NDArray[np.int64] = np.arange(start, min(start + _BATCH, len(first)))
        a, b = _Images.of(first[part]), _Images.of(second[part])
        # most pairs of a fixed camera, and copies that were not cropped, need no alignment
        correlation[part], detail[part], worst[part] = _measure(a, b, np.zeros((len(part), 4), np.float32))
        undecided = (correlation[part] > _HOPELESS) & ((detail[part] < _DECIDED) | (worst[part] > _UNEXPLAINED))
        if not undecided.any():
            continue
        a, b, part = a.take(undecided), b.take(undecided), part[undecided]
        detail[part], worst[part] = -1, np.inf
        coarse, parameters = _align(a.half(), b.half(), np.zeros((len(part), 4), np.float32), _COARSE_STEPS)
        correlation[part] = coarse
        kept = coarse >= promising
        if not kept.any():
            continue
        a, b, part = a.take(kept), b.take(kept), part[kept]
        _, parameters = _align(a, b, parameters[kept], _FINE_STEPS)
        correlation[part], detail[part], worst[part] = _measure(a, b, parameters)
    return Likeness(correlation, detail, worst)


@dataclass(frozen=True, eq=False)
class _Images:
    """Grey images (n, s, s) and where they are neither black nor white, which a change of brightness may have cut."""

    values: Floats
    usable: Floats

    @classmethod
    def of(cls, images: NDArray[np.uint8]) -> "_Images":
        usable = (images > _DARKEST) & (images < _BRIGHTEST)
        usable |= usable.mean(axis=(1, 2), keepdims=True) < _DRAWING
        return cls(np.asarray(images, np.float32), np.asarray(usable, np.float32))

    def half(self) -> "_Images":
        return _Images(_halve(self.values), np.asarray(_halve(self.usable) > 0.9, np.float32))

    def take(self, rows: Bools) -> "_Images":
        return _Images(self.values[rows], self.usable[rows])


def _halve(images: Floats) -> Floats:
    count, side, _ = images.shape
    return np.asarray(images.reshape(count, side // 2, 2, side // 2, 2).mean(axis=(2, 4)), np.float32)


def _align(first: _Images, second: _Images, start: Floats, steps: int) -> tuple[Floats, Floats]:
    """Return the best correlation (n,) and its parameters (n, 4): scale and shift across, scale and shift down."""
    parameters, best_parameters = start, start.copy()
    best = np.full(len(start), -1.0, np.float32)
    a = first.values
    across = np.linspace(-1, 1, a.shape[1], dtype=np.float32)[None, None, :]
    down = across.transpose(0, 2, 1)
    eye = 1e-3 * np.eye(6, dtype=np.float32)
    for step in range(steps + 1):
        warped, slope_across, slope_down, valid = _warp(second, parameters)
        valid = valid * first.usable
        correlation = _correlate(a, warped, valid)
        better = correlation > best
        best[better], best_parameters[better] = correlation[better], parameters[better]
        if step == steps:
            break
        columns = np.stack(
            [slope_across * across, slope_across, slope_down * down, slope_down, warped, np.ones_like(warped)], axis=1
        ).reshape(len(a), 6, -1)
        # in units of one standard deviation, so that the small term that keeps the system solvable fits all images
        columns[:, :5] /= np.maximum(a.std(axis=(1, 2)), 1.0)[:, None, None]
        weighted = columns * valid.reshape(len(a), 1, -1)
        solution = np.linalg.solve(
            weighted @ columns.transpose(0, 2, 1) + eye * a[0].size, weighted @ a.reshape(len(a), -1, 1)
        )[:, :, 0]
        gain = np.where(np.abs(solution[:, 4:5]) > 1e-3, solution[:, 4:5], np.inf)
        parameters = np.clip(parameters + solution[:, :4] / gain, -_LIMITS, _LIMITS).astype(np.float32)
    return best, best_parameters


def _measure(first: _Images, second: _Images, parameters: Floats) -> tuple[Floats, Floats, Floats]:
    """Return the correlation, that of the details, and the residual of the worst block, (n,) each."""
    warped, _, _, valid = _warp(second, parameters)
    valid = valid * first.usable
    detail = _correlate(_details(first.values), _details(warped), valid)
    a, b = _centred(_smooth(first.values, 1.5), valid), _centred(_smooth(warped, 1.5), valid)
    correlation = _correlate(a, b, valid)
    number = np.maximum(valid.sum(axis=(1, 2), keepdims=True), 1)
    aa, bb, ab = (_total(x * y) for x, y in ((a, a), (b, b), (a, b)))
    residual = (a - b * ab / np.maximum(bb, 1e-6)) / np.sqrt(np.maximum(aa / number, 1e-6))
    size = a.shape[1] // _BLOCKS
    blocks = (len(a), _BLOCKS, size, _BLOCKS, size)
    squares = (residual**2).reshape(blocks).sum(axis=(2, 4))
    numbers = valid.reshape(blocks).sum(axis=(2, 4))
    worst = np.sqrt((squares / np.maximum(numbers, size)).max(axis=(1, 2)))
    return correlation, detail, worst.astype(np.float32)


def _details(images: Floats) -> Floats:
    """Subtract the mean of the 5 x 5 neighbourhood; light noise is smoothed first."""
    import cv2

    return np.stack([image - cv2.blur(image, (5, 5)) for image in _smooth(images, 0.7)])


def _smooth(images: Floats, sigma: float) -> Floats:
    import cv2

    return np.stack([cv2.GaussianBlur(image, (0, 0), sigma) for image in images])


def _warp(images: _Images, parameters: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Sample images (n, s, s) at scaled and shifted positions, bilinearly.

    Returns:
        The values, their slopes per half side across and down, and whether a position is usable, 0 or 1.
    """
    values = images.values
    count, side, _ = values.shape
    half = (side - 1) / 2
    axis = np.linspace(-1, 1, side, dtype=np.float32)
    x = ((1 + parameters[:, 0:1]) * axis + parameters[:, 1:2] + 1) * half  # (n, s): the same for all rows
    y = ((1 + parameters[:, 2:3]) * axis + parameters[:, 3:4] + 1) * half
    inside = ((y >= 0) & (y <= side - 1))[:, :, None] & ((x >= 0) & (x <= side - 1))[:, None, :]
    x, y = np.clip(x, 0, side - 1), np.clip(y, 0, side - 1)
    left, top = np.minimum(x.astype(np.int64), side - 2), np.minimum(y.astype(np.int64), side - 2)
    fx, fy = (x - left)[:, None, :], (y - top)[:, :, None]
    n = np.arange(count)[:, None, None]
    top, left = top[:, :, None], left[:, None, :]
    a, b, c, d = (values[n, top + i, left + j] for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)))
    upper, lower = a + (b - a) * fx, c + (d - c) * fx
    slope_across = ((b - a) * (1 - fy) + (d - c) * fy) * half
    valid = inside * images.usable[n, top + (fy > 0.5), left + (fx > 0.5)]
    return upper + (lower - upper) * fy, slope_across, (lower - upper) * half, valid.astype(np.float32)


def _total(values: Floats) -> Floats:
    return np.asarray(values.sum(axis=(1, 2), keepdims=True), np.float32)


def _centred(values: Floats, valid: Floats) -> Floats:
    return np.asarray((values - _total(values * valid) / np.maximum(_total(valid), 1)) * valid, np.float32)


def _correlate(first: Floats, second: Floats, valid: Floats) -> Floats:
    """Pearson's correlation over the valid pixels (n,); -1 where too few are valid."""
    a, b = _centred(first, valid), _centred(second, valid)
    norm = np.sqrt(np.maximum(_total(a * a) * _total(b * b), 1e-6))
    enough = _total(valid) >= _MIN_VALID * first[0].size
    return np.asarray(np.where(enough, _total(a * b) / norm, -1)[:, 0, 0], np.float32)
