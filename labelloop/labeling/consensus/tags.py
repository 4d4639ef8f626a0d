"""Answers of several tags (multiple choice, taxonomies, regions of several labels): a binary question for each tag.

Each annotator has a sensitivity and a false positive rate for each tag (Dawid and Skene 1979 with two classes). Both
are shrunk to the annotator's rates over all tags and to the tag's rates over all annotators, in logits, because most
annotators see most tags seldom. A tag without a vote on an item is counted as absent there, so time and memory are
linear in the given tags, not in items times tags.

Taxonomies: each inner node of a path is a tag too ("an answer at or below this node"), so that annotators who agree on
a branch and differ in its leaves agree on the branch.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from labelloop.labeling.consensus.detection_model import expit

Floats = NDArray[np.float64]
Answer = tuple[str, ...]
Votes = tuple[tuple[int, Answer], ...]

# Separates the nodes of a taxonomy's path; at the end of a tag, it names a node with everything below it.
SEPARATOR = "/"

# Rates of an unknown annotator: share of the true tags given, and of the absent tags given by mistake.
TYPICAL_SENSITIVITY, TYPICAL_FALSE_RATE = 0.8, 0.05

# Pseudo-counts that shrink the mean rates to the typical ones.
_MEAN_STRENGTH = 20.0

# Least and most pseudo-counts that shrink an annotator, a tag, or both together to the expected rates.
_STRENGTHS = (6.0, 1e5)

# Pseudo-items that shrink the frequency of a tag to the mean frequency.
_FREQUENCY_STRENGTH = 4.0

_LEAST_RATE = 1e-4
_MAX_ITERATIONS, _TOLERANCE = 60, 1e-4


class TagModel(msgspec.Struct, frozen=True):
    """Annotators' rates for the tags of one control.

    Attributes:
        tags: Every tag that was given, and every inner node with ``SEPARATOR`` at its end, sorted.
        frequencies: Share of items with the tag, of shape ``(tags,)``.
        sensitivity: Probability that an annotator gives a true tag, ``(annotators + 1, tags)``; last: an unknown one.
        false_rate: Probability that an annotator gives an absent tag, of the same shape.
        raters: Annotator -> row.
        threshold: A tag is in the consensus above this probability: the one of the highest expected F1.
    """

    tags: tuple[str, ...]
    frequencies: Floats
    sensitivity: Floats
    false_rate: Floats
    raters: Mapping[int, int]
    threshold: float = 0.5

    def knows(self, votes: Votes) -> bool:
        """Whether every given tag is in the model."""
        return {tag for _, answer in votes for tag in answer} <= set(self.tags)

    def probabilities(self, votes: Votes, skip: int | None = None) -> dict[str, float]:
        """Probability of each given tag, and of its inner nodes.

        Args:
            votes: The answers.
            skip: The vote whose annotator is not counted; None: all are.
        """
        model = self if self.knows(votes) else uniform_tags(votes)
        tag_sets = [expand(answer) for _, answer in votes]
        index = {tag: number for number, tag in enumerate(model.tags)}
        wanted = sorted(set().union(*tag_sets)) if tag_sets else []
        columns = np.array([index[tag] for tag in wanted], np.intp)
        logits = _logit(model.frequencies[columns])
        for number, ((annotator, _), tags) in enumerate(zip(votes, tag_sets, strict=True)):
            if number == skip:
                continue
            row = model.raters.get(annotator, len(model.sensitivity) - 1)
            hit, false = model.sensitivity[row, columns], model.false_rate[row, columns]
            is_given = np.array([tag in tags for tag in wanted])
            logits = logits + np.where(is_given, np.log(hit / false), np.log((1 - hit) / (1 - false)))
        return dict(zip(wanted, expit(logits).tolist(), strict=True))

    def best(self, votes: Votes) -> tuple[Answer, float]:
        """The most likely answer, at least one tag, and the probability that it is right in every tag."""
        probabilities = self.probabilities(votes)
        if not probabilities:
            return (), 0.0
        counts = Counter(tag for _, answer in votes for tag in answer)
        threshold = self.threshold if self.knows(votes) else 0.5
        chosen = {tag for tag in counts if probabilities[tag] > threshold}
        for node in sorted((tag for tag in probabilities if tag.endswith(SEPARATOR)), key=len, reverse=True):
            below = {tag for tag in counts if f"{tag}{SEPARATOR}".startswith(node)}
            if probabilities[node] > threshold and not chosen & below:
                # the branch is agreed on, its leaf is not: the node itself where it is an answer, else the best leaf
                own = node[: -len(SEPARATOR)]
                chosen.add(own if own in self.tags else _first(below, probabilities, counts))
        if not chosen:
            chosen = {_first(counts, probabilities, counts)}
        exact = 1.0
        for tag in counts:
            exact *= probabilities[tag] if tag in chosen else 1 - probabilities[tag]
        return tuple(sorted(chosen)), exact


def _first(tags: Iterable[str], probabilities: Mapping[str, float], given: Mapping[str, int]) -> str:
    """The most likely tag; ties go to the one with more votes, then to the first in alphabetical order."""
    return min(tags, key=lambda tag: (-round(probabilities[tag], 9), -given[tag], tag))


def expand(answer: Answer) -> frozenset[str]:
    """The tags of an answer with the inner nodes of their paths; each node ends with ``SEPARATOR``.

    A tag that is an answer and an inner node of others gives its own node too.
    """
    tags = set(answer)
    for tag in answer:
        parts = tag.split(SEPARATOR)
        tags.update(SEPARATOR.join(parts[:depth]) + SEPARATOR for depth in range(1, len(parts)))
        tags.add(tag + SEPARATOR)
    return frozenset(tags)


def has_several_tags(answers: Iterable[Answer]) -> bool:
    """Whether the answers of a control are sets of tags: some answer has several, or two share a branch of a path."""
    answers = set(answers)
    if any(len(answer) > 1 for answer in answers):
        return True
    roots = Counter(tag.partition(SEPARATOR)[0] for answer in answers for tag in answer)
    return any(count > 1 for count in roots.values())


def uniform_tags(votes: Votes) -> TagModel:
    """Model of unknown annotators who are equally reliable: the majority decides on each tag."""
    tags = tuple(sorted({tag for _, answer in votes for tag in expand(answer)}))
    rates = np.full((1, len(tags)), TYPICAL_SENSITIVITY)
    return TagModel(tags, np.full(len(tags), 0.5), rates, 1 - rates, {})


def fit_tag_model(items: Sequence[Votes], truths: Sequence[Answer | None] = ()) -> TagModel:
    """Fit frequencies and rates to the answers on all items of one control by expectation maximisation.

    Args:
        items: The answers on each item.
        truths: The true answer of each item, None where unknown; empty: all are unknown.
    """
    truths = truths or [None] * len(items)
    data = _Data(items, truths)
    if not len(data.candidate_tag):
        return uniform_tags(())
    posterior = data.initial()
    for _ in range(_MAX_ITERATIONS):
        model = data.model(posterior)
        updated = data.posterior(model)
        moved = float(np.abs(updated - posterior).max())
        posterior = updated
        if moved < _TOLERANCE:
            break
    return data.model(posterior)


class _Data:
    """The answers as arrays: candidates are (item, tag) pairs of an annotator, decisions are annotators on them."""

    def __init__(self, items: Sequence[Votes], truths: Sequence[Answer | None]) -> None:
        expanded = [[(annotator, expand(answer)) for annotator, answer in votes] for votes in items]
        expanded_truths = [None if truth is None else expand(truth) for truth in truths]
        self.tags = tuple(
            sorted(
                {tag for votes in expanded for _, tags in votes for tag in tags}
                | set().union(*filter(None, expanded_truths))
            )
        )
        tag_index = {tag: index for index, tag in enumerate(self.tags)}
        annotators = sorted({annotator for votes in items for annotator, _ in votes})
        self.raters = {annotator: index for index, annotator in enumerate(annotators)}
        candidate_tag: list[int] = []
        fixed: list[float] = []
        decisions: list[tuple[int, int, bool]] = []
        for votes, truth in zip(expanded, expanded_truths, strict=True):
            for tag in sorted({tag for _, tags in votes for tag in tags} | (truth or frozenset())):
                decisions += [(len(candidate_tag), self.raters[annotator], tag in tags) for annotator, tags in votes]
                candidate_tag.append(tag_index[tag])
                fixed.append(np.nan if truth is None else float(tag in truth))
        self.candidate_tag = np.array(candidate_tag, np.intp)
        self.fixed = np.array(fixed, np.float64)
        columns = np.array(decisions, np.intp).reshape(-1, 3).T
        self.candidate, self.rater, self.is_given = columns[0], columns[1], columns[2].astype(bool)
        self.cell = self.rater * len(self.tags) + self.candidate_tag[self.candidate]
        self.answered = np.bincount(
            [self.raters[who] for votes in items for who, _ in votes], minlength=len(annotators)
        )
        self.item_count = sum(bool(votes) for votes in items)

    def initial(self) -> Floats:
        """The shares of the annotators who gave each candidate."""
        count = np.bincount(self.candidate, minlength=len(self.candidate_tag))
        given_count = np.bincount(self.candidate, self.is_given, len(self.candidate_tag))
        return self._with_fixed(given_count / np.maximum(count, 1))

    def posterior(self, model: TagModel) -> Floats:
        """Probability of each candidate (Bayes' rule)."""
        hit, false = model.sensitivity[:-1].ravel()[self.cell], model.false_rate[:-1].ravel()[self.cell]
        evidence = np.where(self.is_given, np.log(hit / false), np.log((1 - hit) / (1 - false)))
        logits = _logit(model.frequencies)[self.candidate_tag]
        return self._with_fixed(expit(logits + np.bincount(self.candidate, evidence, len(logits))))

    def model(self, posterior: Floats) -> TagModel:
        """Frequencies and rates from the probability of each candidate."""
        shape = (len(self.raters), len(self.tags))
        is_true = posterior[self.candidate]

        def counts(weights: Floats) -> Floats:
            return np.bincount(self.cell, weights, shape[0] * shape[1]).astype(np.float64, copy=False).reshape(shape)

        true, hits = counts(is_true), counts(is_true * self.is_given)
        false_hits = counts((1 - is_true) * self.is_given)
        absent = np.maximum(self.answered[:, None] - true, 0.0)
        sensitivity = _shrunk_rates(hits, true, TYPICAL_SENSITIVITY)
        false_rate = np.minimum(_shrunk_rates(false_hits, absent, TYPICAL_FALSE_RATE), sensitivity - _LEAST_RATE)
        frequency = np.bincount(self.candidate_tag, posterior, shape[1])
        mean = frequency.sum() / (shape[1] * max(self.item_count, 1))
        frequencies = (frequency + _FREQUENCY_STRENGTH * mean) / (self.item_count + _FREQUENCY_STRENGTH)
        return TagModel(
            self.tags, np.clip(frequencies, _LEAST_RATE, 1 - _LEAST_RATE), sensitivity, false_rate, self.raters,
            _best_threshold(posterior),
        )  # fmt: skip

    def _with_fixed(self, posterior: Floats) -> Floats:
        return np.where(np.isnan(self.fixed), posterior, self.fixed)


def _best_threshold(probabilities: Floats) -> float:
    """The probability above which tags are chosen for the highest expected F1: half of that F1.

    Lipton, Elkan and Naryanaswamy, Optimal Thresholding of Classifiers to Maximize F1 Measure (2014), theorem 1.
    """
    descending = np.sort(probabilities)[::-1]
    chosen = np.cumsum(descending)
    return float((chosen / (np.arange(1, len(descending) + 1) + chosen[-1])).max(initial=0.0))


def _shrunk_rates(hits: Floats, total: Floats, typical: float) -> Floats:
    """(annotators + 1, tags): the rates of each annotator for each tag; last row: an unknown annotator."""
    mean = np.full(1, (hits.sum() + _MEAN_STRENGTH * typical) / (total.sum() + _MEAN_STRENGTH))
    by_rater, by_tag = (_shrunk(hits.sum(axis=axis), total.sum(axis=axis), mean) for axis in (1, 0))
    expected = expit(_logit(by_rater)[:, None] + _logit(by_tag)[None] - _logit(mean))
    rates = _shrunk(hits, total, expected)
    return np.clip(np.vstack((rates, by_tag[None])), 2 * _LEAST_RATE, 1 - 2 * _LEAST_RATE)


def _shrunk(hits: Floats, total: Floats, expected: Floats) -> Floats:
    """Rates shrunk to the expected ones, by as much as they differ no more than by chance.

    Beta-binomial with the overdispersion of the method of moments: without any, all rates are the expected ones.
    """
    chance = expected * (1 - expected)
    spread = float((total * (hits / np.maximum(total, 1e-9) - expected) ** 2).sum())
    by_chance = float(np.broadcast_to(chance, total.shape)[total > 0].sum())
    between = max(spread - by_chance, 0.0) / max(float((total * chance).sum()) - by_chance, 1e-9)
    strength = np.clip(1 / max(between, 1e-9) - 1, *_STRENGTHS)
    return np.asarray((hits + strength * expected) / (total + strength), np.float64)


def _logit(rate: Floats) -> Floats:
    clipped = np.clip(rate, _LEAST_RATE, 1 - _LEAST_RATE)
    return np.asarray(np.log(clipped / (1 - clipped)), np.float64)
