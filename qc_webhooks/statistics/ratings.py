"""Ratings: who said what about which unit, as the array that every statistic reads."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# What a rater says of a region that others marked and this one did not; a value like any other to alpha.
ABSENT = "(absent)"


@dataclass(frozen=True)
class Ratings:
    """Ratings of units (tasks, regions) by raters.

    Attributes:
        codes: ``codes[rater, unit]``: place of the rating in ``values``; -1 where the rater did not rate the unit.
        values: The values that occur, ascending.
        raters: The raters, ascending.
    """

    codes: NDArray[np.intp]
    values: tuple[Any, ...]
    raters: tuple[Any, ...]

    @classmethod
    def of(cls, units: Sequence[Mapping[Any, Hashable]]) -> "Ratings":
        """From what each rater said of each unit."""
        raters = tuple(sorted({rater for unit in units for rater in unit}))
        values: tuple[Any, ...] = tuple(sorted({value for unit in units for value in unit.values()}))
        places = {value: place for place, value in enumerate(values)}
        rows = {rater: row for row, rater in enumerate(raters)}
        codes = np.full((len(raters), len(units)), -1, dtype=np.intp)
        for column, unit in enumerate(units):
            for rater, value in unit.items():
                codes[rows[rater], column] = places[value]
        return cls(codes, values, raters)

    @classmethod
    def of_matrix(cls, matrix: Sequence[Sequence[Any]]) -> "Ratings":
        """From a matrix of shape (raters, units), None or NaN where a rater did not rate a unit."""
        columns = zip(*matrix, strict=True)
        return cls.of(
            [
                {rater: value for rater, value in enumerate(column) if value is not None and value == value}  # noqa: PLR0124 - NaN
                for column in columns
            ]
        )

    @cached_property
    def counts(self) -> Floats:
        """``counts[unit, value]``: how many raters gave the unit each value."""
        counts = np.zeros((self.codes.shape[1], len(self.values)))
        rater, unit = np.nonzero(self.codes >= 0)
        np.add.at(counts, (unit, self.codes[rater, unit]), 1.0)
        return counts

    @cached_property
    def pairs(self) -> NDArray[np.intp]:
        """(n, 4): for every two ratings of a unit (pair of raters, unit, value of the first, of the second)."""
        rows: list[tuple[int, int, int, int]] = []
        names: dict[tuple[int, int], int] = {}
        for unit in range(self.codes.shape[1]):
            present = np.flatnonzero(self.codes[:, unit] >= 0).tolist()
            for place, one in enumerate(present):
                for other in present[place + 1 :]:
                    pair = names.setdefault((one, other), len(names))
                    rows.append((pair, unit, int(self.codes[one, unit]), int(self.codes[other, unit])))
        return np.array(rows, dtype=np.intp).reshape(-1, 4)

    @cached_property
    def kinds(self) -> tuple["Ratings", NDArray[np.intp]]:
        """The units that differ, as ratings of their own, and how often each of them comes."""
        codes = np.ascontiguousarray(self.codes.T.astype(np.int32))
        # One void a unit: sorting rows as bytes is many times faster than `np.unique(axis=...)`.
        rows = codes.view(np.dtype((np.void, codes.dtype.itemsize * codes.shape[1]))).ravel()
        _, first, often = np.unique(rows, return_index=True, return_counts=True)
        return Ratings(self.codes[:, np.sort(first)], self.values, self.raters), often[np.argsort(first)]

    @cached_property
    def units(self) -> int:
        """How many units at least two raters rated: only they tell about agreement."""
        return int((self.counts.sum(axis=1) >= 2).sum())
