"""Consensus of ratings and numbers: the reliability-weighted median, with an interval.

The model of an answer is

    true value + bias of the annotator + noise of the annotator

Biases and standard deviations are estimated alternately from the answers on the same items, without ground truth. With
few answers, a bias is shrunk towards 0 and a deviation towards the pooled one. All numbers are in the answer's unit.
"""

import math
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
# (annotator, value) pairs of one item.
Amounts = tuple[tuple[int, float], ...]

# Pseudo-answers that shrink a bias towards 0, and a deviation towards the pooled one.
_BIAS_STRENGTH, _DEVIATION_STRENGTH = 4.0, 6.0
# Mean absolute deviation -> standard deviation, and standard error of a median over that of a mean, both of a normal.
_TO_DEVIATION, _MEDIAN_ERROR = math.sqrt(math.pi / 2), math.sqrt(math.pi / 2)
# 97.5th percentile of the standard normal distribution.
_Z = 1.96
_ITERATIONS = 8
_LEAST_DEVIATION = 1e-6


class ScaleConsensus(msgspec.Struct, frozen=True, gc=False):
    """The consensus of one rating or number.

    Attributes:
        value: Weighted median of the answers without their annotators' biases; an integer if all answers are.
        low: Lower end of the 95 % interval of the true value.
        high: Upper end.
        answers: The answers.
    """

    value: float
    low: float
    high: float
    answers: Amounts

    @property
    def probability(self) -> float:
        """Probability that the true value rounds to ``value``, for integers; 1 where the interval is a point."""
        deviation = (self.high - self.low) / (2 * _Z)
        return 1.0 if deviation <= 0 else math.erf(0.5 / (deviation * math.sqrt(2)))


class ScaleModel(msgspec.Struct, frozen=True):
    """Biases and deviations of the annotators of one rating or number.

    Attributes:
        bias: Mean offset from the true value, by annotator.
        deviation: Standard deviation around that offset, by annotator.
        typical: Deviation of an unknown annotator; 0: unknown.
    """

    bias: Mapping[int, float] = {}
    deviation: Mapping[int, float] = {}
    typical: float = 0.0

    def merge(self, answers: Amounts) -> ScaleConsensus:
        """The consensus of at least one answer."""
        values = np.array([value - self.bias.get(annotator, 0.0) for annotator, value in answers])
        raw_values = [value for _, value in answers]
        spread = self.typical or (float(np.std(raw_values, ddof=1)) if len(raw_values) > 1 else 0.0)
        deviations = np.array([self.deviation.get(annotator, spread) for annotator, _ in answers])
        deviations = np.maximum(deviations, _LEAST_DEVIATION)
        value = float(np.clip(weighted_median(values, 1 / deviations), min(raw_values), max(raw_values)))
        if all(number.is_integer() for number in raw_values):
            value = float(math.floor(value + 0.5))
        error = (_MEDIAN_ERROR if len(raw_values) > 2 else 1.0) / math.sqrt(float((1 / deviations**2).sum()))
        return ScaleConsensus(value, value - _Z * error, value + _Z * error, answers)


def weighted_median(values: Floats, weights: Floats) -> float:
    """The value with half of the weight on either side; the mean of the two middle ones where the weights tie."""
    order = np.argsort(values, kind="stable")
    cumulative = np.cumsum(weights[order])
    half = cumulative[-1] / 2
    first = int(np.searchsorted(cumulative, half * (1 - 1e-9)))
    tied = abs(cumulative[first] - half) <= 1e-9 * half and first + 1 < len(values)
    return float(values[order[first : first + 2]].mean() if tied else values[order[first]])


def fit_scale_model(items: Sequence[Amounts], truths: Sequence[float | None] = ()) -> ScaleModel:
    """Estimate biases and deviations from the answers on all items.

    Args:
        items: The answers on each item; items of one answer say nothing without a true value.
        truths: The true value of each item, None where unknown; empty: all are unknown.
    """
    truth_of = truths or [None] * len(items)
    pairs = [(item, truth) for item, truth in zip(items, truth_of, strict=True) if len(item) > 1 or truth is not None]
    annotators = sorted({annotator for item, _ in pairs for annotator, _ in item})
    if not annotators:
        return ScaleModel()
    bias = dict.fromkeys(annotators, 0.0)
    deviation = dict.fromkeys(annotators, 1.0)
    typical = 1.0
    for _ in range(_ITERATIONS):
        residuals: dict[int, list[float]] = {annotator: [] for annotator in annotators}
        for item, truth in pairs:
            values = np.array([value - bias[annotator] for annotator, value in item])
            weights = np.array([1 / deviation[annotator] for annotator, _ in item])
            for index, (annotator, value) in enumerate(item):
                if truth is not None:
                    residuals[annotator].append(value - truth)
                    continue
                others = np.arange(len(item)) != index  # an annotator is not measured by their own answer
                centre = weighted_median(values[others], weights[others])
                # the others' median has an error of its own: only the annotator's share of the difference counts
                own, rest = deviation[annotator] ** 2, 1 / float((weights[others] ** 2).sum())
                difference = value - centre - bias[annotator]
                residuals[annotator].append(bias[annotator] + difference * math.sqrt(own / (own + rest)))
        bias = {
            annotator: float(np.median(differences)) * len(differences) / (len(differences) + _BIAS_STRENGTH)
            for annotator, differences in residuals.items()
        }
        if not any(truth is not None for _, truth in pairs):  # only differences of biases can be measured
            middle = float(np.median(list(bias.values())))
            bias = {annotator: offset - middle for annotator, offset in bias.items()}
        absolute = {
            annotator: _TO_DEVIATION * float(np.abs(np.array(differences) - bias[annotator]).sum())
            for annotator, differences in residuals.items()
        }
        typical = max(
            sum(absolute.values()) / sum(len(differences) for differences in residuals.values()), _LEAST_DEVIATION
        )
        deviation = {
            annotator: max(
                (absolute[annotator] + _DEVIATION_STRENGTH * typical) / (len(differences) + _DEVIATION_STRENGTH),
                _LEAST_DEVIATION,
            )
            for annotator, differences in residuals.items()
        }
    return ScaleModel(bias, deviation, typical)
