"""Layout `labelloop`: outputs named boxes, objectness and scores; the input format is in the metadata.

The embedded model and every trained model have it.
"""

import json
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ml_backend.detection.box_voting import PlattCalibration
from ml_backend.detection.detections import Detections
from ml_backend.detection.onnx_graph import Arrays, Graph, as_float32
from ml_backend.layouts.base import Layout, OutputReader, best_class, plain_spec

# Metadata key of trained models, a JSON list: [slope, intercept, edge_weight, aspect_weight] per class, or null; older
# models have [slope, intercept]. See `fuse_candidates`.
CALIBRATIONS_KEY = "labelloop.lines"

# Metadata: tiles along an image's longer side that the model was learned on, and is to be run on.
TILES_KEY = "labelloop.tiles"

# Most tiles along the longer side that a model may ask for.
MAX_TILES = 16

_OUTPUTS = ("boxes", "objectness", "scores")

# Output with frozen features of the candidates, (b, n, d).
EMBEDDINGS = "embeddings"


def _fits(outputs: Arrays) -> bool:
    if not set(_OUTPUTS) <= set(outputs):
        return False
    boxes, objectness, scores = (outputs[name] for name in _OUTPUTS)
    fits = boxes.ndim == 3 and boxes.shape[2] == 4 and scores.ndim == 3 and objectness.shape == boxes.shape[:2]
    return fits and scores.shape[:2] == boxes.shape[:2]


def _recognise(graph: Graph, outputs: Arrays) -> str | None:
    return "outputs named boxes, objectness and scores" if "input" in graph.metadata and _fits(outputs) else None


def _read(graph: Graph, outputs: Arrays) -> OutputReader:
    if not _fits(outputs):
        raise ValueError("it has no outputs boxes (b, n, 4), objectness (b, n) and scores (b, n, classes)")
    classes = int(outputs["scores"].shape[2])
    embeddings = outputs.get(EMBEDDINGS)
    has_embeddings = embeddings is not None and embeddings.shape[:2] == outputs["boxes"].shape[:2]
    return OutputReader(
        plain_spec(graph), classes, decode, _OUTPUTS, calibrations=_calibrations(graph, classes),
        embeddings=EMBEDDINGS if has_embeddings else "",
    )  # fmt: skip


def _calibrations(graph: Graph, classes: int) -> tuple[PlattCalibration | None, ...] | None:
    if CALIBRATIONS_KEY not in graph.metadata:
        return None
    try:
        entries = json.loads(graph.metadata[CALIBRATIONS_KEY])
        calibrations = tuple(None if entry is None else _calibration(entry) for entry in entries)
    except (TypeError, IndexError, ValueError):
        raise ValueError(
            f"its metadata {CALIBRATIONS_KEY} is not a JSON list of [slope, intercept, edge_weight, aspect_weight] "
            "or null"
        ) from None
    if len(calibrations) != classes:
        raise ValueError(
            f"its metadata {CALIBRATIONS_KEY} has {len(calibrations)} entries, not one per class ({classes})"
        )
    return calibrations


def _calibration(entry: list[float]) -> PlattCalibration:
    if len(entry) not in {2, 4}:
        raise ValueError(entry)
    return PlattCalibration(*map(float, entry))


def decode(outputs: Arrays, floor: float) -> list[Detections]:
    """Decode input-pixel boxes with score = objectness x class score."""
    boxes, objectness, scores = (as_float32(outputs[name]) for name in _OUTPUTS)
    detections = []
    for box, box_objectness, score in zip(boxes, objectness, scores, strict=True):
        # Class scores are at most 1: the other boxes cannot reach the floor.
        likely = np.flatnonzero(box_objectness >= floor)
        best = best_class(box[likely], box_objectness[likely, None] * score[likely], floor)
        detections.append(best if best.rows is None else replace(best, rows=likely[best.rows]))
    return detections


def tiles_of(metadata: Mapping[str, str]) -> int:
    """Tiles along an image's longer side that a model is to be run on; 1: whole images.

    Raises:
        ValueError: The entry is not a number from 1 to `MAX_TILES`.
    """
    text = metadata.get(TILES_KEY, "1")
    if not text.isdecimal() or not 1 <= int(text) <= MAX_TILES:
        raise ValueError(f"its metadata {TILES_KEY} is {text!r:.40}, not a number from 1 to {MAX_TILES}")
    return int(text)


LABELLOOP = Layout(_recognise, _read)
