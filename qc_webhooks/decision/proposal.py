"""What a reviewer is shown of a dispute: each stance, and a proposed consensus, with what is disputed in words."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from labelloop.labeling.consensus.clustering import Cluster
from labelloop.labeling.consensus.consensus import AnnotatorModel, Consensus, ConsensusRegion, consensus
from labelloop.labeling.errors import LabelingError
from labelloop.labeling.region import Region
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.latest import latest_annotations
from labelloop.labeling.studio.task import Annotation, Task
from labelloop.labeling.studio.writing import to_results
from qc_webhooks.agreement import Answers, whole_answers
from qc_webhooks.artifacts.overlays import CONSENSUS, STANCE, Overlay
from qc_webhooks.policy import Policy
from qc_webhooks.verdict.dispute_card import LOW_OVERLAP, conflicts_of, stance_of
from qc_webhooks.verdict.merged_annotation import Style, merge
from qc_webhooks.verdict.note import describe
from qc_webhooks.verdict.verdict import Verdict, largest_group


def propose(
    task: Task,
    answers: Sequence[Answers],
    verdict: Verdict,
    policy: Policy,
    *,
    config: LabelConfig | None = None,
    crowd: AnnotatorModel | None = None,
    clusters: Sequence[Cluster] | None = None,
) -> tuple[Overlay, ...]:
    """The overlays of a dispute in the order in which they are to be written: the last one's tab comes first.

    Args:
        task: The task with its annotations.
        answers: One entry an annotator, see ``read_answers``.
        verdict: What was found.
        policy: The project's policy.
        config: The project's label config.
        crowd: What is known of the project's annotators; None: nothing, so all are alike.
        clusters: The regions' clusters, where they are known already, as ``consensus`` takes them.
    """
    annotations = {each.id: each for each in latest_annotations(task.annotations)}
    agreed = consensus([stance_of(each) for each in whole_answers(answers)], crowd, clusters=clusters)
    texts = _disputed(answers, agreed, policy)
    groups = stances(answers, verdict, policy)
    shown = [
        Overlay(
            STANCE.format(letter=letter),
            _stance_results(annotations[group[0].annotation], texts.get(group[0].annotator, {})),
            round(len(group) / len(answers), 4),
        )
        for letter, group in zip(ascii_uppercase, groups, strict=False)
    ]
    nearest = nearest_to_all(answers, verdict)
    annotation, said = annotations[nearest.annotation], texts.get(nearest.annotator, {})
    if not agreed.regions and _most_drew(answers):
        # An empty proposal would ask to throw away what everybody drew.
        return (*reversed(shown), Overlay(CONSENSUS, _stance_results(annotation, said), None))
    try:
        merged = merge(task, answers, lambda: verdict.measured, crowd=crowd, config=config, style=_STYLE, found=agreed)
    except LabelingError:  # a control of the consensus is not in the label config (any more); the stances still stand
        return tuple(reversed(shown))
    return (*reversed(shown), Overlay(CONSENSUS, merged.results, _likely(agreed)))


def stances(answers: Sequence[Answers], verdict: Verdict, policy: Policy) -> tuple[tuple[Answers, ...], ...]:
    """The annotators of a dispute in groups that agree among themselves, the largest first.

    Returns:
        Of each group first who is nearest to the others of the group, then the others.
    """
    left = {answer.annotator: answer for answer in sorted(answers, key=lambda each: each.annotation)}
    friends: dict[int, set[int]] = {annotator: set() for annotator in left}
    for pair in verdict.comparisons:
        if policy.agrees(pair):
            friends[pair.a].add(pair.b)
            friends[pair.b].add(pair.a)
    groups: list[tuple[Answers, ...]] = []
    while left:
        group = largest_group({annotator: friends[annotator] & left.keys() for annotator in left})
        members = [left.pop(annotator) for annotator in sorted(group, key=lambda each: left[each].annotation)]
        first = nearest_to_all(members, verdict)
        groups.append((first, *(each for each in members if each is not first)))
    return tuple(sorted(groups, key=lambda group: (-len(group), min(each.annotation for each in group))))


def nearest_to_all(answers: Sequence[Answers], verdict: Verdict) -> Answers:
    """Who agrees most with all the others; of equals the one who submitted first."""
    those = {answer.annotator for answer in answers}
    agreement = dict.fromkeys(those, 0.0)
    for pair in verdict.comparisons:
        if pair.a in those and pair.b in those:
            agreement[pair.a] += pair.overall
            agreement[pair.b] += pair.overall
    return min(answers, key=lambda each: (-round(agreement[each.annotator], 9), each.annotation))


def _disputed(answers: Sequence[Answers], agreed: Consensus, policy: Policy) -> dict[int, dict[str, list[str]]]:
    """Annotator -> id of a region of theirs -> what is disputed about it, in sentences."""
    tolerance = policy.tolerance
    texts: dict[int, dict[str, list[str]]] = {}
    for named in conflicts_of(answers, agreed, tolerance):
        text = describe(named.conflict)
        for annotator in named.annotators:
            for region in named.conflict.regions:
                texts.setdefault(annotator, {}).setdefault(region, []).append(text)
    return texts


def _stance_results(annotation: Annotation, texts: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """An annotation's results as a prediction's; each disputed region says so."""
    told: set[str] = set()
    written = []
    for result in annotation.results:
        # A score that was carried over from a pre-label is not this annotator's, nor does `origin` say who drew it.
        raw = {name: value for name, value in result.raw.items() if name not in {"score", "origin"}}
        if result.id in texts and result.id not in told:
            told.add(result.id)
            raw["meta"] = _meta(raw.get("meta"), " ".join(dict.fromkeys(texts[result.id])))
        written.append(raw)
    return written


def _most_drew(answers: Sequence[Answers]) -> bool:
    drew = [any(kind == "regions" and held for (_, kind), held in each.controls.items()) for each in answers]
    return 2 * sum(drew) > len(answers)


def _likely(agreed: Consensus) -> float | None:
    likely = [each.probability for each in agreed.regions] + [each.probability for each in agreed.choices.values()]
    return round(sum(likely) / len(likely), 4) if likely else None


def _region_id(agreed: ConsensusRegion) -> str:
    """An id of its own: annotators who began from the same pre-label have regions of the same id."""
    sources = sorted((source.annotation or 0, source.region) for source in agreed.sources)
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()[:10]


def _agreed_results(agreed: ConsensusRegion, region: Region, config: LabelConfig | None) -> list[dict[str, Any]]:
    results = [
        {name: value for name, value in result.items() if name != "origin"}
        for result in to_results(region, config=config)
    ]
    text = _provenance(agreed)
    if text:
        results[0]["meta"] = _meta(results[0].get("meta"), text)
    return results


_STYLE = Style(_agreed_results, _region_id, tells=False)


def _provenance(agreed: ConsensusRegion) -> str:
    """What the annotators do not share about a region, in words; empty where they share all."""
    marked, looked = len(agreed.sources), len(agreed.sources) + len(agreed.missed_by)
    lines = [] if marked == looked else [f"{marked} of {looked} annotators marked it."]
    labels = [" + ".join(source.labels) or "no label" for source in agreed.sources]
    if len(set(labels)) > 1:
        counts = sorted(set(labels), key=lambda label: (-labels.count(label), label))
        lines.append(f"{', '.join(f'{labels.count(label)} x {label}' for label in counts)}.")
    least = min(source.iou for source in agreed.sources)
    if least < LOW_OVERLAP:
        lines.append(f"One shape overlaps this one by only {100 * least:.0f} %.")
    return " ".join(lines)


def _meta(meta: Any, text: str) -> dict[str, Any]:
    """A region's ``meta`` with our text first: the editor shows the first."""
    held = dict(meta) if isinstance(meta, Mapping) else {}
    own = held.get("text") or []
    return {**held, "text": [text, *(own if isinstance(own, list) else [own])]}
