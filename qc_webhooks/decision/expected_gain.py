"""Expected gain of one more annotator: errors in a task's consensus now, and how many fewer afterwards.

The posterior of the consensus gives the error probability of each of its statements: that an object is present, its
label, the answer to a question. Answers of further annotators are drawn from that posterior and the confusion model of
the project's typical annotator; the gain of m annotators is

    errors now - expected errors after m answers = sum over answers of max over truths P(truth, answers) - max P(truth)

summed over the statements (the expected value of sample information: Raiffa and Schlaifer, "Applied Statistical
Decision Theory", 1961, chapter 5, with one error as the unit). All numbers of annotators up to the policy's maximum are
considered: where two agree, a third alone can hardly overturn the consensus, but three more can.
"""

from collections.abc import Iterator
from functools import lru_cache
from math import factorial, prod

import msgspec
import numpy as np
from numpy.typing import NDArray

from labelloop.labeling.consensus.consensus import AnnotatorModel, Evidence
from labelloop.labeling.consensus.crowd import ConfusionModel, uniform_confusion
from labelloop.labeling.consensus.detection_model import DIFFICULTY, DetectionModel, ObjectEvidence
from labelloop.labeling.consensus.tags import TagModel, Votes, has_several_tags, uniform_tags

Floats = NDArray[np.float64]

# Maximum further annotators considered: eight more answers settle what can be settled.
LOOK_AHEAD = 8
# Answers considered individually; less likely ones are summed.
_CLASSES = 3


class ExpectedGain(msgspec.Struct, frozen=True, gc=False):
    """Expected errors of a task's consensus.

    Attributes:
        errors: Expected number of errors now.
        gain: Reduction of that number by the most useful number of further annotators, up to the maximum.
        controls: Controls that the estimate covers: of regions and of choices.
        is_measured: Whether the annotators' reliability was estimated, not assumed.
    """

    errors: float
    gain: float
    is_measured: bool = False
    controls: frozenset[str] = frozenset()


def expected_gain(task: Evidence, crowd: AnnotatorModel | None, *, max_annotators: int) -> ExpectedGain:
    """Estimate the gain of further annotators.

    Args:
        task: Answers of the task's annotators.
        crowd: Reliability model of the project's annotators; None: not estimated yet.
        max_annotators: Maximum number of annotators in total.
    """
    model = crowd or AnnotatorModel()
    ahead = min(max_annotators - len(task.annotators), LOOK_AHEAD)
    errors, gains = 0.0, np.zeros(max(ahead, 1))
    for control, votes in task.clusters:
        states = model.detection.state_probabilities(
            ObjectEvidence(task.annotators, tuple(annotator for annotator, _ in votes))
        )
        present = 1 - float(states[-1])
        labels, wrong = _answer_gains(votes, model.tags.get(control), model.labels.get(control), ahead)
        gains += _presence_gains(states, model.detection, ahead) + present * labels
        errors += min(present, 1 - present) + present * wrong
    for control, votes in task.choices:
        labels, wrong = _answer_gains(votes, model.tags.get(control), model.choices.get(control), ahead)
        gains += labels
        errors += wrong
    controls = frozenset(control for control, _ in (*task.clusters, *task.choices))
    return ExpectedGain(errors, max(float(gains.max()), 0.0) if ahead > 0 else 0.0, crowd is not None, controls)


def _presence_gains(states: Floats, presence: DetectionModel, ahead: int) -> Floats:
    """Gains of 1, 2, ... further annotators for the presence of one object."""
    rates = [*(1 / (1 + np.exp(-(presence.typical[0] + shift))) for shift in DIFFICULTY), presence.false_match_rate]
    answers = tuple((round(float(1 - rate), 6), round(float(rate), 6)) for rate in rates)
    now = max(1 - float(states[-1]), float(states[-1]))
    gains = []
    for count in range(1, ahead + 1):
        joint = states[:, None] * _likelihoods(answers, count)
        gains.append(float(np.maximum(joint[:-1].sum(axis=0), joint[-1]).sum()) - now)
    return np.array(gains or [0.0])


def _answer_gains(
    votes: Votes, tags: TagModel | None, confusion: ConfusionModel | None, ahead: int
) -> tuple[Floats, float]:
    """Gains of 1, 2, ... further annotators for one answer, and its expected number of errors now.

    An answer of several tags is a binary question for each given tag; its errors are wrong tags.
    """
    if tags is None and not has_several_tags(answer for _, answer in votes):
        return _label_gains(votes, confusion, ahead)
    model = tags if tags is not None and tags.knows(votes) else uniform_tags(votes)
    given_tags = {tag for _, answer in votes for tag in answer}
    gains, errors = np.zeros(max(ahead, 1)), 0.0
    for tag, present in model.probabilities(votes).items():
        if tag not in given_tags:
            continue
        column = model.tags.index(tag)
        rates = (model.sensitivity[-1, column], model.false_rate[-1, column])
        answers = tuple((round(float(1 - rate), 6), round(float(rate), 6)) for rate in rates)
        right = max(present, 1 - present)
        errors += 1 - right
        for count in range(1, ahead + 1):
            joint = np.array([[present], [1 - present]]) * _likelihoods(answers, count)
            gains[count - 1] += max(float(joint.max(axis=0).sum()) - right, 0.0)
    return gains, errors


def _label_gains(votes: Votes, labels: ConfusionModel | None, ahead: int) -> tuple[Floats, float]:
    """Gains of 1, 2, ... further annotators for one answer; and the error probability of the likeliest answer now."""
    if labels is None or any(answer not in labels.classes for _, answer in votes):
        labels = uniform_confusion({answer for _, answer in votes})
    posterior = np.array([labels.posterior(votes)[answer] for answer in labels.classes])
    wrong = 1 - float(posterior.max())
    top = np.argsort(-posterior, kind="stable")[:_CLASSES]
    rows = np.round(labels.confusion[-1][np.ix_(top, top)], 6)
    others = np.clip(1 - rows.sum(axis=1, keepdims=True), 0, 1)
    answers = tuple(tuple(row) for row in np.hstack((rows, others)).tolist())
    gains = []
    for count in range(1, ahead + 1):
        joint = posterior[top][:, None] * _likelihoods(answers, count)
        gains.append(float(joint.max(axis=0).sum()) - float(posterior.max()))
    return np.maximum(np.array(gains or [0.0]), 0.0), wrong


@lru_cache(maxsize=4096)
def _likelihoods(answers: tuple[tuple[float, ...], ...], count: int) -> Floats:
    """(truths, outcomes): probability of each tally of ``count`` answers under each truth."""
    tallies = list(_tallies(count, len(answers[0])))
    orders = [factorial(count) / prod(factorial(votes) for votes in tally) for tally in tallies]
    shares = np.array(answers)[:, None, :] ** np.array(tallies)[None]
    likelihoods: Floats = shares.prod(axis=-1) * np.array(orders)
    return likelihoods


def _tallies(count: int, kinds: int) -> Iterator[tuple[int, ...]]:
    if kinds == 1:
        yield (count,)
        return
    for first in range(count + 1):
        for rest in _tallies(count - first, kinds - 1):
            yield (first, *rest)
