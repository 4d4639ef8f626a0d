"""How sure the detection model is: posterior draws of a crowd's recall and false regions, without ground truth.

Annotators do not miss independently: some objects are hard for all, and some regions that are no object look like one
to all. With few annotators the two cannot be separated, so a single estimate states probabilities that are too sure.
The data are the numbers of clusters that k of an image's n annotators marked. Their means under the model are

    images x density x C(n, k) x E[recall^k x (1 - recall)^(n - k)]           objects
    images x n x false regions x C(n - 1, k - 1) x E[match^(k - 1) x (1 - match)^(n - k)]   others

with normally distributed logits of recall (over objects) and of match (over regions that are no object). How much match
varies is unknown: not at all, half as much as recall, as much, or half as much again (some lookalikes deceive nearly
all); all four are averaged, half of the weight by their evidence. The counts have a quasi-Poisson likelihood whose
dispersion is estimated by the method of moments: objects of one image are alike. The posterior is sampled by adaptive
importance sampling (Cornuet et al., "Adaptive Multiple Importance Sampling", Scandinavian Journal of Statistics 39
(2012)).

That no annotator finds some objects can only be extrapolated (Link, "Nonidentifiability of Population Size from
Capture-Recapture Data with Heterogeneous Detection Probabilities", Biometrics 59 (2003)). A prior share of overlooked
objects is added; ground truth replaces it.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from math import comb
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from labelloop.labeling.consensus.detection_model import PRIOR, DetectionModel

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]
# (annotators of the image, those who marked the cluster) -> number of clusters.
Counts = Mapping[tuple[int, int], int]

# Nodes and weights of a standard normal distribution.
_NODES = np.arange(-3.0, 4.0)
_NODE_WEIGHTS = np.exp(-(_NODES**2) / 2) / np.exp(-(_NODES**2) / 2).sum()
# Spread of the logit of match relative to that of recall.
_FALSE_SPREADS = (0.0, 0.5, 1.0, 1.5)
# Share of the weight that all of them have equally.
_EQUAL_WEIGHT = 0.5
# Prior means and deviations: log density (its mean is from the data), logit of recall, log of its spread, log of false
# regions per annotator and object, logit of match.
_PRIOR_MEAN = np.array([0.0, 1.5, np.log(1.7), np.log(0.1), -4.0])
_PRIOR_DEVIATION = np.array([0.4, 1.2, 0.5, 1.3, 0.8])
# Variance of the annotators' logits; their mean recall of an object is that of one annotator with a flatter sigmoid.
_ANNOTATOR_VARIANCE = 0.5
# Highest mean match, and most false regions of an annotator per object: beyond, the two kinds would change places.
_MAX_MATCH, _MAX_FALSE = 0.2, 1.5
# Beta prior of the share of objects that no number of annotators finds, and the shape of its gamma distribution over
# images: they are clumped.
OVERLOOKED, CLUMPING = (0.5, 8.0), 0.5
# Beta prior of the share of unanimously marked regions that are no object.
MISTAKEN = (1.0, 30.0)
# Images with more annotators are left out of the fit.
_MAX_ANNOTATORS = 30
DRAWS, _SAMPLES, _ROUNDS, _DEGREES = 48, 1000, 8, 5
_LOWEST = -1e12
# Mean probabilities that are remembered.
_MEANS = 1 << 12


class PosteriorDraw(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One draw of the parameters.

    Attributes:
        density: Objects per image.
        logit: Logit of recall of a mean annotator and object.
        spread: Standard deviation of that logit over objects.
        false_regions: False regions per annotator and image.
        match: Logit of the probability that a further annotator marks the same false region.
        match_spread: Standard deviation of that logit over regions.
        overlooked: Objects that no annotator finds, per object that one could find.
        mistaken: Share of the objects that are none, though all annotators see one.
    """

    density: float
    logit: float
    spread: float
    false_regions: float
    match: float
    match_spread: float
    overlooked: float
    mistaken: float


class DetectionPosterior(msgspec.Struct, frozen=True, dict=True):
    """Posterior of a project's detection model.

    Attributes:
        draws: Draws of the parameters; empty: not fitted.
        deviations: Annotator -> logit of recall minus that of a mean annotator.
        false_ratios: Annotator -> false regions relative to a mean annotator's.
    """

    draws: tuple[PosteriorDraw, ...] = ()
    deviations: Mapping[int, float] = {}
    false_ratios: Mapping[int, float] = {}

    def real_probabilities(self, annotators: Sequence[int], marked: Booleans) -> Floats:
        """Probability of each cluster of an image to be an object, by draw.

        Args:
            annotators: The annotators of the image, (n,).
            marked: Who marked which cluster, (clusters, n); at least one each.

        Returns:
            (draws, clusters).
        """
        density, _, _, false_regions, match, match_spread, _, mistaken = self._columns
        detected, missed = self._log_recall(annotators)
        marks = marked.astype(np.float64)
        logs = np.where(marked[:, None], detected[:, None], missed[:, None]).sum(axis=3)
        real = density[:, None] * (np.exp(logs) * _NODE_WEIGHTS).sum(axis=2)
        ratios = np.array([self.false_ratios.get(annotator, 1.0) for annotator in annotators])
        count = marks.sum(axis=1)
        matches = _sigmoid(match[:, None] + match_spread[:, None] * _NODES)[:, None]
        others = np.maximum(count, 1)[:, None]
        alike = matches ** (others - 1) * (1 - matches) ** (len(annotators) - others)
        false = false_regions[:, None] * (marks * ratios).sum(axis=1) * (alike * _NODE_WEIGHTS).sum(axis=2)
        probabilities: Floats = (1 - mistaken[:, None]) * real / (real + false)
        return probabilities

    def mean_probabilities(self, annotators: Sequence[int], marked: Booleans) -> Floats:
        """The mean of `real_probabilities` over the draws, (clusters,); few images differ in who marked what."""
        team = tuple(annotators)
        patterns = [(team, tuple(row)) for row in marked.tolist()]
        means = {pattern: self._means.get(pattern) for pattern in patterns}
        new = [pattern for pattern, mean in means.items() if mean is None]
        if new:
            probabilities = self.real_probabilities(team, np.array([row for _, row in new]))
            # a sum of each row alone: to the bit the same whatever else is computed with it
            means.update(zip(new, [float(row.mean()) for row in probabilities.T.copy()], strict=True))
            if len(self._means) < _MEANS:
                self._means.update((pattern, means[pattern]) for pattern in new)
        return np.array([means[pattern] for pattern in patterns])

    def missed_objects(self, annotators: Sequence[int]) -> Floats:
        """Expected number of findable objects of an image that none of these annotators marked, (draws,)."""
        _, missed = self._log_recall(annotators)
        return np.array(self._columns[0] * (np.exp(missed.sum(axis=2)) @ _NODE_WEIGHTS))

    def mark_probability(self, annotators: Sequence[int], marked_by: Sequence[int], further: int) -> float:
        """Probability that a further annotator marks the region that some of these marked."""
        marked = np.array([[annotator in marked_by for annotator in annotators]])
        real = self.real_probabilities(annotators, marked)[:, 0]
        detected, missed = self._log_recall([*annotators, further])
        logs = np.where(marked[0], detected[..., :-1], missed[..., :-1]).sum(axis=2)
        weights = _NODE_WEIGHTS * np.exp(logs - logs.max(axis=1, keepdims=True))
        recall = (weights * np.exp(detected[..., -1])).sum(axis=1) / weights.sum(axis=1)
        _, _, _, _, match, match_spread, _, _ = self._columns
        matches = _sigmoid(match[:, None] + match_spread[:, None] * _NODES)
        count = int(marked.sum())
        weights = _NODE_WEIGHTS * matches ** (count - 1) * (1 - matches) ** (len(annotators) - count)
        alike = (weights * matches).sum(axis=1) / weights.sum(axis=1)
        return float((real * recall + (1 - real) * alike).mean())

    @property
    def overlooked(self) -> Floats:
        """Objects that no annotator finds, per object that one could find, (draws,)."""
        return self._columns[6]

    @cached_property
    def _means(self) -> dict[tuple[tuple[int, ...], tuple[bool, ...]], float | None]:
        return {}

    @cached_property
    def _columns(self) -> tuple[Floats, ...]:
        return tuple(np.array([msgspec.structs.astuple(draw) for draw in self.draws]).T)

    def _log_recall(self, annotators: Sequence[int]) -> tuple[Floats, Floats]:
        """Log of the probabilities to find and to miss an object of each difficulty, each (draws, nodes, n)."""
        _, logit, spread, *_ = self._columns
        deviations = np.array([self.deviations.get(annotator, 0.0) for annotator in annotators])
        logits = logit[:, None, None] + (spread[:, None] * _NODES)[..., None] + deviations
        return -np.logaddexp(0.0, -logits), -np.logaddexp(0.0, logits)


class ClusterCounts(NamedTuple):
    """What the posterior is fitted to.

    Attributes:
        images: Number of annotators -> images without ground truth.
        clusters: Their clusters.
        known_images: Number of annotators -> images with ground truth.
        objects: Their objects; those that no annotator marked have the key ``(n, 0)``.
        false_regions: Their other clusters.
        dispersion: Variance of the clusters per image relative to their mean, at least 1.
    """

    images: Mapping[int, int]
    clusters: Counts
    known_images: Mapping[int, int]
    objects: Counts
    false_regions: Counts
    dispersion: float


def fit_detection_posterior(data: ClusterCounts, model: DetectionModel) -> DetectionPosterior:
    """Sample the posterior; without clusters, or where the model is not fitted, there is none.

    Args:
        data: The counts of the project.
        model: The fitted model; it says how annotators differ from each other.
    """
    images = sum(data.images.values()) + sum(data.known_images.values())
    clusters = sum(data.clusters.values()) + sum(data.objects.values()) + sum(data.false_regions.values())
    if not clusters or not images or model is PRIOR:
        return DetectionPosterior()
    rng = np.random.default_rng(0)
    cells = _cells(data)
    prior_mean = _PRIOR_MEAN.copy()
    prior_mean[0] = np.log(0.8 * clusters / images)
    samples = [_sample(cells, data.dispersion, prior_mean, spread, rng) for spread in _FALSE_SPREADS]
    evidence = np.array([sample.log_evidence for sample in samples])
    shares = np.exp(evidence - evidence.max())
    shares = (1 - _EQUAL_WEIGHT) * shares / shares.sum() + _EQUAL_WEIGHT / len(samples)
    draws = []
    for sample, relative, share in zip(samples, _FALSE_SPREADS, shares.tolist(), strict=True):
        for index in rng.choice(len(sample.weights), round(DRAWS * share), p=sample.weights):
            density, logit, spread, false_ratio, match = sample.parameters[index].tolist()
            draws.append((np.exp(density), logit, np.exp(spread), np.exp(density + false_ratio), match,
                          relative * np.exp(spread)))  # fmt: skip
    overlooked = _overlooked_shares(data, np.array(draws), rng)
    mistaken = rng.beta(*MISTAKEN, size=len(draws)) if not data.known_images else np.zeros(len(draws))
    logits = np.array(list(model.logits.values()))
    false = np.array(list(model.false_regions.values()))
    return DetectionPosterior(
        tuple(
            PosteriorDraw(*map(float, (*draw, share / (1 - share), mistake)))
            for draw, share, mistake in zip(draws, overlooked, mistaken, strict=True)
        ),
        {annotator: round(logit - float(logits.mean()), 4) for annotator, logit in model.logits.items()},
        {annotator: round(rate / float(false.mean()), 4) for annotator, rate in model.false_regions.items()},
    )


class _Cells(NamedTuple):
    """Observed counts, one entry per kind of images, number of annotators n and of markers k.

    ``real`` and ``false`` say whether objects and other regions are among the counted clusters.
    """

    n: Floats
    k: Floats
    images: Floats
    ways: Floats
    clusters: Floats
    real: Floats
    false: Floats


class _Sample(NamedTuple):
    parameters: Floats
    weights: Floats
    log_evidence: float


def _cells(data: ClusterCounts) -> _Cells:
    rows = []
    for images, counts, least, real, false in (
        (data.images, data.clusters, 1, 1.0, 1.0),
        (data.known_images, data.objects, 0, 1.0, 0.0),
        (data.known_images, data.false_regions, 1, 0.0, 1.0),
    ):
        rows += [
            (n, k, number, comb(n, k), counts.get((n, k), 0), real, false)
            for n, number in images.items()
            if n <= _MAX_ANNOTATORS
            for k in range(least, n + 1)
        ]
    return _Cells(*np.array(rows, dtype=np.float64).reshape(-1, 7).T)


def _sample(
    cells: _Cells, dispersion: float, prior_mean: Floats, false_spread: float, rng: np.random.Generator
) -> _Sample:
    """Weighted samples of the posterior for one relative spread of match."""
    size = len(prior_mean)
    mean, covariance = prior_mean, np.diag(_PRIOR_DEVIATION**2)
    for _ in range(_ROUNDS):
        root = np.linalg.cholesky(covariance + 1e-6 * np.eye(size))
        # A multivariate t distribution covers the tails.
        steps = rng.normal(size=(_SAMPLES, size)) / np.sqrt(rng.chisquare(_DEGREES, size=(_SAMPLES, 1)) / _DEGREES)
        parameters = mean + steps @ root.T
        log_proposal = (
            -(_DEGREES + size) / 2 * np.log1p((steps**2).sum(axis=1) / _DEGREES) - np.log(np.diag(root)).sum()
        )
        logs = _log_posterior(parameters, cells, dispersion, prior_mean, false_spread) - log_proposal
        weights, power = _normalised(logs), 1.0
        while 1 / float((weights**2).sum()) < _SAMPLES / 25 and power > 1e-4:
            power *= 0.7  # too few samples fit: flatten the target, and come nearer in the next round
            weights = _normalised(power * logs)
        mean = weights @ parameters
        centred = parameters - mean
        covariance = 1.2 * (weights[:, None] * centred).T @ centred + 1e-5 * np.eye(size)
    highest = float(logs.max())
    return _Sample(parameters, _normalised(logs), highest + float(np.log(np.exp(logs - highest).mean())))


def _normalised(logs: Floats) -> Floats:
    weights: Floats = np.exp(logs - logs.max())
    weights /= weights.sum()
    return weights


def _log_posterior(
    parameters: Floats, cells: _Cells, dispersion: float, prior_mean: Floats, false_spread: float
) -> Floats:
    """(samples,): log of prior times quasi-likelihood."""
    density, logit, spread, false_ratio, match = parameters.T
    spreads = np.exp(np.clip(spread, -2.0, 2.0))
    recall = _sigmoid((logit[:, None] + spreads[:, None] * _NODES) / np.sqrt(1 + 0.35 * _ANNOTATOR_VARIANCE))[..., None]
    matches = _sigmoid(match[:, None] + false_spread * spreads[:, None] * _NODES)[..., None]
    n, k = cells.n, cells.k
    found = np.einsum("j,sjc->sc", _NODE_WEIGHTS, recall**k * (1 - recall) ** (n - k))
    alike = np.einsum(
        "j,sjc->sc", _NODE_WEIGHTS, matches ** np.maximum(k - 1, 0) * (1 - matches) ** (n - np.maximum(k, 1))
    )
    real = np.exp(density)[:, None] * cells.ways * found * cells.real
    false = np.exp(density + false_ratio)[:, None] * k * cells.ways * alike * cells.false
    expected = np.maximum(cells.images * (real + false), 1e-12)
    logs = ((cells.clusters * np.log(expected) - expected).sum(axis=1)) / dispersion
    logs -= 0.5 * (((parameters - prior_mean) / _PRIOR_DEVIATION) ** 2).sum(axis=1)
    outside = (
        (np.abs(spread) > np.log(4.0))
        | (matches[..., 0] @ _NODE_WEIGHTS > _MAX_MATCH)
        | (false_ratio > np.log(_MAX_FALSE))
    )
    return np.where(outside, _LOWEST, logs)


def _overlooked_shares(data: ClusterCounts, draws: Floats, rng: np.random.Generator) -> Floats:
    """(draws,): share of objects that no number of annotators finds; with ground truth from its unmarked objects."""
    alpha, beta = np.full(len(draws), OVERLOOKED[0]), np.full(len(draws), OVERLOOKED[1])
    if objects := sum(data.objects.values()):
        unmarked = sum(count for (_, k), count in data.objects.items() if k == 0)
        density, logit, spread = draws[:, 0], draws[:, 1], draws[:, 2]
        missed = 1 - _sigmoid(logit[:, None] + spread[:, None] * _NODES)
        expected = sum(number * density * (missed**n @ _NODE_WEIGHTS) for n, number in data.known_images.items())
        excess = np.clip(unmarked - expected, 0.0, objects) / data.dispersion
        alpha, beta = alpha + excess, beta + np.maximum(objects / data.dispersion - excess, 0.0)
    shares: Floats = rng.beta(alpha, beta)
    return shares


def _sigmoid(values: Floats) -> Floats:
    probabilities: Floats = 1 / (1 + np.exp(-np.clip(values, -500.0, 500.0)))
    return probabilities
