"""Scores that encode the order of open tasks: uncertainty sampling serves the lowest score first. Pure functions."""

from collections.abc import Callable, Sequence

from ml_backend.predict.task_score import NEUTRAL

# Tasks at the head of the queue, chosen for diversity; hardly more are labelled before the next version.
HEAD = 8

# Score difference between positions of the head: small enough that pre-labels requested by Label Studio sort behind.
STEP = 0.0001

# Lowest score of the pool behind the head; lowest and highest score of all other tasks.
POOL_FROM, REST_FROM, REST_TO = 0.01, 0.1, 0.9


def place_score(position: int) -> float:
    """Return the score of a position, counted from 0."""
    return round(position * STEP if position < HEAD else min(POOL_FROM + position * STEP, REST_FROM), 6)


def rest_score(uncertainty: float | None) -> float:
    """Return the score of a task behind the pool: lower for higher uncertainty; neutral without detections."""
    return NEUTRAL if uncertainty is None else round(REST_FROM + (REST_TO - REST_FROM) / (1 + uncertainty), 6)


def with_held_out(
    order: Sequence[int], is_held: Callable[[int], bool], *, share: float, labelled: int, held: int
) -> list[int]:
    """Interleave the held-out tasks of an order at a fixed share, in order of their numbers.

    No model decides their position, so the evaluation set is an unbiased sample that grows with the labelled tasks.

    Args:
        order: Task numbers.
        is_held: Whether a task is held out.
        share: Share of held-out tasks, 0 to 0.5.
        labelled: Number of labelled tasks.
        held: Number of held-out tasks among them.
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
