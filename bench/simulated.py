"""Simulated annotators of known skill: how many intervals of reliability hold it (part of the bench `qc`)."""

import numpy as np

from labelloop.labeling.consensus.consensus import Evidence, fit_annotator_model
from qc_webhooks.annotators.reliability import rate_annotators

SEEDS = 12


def coverage():
    """Accuracy of labels; recall and precision of regions."""
    for classes, each in ((2, 3), (2, 5), (4, 3), (4, 5)):
        held = [hit for seed in range(20) for hit in _labelled(np.random.default_rng(seed), classes, each)]
        title = f"simulated annotators, {classes} classes, {each} a task: intervals of accuracy that hold it"
        yield f"| {title} | {np.mean(held):.3f} of {len(held)} |"
    for each, hardness, false in ((2, 0.0, 0.2), (3, 0.0, 0.2), (5, 0.0, 0.2), (3, 1.0, 0.2), (3, 1.0, 1.0)):
        seeds = range(SEEDS)
        held = [hit for seed in seeds for hit in _found(np.random.default_rng(seed), each, hardness, false)]
        recall, precision = np.mean(held, axis=0)
        kind = "objects of all difficulties" if hardness else "objects equally hard"
        title = f"simulated annotators of boxes, {each} a task, {kind}, {false} false boxes an image: intervals"
        yield f"| {title} of recall, of precision that hold it | {recall:.3f}, {precision:.3f} of {len(held)} |"


def _labelled(rng, classes, each, *, annotators=30, tasks=400):
    skill = np.clip(rng.beta(8, 2, annotators), 1 / classes + 0.02, 0.995)
    found = []
    for truth in rng.integers(classes, size=tasks):
        people = sorted(rng.choice(annotators, each, replace=False).tolist())
        said = [truth if rng.random() < skill[w] else (truth + 1 + rng.integers(classes - 1)) % classes for w in people]
        found.append(
            Evidence(tuple(people), (), (("q", tuple((w, (str(s),)) for w, s in zip(people, said, strict=True))),))
        )
    for one in rate_annotators(found, fit_annotator_model(found)):
        accuracy = one.choices["q"].accuracy
        if accuracy.value is not None:
            yield accuracy.low <= skill[one.annotator] <= accuracy.high


def _found(rng, each, hardness, false, *, annotators=12, tasks=200, together=0.03):
    """(recall held, precision held) of each annotator; recall of what enough others marked, as it is defined."""
    skill = np.clip(rng.beta(8, 2, annotators), 0.4, 0.98)
    rates = rng.gamma(2, false / 2, annotators)
    recall, precision = np.zeros((annotators, 2)), np.zeros((annotators, 2))
    found = []
    for _ in range(tasks):
        people = sorted(rng.choice(annotators, each, replace=False).tolist())
        clusters = []
        for _ in range(rng.poisson(5)):
            logits = np.log(skill[people] / (1 - skill[people])) + rng.normal(0, 1) * hardness
            likely = 1 / (1 + np.exp(-logits))
            for place, who in enumerate(people):
                seen = _enough(np.delete(likely, place))
                recall[who] += likely[place] * seen, seen
                precision[who] += likely[place], likely[place]
            clusters.append([who for who, chance in zip(people, likely, strict=True) if rng.random() < chance])
        for who in people:
            for other in people:
                precision[other] += 0, rates[who] * (1.0 if other == who else together)
            clusters += [
                [other for other in people if other == who or rng.random() < together]
                for _ in range(rng.poisson(rates[who]))
            ]
        votes = [("o", tuple((who, ("c",)) for who in marked)) for marked in clusters if marked]
        found.append(Evidence(tuple(people), tuple(votes), ()))
    truth = recall[:, 0] / recall[:, 1], precision[:, 0] / precision[:, 1]
    for one in rate_annotators(found, fit_annotator_model(found)):
        rated = one.regions.recall_of_found, one.regions.precision_by_others
        yield [each.low <= known[one.annotator] <= each.high for each, known in zip(rated, truth, strict=True)]


def _enough(likely):
    """How likely so many of the others mark an object that recall is measured by it: two, or the only one."""
    nobody = np.prod(1 - likely)
    one = sum(chance * np.prod(np.delete(1 - likely, place)) for place, chance in enumerate(likely))
    return 1 - nobody - (one if len(likely) > 1 else 0.0)
