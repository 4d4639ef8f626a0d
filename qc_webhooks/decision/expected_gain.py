"""Whether one more annotator pays: how many errors the consensus of a task is likely to hold, and how many fewer after.

The posterior of the consensus says how likely each of its statements is wrong: that an object is there, what it is
called, how a question is answered. What further annotators would say is drawn from that posterior and from how the
project's typical annotator answers; the gain of asking m of them is

    errors now - expected errors after m answers = sum over answers of max over truths P(truth, answers) - max P(truth)

summed over the statements (the expected value of sample information: Raiffa and Schlaifer, "Applied Statistical
Decision Theory", 1961, chapter 5, with one error as the unit). It is looked ahead to every number of annotators up to
the policy's maximum: where two agree, a third alone can hardly turn the consensus, but three more can.
"""

from collections.abc import Iterator
from functools import lru_cache
from math import factorial, prod

import msgspec
import numpy as np
from numpy.typing import NDArray

from labelloop.labeling.consensus.consensus import AnnotatorModel, Evidence
from labelloop.labeling.consensus.crowd import ConfusionModel, Votes, uniform_confusion
from labelloop.labeling.consensus.detection_model import DIFFICULTY, DetectionModel, ObjectEvidence

Floats = NDArray[np.float64]

# No further ahead: eight more answers settle what can be settled.
LOOK_AHEAD = 8
# Answers less likely than the third are not looked at one by one.
_CLASSES = 3


class ExpectedGain(msgspec.Struct, frozen=True, gc=False):
    """What is to be expected of a task's consensus.

    Attributes:
        errors: Errors that it is likely to hold now.
        gain: How many fewer it would hold after as many further annotators as pay best, up to the maximum.
        controls: The controls that it speaks of: those of regions and of choices.
        known: Whether the project's annotators are known, so that this is measured and not only assumed.
    """

    errors: float
    gain: float
    known: bool = False
    controls: frozenset[str] = frozenset()


def expected_gain(task: Evidence, crowd: AnnotatorModel | None, *, most: int) -> ExpectedGain:
    """What one more annotator would bring.

    Args:
        task: What its annotators said.
        crowd: What is known of the project's annotators; None: nothing yet.
        most: Up to how many annotators may be asked in all.
    """
    known = crowd or AnnotatorModel()
    ahead = min(most - len(task.looked), LOOK_AHEAD)
    errors, gains = 0.0, np.zeros(max(ahead, 1))
    for control, votes in task.clusters:
        states = known.presence.states(ObjectEvidence(task.looked, tuple(who for who, _ in votes)))
        there = 1 - float(states[-1])
        labels, wrong = _label_gains(votes, known.labels.get(control), ahead)
        gains += _presence_gains(states, known.presence, ahead) + there * labels
        errors += min(there, 1 - there) + there * wrong
    for control, votes in task.choices:
        labels, wrong = _label_gains(votes, known.choices.get(control), ahead)
        gains += labels
        errors += wrong
    controls = frozenset(control for control, _ in (*task.clusters, *task.choices))
    return ExpectedGain(errors, max(float(gains.max()), 0.0) if ahead > 0 else 0.0, crowd is not None, controls)


def _presence_gains(states: Floats, presence: DetectionModel, ahead: int) -> Floats:
    """Of 1, 2, ... further annotators on whether one object is there."""
    rates = [*(1 / (1 + np.exp(-(presence.typical[0] + shift))) for shift in DIFFICULTY), presence.coincidence]
    answers = tuple((round(float(1 - rate), 6), round(float(rate), 6)) for rate in rates)
    now = max(1 - float(states[-1]), float(states[-1]))
    gains = []
    for count in range(1, ahead + 1):
        joint = states[:, None] * _likelihoods(answers, count)
        gains.append(float(np.maximum(joint[:-1].sum(axis=0), joint[-1]).sum()) - now)
    return np.array(gains or [0.0])


def _label_gains(votes: Votes, labels: ConfusionModel | None, ahead: int) -> tuple[Floats, float]:
    """Of 1, 2, ... further annotators on what is right; and how likely the likeliest answer is wrong now."""
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
    """(truths, outcomes): how likely each tally of ``count`` answers is under each truth."""
    tallies = list(_tallies(count, len(answers[0])))
    orders = [factorial(count) / prod(factorial(each) for each in tally) for tally in tallies]
    shares = np.array(answers)[:, None, :] ** np.array(tallies)[None]
    found: Floats = shares.prod(axis=-1) * np.array(orders)
    return found


def _tallies(count: int, kinds: int) -> Iterator[tuple[int, ...]]:
    if kinds == 1:
        yield (count,)
        return
    for first in range(count + 1):
        for rest in _tallies(count - first, kinds - 1):
            yield (first, *rest)
