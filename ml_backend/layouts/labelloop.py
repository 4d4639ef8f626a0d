"""Owns the layout `labelloop`: outputs boxes, objectness and scores by name, the input described in the metadata.

The embedded default and every learned model have it.
"""

from __future__ import annotations

import numpy as np

from ml_backend.detections import Detections
from ml_backend.graph import Arrays, Graph, as_float32
from ml_backend.layouts.layout import Layout, Reader, best_class, plain_spec

AVERAGE = "labelloop.average"
"""Metadata of a learned model: `true` where the mean of the boxes of an object is shown, see `detections.averaged`."""

_OUTPUTS = ("boxes", "objectness", "scores")


def _fits(seen: Arrays) -> bool:
    if not set(_OUTPUTS) <= set(seen):
        return False
    boxes, objectness, scores = (seen[name] for name in _OUTPUTS)
    fits = boxes.ndim == 3 and boxes.shape[2] == 4 and scores.ndim == 3 and objectness.shape == boxes.shape[:2]
    return fits and scores.shape[:2] == boxes.shape[:2]


def _recognise(graph: Graph, seen: Arrays) -> str | None:
    return "outputs named boxes, objectness and scores" if "input" in graph.metadata and _fits(seen) else None


def _read(graph: Graph, seen: Arrays) -> Reader:
    if not _fits(seen):
        raise ValueError("it has no outputs boxes (b, n, 4), objectness (b, n) and scores (b, n, classes)")
    average = graph.metadata.get(AVERAGE) == "true"
    return Reader(plain_spec(graph), int(seen["scores"].shape[2]), decode, _OUTPUTS, average=average)


def decode(seen: Arrays, floor: float) -> list[Detections]:
    """Score of a detection = objectness x class score; boxes are input pixels already."""
    boxes, objectness, scores = (as_float32(seen[name]) for name in _OUTPUTS)
    found = []
    for box, presence, score in zip(boxes, objectness, scores, strict=True):
        # A class score is at most 1: what is left out cannot reach the floor.
        likely = np.flatnonzero(presence >= floor)
        found.append(best_class(box[likely], presence[likely, None] * score[likely], floor))
    return found


LABELLOOP = Layout(_recognise, _read)
