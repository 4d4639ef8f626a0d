"""Consensus of texts and transcripts: the text most similar to all others, weighted by reliability.

It is always a text that one of them wrote. The similarity of two annotators' texts is modelled as the product of their
accuracies, which are estimated from all items together, without ground truth.
"""

import math
from collections.abc import Mapping, Sequence

import msgspec
from rapidfuzz.distance import Levenshtein

# (annotator, text) pairs of one item.
Texts = tuple[tuple[int, str], ...]
# (annotator, annotator, similarity) of each pair of one item.
Similarities = tuple[tuple[int, int, float], ...]

# Accuracy of an unknown annotator, and the pseudo-pairs that shrink an accuracy to the mean.
TYPICAL_ACCURACY, _STRENGTH = 0.9, 4.0
_LEAST, _MOST, _ITERATIONS = 0.02, 0.995, 12
# Weight of an annotator who is right no more often than wrong.
_LEAST_WEIGHT = 0.1


class TextConsensus(msgspec.Struct, frozen=True, gc=False):
    """The consensus of one text.

    Attributes:
        chosen: The text.
        annotator: Who wrote it.
        similarity: Its weighted mean similarity with the others' texts, 0 to 1.
        texts: All texts.
    """

    chosen: str
    annotator: int
    similarity: float
    texts: Texts


def text_similarity(a: str, b: str) -> float:
    """1 minus the Levenshtein distance, relative to the longer text; runs of white space count as one."""
    return float(Levenshtein.normalized_similarity(" ".join(a.split()), " ".join(b.split())))


def similarities(texts: Texts) -> Similarities:
    """The similarity of each pair of texts."""
    return tuple(
        (annotator, other, round(text_similarity(text, other_text), 6))
        for index, (annotator, text) in enumerate(texts)
        for other, other_text in texts[index + 1 :]
    )


def merge_texts(texts: Texts, accuracy: Mapping[int, float] = {}) -> TextConsensus:
    """The weighted medoid of at least one text; ties go to the more accurate annotator, then to the first.

    Args:
        texts: The texts.
        accuracy: Accuracy by annotator, see `fit_text_accuracy`; others are typical.
    """
    weights = {annotator: _weight(accuracy.get(annotator, TYPICAL_ACCURACY)) for annotator, _ in texts}
    alike = {(a, b): value for a, b, value in similarities(texts)}
    support = {
        annotator: sum(
            weights[other] * alike.get((annotator, other), alike.get((other, annotator), 1.0)) for other, _ in texts
        )
        for annotator, _ in texts
    }
    annotator, chosen = max(texts, key=lambda pair: (round(support[pair[0]], 9), weights[pair[0]]))
    others = sum(weights.values()) - weights[annotator]
    similarity = (support[annotator] - weights[annotator]) / others if others > 0 else 1.0
    return TextConsensus(chosen, annotator, similarity, texts)


def fit_text_accuracy(items: Sequence[Similarities], *, typical: float = TYPICAL_ACCURACY) -> dict[int, float]:
    """Accuracy of each annotator, such that the similarity of two is the product of their accuracies.

    Args:
        items: The similarities of each item.
        typical: The accuracy to start from.
    """
    pairs = [pair for item in items for pair in item]
    annotators = sorted({annotator for a, b, _ in pairs for annotator in (a, b)})
    accuracy = dict.fromkeys(annotators, typical)
    for _ in range(_ITERATIONS):
        mean = sum(accuracy.values()) / len(accuracy) if accuracy else typical
        above = dict.fromkeys(annotators, _STRENGTH * mean)
        below = dict.fromkeys(annotators, _STRENGTH)
        for a, b, similarity in pairs:
            for own, other in ((a, b), (b, a)):  # least squares, given the other's accuracy
                above[own] += accuracy[other] * similarity
                below[own] += accuracy[other] ** 2
        accuracy = {who: min(max(above[who] / below[who], _LEAST), _MOST) for who in annotators}
    return accuracy


def _weight(accuracy: float) -> float:
    """Log odds of the accuracy."""
    return max(math.log(accuracy / (1 - accuracy)), _LEAST_WEIGHT)
