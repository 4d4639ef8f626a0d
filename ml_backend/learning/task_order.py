"""Owns what a place in the queue is as a score: Label Studio serves the lowest first. Pure functions."""

from collections.abc import Callable, Sequence

from ml_backend.predict.task_score import NEUTRAL

HEAD = 8
"""Tasks at the head of the queue that are unlike each other: hardly more are labelled until the next version."""

STEP = 0.0001
"""Between two places of the head: so small that no pre-label that was asked for in between comes before it."""

POOL_FROM, REST_FROM, REST_TO = 0.01, 0.1, 0.9
"""Scores of the pool behind the head, and of all other tasks."""


def place_score(place: int) -> float:
    """The score of a place, from 0."""
    return round(place * STEP if place < HEAD else min(POOL_FROM + place * STEP, REST_FROM), 6)


def rest_score(doubt: float | None) -> float:
    """The score of a task behind the pool: the more doubt, the sooner; in the middle where nothing was seen."""
    return NEUTRAL if doubt is None else round(REST_FROM + (REST_TO - REST_FROM) / (1 + doubt), 6)


def with_held_out(
    order: Sequence[int], is_held: Callable[[int], bool], *, share: float, labelled: int, held: int
) -> list[int]:
    """An order in which held-out tasks take their share of the places, by number: no model chose their place.

    So what a model is judged by is drawn like the tasks that come, and grows with them.

    Args:
        order: Task numbers.
        is_held: Which of them are held out.
        share: Of all tasks.
        labelled: Tasks that are labelled already.
        held: Held-out tasks among these.
    """
    waiting = sorted(number for number in order if is_held(number))
    rest = [number for number in order if not is_held(number)]
    arranged: list[int] = []
    while rest or waiting:
        due = held < int(share * (labelled + len(arranged) + 1))
        if waiting and (due or not rest):
            arranged.append(waiting.pop(0))
            held += 1
        else:
            arranged.append(rest.pop(0))
    return arranged
