"""What all tasks of a project tell together, gathered one task at a time: who agrees, on which control, about what."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from labelloop.labeling.consensus.consensus import AnnotatorModel, Evidence, estimate_crowd, evidence
from labelloop.labeling.studio.latest import latest_annotations
from labelloop.labeling.studio.task import Task
from qc_webhooks.agreement.answers import Answers, whole_answers
from qc_webhooks.annotators.reliability import answer_name
from qc_webhooks.statistics import ABSENT, ENOUGH, Estimate, Ratings, describe
from qc_webhooks.statistics.agreement_coefficients import positive_agreements
from qc_webhooks.statistics.bootstrap import LEVEL, RESAMPLES
from qc_webhooks.statistics.catalogue import DETECTION, NOMINAL, NUMBER, ORDINAL
from qc_webhooks.verdict.dispute_card import stance_of

# Result type of an answer about the whole task -> the kind of ratings that it is.
NUMBERS: Mapping[str, str] = {"rating": ORDINAL, "number": NUMBER}

Units = list[Mapping[Any, Hashable]]


@dataclass
class ProjectStatistics:
    """Tasks seen so far; holds who answered what, and no shapes.

    Attributes:
        evidence: One entry a task.
        numbers: (control, kind) -> for each task who gave which number.
    """

    evidence: list[Evidence] = field(default_factory=list)
    numbers: dict[tuple[str, str], Units] = field(default_factory=lambda: defaultdict(list))

    def add(self, task: Task, answers: Sequence[Answers]) -> None:
        """One task more."""
        if read := whole_answers(answers):
            truth = next((each.annotator for each in read if each.ground_truth), None)
            self.evidence.append(evidence([stance_of(each) for each in read], truth=truth))
        units: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
        for annotation in latest_annotations(task.annotations):
            who = annotation.completed_by
            drawn = Counter(result.id for result in annotation.results if result.id)
            for result in annotation.results:
                value: Any = result.value.get(result.type)
                whole = drawn[result.id] < 2  # an answer about a region shares its id
                if result.type in NUMBERS and who is not None and whole and isinstance(value, int | float):
                    units[result.from_name, NUMBERS[result.type]][who] = float(value)
        for key, unit in units.items():
            self.numbers[key].append(unit)

    @cached_property
    def crowd(self) -> AnnotatorModel:
        """The annotators, estimated from every task; ask when all are added."""
        return estimate_crowd(self.evidence)

    def ratings(self) -> dict[tuple[str, str], Ratings]:
        """(control, kind of ratings) -> the ratings of every unit."""
        found: dict[tuple[str, str], Units] = defaultdict(list)
        for task in self.evidence:
            # A ground truth is no opinion among others, and what it alone marks is nobody's answer.
            for thing in task.objects():
                named = {who: answer_name(answer) for who, answer in thing.votes}
                if named:
                    found[thing.control, NOMINAL].append(named)
                    found[thing.control, DETECTION].append({who: named.get(who, ABSENT) for who in task.blind})
            for asked in task.answers():
                found[asked.control, NOMINAL].append({who: answer_name(answer) for who, answer in asked.votes})
        return {key: Ratings.of(units) for key, units in {**found, **self.numbers}.items()}

    def statistics(self) -> dict[str, dict[str, Any]]:
        """Every statistic of every control, by kind of ratings."""
        found: dict[str, dict[str, Any]] = defaultdict(dict)
        for (control, kind), ratings in sorted(self.ratings().items()):
            told: dict[str, Any] = dict(describe(ratings, kind))
            if kind == DETECTION and ratings.units >= ENOUGH:
                told["positive_agreement_by_label"] = positive_agreements(ratings)
            found[control][kind] = told
        return dict(found)


def mean_estimate(values: Sequence[float], *, seed: int = 0) -> Estimate:
    """The mean of scores of tasks with a bootstrap interval."""
    n = len(values)
    if n < ENOUGH:
        return Estimate.lacking(n)
    scores, rng = np.array(values), np.random.default_rng(seed)
    means = [float(scores[rng.integers(n, size=n)].mean()) for _ in range(RESAMPLES if n < 20_000 else 200)]
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return Estimate(float(scores.mean()), low, high, n)
