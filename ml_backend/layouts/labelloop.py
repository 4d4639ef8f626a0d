"""Owns the layout `labelloop`: outputs boxes, objectness and scores by name, the input described in the metadata.

The embedded default and every learned model have it.
"""

import json

import numpy as np

from ml_backend.detection.box_voting import PlattCalibration
from ml_backend.detection.detections import Detections
from ml_backend.detection.onnx_graph import Arrays, Graph, as_float32
from ml_backend.layouts.base import Layout, Reader, best_class, plain_spec

LINES = "labelloop.lines"
"""Metadata of a learned model, see `consent.settled`: of each class [stretch, shift, cut, oblong], or null;
models of before say [stretch, shift]. A JSON list."""

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
    classes = int(seen["scores"].shape[2])
    return Reader(plain_spec(graph), classes, decode, _OUTPUTS, lines=_lines(graph, classes))


def _lines(graph: Graph, classes: int) -> tuple[PlattCalibration | None, ...] | None:
    if LINES not in graph.metadata:
        return None
    try:
        told = json.loads(graph.metadata[LINES])
        lines = tuple(None if one is None else _line(one) for one in told)
    except (TypeError, IndexError, ValueError):
        raise ValueError(f"its metadata {LINES} is not a JSON list of [stretch, shift, cut, oblong] or null") from None
    if len(lines) != classes:
        raise ValueError(f"its metadata {LINES} has {len(lines)} entries, not one a class ({classes})")
    return lines


def _line(one: list[float]) -> PlattCalibration:
    if len(one) not in {2, 4}:
        raise ValueError(one)
    return PlattCalibration(*map(float, one))


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
