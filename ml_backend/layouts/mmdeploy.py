"""Layout of MMDetection exported by MMDeploy: `dets` with boxes and scores, `labels`, and masks of instance models."""

from dataclasses import replace

import numpy as np

from ml_backend.detection.onnx_graph import Arrays, Graph, as_float32
from ml_backend.layouts.base import Layout, in_unit_range
from ml_backend.layouts.faces import declared_layout
from ml_backend.layouts.layout_file import Boxes, Classes, Input, LayoutFile, Masks, Scores, Suppression

# RTMDet's preprocessing (configs/rtmdet in MMDetection); other families normalise in RGB, which `[input]` of a layout
# file, or the metadata `input`, changes.
_INPUT = Input(
    color="BGR",
    range="0..255",
    mean=(103.53, 116.28, 123.675),
    std=(57.375, 57.12, 58.395),
    letterbox="top-left",
    pad=114,
)


def _declare(graph: Graph, outputs: Arrays) -> tuple[LayoutFile, str] | None:
    del graph
    if not {"dets", "labels"} <= set(outputs) <= {"dets", "labels", "masks"}:
        return None
    dets, labels = outputs["dets"], outputs["labels"]
    if dets.ndim != 3 or dets.shape[2] != 5 or labels.shape != dets.shape[:2]:
        return None
    if not np.issubdtype(labels.dtype, np.integer) or not in_unit_range(as_float32(dets)[..., 4]):
        return None
    masks = "masks" in outputs and outputs["masks"].ndim == 4
    file = LayoutFile(
        input=_INPUT,
        boxes=Boxes(output="dets", columns=(0, 4), format="corners"),
        scores=Scores(output="dets", columns=(4, 5)),
        classes=Classes(output="labels", axes="BN"),
        masks=Masks(output="masks", threshold=0.5) if masks else None,
        suppression=Suppression(done=True),
    )
    return file, "outputs dets (box and score) and labels, as MMDeploy names them"


MMDEPLOY: Layout = replace(declared_layout(_declare), pixels_vary=True)
