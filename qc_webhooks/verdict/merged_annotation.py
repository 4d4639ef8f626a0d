"""Merge the annotations of a task into one: vote where possible, else take one annotator's results unchanged.

Regions of images and answers that can be voted on are merged (`labelloop.labeling.consensus`). All other results are
carried: taken unchanged from one annotator. Every omitted result is listed with a reason.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from labelloop.labeling.consensus.consensus import (
    AnnotatorModel,
    Consensus,
    ConsensusChoice,
    ConsensusRegion,
    consensus,
    consensus_results,
    provenance_json,
    with_provenance,
)
from labelloop.labeling.consensus.model_voice import VoiceRegions
from labelloop.labeling.consensus.rankings import RankingConsensus, items_by_bucket
from labelloop.labeling.consensus.results import MergedRegions, attach_results, rank_annotations
from labelloop.labeling.consensus.scales import ScaleConsensus
from labelloop.labeling.consensus.tags import SEPARATOR
from labelloop.labeling.consensus.texts import TextConsensus
from labelloop.labeling.region import Region
from labelloop.labeling.result import Result
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.latest import latest_annotations
from labelloop.labeling.studio.task import Annotation, Task
from labelloop.labeling.studio.values import ANSWERS, parse_answer, select_answers
from qc_webhooks.agreement import Answers, complete_answers
from qc_webhooks.agreement.answers import answer_control, item_suffix
from qc_webhooks.agreement.compare import Comparison
from qc_webhooks.verdict.dispute_card import annotator_view

OUTVOTED = "more likely not there"
OUTVOTED_ANSWER = "another answer is more likely"
OTHERS_ANSWER = "another annotator's answer is carried"
OTHER_AMOUNT = "the weighted median of all answers is taken"
OTHER_TEXT = "another annotator's text is nearer to all"
OTHER_RANKING = "the weighted vote of all rankings is taken"
LOOSE_RELATION = "a region at its end is not in the consensus"
# Result types of answers about the whole task that are decided by vote.
_VOTED = frozenset({"choices", "taxonomy", "datetime", "pairwise", "rating", "number", "textarea", "ranker"})

# Result types that are merged, but not where they describe a region without a merge.
_ABOUT_A_REGION = _VOTED | {"labels"}

# ... whose answers may have several tags.
_TAGGED = frozenset({"choices", "taxonomy"})

Line = dict[str, Any]


@dataclass(frozen=True)
class Merged:
    """The merged annotation of a task.

    Attributes:
        results: Label Studio's JSON. Results that were not merged are as their annotator submitted them.
        carried: What was taken unchanged from one annotator: annotator, number of results by control, and reason.
        rejected: What was left out: regions that are probably absent and answers of the others, each with a reason.
        agreed: The consensus of the merged results; None if a whole annotation was taken.
        choices: Control -> probability of its answer.
        intervals: Control of a rating or number -> 95 % interval of its true value.
        texts: Control of a text -> weighted mean similarity of the chosen text with the others.
        rankings: Control of a ranking -> weighted mean similarity of the annotators' rankings with the merged one.
    """

    results: tuple[dict[str, Any], ...]
    carried: tuple[Line, ...] = ()
    rejected: tuple[Line, ...] = ()
    agreed: Consensus | None = None
    choices: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    texts: Mapping[str, float] = field(default_factory=dict)
    rankings: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RegionStyle:
    """How merged regions are written.

    Attributes:
        region: Writes one region, from the consensus and the region with its JSON.
        id_of: Returns the id of a region; None: the id of an annotator's region.
        with_probability: Whether answers carry their probability in ``meta``.
    """

    region: Callable[[ConsensusRegion, Region, LabelConfig | None], list[dict[str, Any]]]
    id_of: Callable[[ConsensusRegion], str] | None = None
    with_probability: bool = True


PLAIN = RegionStyle(lambda agreed, region, config: consensus_results(agreed, region, config=config))


def merge(
    task: Task,
    answers: Sequence[Answers],
    pairs: Callable[[], Iterable[Comparison]],
    *,
    crowd: AnnotatorModel | None = None,
    config: LabelConfig | None = None,
    style: RegionStyle = PLAIN,
    agreed_consensus: Consensus | None = None,
    voice: VoiceRegions | None = None,
) -> Merged:
    """Merge the annotations of a task.

    Args:
        task: The task.
        answers: One entry per annotator, at least one, see ``read_answers``.
        pairs: Returns the comparisons of the annotators; called only if one annotator's answer must be selected.
        crowd: Model of the annotators' reliability.
        config: The project's label config.
        style: How regions are written.
        agreed_consensus: Consensus of the complete answers, if already computed.
        voice: The model's independent prediction, if it is heard.

    Raises:
        LabelingError: A region needs a control that the label config does not have.
    """
    by_annotation = {answer.annotation: answer for answer in answers}
    annotations = {
        annotation.id or 0: annotation
        for annotation in latest_annotations(task.annotations)
        if annotation.id in by_annotation
    }
    complete = complete_answers(answers)
    if len(answers) == 1 and not (voice is not None and crowd is not None and crowd.voice is not None):
        return _whole_annotation_of_best(answers, annotations, pairs, "the only annotation")
    if not complete:
        too_large = answers[0].too_large.rstrip(".")
        return _whole_annotation_of_best(answers, annotations, pairs, too_large or "no annotation can be read whole")
    views = [annotator_view(answer) for answer in complete]
    agreed_consensus = agreed_consensus or consensus(views, crowd, voice=voice)
    joined = attach_results(agreed_consensus, views, id_of=style.id_of)
    work = _Merge(annotations, complete, agreed_consensus, joined, pairs)
    results = [
        result
        for agreed, region in zip(agreed_consensus.regions, joined.regions, strict=True)
        for result in style.region(agreed, region, config)
    ]
    for control, answer in agreed_consensus.choices.items():
        results += work.answer(control, answer, with_probability=style.with_probability)
    for control, amount in agreed_consensus.amounts.items():
        results += work.amount(control, amount, with_probability=style.with_probability)
    for control, text in agreed_consensus.texts.items():
        results += work.text(control, text)
    for control, ranking in agreed_consensus.rankings.items():
        results += work.ranking(control, ranking, with_probability=style.with_probability)
    results += work.carry()
    rejected = [{**provenance_json(region), "reason": OUTVOTED} for region in agreed_consensus.rejected]
    unread = [_unread(answer, annotations[answer.annotation]) for answer in answers if not answer.is_complete]
    choices = {name: round(choice.probability, 4) for name, choice in agreed_consensus.choices.items()}
    return Merged(
        tuple(results),
        tuple(work.carried),
        (*rejected, *work.rejected, *unread),
        agreed_consensus,
        choices,
        {name: (round(item.low, 4), round(item.high, 4)) for name, item in agreed_consensus.amounts.items()},
        {name: round(item.similarity, 4) for name, item in agreed_consensus.texts.items()},
        {name: round(item.similarity, 4) for name, item in agreed_consensus.rankings.items()},
    )


def whole_annotation(annotation: Annotation, who: int, reason: str) -> Merged:
    """Return one annotation unchanged, with the reason."""
    line = {"annotator": who, "annotation": annotation.id, "results": len(_all_results(annotation)), "reason": reason}
    return Merged(tuple(_all_results(annotation)), (line,))


def mean_agreements(answers: Iterable[Answers], pairs: Iterable[Comparison]) -> dict[int, float]:
    """Annotation id -> mean agreement with the other annotators, for the comparable ones."""
    scores: dict[int, list[float]] = defaultdict(list)
    for pair in pairs:
        scores[pair.a].append(pair.overall)
        scores[pair.b].append(pair.overall)
    return {
        answer.annotation: sum(agreements) / len(agreements)
        for answer in answers
        if (agreements := scores.get(answer.annotator))
    }


def _whole_annotation_of_best(
    answers: Sequence[Answers],
    annotations: Mapping[int, Annotation],
    pairs: Callable[[], Iterable[Comparison]],
    reason: str,
) -> Merged:
    """One annotation taken whole, the others rejected."""
    agreement = mean_agreements(answers, pairs()) if len(answers) > 1 else {}
    order = rank_annotations(agreement, annotations.values())
    ordered = sorted(answers, key=lambda answer: order[answer.annotation])
    merged = whole_annotation(annotations[ordered[0].annotation], ordered[0].annotator, reason)
    rejected = tuple(_unread(answer, annotations[answer.annotation]) for answer in ordered[1:])
    return Merged(merged.results, merged.carried, rejected)


def _all_results(annotation: Annotation) -> list[dict[str, Any]]:
    """All results of an annotation, unreadable ones too."""
    malformed = [error.source for error in annotation.malformed if isinstance(error.source, dict)]
    return [*(result.raw for result in annotation.results), *malformed]


def _unread(answers: Answers, annotation: Annotation) -> Line:
    reason = f"not read whole: {answers.unread[0]}" if answers.unread else "not read whole"
    reason = answers.too_large.rstrip(".") or reason
    return {
        "annotator": answers.annotator,
        "annotation": answers.annotation,
        "results": len(_all_results(annotation)),
        "reason": reason,
    }


class _Merge:
    """The results that are not part of a merged region: voted answers, and results to carry."""

    def __init__(
        self,
        annotations: Mapping[int, Annotation],
        answers: Sequence[Answers],
        agreed_consensus: Consensus,
        joined: MergedRegions,
        pairs: Callable[[], Iterable[Comparison]],
    ) -> None:
        self.carried: list[Line] = []
        self.rejected: list[Line] = []
        self._annotators = {answer.annotation: answer.annotator for answer in answers}
        self._joined = joined
        self._pairs = pairs
        self._answers = answers
        self._annotations = annotations
        self._order: dict[int | None, int] = {}
        self._agreement: dict[int, float] = {}
        drawn = {
            id(result) for answer in answers for region in annotator_view(answer).regions for result in region.result
        }
        merged_controls = {
            *agreed_consensus.choices,
            *agreed_consensus.amounts,
            *agreed_consensus.texts,
            *agreed_consensus.rankings,
        }
        self._to_carry: dict[int, list[Result]] = {}
        self._voted: dict[tuple[int, str], list[Result]] = defaultdict(list)
        for answer in answers:
            remaining = [result for result in annotations[answer.annotation].results if id(result) not in drawn]
            ids = Counter(result.id for result in remaining if result.id)
            self._to_carry[answer.annotation] = carried = []
            for result in remaining:
                is_voted = result.type in _VOTED and ids[result.id] < 2
                if is_voted and answer_control(result) in merged_controls:
                    self._voted[answer.annotation, answer_control(result)].append(result)
                else:
                    carried.append(result)

    def answer(self, control: str, answer: ConsensusChoice, *, with_probability: bool) -> list[dict[str, Any]]:
        """The most likely answer, as submitted by the highest-ranked annotator who gave it.

        An answer of several tags that no annotator gave as a whole is combined from their annotations.
        """
        by_annotator = {annotator: annotation for annotation, annotator in self._annotators.items()}
        same = [by_annotator[annotator] for annotator, value in answer.votes if value == answer.chosen]
        voted = {annotation for annotation, name in self._voted if name == control}
        for annotation in sorted(voted - set(same)):
            self._reject(control, annotation, self._voted[annotation, control], OUTVOTED_ANSWER)
        if same:
            raws = [dict(result.raw) for result in self._voted[min(same, key=self._rank), control]]
        else:
            raws = _combined([self._voted[annotation, control] for annotation in sorted(voted, key=self._rank)], answer)
        meta = {"probability": round(answer.probability, 4), "annotators": len(answer.votes)}
        return [with_provenance(raw, meta) for raw in raws] if with_probability else raws

    def amount(self, control: str, amount: ScaleConsensus, *, with_probability: bool) -> list[dict[str, Any]]:
        """The weighted median of a rating or number, in the result of the annotator who is nearest to it."""
        by_annotator = {annotator: annotation for annotation, annotator in self._annotators.items()}
        answered = [
            (abs(value - amount.value), by_annotator[annotator])
            for annotator, value in amount.answers
            if self._voted.get((by_annotator[annotator], control))
        ]
        if not answered:
            return []
        nearest = min(answered, key=lambda pair: (pair[0], self._rank(pair[1])))[1]
        for distance, annotation in answered:
            if distance:
                self._reject(control, annotation, self._voted[annotation, control], OTHER_AMOUNT)
        result = self._voted[nearest, control][0]
        value = int(amount.value) if amount.value.is_integer() else round(amount.value, 6)
        raw = {**result.raw, "value": {**result.value, ANSWERS[result.type]: value}}
        meta = {
            "low": round(amount.low, 4),
            "high": round(amount.high, 4),
            "annotators": len(amount.answers),
        }
        return [with_provenance(raw, meta)] if with_probability else [raw]

    def text(self, control: str, text: TextConsensus) -> list[dict[str, Any]]:
        """The chosen text as its annotator submitted it."""
        by_annotator = {annotator: annotation for annotation, annotator in self._annotators.items()}
        for annotator, written in text.texts:
            annotation = by_annotator[annotator]
            if written != text.chosen and self._voted.get((annotation, control)):
                self._reject(control, annotation, self._voted[annotation, control], OTHER_TEXT)
        return [dict(result.raw) for result in self._voted.get((by_annotator[text.annotator], control), ())]

    def ranking(self, control: str, ranking: RankingConsensus, *, with_probability: bool) -> list[dict[str, Any]]:
        """The merged ranking in the result of the annotator whose ranking is the nearest."""
        by_annotator = {annotator: annotation for annotation, annotator in self._annotators.items()}
        for annotator, written in ranking.rankings:
            voted = self._voted.get((by_annotator[annotator], control))
            if voted and items_by_bucket(written) != items_by_bucket(ranking.ranking):
                self._reject(control, by_annotator[annotator], voted, OTHER_RANKING)
        nearest = self._voted.get((by_annotator[ranking.nearest], control))
        if not nearest:
            return []
        result = nearest[0]
        empty: dict[str, list[str]] = {bucket: [] for bucket in result.value["ranker"]}
        buckets = empty | items_by_bucket(ranking.ranking)
        raw = {**result.raw, "value": {**result.value, "ranker": buckets}}
        meta = {"similarity": round(ranking.similarity, 4), "annotators": len(ranking.rankings)}
        return [with_provenance(raw, meta)] if with_probability else [raw]

    def carry(self) -> list[dict[str, Any]]:
        """Results without a merge, by control; controls whose results share regions come from one annotator."""
        results: list[dict[str, Any]] = []
        for controls in _groups(self._to_carry.values()):
            by_annotation = {
                annotation: [result for result in results_left if _key(result) in controls]
                for annotation, results_left in self._to_carry.items()
            }
            chosen = min((annotation for annotation, group in by_annotation.items() if group), key=self._rank)
            results += self._carry_from(chosen, by_annotation[chosen])
            for annotation, group in by_annotation.items():
                if annotation != chosen:
                    for control, own in _by_control(group):
                        self._reject(control, annotation, own, OTHERS_ANSWER)
        return results

    def _carry_from(self, annotation: int, results: Sequence[Result]) -> Iterator[dict[str, Any]]:
        ids = {result.id for result in results if result.id}
        why = "the highest mean agreement" if annotation in self._agreement else "the latest annotation"
        kinds = {result.type: result.id for result in results if result.type not in _ABOUT_A_REGION}
        for control, own in _by_control(results):
            about = [kind for kind, name in kinds.items() if own[0].type in _ABOUT_A_REGION and name]
            what = f"{own[0].type or 'this type'} of a {about[0]}" if about else own[0].type or "this type"
            self.carried.append(self._line(control, annotation, own, f"{what} has no merge; {why}"))
        for result in results:
            raw: dict[str, Any] | None = result.raw
            if result.type == "relation":
                raw = self._joined.remap_relation(result, annotation, ids)
                if raw is None:
                    self._reject("relation", annotation, [result], LOOSE_RELATION)
            elif result.parent_id and result.parent_id not in ids:
                parent = self._joined.region_ids.get((annotation, result.parent_id))
                raw = {**result.raw, "parentID": parent} if parent else result.raw
            if raw is not None:
                yield raw

    def _rank(self, annotation: int) -> int:
        if not self._order:
            self._agreement = mean_agreements(self._answers, self._pairs())
            annotations = [self._annotations[answer.annotation] for answer in self._answers]
            self._order = rank_annotations(self._agreement, annotations)
        return self._order[annotation]

    def _reject(self, control: str, annotation: int, results: Sequence[Result], reason: str) -> None:
        self.rejected.append(self._line(control, annotation, results, reason))

    def _line(self, control: str, annotation: int, results: Sequence[Result], reason: str) -> Line:
        return {
            "control": control,
            "annotator": self._annotators[annotation],
            "annotation": annotation,
            "regions": list(dict.fromkeys(result.id for result in results if result.id)),
            "results": len(results),
            "reason": reason,
        }


def _combined(annotators: Sequence[Sequence[Result]], answer: ConsensusChoice) -> list[dict[str, Any]]:
    """Results with the tags of an answer: for each image of the task, tags in the order of those who gave them."""
    missing, combined = set(answer.chosen), dict[int | None, dict[str, Any]]()
    for result in (result for results in annotators for result in results):
        if result.type not in _TAGGED:
            continue
        suffix = "" if result.item_index is None else item_suffix(result.item_index)
        tags = {tag.removesuffix(suffix) for tag in missing if tag.endswith(suffix)}
        value = select_answers(result.value, result.type, tags)
        if not value[ANSWERS[result.type]]:
            continue
        missing -= {f"{tag}{suffix}" for tag in parse_answer(value, result.type)}
        raw = combined.setdefault(result.item_index, {**result.raw, "value": {**value, ANSWERS[result.type]: []}})
        raw["value"][ANSWERS[result.type]] += value[ANSWERS[result.type]]
    # inner nodes that only annotators of other tasks gave as an answer
    answered = next((result for results in annotators for result in results if result.type in _TAGGED), None)
    if missing and answered is not None:
        field = ANSWERS[answered.type]
        raw = combined.setdefault(None, {**answered.raw, "value": {**answered.value, field: []}})
        raw["value"][field] += [tag.split(SEPARATOR) if answered.type == "taxonomy" else tag for tag in sorted(missing)]
    return list(combined.values())


def _key(result: Result) -> str:
    """The control of a result; its type if it has no control."""
    return result.from_name or result.type


def _by_control(results: Iterable[Result]) -> list[tuple[str, list[Result]]]:
    by_control: dict[str, list[Result]] = {}
    for result in results:
        by_control.setdefault(_key(result), []).append(result)
    return list(by_control.items())


def _groups(annotations: Iterable[Sequence[Result]]) -> list[frozenset[str]]:
    """Groups of controls whose results belong together in some annotation: by a shared id, a relation or a parent."""
    groups: dict[str, set[str]] = {}

    def unite(*controls: str) -> None:
        united = set().union(*(groups.setdefault(control, {control}) for control in controls))
        groups.update(dict.fromkeys(united, united))

    for results in annotations:
        control_by_id: dict[str, str] = {}
        for result in results:
            unite(_key(result), control_by_id.setdefault(result.id, _key(result)) if result.id else _key(result))
        for result in results:
            ends = [result.raw.get(name) for name in ("from_id", "to_id", "parentID")]
            unite(_key(result), *(control_by_id[end] for end in ends if isinstance(end, str) and end in control_by_id))
    return list(dict.fromkeys(frozenset(group) for group in groups.values()))
