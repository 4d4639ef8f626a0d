"""One annotation from several annotators': what has a merge is merged, the rest is one annotator's answer as it is.

Regions of images and answers that can be voted on have a merge (`labelloop.labeling.consensus`). Everything else that
Label Studio writes is carried: the results of one annotator, unchanged. Whatever is left out has a line with a reason.
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
    agreed_results,
    consensus,
    provenance,
    with_meta,
)
from labelloop.labeling.consensus.results import Joined, annotation_order, join
from labelloop.labeling.region import Region
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.latest import latest_annotations
from labelloop.labeling.studio.task import Annotation, Result, Task
from qc_webhooks.agreement import Answers, whole_answers
from qc_webhooks.agreement.compare import Comparison
from qc_webhooks.verdict.dispute_card import stance_of

OUTVOTED = "more likely not there"
OUTVOTED_ANSWER = "another answer is more likely"
OTHERS_ANSWER = "another annotator's answer is carried"
LOOSE_RELATION = "a region at its end is not in the consensus"
# Result types of answers about the whole task that are voted on.
_VOTED = frozenset({"choices", "taxonomy", "datetime", "pairwise"})

Line = dict[str, Any]


@dataclass(frozen=True)
class Merged:
    """What the annotators of a task say as one.

    Attributes:
        results: As Label Studio's JSON. Every result that was not merged is as its annotator submitted it.
        carried: What was taken from one annotator as it is: whose it is, how many results of which control, and why.
        rejected: What is not in it: regions that are more likely not there, answers of the others; each with a reason.
        agreed: The consensus of what was merged; None where a whole annotation was taken.
        choices: Control -> how likely its answer is right.
    """

    results: tuple[dict[str, Any], ...]
    carried: tuple[Line, ...] = ()
    rejected: tuple[Line, ...] = ()
    agreed: Consensus | None = None
    choices: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Style:
    """How merged regions are written.

    Attributes:
        region: Writes one: the region of the consensus, and the same with the JSON behind it.
        id_of: Gives its id; None: the id of an annotator's region.
        tells: Whether answers say in ``meta`` how likely they are.
    """

    region: Callable[[ConsensusRegion, Region, LabelConfig | None], list[dict[str, Any]]]
    id_of: Callable[[ConsensusRegion], str] | None = None
    tells: bool = True


PLAIN = Style(lambda agreed, region, config: agreed_results(agreed, region, config=config))


def merge(
    task: Task,
    answers: Sequence[Answers],
    pairs: Callable[[], Iterable[Comparison]],
    *,
    crowd: AnnotatorModel | None = None,
    config: LabelConfig | None = None,
    style: Style = PLAIN,
    found: Consensus | None = None,
) -> Merged:
    """The annotations of a task as one.

    Args:
        task: The task.
        answers: One entry an annotator, at least one, see ``read_answers``.
        pairs: Gives how far each two agree; it is asked for only where one annotator's answer has to be chosen.
        crowd: What is known of the annotators.
        config: The project's label config.
        style: How regions are written.
        found: The consensus of the answers that are whole, where it is known already.

    Raises:
        LabelingError: A region needs a control that the label config does not have.
    """
    those = {each.annotation: each for each in answers}
    annotations = {each.id or 0: each for each in latest_annotations(task.annotations) if each.id in those}
    whole = whole_answers(answers)
    if len(answers) == 1:
        return _one(answers, annotations, pairs, "the only annotation")
    if not whole:
        large = answers[0].too_large.rstrip(".")
        return _one(answers, annotations, pairs, large or "no annotation can be read whole")
    stances = [stance_of(each) for each in whole]
    found = found or consensus(stances, crowd)
    joined = join(found, stances, id_of=style.id_of)
    work = _Work(annotations, whole, found, joined, pairs)
    results = [
        result
        for agreed, region in zip(found.regions, joined.regions, strict=True)
        for result in style.region(agreed, region, config)
    ]
    for control, answer in found.choices.items():
        results += work.answer(control, answer, tells=style.tells)
    results += work.carry()
    rejected = [{**provenance(each), "reason": OUTVOTED} for each in found.rejected]
    unread = [_unread(each, annotations[each.annotation]) for each in answers if not each.is_whole]
    choices = {name: round(each.probability, 4) for name, each in found.choices.items()}
    return Merged(tuple(results), tuple(work.carried), (*rejected, *work.rejected, *unread), found, choices)


def whole_annotation(annotation: Annotation, who: int, reason: str) -> Merged:
    """An annotation as it is, with the reason."""
    line = {"annotator": who, "annotation": annotation.id, "results": len(_held(annotation)), "reason": reason}
    return Merged(tuple(_held(annotation)), (line,))


def mean_agreements(answers: Iterable[Answers], pairs: Iterable[Comparison]) -> dict[int, float]:
    """Annotation id -> mean agreement with the others, of those that could be compared."""
    scores: dict[int, list[float]] = defaultdict(list)
    for pair in pairs:
        scores[pair.a].append(pair.overall)
        scores[pair.b].append(pair.overall)
    return {each.annotation: sum(held) / len(held) for each in answers if (held := scores.get(each.annotator))}


def _one(
    answers: Sequence[Answers],
    annotations: Mapping[int, Annotation],
    pairs: Callable[[], Iterable[Comparison]],
    reason: str,
) -> Merged:
    """One annotation taken whole, the others left out."""
    agreement = mean_agreements(answers, pairs()) if len(answers) > 1 else {}
    order = annotation_order(agreement, annotations.values())
    ordered = sorted(answers, key=lambda each: order[each.annotation])
    taken = whole_annotation(annotations[ordered[0].annotation], ordered[0].annotator, reason)
    left = tuple(_unread(each, annotations[each.annotation]) for each in ordered[1:])
    return Merged(taken.results, taken.carried, left)


def _held(annotation: Annotation) -> list[dict[str, Any]]:
    """Everything that an annotation holds, what cannot be read too."""
    broken = [each.source for each in annotation.malformed if isinstance(each.source, dict)]
    return [*(result.raw for result in annotation.results), *broken]


def _unread(answers: Answers, annotation: Annotation) -> Line:
    reason = f"not read whole: {answers.unread[0]}" if answers.unread else "not read whole"
    reason = answers.too_large.rstrip(".") or reason
    return {
        "annotator": answers.annotator,
        "annotation": answers.annotation,
        "results": len(_held(annotation)),
        "reason": reason,
    }


class _Work:
    """The results of each annotation that no region of the consensus stands for, on their way out."""

    def __init__(
        self,
        annotations: Mapping[int, Annotation],
        answers: Sequence[Answers],
        found: Consensus,
        joined: Joined,
        pairs: Callable[[], Iterable[Comparison]],
    ) -> None:
        self.carried: list[Line] = []
        self.rejected: list[Line] = []
        self._who = {each.annotation: each.annotator for each in answers}
        self._joined = joined
        self._pairs = pairs
        self._answers = answers
        self._annotations = annotations
        self._order: dict[int | None, int] = {}
        self._agreement: dict[int, float] = {}
        drawn = {id(result) for each in answers for region in stance_of(each).regions for result in region.result}
        self._left: dict[int, list[Result]] = {}
        self._voted: dict[tuple[int, str], list[Result]] = defaultdict(list)
        for each in answers:
            held = [result for result in annotations[each.annotation].results if id(result) not in drawn]
            ids = Counter(result.id for result in held if result.id)
            self._left[each.annotation] = left = []
            for result in held:
                alone = result.type in _VOTED and ids[result.id] < 2
                if alone and result.from_name in found.choices:
                    self._voted[each.annotation, result.from_name].append(result)
                else:
                    left.append(result)

    def answer(self, control: str, answer: ConsensusChoice, *, tells: bool) -> list[dict[str, Any]]:
        """The most likely answer as one of those who gave it submitted it."""
        by_annotator = {who: annotation for annotation, who in self._who.items()}
        same = [by_annotator[who] for who, said in answer.votes if said == answer.chosen]
        given = {annotation for annotation, name in self._voted if name == control}
        taken = min(same, key=self._rank) if same else None
        for annotation in sorted(given - set(same)):
            self._reject(control, annotation, self._voted[annotation, control], OUTVOTED_ANSWER)
        if taken is None:
            return []
        raws = [dict(result.raw) for result in self._voted[taken, control]]
        told = {"probability": round(answer.probability, 4), "annotators": len(answer.votes)}
        return [with_meta(raw, told) for raw in raws] if tells else raws

    def carry(self) -> list[dict[str, Any]]:
        """What has no merge, control by control; controls whose results share regions come from one annotator."""
        results: list[dict[str, Any]] = []
        for controls in _groups(self._left.values()):
            held = {
                annotation: [result for result in left if _key(result) in controls]
                for annotation, left in self._left.items()
            }
            taken = min((annotation for annotation, those in held.items() if those), key=self._rank)
            results += self._taken(taken, held[taken])
            for annotation, those in held.items():
                if annotation != taken:
                    for control, own in _by_control(those):
                        self._reject(control, annotation, own, OTHERS_ANSWER)
        return results

    def _taken(self, annotation: int, those: Sequence[Result]) -> Iterator[dict[str, Any]]:
        kept = {result.id for result in those if result.id}
        why = "the highest mean agreement" if annotation in self._agreement else "the latest annotation"
        for control, own in _by_control(those):
            line = self._line(control, annotation, own, f"{own[0].type or 'this type'} has no merge; {why}")
            self.carried.append(line)
        for result in those:
            raw: dict[str, Any] | None = result.raw
            if result.type == "relation":
                raw = self._joined.relation(result, annotation, kept)
                if raw is None:
                    self._reject("relation", annotation, [result], LOOSE_RELATION)
            elif result.parent_id and result.parent_id not in kept:
                parent = self._joined.became.get((annotation, result.parent_id))
                raw = {**result.raw, "parentID": parent} if parent else result.raw
            if raw is not None:
                yield raw

    def _rank(self, annotation: int) -> int:
        if not self._order:
            self._agreement = mean_agreements(self._answers, self._pairs())
            those = [self._annotations[each.annotation] for each in self._answers]
            self._order = annotation_order(self._agreement, those)
        return self._order[annotation]

    def _reject(self, control: str, annotation: int, results: Sequence[Result], reason: str) -> None:
        self.rejected.append(self._line(control, annotation, results, reason))

    def _line(self, control: str, annotation: int, results: Sequence[Result], reason: str) -> Line:
        return {
            "control": control,
            "annotator": self._who[annotation],
            "annotation": annotation,
            "regions": list(dict.fromkeys(result.id for result in results if result.id)),
            "results": len(results),
            "reason": reason,
        }


def _key(result: Result) -> str:
    """The control of a result; what has none goes by its type."""
    return result.from_name or result.type


def _by_control(results: Iterable[Result]) -> list[tuple[str, list[Result]]]:
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(_key(result), []).append(result)
    return list(found.items())


def _groups(annotations: Iterable[Sequence[Result]]) -> list[frozenset[str]]:
    """Controls whose results belong together in some annotation: by a shared id, a relation or a parent."""
    groups: dict[str, set[str]] = {}

    def unite(*controls: str) -> None:
        united = set().union(*(groups.setdefault(control, {control}) for control in controls))
        groups.update(dict.fromkeys(united, united))

    for results in annotations:
        at: dict[str, str] = {}
        for result in results:
            unite(_key(result), at.setdefault(result.id, _key(result)) if result.id else _key(result))
        for result in results:
            ends = [result.raw.get(name) for name in ("from_id", "to_id", "parentID")]
            unite(_key(result), *(at[end] for end in ends if isinstance(end, str) and end in at))
    return list(dict.fromkeys(frozenset(group) for group in groups.values()))
