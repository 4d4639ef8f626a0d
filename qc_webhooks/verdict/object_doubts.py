"""Judge a task by its single objects, whatever the mean agreement of its annotators is.

The rule: an object is in doubt while neither a share ``majority`` of the annotators has it (with this label, this
answer, drawn alike) nor that share lacks it, and a task with an object in doubt is disputed. Between two annotators
every difference is a doubt; two of three or four of five settle it; two against two or three against two do not.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations
from typing import Any, NamedTuple

import msgspec

from labelloop.labeling.region import Region
from qc_webhooks.agreement.answers import Answers
from qc_webhooks.agreement.compare import Comparison, control_name
from qc_webhooks.agreement.conflicts import CONFLICTS, Conflict
from qc_webhooks.agreement.metrics import soft_f1
from qc_webhooks.agreement.object_matching import ObjectMatching
from qc_webhooks.agreement.similarity import answer_similarity, attribute_similarity, is_free_answer
from qc_webhooks.agreement.task_matching import OBJECT_KINDS, TaskMatching, Thing
from qc_webhooks.policy import Policy


class Votes(NamedTuple):
    """Votes on one statement: for its most common answer, of all annotators who were read, and those who were not."""

    most: int
    voters: int
    unread: int

    def are_settled(self, majority: float) -> bool:
        """Whether the most common answer is settled, whatever the unread annotators say."""
        return self.most >= majority * (self.voters + self.unread) - 1e-9

    def may_be_settled(self, majority: float) -> bool:
        """Whether it is settled if the unread annotators share it."""
        return self.most + self.unread >= majority * (self.voters + self.unread) - 1e-9


@dataclass(frozen=True)
class Doubt:
    """A conflict of two annotators about an object whose truth the votes do not settle.

    Attributes:
        a: User id of the first annotator.
        b: User id of the second.
        conflict: The conflict.
        may_be_settled: Whether annotations that cannot be read might settle it.
    """

    a: int
    b: int
    conflict: Conflict
    may_be_settled: bool = False


@dataclass(frozen=True)
class ObjectJudgement:
    """What single objects say about a task.

    Attributes:
        doubts: The conflicts about objects in doubt.
        settled: Number of objects and answers that some annotators dispute and the others settle.
        controls: (control, kind) -> what it says; empty where the policy decides by the mean.
    """

    doubts: tuple[Doubt, ...] = ()
    settled: int = 0
    controls: "Mapping[tuple[str, str], _JudgedControl]" = field(default_factory=dict)

    def measured(self, a: int, b: int) -> dict[tuple[str, str], float]:
        """(control, kind) -> agreement of two annotators by its metric, where it is known."""
        known = ((key, control.measured.get((a, b))) for key, control in self.controls.items())
        return {key: score for key, score in known if score is not None}

    def decide(self, pair: Comparison) -> Comparison:
        """A comparison with the agreements that decide, and whether the two dispute an object."""
        if not self.controls:
            return pair
        disputed = any((pair.a, pair.b) in control.disputed for control in self.controls.values())
        deciding = _deciding(pair, self.controls)
        return Comparison(pair.a, pair.b, pair.controls, pair.overall, pair.unjudged, deciding, disputed)


def judge_objects(answers: Sequence[Answers], policy: Policy) -> ObjectJudgement:
    """Judge the objects of a task; without effect where the policy decides by the mean.

    Args:
        answers: One entry per annotator, in the order of the comparisons.
        policy: The project's policy.

    Raises:
        TooLargeToJudge: Too many regions overlap.
    """
    if not policy.conflicts.by_objects:
        return ObjectJudgement()
    judged = {
        (name, kind): _JUDGES[kind](name, kind, answers, policy)
        for name, kind in sorted({key for answer in answers for key in answer.controls})
        if kind in _JUDGES and policy.counts(name)
    }
    doubts = tuple(doubt for control in judged.values() for doubt in control.doubts)
    return ObjectJudgement(doubts, sum(control.settled for control in judged.values()), judged)


@dataclass
class _JudgedControl:
    """What one control says: agreements by pair of annotators, measured and deciding; disputing pairs, doubts."""

    measured: dict[tuple[int, int], float] = field(default_factory=dict)
    scores: dict[tuple[int, int], float] = field(default_factory=dict)
    disputed: set[tuple[int, int]] = field(default_factory=set)
    doubts: list[Doubt] = field(default_factory=list)
    settled: int = 0


def _deciding(pair: Comparison, judged: Mapping[tuple[str, str], _JudgedControl]) -> dict[str, float]:
    """The agreements of a pair by the keys of ``Comparison.controls``, with those that decide."""
    deciding = dict(pair.controls)
    for (name, kind), control in judged.items():
        key = f"{name} ({kind})" if f"{name} ({kind})" in deciding else name
        if key in deciding and control_name(key) == name:
            deciding[key] = control.scores.get((pair.a, pair.b), deciding[key])
    return deciding


def _readers(name: str, answers: Sequence[Answers]) -> list[Answers]:
    """Annotators whose answer to a control could be read; what is missing there was left out on purpose."""
    return [answer for answer in answers if not answer.unread_controls & {name, ""}]


def _judge_choices(name: str, kind: str, answers: Sequence[Answers], policy: Policy) -> _JudgedControl:
    judged, rules = _JudgedControl(), policy.conflicts
    if not rules.disputes("choice"):
        return judged
    readers = _readers(name, answers)
    chosen = [frozenset(answer.controls.get((name, kind), ())) for answer in readers]
    votes = Votes(max(Counter(chosen).values(), default=0), len(chosen), len(answers) - len(readers))
    for first, second in combinations(range(len(readers)), 2):
        a, b = readers[first], readers[second]
        for conflict in CONFLICTS[kind](name, *(item.controls.get((name, kind), ()) for item in (a, b)),
                                        tolerance=policy.tolerance, agreement=policy.agreement):  # fmt: skip
            judged.disputed.add((a.annotator, b.annotator))
            if not votes.are_settled(rules.majority):
                may = votes.may_be_settled(rules.majority)
                judged.doubts.append(Doubt(a.annotator, b.annotator, conflict, may))
    judged.settled = int(bool(judged.disputed) and not judged.doubts)
    return judged


def _judge_things(name: str, kind: str, answers: Sequence[Answers], policy: Policy) -> _JudgedControl:
    """Judge regions, key points or spans."""
    judged, rules, tolerance = _JudgedControl(), policy.conflicts, policy.tolerance
    readers = _readers(name, answers)
    things: list[Sequence[Thing]] = [
        _with_ids(answer.controls.get((name, kind), ()), reader) for reader, answer in enumerate(readers)
    ]
    matching = TaskMatching(things, kind, tolerance, rules.overlap)
    indices = [_indices_by_id(owned) for owned in things]
    ballot: _Ballot | None = None
    for first, second in combinations(range(len(readers)), 2):
        ids = readers[first].annotator, readers[second].annotator
        plain = matching.plain(first, second) if rules.counts_all_sizes else None
        if plain:
            judged.measured[ids], judged.scores[ids] = plain.measured, plain.deciding
            if plain.is_perfect:
                continue
        a, b, pairs = things[first], things[second], matching[first, second]
        if not plain:
            judged.measured[ids] = soft_f1(a, b, pairs.by_overlap or pairs)
            judged.scores[ids] = _agreement(a, b, pairs, policy)
            if _is_perfect(a, b, pairs, rules.overlap):
                continue
        conflicts = CONFLICTS[kind](name, a, b, tolerance=tolerance, agreement=rules.overlap, matching=pairs)
        by_id = _ById(a, indices[first]), _ById(b, indices[second])
        for conflict in filter(partial(_counts, a=by_id[0], b=by_id[1], policy=policy), conflicts):
            judged.disputed.add(ids)
            ballot = ballot or _Ballot(things, indices, matching.all(), len(answers) - len(readers), rules.overlap)
            open_votes = [
                votes for votes in ballot.votes(conflict, first, second) if not votes.are_settled(rules.majority)
            ]
            if open_votes:
                may = all(votes.may_be_settled(rules.majority) for votes in open_votes)
                judged.doubts.append(Doubt(*ids, _with_own_ids(conflict), may))
    judged.settled = ballot.count_dissents() if ballot and not judged.doubts else 0
    return judged


def _counts(conflict: Conflict, *, a: "_ById", b: "_ById", policy: Policy) -> bool:
    """Whether a conflict makes a dispute under the policy, if nothing settles it."""
    rules = policy.conflicts
    if conflict.type == "not_named" or not rules.disputes(conflict.type, (*conflict.a, *conflict.b)):
        return conflict.type == "not_named"
    involved = [thing for id_ in dict.fromkeys(conflict.regions) for thing in (*a[id_], *b[id_])]
    regions = [thing for thing in involved if isinstance(thing, Region)]
    if regions and len(regions) == len(involved) and all(map(rules.ignores, regions)):
        return False
    if conflict.type != "attribute":
        return True
    # A text or a number about a region may differ a little; a choice may not.
    first, second = a[conflict.regions[0]], b[conflict.regions[-1]]
    return not any(is_free_answer(thing, conflict.control) for thing in (*first, *second)) or any(
        answer_similarity(one, other, conflict.control) < policy.agreement for one in first for other in second
    )


_MADE_UP = "\0"


def _with_ids(things: Sequence[Thing], reader: int) -> Sequence[Thing]:
    """The objects, with a made-up id where they have none: results that a script submitted may lack it."""
    if all(thing.id for thing in things):
        return things
    return [thing if thing.id else _with_id(thing, f"{_MADE_UP}{reader}:{index}") for index, thing in enumerate(things)]


def _with_id(thing: Thing, id_: str) -> Thing:
    return msgspec.structs.replace(thing, id=id_) if isinstance(thing, Region) else replace(thing, id=id_)


def _with_own_ids(conflict: Conflict) -> Conflict:
    """A conflict without made-up ids."""
    if not any(id_.startswith(_MADE_UP) for id_ in conflict.regions):
        return conflict
    return replace(conflict, regions=tuple("" if id_.startswith(_MADE_UP) else id_ for id_ in conflict.regions))


def _indices_by_id(things: Sequence[Thing]) -> dict[str, list[int]]:
    """The indices of an annotator's objects by their ids; two may share one."""
    indices: dict[str, list[int]] = {}
    for index, thing in enumerate(things):
        indices.setdefault(thing.id, []).append(index)
    return indices


@dataclass(frozen=True)
class _ById:
    """An annotator's objects by id."""

    things: Sequence[Thing]
    indices: Mapping[str, Sequence[int]]

    def __getitem__(self, id_: str) -> list[Thing]:
        return [self.things[index] for index in self.indices.get(id_, ())]


class _Ballot:
    """The votes of all annotators on each object of one control.

    Args:
        things: Objects of each annotator.
        indices: Their indices by id, for each annotator.
        matchings: Pair of annotators -> matching of their objects.
        unread: Number of annotators who could not be read.
        overlap: Minimum overlap of two objects that are drawn alike.
    """

    def __init__(
        self,
        things: Sequence[Sequence[Thing]],
        indices: Sequence[Mapping[str, Sequence[int]]],
        matchings: Mapping[tuple[int, int], ObjectMatching],
        unread: int,
        overlap: float,
    ) -> None:
        self._things, self._indices, self._unread = things, indices, unread
        # Object -> its partners at other annotators, and whether they are drawn alike.
        self._partners: dict[tuple[int, int], dict[tuple[int, int], bool]] = {}
        for (first, second), matching in matchings.items():
            for pair in (*matching.same, *matching.near):
                is_alike = matching.overlap(pair) >= overlap - 1e-9
                self._partners.setdefault((first, pair.a), {})[second, pair.b] = is_alike
                self._partners.setdefault((second, pair.b), {})[first, pair.a] = is_alike

    def votes(self, conflict: Conflict, first: int, second: int) -> Iterator[Votes]:
        """The votes on each statement of a conflict between two annotators."""
        for annotator in (first, second):
            for id_ in dict.fromkeys(conflict.regions):
                for index in self._indices[annotator].get(id_, ()):
                    yield self._on((annotator, index), conflict)

    def count_dissents(self) -> int:
        """Number of objects that not all annotators have, or with other labels; each counted at its first annotator."""
        return sum(
            len(self._partners.get((annotator, index), {})) < len(self._things) - 1
            or any(set(self._at(other).labels) != set(thing.labels) for other in self._partners[annotator, index])
            for annotator, things in enumerate(self._things)
            for index, thing in enumerate(things)
            if all(other > annotator for other, _ in self._partners.get((annotator, index), {}))
        )

    def _on(self, place: tuple[int, int], conflict: Conflict) -> Votes:
        partners = self._partners.get(place, {})
        if conflict.type == "label":
            return self._most_common(frozenset(self._at(item).labels) for item in (place, *partners))
        if conflict.type == "attribute":
            values = (self._at(item).attributes.get(conflict.control, ()) for item in (place, *partners))
            return self._most_common(frozenset(map(str, answers)) for answers in values)
        if conflict.type == "low_overlap":
            alike = max(1 + sum(self._partners.get(item, {}).values()) for item in (place, *partners))
            return Votes(alike, 1 + len(partners), self._unread)
        have, voters = 1 + len(partners), len(self._things)
        return Votes(max(have, voters - have), voters, self._unread)

    def _most_common(self, answers: Iterable[Any]) -> Votes:
        counts = Counter(answers)
        return Votes(max(counts.values()), counts.total(), self._unread)

    def _at(self, place: tuple[int, int]) -> Thing:
        return self._things[place[0]][place[1]]


def _agreement(a: Sequence[Thing], b: Sequence[Thing], matching: ObjectMatching, policy: Policy) -> float:
    """Soft F1 as in ``METRICS``, where objects that are drawn alike overlap fully and ignored ones do not count."""
    ignores = policy.conflicts.ignores
    counted_a, counted_b = (
        [not (isinstance(thing, Region) and ignores(thing)) for thing in things] for things in (a, b)
    )
    shared, total = 0.0, sum(counted_a) + sum(counted_b)
    for pair in matching.same:
        if not (counted_a[pair.a] or counted_b[pair.b]):
            continue
        total += 2 - counted_a[pair.a] - counted_b[pair.b]  # one of the two is just large enough
        shared += matching.overlap(pair) * pair.labels * attribute_similarity(a[pair.a], b[pair.b])
    return 2 * shared / total if total else 1.0


def _is_perfect(a: Sequence[Thing], b: Sequence[Thing], matching: ObjectMatching, overlap: float) -> bool:
    """Whether the two have no conflict at all; most pairs of objects need no closer look."""
    if matching.near or matching.only_a or matching.only_b:
        return False
    return all(
        pair.labels == 1 and matching.overlap(pair) >= overlap and _same_attributes(a[pair.a], b[pair.b])
        for pair in matching.same
    )


def _same_attributes(a: Thing, b: Thing) -> bool:
    return (not a.attributes and not b.attributes) or a.attributes == b.attributes


_JUDGES: Mapping[str, Callable[[str, str, Sequence[Answers], Policy], _JudgedControl]] = {
    **dict.fromkeys(OBJECT_KINDS, _judge_things),
    "choices": _judge_choices,
    "taxonomy": _judge_choices,
}
