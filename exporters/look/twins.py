"""Find twins: images that show the same, also after another size, compression, a light crop or brightness.

Pairs whose hashes are close are candidates; their thumbnails are then aligned and compared. Thresholds are from photos,
microscopy, surfaces, circuit boards and video frames: see bench/results/look.md.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exporters.look.alignment import Likeness, compare
from exporters.look.candidates import MAX_DISTANCE, Pairs, close_pairs
from exporters.look.fingerprint import hashes_of, mirrored

# Candidates per image: in frames of a fixed camera every image is one of every other. They still form one group.
MAX_PER_IMAGE = 16
# Correlation at half size below which a pair is neither twin nor scene.
_PROMISING = 0.8
_BATCH = 8192
# Distances of hashes in the order in which they are looked at.
_DISTANCES = (4, 9, MAX_DISTANCE)

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True, eq=False)
class Twins:
    """The pairs of images that look alike, the most alike first.

    Attributes:
        pairs: (m, 2) uint32, positions of the images, the first below the second.
        likeness: (m,) float32, correlation of the details, 0 to 1.
        twin: (m,) bool. False: the same scene with something else in it, such as frames of a fixed camera.
        mirrored: (m,) bool, whether one is the mirror image of the other.
        blank: Positions of images that show nothing; they are not compared.
        limited: Number of images with more candidates than `MAX_PER_IMAGE`, of which the others were not compared.
    """

    pairs: NDArray[np.uint32]
    likeness: NDArray[np.float32]
    twin: NDArray[np.bool_]
    mirrored: NDArray[np.bool_]
    blank: NDArray[np.int64]
    limited: int = 0

    def groups(self, images: int) -> NDArray[np.int64]:
        """Number each image by its group of twins: the position of its first image; its own if it has no twin."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        first, second = self.pairs[self.twin].T.astype(np.int64)
        graph = coo_array((np.ones(len(first), np.bool_), (first, second)), shape=(images, images))
        _, labels = connected_components(graph, directed=False)
        _, starts = np.unique(labels, return_index=True)
        return np.asarray(starts[labels], np.int64)


def find_twins(
    thumbnails: NDArray[np.uint8],
    *,
    among: NDArray[np.int64] | None = None,
    mirror: bool = False,
    progress: Progress | None = None,
) -> Twins:
    """Find the pairs of images that look alike.

    Args:
        thumbnails: (n, side, side) uint8, see `fingerprint.thumbnail_of`; may be mapped from a file.
        among: Positions of the images to compare; None: all.
        mirror: Whether mirror images are compared too.
        progress: Called with (compared pairs, all pairs).
    """
    hashes, blank = hashes_of(thumbnails)
    compared = np.ones(len(thumbnails), np.bool_) if among is None else np.isin(np.arange(len(thumbnails)), among)
    positions = np.flatnonzero(~blank & compared).astype(np.uint32)
    hashes = hashes[positions]
    searches = [(False, _Candidates(len(hashes)).collect(_closest_first(hashes)))]
    if mirror:
        searches.append((True, _Candidates(len(hashes)).collect(_closest_first(hashes, mirrored(hashes)))))
    total = sum(len(found.first) for _, found in searches)
    parts: list[tuple[NDArray[np.uint32], Likeness, bool]] = []
    done = 0
    for is_mirrored, found in searches:
        for start in range(0, len(found.first), _BATCH):
            first, second = (positions[side[start : start + _BATCH]] for side in (found.first, found.second))
            other = thumbnails[second]
            likeness = compare(thumbnails[first], other[:, :, ::-1] if is_mirrored else other, promising=_PROMISING)
            alike = _is_twin(likeness) | _is_scene(likeness)
            kept = Likeness(likeness.correlation[alike], likeness.detail[alike], likeness.worst_block[alike])
            parts.append((np.stack([first[alike], second[alike]], axis=1), kept, is_mirrored))
            done += len(first)
            if progress:
                progress(done, total)
    return _ranked(parts, blank=np.flatnonzero(blank & compared), limited=sum(found.limited for _, found in searches))


def _closest_first(hashes: NDArray[np.uint64], queries: NDArray[np.uint64] | None = None) -> Iterator[Pairs]:
    """The pairs of close hashes, the closest before the others: of an image with too many, those are kept."""
    for distance in _DISTANCES:
        yield from close_pairs(hashes, queries, max_distance=distance)


def _is_twin(likeness: Likeness) -> NDArray[np.bool_]:
    whole = (likeness.detail >= 0.8) & (likeness.worst_block <= 0.35)
    # parts that are cut off at black or white may differ where all details agree
    cut_off = (likeness.detail >= 0.96) & (likeness.worst_block <= 0.9) & (likeness.correlation >= 0.9)
    return whole | cut_off


def _is_scene(likeness: Likeness) -> NDArray[np.bool_]:
    return (likeness.detail >= 0.7) & (likeness.correlation >= 0.9)


def _ranked(parts: list[tuple[NDArray[np.uint32], Likeness, bool]], *, blank: NDArray[np.int64], limited: int) -> Twins:
    pairs = np.concatenate([pairs for pairs, _, _ in parts] or [np.empty((0, 2), np.uint32)])
    detail = np.concatenate([likeness.detail for _, likeness, _ in parts] or [np.empty(0, np.float32)])
    twin = np.concatenate([_is_twin(likeness) for _, likeness, _ in parts] or [np.empty(0, np.bool_)])
    flipped = np.concatenate([np.full(len(pairs), flip) for pairs, _, flip in parts] or [np.empty(0, np.bool_)])
    # a symmetric image may be a twin both ways
    order = np.lexsort((flipped, -detail, pairs[:, 1], pairs[:, 0]))
    first = np.ones(len(order), np.bool_)
    first[1:] = (np.diff(pairs[order].astype(np.int64), axis=0) != 0).any(axis=1)
    order = order[first]
    order = order[np.lexsort((pairs[order, 1], pairs[order, 0], -detail[order], ~twin[order]))]
    return Twins(pairs[order], detail[order], twin[order], flipped[order], blank, limited)


class _Candidates:
    """Collects pairs, each once, with a bounded number per image.

    Args:
        images: Number of images.
    """

    def __init__(self, images: int) -> None:
        self._images = images
        self._counts = np.zeros(images, np.int64)
        self._keys: NDArray[np.int64] = np.empty(0, np.int64)
        self.first: NDArray[np.int64] = self._keys
        self.second: NDArray[np.int64] = self._keys
        self.limited = 0

    def collect(self, found: Iterable[Pairs]) -> "_Candidates":
        """Take all pairs; `first` and `second` then hold them in order."""
        waiting: list[NDArray[np.int64]] = []
        size = 0
        for first, second in found:
            free = (self._counts[first] < MAX_PER_IMAGE) | (self._counts[second] < MAX_PER_IMAGE)
            waiting.append(first[free].astype(np.int64) * self._images + second[free])
            size += int(free.sum())
            if size > max(len(self._keys), 1 << 18):
                self._add(waiting)
                waiting, size = [], 0
        self._add(waiting)
        self.first, self.second = self._keys // max(1, self._images), self._keys % max(1, self._images)
        self.limited = int((self._counts >= MAX_PER_IMAGE).sum())
        return self

    def _add(self, waiting: list[NDArray[np.int64]]) -> None:
        if not waiting:
            return
        new = np.setdiff1d(np.concatenate(waiting), self._keys)
        new = new[_ranks(new // self._images) < MAX_PER_IMAGE]
        first, second = np.divmod(new, max(1, self._images))
        np.add.at(self._counts, first, 1)
        np.add.at(self._counts, second, 1)
        self._keys = np.union1d(self._keys, new)


def _ranks(sorted_keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number the entries of each key from 0."""
    if not len(sorted_keys):
        return sorted_keys
    _, starts, sizes = np.unique(sorted_keys, return_index=True, return_counts=True)
    return np.arange(len(sorted_keys)) - np.repeat(starts, sizes)
