"""Krippendorff's alpha of spans (unitizing alpha): whether annotators mark the same spans of a text or a recording.

"On the Reliability of Unitizing Continuous Data", Sociological Methodology 25 (1995). Each annotator divides a
continuum into units of a label and gaps. Two units that overlap disagree by the squares of the differences of their
starts and of their ends; a unit in another's gap by the square of its length. Chance is the disagreement of all units
and gaps at random places. The continua of all tasks are one after the other; a unit of one label is compared with units
of that label only.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qc_webhooks.statistics.bootstrap import LEVEL, MIN_UNITS, Estimate, resample_count
from qc_webhooks.verdict.continua import Continuum

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
# Start and end, in whole units of length.
Extent = tuple[int, int]

# Fewest tasks of an interval: it resamples tasks.
MIN_TASKS = 5
# Tasks that are kept; the first that are added.
MAX_TASKS = 20_000


@dataclass
class UnitizingAgreement:
    """The continua of all tasks; `estimates` gives alpha by control. Only numbers of each unit are kept."""

    _tasks: int = 0
    _controls: "dict[str, _Control]" = field(default_factory=lambda: defaultdict(_Control))

    def add(self, continua: Iterable[Continuum], annotators: Sequence[int]) -> None:
        """Add a task that these annotators divided; one annotator alone does not show agreement."""
        if len(annotators) > 1 and self._tasks < MAX_TASKS:
            self._tasks += 1
            for continuum in continua:
                self._controls[continuum.control].add(continuum, annotators)

    def estimates(self) -> dict[str, dict[str, Estimate]]:
        """Control -> statistic -> estimate: ``alpha_unitizing``, and that of each label."""
        return {control: sums.estimates() for control, sums in self._controls.items()}


@dataclass
class _Control:
    """Per task: squared differences and lengths; per label, unit and gap lengths with their tasks."""

    lengths: list[int] = field(default_factory=list)
    observed_lengths: list[int] = field(default_factory=list)
    labels: "dict[str, _Label]" = field(default_factory=lambda: defaultdict(_Label))

    def add(self, continuum: Continuum, annotators: Sequence[int]) -> None:
        task, count = len(self.lengths), len(annotators)
        length = max([continuum.length, *(end for *_, end in continuum.units)])
        self.lengths.append(length)
        self.observed_lengths.append(length * count)
        by_label: dict[str, dict[int, list[Extent]]] = defaultdict(dict)
        for annotator, label, start, end in continuum.units:
            if end > start and annotator in annotators:
                by_label[label].setdefault(annotator, []).append((start, end))
        for label, drawn in by_label.items():
            units = [_merged(drawn.get(annotator, ())) for annotator in annotators]
            squares = sum(_difference(a, b) for index, a in enumerate(units) for b in units[index + 1 :])
            self.labels[label].add(task, 2 * squares / (count * (count - 1)), units, length)
        for label, sums in self.labels.items():
            if label not in by_label:
                sums.add_empty(task, length, count)

    def estimates(self) -> dict[str, Estimate]:
        # Tasks before the first unit of a label are gaps of it too.
        for sums in self.labels.values():
            sums.fill(self.lengths, self.observed_lengths)
        tasks, units = len(self.lengths), sum(len(sums.unit_lengths) for sums in self.labels.values())
        if units < MIN_UNITS or tasks < MIN_TASKS:
            reason = f"{units} of the {MIN_UNITS} required spans" if units < MIN_UNITS else (
                f"{tasks} of the {MIN_TASKS} required tasks"
            )  # fmt: skip
            return {"alpha_unitizing": Estimate.insufficient(units, reason)}
        rng, work = (
            np.random.default_rng(0),
            sum(len(s.unit_lengths) + len(s.gap_lengths) for s in self.labels.values()),
        )
        draws = rng.multinomial(tasks, np.full(tasks, 1 / tasks), size=resample_count(work))
        # The first sample is the data.
        weights: Floats = np.concatenate((np.ones((1, tasks)), draws))
        length: Floats = weights @ np.array(self.lengths, dtype=np.float64)
        observed: Floats = weights @ np.array(self.observed_lengths, dtype=np.float64)
        parts = {label: sums.disagreements(weights, length, observed) for label, sums in sorted(self.labels.items())}
        total = np.sum(list(parts.values()), axis=0)
        coefficients = {"alpha_unitizing": _alpha(total[0], total[1], units)}
        if len(parts) > 1:
            counts = {label: len(self.labels[label].unit_lengths) for label in parts}
            coefficients |= {
                f"alpha_unitizing: {label}": _alpha(*part, counts[label])
                if counts[label] >= MIN_UNITS
                else Estimate.insufficient(counts[label], f"{counts[label]} of the {MIN_UNITS} required spans")
                for label, part in parts.items()
            }
        return coefficients


@dataclass
class _Label:
    tasks: list[int] = field(default_factory=list)
    squares: list[float] = field(default_factory=list)
    unit_lengths: list[int] = field(default_factory=list)
    unit_tasks: list[int] = field(default_factory=list)
    gap_lengths: list[int] = field(default_factory=list)
    gap_tasks: list[int] = field(default_factory=list)

    def add(self, task: int, squares: float, units: Sequence[Sequence[Extent]], length: int) -> None:
        self.tasks.append(task)
        self.squares.append(squares)
        for drawn in units:
            self.unit_lengths += [end - start for start, end in drawn]
            self.unit_tasks += [task] * len(drawn)
            borders = [0, *(edge for unit in drawn for edge in unit), length]
            gaps = [end - start for start, end in zip(borders[::2], borders[1::2], strict=True) if end > start]
            self.gap_lengths += gaps
            self.gap_tasks += [task] * len(gaps)

    def add_empty(self, task: int, length: int, annotators: int) -> None:
        self.tasks.append(task)
        self.squares.append(0.0)
        self.gap_lengths += [length] * annotators
        self.gap_tasks += [task] * annotators

    def fill(self, lengths: Sequence[int], observed: Sequence[int]) -> None:
        known = set(self.tasks)
        for task, (length, total) in enumerate(zip(lengths, observed, strict=True)):
            if task not in known:
                self.add_empty(task, length, round(total / length) if length else 0)

    def disagreements(self, weights: Floats, length: Floats, observed_length: Floats) -> tuple[Floats, Floats]:
        """Observed and expected disagreement of each sample of tasks, (samples,) each."""
        observed = weights[:, self.tasks] @ np.array(self.squares) / length**2
        order = np.argsort(self.gap_lengths)
        gaps, gap_weights = (
            np.array(self.gap_lengths)[order],
            weights[:, np.array(self.gap_tasks, dtype=np.intp)[order]],
        )
        units, unit_weights = np.array(self.unit_lengths, dtype=np.float64), weights[:, self.unit_tasks]
        # Places of each unit in all gaps that are as long: sum of gap - unit + 1.
        first = np.searchsorted(gaps, units)
        longer = np.cumsum(np.pad(gap_weights, ((0, 0), (0, 1)))[:, ::-1], axis=1)[:, ::-1][:, first]
        sums = np.cumsum(np.pad(gap_weights * gaps, ((0, 0), (0, 1)))[:, ::-1], axis=1)[:, ::-1][:, first]
        # Gaps at the ends of two tasks are one gap: all tasks of an annotator lie one after the other.
        borders = np.maximum(observed_length / length * (weights.sum(axis=1) - 1), 0.0)[:, None]
        places = sums - (longer - borders) * (units - 1)
        count = unit_weights.sum(axis=1, keepdims=True)
        cubes = (count - 1) / 3 * (2 * units**3 - 3 * units**2 + units)
        chance = (unit_weights * (cubes + units**2 * places)).sum(axis=1)
        pairs = observed_length * (observed_length - 1) - unit_weights @ (units * (units - 1))
        return observed, 2 / length * chance / pairs


def _merged(extents: Sequence[Extent]) -> list[Extent]:
    """Units of one label by one annotator: overlapping ones are one."""
    merged: list[Extent] = []
    for start, end in sorted(extents):
        if merged and start < merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def _difference(a: Sequence[Extent], b: Sequence[Extent]) -> int:
    """Squared differences of the units of two annotators, each pair counted once."""
    squares, alone = 0, [True] * len(b)
    first = 0
    for start, end in a:
        while first < len(b) and b[first][1] <= start:
            first += 1
        index = first
        while index < len(b) and b[index][0] < end:
            squares += (start - b[index][0]) ** 2 + (end - b[index][1]) ** 2
            alone[index] = False
            index += 1
        if index == first:
            squares += (end - start) ** 2
    return squares + sum((end - start) ** 2 for (start, end), is_alone in zip(b, alone, strict=True) if is_alone)


def _alpha(observed: Floats, expected: Floats, units: int) -> Estimate:
    """Alpha of the data, the first sample, with the percentile interval of the others."""
    alphas = 1 - np.divide(observed, expected, out=np.full_like(observed, np.nan), where=expected > 0)
    value = float(alphas[0])
    if np.isnan(value):
        return Estimate.insufficient(units, "no span can be elsewhere")
    low, high = np.nanquantile(alphas[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return Estimate(value, min(low, value), max(high, value), units)
