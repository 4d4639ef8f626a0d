"""How alike two things are that are not shapes on an image: key points, spans, numbers, texts, paths."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein

from labelloop.labeling.geometry.overlap import Pairs, gather, meeting
from labelloop.labeling.studio.regions import Region
from qc_webhooks.agreement.answers import Amount, Span

Matrix = NDArray[np.float64]


def alike_spans(a: Sequence[Span], b: Sequence[Span]) -> Pairs:
    """Shared length of spans over their length together; spans in different places share nothing.

    Raises:
        TooLargeToJudge: More than ``MOST_PAIRS`` overlap.
    """
    one, other = _edges(a), _edges(b)
    numbers: dict[tuple[str, str], int] = {}
    rows_of = [[numbers.setdefault((span.to_name, span.place), len(numbers)) for span in each] for each in (a, b)]

    def alike() -> Iterator[Pairs]:
        boxes = (
            np.column_stack((edges[:, 0], row, edges[:, 1], row))
            for edges, row in zip((one, other), rows_of, strict=True)
        )
        for rows, columns in meeting(*boxes):
            left, right = one[rows], other[columns]
            shared = np.clip(np.minimum(left[:, 1], right[:, 1]) - np.maximum(left[:, 0], right[:, 0]), 0, None)
            union = np.diff(left)[:, 0] + np.diff(right)[:, 0] - shared
            values = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
            values[(left == right).all(axis=1)] = 1.0
            yield Pairs(rows, columns, values).where(values > 0)

    return gather(alike())


def amounts_alike(a: Amount, b: Amount) -> float:
    """1 less the distance in parts of how far answers can lie apart; without a bound, in parts of the larger one."""
    if a.value == b.value:
        return 1.0
    span = a.span or b.span or max(abs(a.value), abs(b.value))
    return max(0.0, 1 - abs(a.value - b.value) / span)


def texts_alike(a: str, b: str) -> float:
    """1 less the edits (Levenshtein) from one to the other, in parts of the longer; blanks count as one."""
    return float(Levenshtein.normalized_similarity(" ".join(a.split()), " ".join(b.split())))


def sets_alike(a: Sequence[Any], b: Sequence[Any]) -> float:
    """Share of what both have of what one of them has (Jaccard index); 1 where neither has anything."""
    one, other = set(a), set(b)
    return len(one & other) / len(one | other) if one or other else 1.0


def paths_alike(a: Sequence[str], b: Sequence[str]) -> float:
    """Share of the nodes of a tree that both chose, each with its ancestors."""
    return sets_alike(_nodes(a), _nodes(b))


def attributes_alike(a: Region | Span, b: Region | Span) -> float:
    """How alike the answers about two matched regions or spans are: the mean over what at least one was asked."""
    names = {*a.attributes, *b.attributes}
    if not names:
        return 1.0
    types = {name: kind for each in (a, b) for name, kind in _types(each).items()}
    return sum(_answer_alike(types.get(name, ""), a.attributes, b.attributes, name) for name in names) / len(names)


def _types(thing: Region | Span) -> Mapping[str, str]:
    if isinstance(thing, Span):
        return thing.kinds
    return {result.from_name: result.type for result in thing.result[1:]}


def _answer_alike(type_: str, a: Mapping[str, Any], b: Mapping[str, Any], name: str) -> float:
    one, other = a.get(name, ()), b.get(name, ())
    if not (one and other):
        return 0.0
    if type_ in {"rating", "number"}:
        span = 4.0 if type_ == "rating" else None
        return amounts_alike(Amount(float(one[0]), span), Amount(float(other[0]), span))
    if type_ == "textarea":
        return texts_alike("\n".join(one), "\n".join(other))
    return paths_alike(one, other) if type_ == "taxonomy" else sets_alike(one, other)


def _nodes(paths: Sequence[str]) -> list[str]:
    return [path[:cut] for path in paths for cut in (*(m.start() for m in re.finditer("/", path)), len(path))]


def _edges(spans: Sequence[Span]) -> Matrix:
    return np.array([(min(span.start, span.end), max(span.start, span.end)) for span in spans], dtype=np.float64)
