"""Ratings of units by raters, as the array that all statistics use."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Rating of an object that others marked and this rater did not; alpha treats it like any other value.
ABSENT = "(absent)"


@dataclass(frozen=True)
class Ratings:
    """Ratings of units (tasks, objects) by raters.

    Attributes:
        codes: (raters, units) index of the rating in ``values``; -1 if the rater did not rate the unit.
        values: Values that occur, ascending.
        raters: Raters, ascending.
    """

    codes: NDArray[np.intp]
    values: tuple[Any, ...]
    raters: tuple[Any, ...]

    @classmethod
    def of(cls, units: Sequence[Mapping[Any, Hashable]]) -> "Ratings":
        """Create ratings from one mapping rater -> value per unit."""
        raters = tuple(sorted({rater for unit in units for rater in unit}))
        values: tuple[Any, ...] = tuple(sorted({value for unit in units for value in unit.values()}))
        codes_by_value = {value: index for index, value in enumerate(values)}
        rows = {rater: row for row, rater in enumerate(raters)}
        codes = np.full((len(raters), len(units)), -1, dtype=np.intp)
        for column, unit in enumerate(units):
            for rater, value in unit.items():
                codes[rows[rater], column] = codes_by_value[value]
        return cls(codes, values, raters)

    @cached_property
    def counts(self) -> Floats:
        """(units, values): number of raters who gave the unit each value."""
        counts = np.zeros((self.codes.shape[1], len(self.values)))
        rater, unit = np.nonzero(self.codes >= 0)
        np.add.at(counts, (unit, self.codes[rater, unit]), 1.0)
        return counts

    @cached_property
    def pairs(self) -> NDArray[np.intp]:
        """(n, 4): (pair of raters, unit, value of the first, value of the second) for every two ratings of a unit."""
        rows: list[tuple[int, int, int, int]] = []
        pair_ids: dict[tuple[int, int], int] = {}
        for unit in range(self.codes.shape[1]):
            present = np.flatnonzero(self.codes[:, unit] >= 0).tolist()
            for index, first in enumerate(present):
                for second in present[index + 1 :]:
                    pair = pair_ids.setdefault((first, second), len(pair_ids))
                    rows.append((pair, unit, int(self.codes[first, unit]), int(self.codes[second, unit])))
        return np.array(rows, dtype=np.intp).reshape(-1, 4)

    @cached_property
    def distinct(self) -> tuple["Ratings", NDArray[np.intp]]:
        """The distinct units as ratings, and the frequency of each."""
        codes = np.ascontiguousarray(self.codes.T.astype(np.int32))
        # One void per unit: sorting rows as bytes is many times faster than `np.unique(axis=...)`.
        rows = codes.view(np.dtype((np.void, codes.dtype.itemsize * codes.shape[1]))).ravel()
        _, first_index, counts = np.unique(rows, return_index=True, return_counts=True)
        return Ratings(self.codes[:, np.sort(first_index)], self.values, self.raters), counts[np.argsort(first_index)]

    @cached_property
    def units(self) -> int:
        """Number of units with at least two ratings; only these show agreement."""
        return int((self.counts.sum(axis=1) >= 2).sum())
