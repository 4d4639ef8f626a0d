"""Similarity of answers that are not shapes on an image: spans, numbers, texts, paths, attributes."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelloop.labeling.consensus.texts import text_similarity
from labelloop.labeling.geometry.overlap import Pairs, collect_pairs, intersecting_boxes
from labelloop.labeling.region import Region
from qc_webhooks.agreement.answers import Amount, Span

Matrix = NDArray[np.float64]


def span_similarities(a: Sequence[Span], b: Sequence[Span]) -> Pairs:
    """IoU of spans; spans of different objects or scopes share nothing.

    Raises:
        TooLargeToJudge: More than ``MOST_PAIRS`` pairs overlap.
    """
    edges_a, edges_b = _edges(a), _edges(b)
    scope_ids: dict[tuple[str, str], int] = {}
    rows_of = [[scope_ids.setdefault((span.to_name, span.scope), len(scope_ids)) for span in spans] for spans in (a, b)]

    def alike() -> Iterator[Pairs]:
        boxes = (
            np.column_stack((edges[:, 0], row, edges[:, 1], row))
            for edges, row in zip((edges_a, edges_b), rows_of, strict=True)
        )
        for rows, columns in intersecting_boxes(*boxes):
            left, right = edges_a[rows], edges_b[columns]
            shared = np.clip(np.minimum(left[:, 1], right[:, 1]) - np.maximum(left[:, 0], right[:, 0]), 0, None)
            union = np.diff(left)[:, 0] + np.diff(right)[:, 0] - shared
            values = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
            values[(left == right).all(axis=1)] = 1.0
            yield Pairs(rows, columns, values).where(values > 0)

    return collect_pairs(alike())


def amount_similarity(a: Amount, b: Amount) -> float:
    """1 minus the difference, relative to the largest possible one; without a bound, to the larger number."""
    if a.value == b.value:
        return 1.0
    span = a.span or b.span or max(abs(a.value), abs(b.value))
    return max(0.0, 1 - abs(a.value - b.value) / span)


def jaccard(a: Sequence[Any], b: Sequence[Any]) -> float:
    """Jaccard index of two sets; 1 if both are empty."""
    set_a, set_b = set(a), set(b)
    return len(set_a & set_b) / len(set_a | set_b) if set_a or set_b else 1.0


def path_similarity(a: Sequence[str], b: Sequence[str]) -> float:
    """Jaccard index of the chosen tree nodes, ancestors included."""
    return jaccard(_nodes(a), _nodes(b))


def attribute_similarity(a: Region | Span, b: Region | Span) -> float:
    """Mean similarity of the per-region answers of two matched regions or spans, over the controls of either."""
    if not (a.attributes or b.attributes):
        return 1.0
    names = {*a.attributes, *b.attributes}
    return sum(answer_similarity(a, b, name) for name in names) / len(names)


def answer_similarity(a: Region | Span, b: Region | Span, name: str) -> float:
    """Similarity of the answers to one per-region control."""
    types = {**_types(a), **_types(b)}
    return _answer_alike(types.get(name, ""), a.attributes, b.attributes, name)


def is_free_answer(thing: Region | Span, name: str) -> bool:
    """Whether a per-region answer is a text or a number, which may differ a little, and not a choice."""
    return _types(thing).get(name, "") in {"textarea", "rating", "number"}


def _types(thing: Region | Span) -> Mapping[str, str]:
    if isinstance(thing, Span):
        return thing.kinds
    return {result.from_name: result.type for result in thing.result[1:]}


def _answer_alike(type_: str, a: Mapping[str, Any], b: Mapping[str, Any], name: str) -> float:
    first, second = a.get(name, ()), b.get(name, ())
    if not (first and second):
        return 0.0
    if type_ in {"rating", "number"}:
        span = 4.0 if type_ == "rating" else None
        return amount_similarity(Amount(float(first[0]), span), Amount(float(second[0]), span))
    if type_ == "textarea":
        return text_similarity("\n".join(first), "\n".join(second))
    return path_similarity(first, second) if type_ == "taxonomy" else jaccard(first, second)


def _nodes(paths: Sequence[str]) -> list[str]:
    return [path[:cut] for path in paths for cut in (*(m.start() for m in re.finditer("/", path)), len(path))]


def _edges(spans: Sequence[Span]) -> Matrix:
    return np.array([span.extent for span in spans], dtype=np.float64)
