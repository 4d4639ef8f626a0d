"""Overlays of a dispute for its reviewer: one per group of annotators and a proposed consensus, with conflict texts."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from labelloop.labeling.consensus.clustering import Cluster
from labelloop.labeling.consensus.consensus import AnnotatorModel, Consensus, ConsensusRegion, consensus
from labelloop.labeling.consensus.model_voice import VoiceRegions
from labelloop.labeling.errors import LabelingError
from labelloop.labeling.region import Region
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.latest import latest_annotations
from labelloop.labeling.studio.task import Annotation, Task
from labelloop.labeling.studio.writing import to_results
from qc_webhooks.agreement import Answers, complete_answers
from qc_webhooks.artifacts.overlays import CONSENSUS, STANCE, Overlay
from qc_webhooks.policy import Policy
from qc_webhooks.verdict.dispute_card import LOW_OVERLAP, annotator_view, conflicts_of
from qc_webhooks.verdict.merged_annotation import RegionStyle, merge
from qc_webhooks.verdict.note import describe
from qc_webhooks.verdict.verdict import TaskVerdict, largest_group


def propose(
    task: Task,
    answers: Sequence[Answers],
    verdict: TaskVerdict,
    policy: Policy,
    *,
    config: LabelConfig | None = None,
    crowd: AnnotatorModel | None = None,
    clusters: Sequence[Cluster] | None = None,
    voice: VoiceRegions | None = None,
) -> tuple[Overlay, ...]:
    """Create the overlays of a dispute, in the order to write them: Label Studio shows the last one's tab first.

    Args:
        task: The task with its annotations.
        answers: One entry per annotator, see ``read_answers``.
        verdict: Verdict on the task.
        policy: The project's policy.
        config: The project's label config.
        crowd: Reliability model of the project's annotators; None: all are equal.
        clusters: Clusters of the regions as ``consensus`` takes them, if already computed.
        voice: The model's independent prediction, if it is heard: it changes the consensus, no conflict and no group.
    """
    annotations = {annotation.id: annotation for annotation in latest_annotations(task.annotations)}
    agreed = consensus([annotator_view(answer) for answer in complete_answers(answers)], crowd, clusters=clusters)
    texts = _disputed(answers, agreed, policy)
    if voice is not None:
        views = [annotator_view(answer) for answer in complete_answers(answers)]
        agreed = consensus(views, crowd, clusters=clusters, voice=voice)
    groups = agreeing_groups(answers, verdict, policy)
    overlays = [
        Overlay(
            STANCE.format(letter=letter),
            _prediction_results(annotations[group[0].annotation], texts.get(group[0].annotator, {})),
            round(len(group) / len(answers), 4),
        )
        for letter, group in zip(ascii_uppercase, groups, strict=False)
    ]
    central = most_central(answers, verdict)
    annotation, central_texts = annotations[central.annotation], texts.get(central.annotator, {})
    if not agreed.regions and _most_have_regions(answers):
        # Accepting an empty proposal would discard the regions of all annotators.
        return (*reversed(overlays), Overlay(CONSENSUS, _prediction_results(annotation, central_texts), None))
    try:
        merged = merge(
            task, answers, lambda: verdict.measured, crowd=crowd, config=config, style=_STYLE, agreed_consensus=agreed
        )
    except LabelingError:  # the label config lacks a control of the consensus; show the groups only
        return tuple(reversed(overlays))
    return (*reversed(overlays), Overlay(CONSENSUS, merged.results, _mean_probability(agreed)))


def agreeing_groups(
    answers: Sequence[Answers], verdict: TaskVerdict, policy: Policy
) -> tuple[tuple[Answers, ...], ...]:
    """Partition the annotators of a dispute into groups that agree internally, the largest first.

    Returns:
        The most central annotator of each group first, then the others.
    """
    ungrouped = {answer.annotator: answer for answer in sorted(answers, key=lambda item: item.annotation)}
    neighbours: dict[int, set[int]] = {annotator: set() for annotator in ungrouped}
    for pair in verdict.comparisons:
        if policy.agrees(pair):
            neighbours[pair.a].add(pair.b)
            neighbours[pair.b].add(pair.a)
    groups: list[tuple[Answers, ...]] = []
    while ungrouped:
        group = largest_group({annotator: neighbours[annotator] & ungrouped.keys() for annotator in ungrouped})
        members = [
            ungrouped.pop(annotator)
            for annotator in sorted(group, key=lambda annotator_id: ungrouped[annotator_id].annotation)
        ]
        first = most_central(members, verdict)
        groups.append((first, *(member for member in members if member is not first)))
    return tuple(sorted(groups, key=lambda group: (-len(group), min(answer.annotation for answer in group))))


def most_central(answers: Sequence[Answers], verdict: TaskVerdict) -> Answers:
    """The annotator with the highest total agreement with all others; of equals, the first to submit."""
    annotators = {answer.annotator for answer in answers}
    agreement = dict.fromkeys(annotators, 0.0)
    for pair in verdict.comparisons:
        if pair.a in annotators and pair.b in annotators:
            agreement[pair.a] += pair.overall
            agreement[pair.b] += pair.overall
    return min(answers, key=lambda answer: (-round(agreement[answer.annotator], 9), answer.annotation))


def _disputed(answers: Sequence[Answers], agreed: Consensus, policy: Policy) -> dict[int, dict[str, list[str]]]:
    """Annotator id -> region id -> conflict texts."""
    tolerance = policy.tolerance
    texts: dict[int, dict[str, list[str]]] = {}
    for attributed in conflicts_of(answers, agreed, tolerance):
        text = describe(attributed.conflict)
        for annotator in attributed.annotators:
            for region in attributed.conflict.regions:
                texts.setdefault(annotator, {}).setdefault(region, []).append(text)
    return texts


def _prediction_results(annotation: Annotation, texts: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """An annotation's results as those of a prediction, with the conflict texts on disputed regions."""
    annotated: set[str] = set()
    written = []
    for result in annotation.results:
        # Drop a score inherited from a pre-label, and `origin`, which would not name the author.
        raw = {name: value for name, value in result.raw.items() if name not in {"score", "origin"}}
        if result.id in texts and result.id not in annotated:
            annotated.add(result.id)
            raw["meta"] = _meta(raw.get("meta"), " ".join(dict.fromkeys(texts[result.id])))
        written.append(raw)
    return written


def _most_have_regions(answers: Sequence[Answers]) -> bool:
    has_regions = [
        any(kind == "regions" and regions for (_, kind), regions in answer.controls.items()) for answer in answers
    ]
    return 2 * sum(has_regions) > len(answers)


def _mean_probability(agreed: Consensus) -> float | None:
    probabilities = [item.probability for item in agreed.regions] + [
        item.probability for item in agreed.choices.values()
    ]
    return round(sum(probabilities) / len(probabilities), 4) if probabilities else None


def _region_id(agreed: ConsensusRegion) -> str:
    """A new id: annotators who started from the same pre-label have regions with the same id."""
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


_STYLE = RegionStyle(_agreed_results, _region_id, with_probability=False)


def _provenance(agreed: ConsensusRegion) -> str:
    """What the annotators do not share about a region, in words; empty if they share everything."""
    marked, viewed = len(agreed.sources), len(agreed.sources) + len(agreed.missed_by)
    lines = [] if marked == viewed else [f"{marked} of {viewed} annotators marked it."]
    labels = [" + ".join(source.labels) or "no label" for source in agreed.sources]
    if len(set(labels)) > 1:
        counts = sorted(set(labels), key=lambda label: (-labels.count(label), label))
        lines.append(f"{', '.join(f'{labels.count(label)} x {label}' for label in counts)}.")
    lowest = min(source.iou for source in agreed.sources)
    if lowest < LOW_OVERLAP:
        lines.append(f"One shape overlaps this one by only {100 * lowest:.0f} %.")
    return " ".join(lines)


def _meta(meta: Any, text: str) -> dict[str, Any]:
    """A region's ``meta`` with our text first: the editor shows the first entry."""
    current = dict(meta) if isinstance(meta, Mapping) else {}
    own = current.get("text") or []
    return {**current, "text": [text, *(own if isinstance(own, list) else [own])]}
