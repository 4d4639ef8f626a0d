"""Layouts of the DETR family as exported by transformers and RF-DETR: class logits and normalised boxes per query.

DETR (https://arxiv.org/abs/2005.12872) uses a softmax whose last class is "no object"; RT-DETR, Deformable DETR, D-FINE
and RF-DETR use a sigmoid per class.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.detection.class_names import Background
from ml_backend.detection.detections import Detections
from ml_backend.detection.logits import expit
from ml_backend.detection.masks import Segment
from ml_backend.detection.onnx_graph import Arrays, Graph, as_float32
from ml_backend.detection.preprocess import InputSpec
from ml_backend.layouts.base import (
    IMAGENET,
    Layout,
    OutputReader,
    class_count,
    cxcywh_to_xyxy,
    input_sides,
    plain_spec,
    softmax,
)  # fmt: skip


def _pair(outputs: Arrays, boxes: str, logits: str) -> bool:
    if boxes not in outputs or logits not in outputs:
        return False
    box, score = outputs[boxes], outputs[logits]
    return box.ndim == 3 and box.shape[2] == 4 and score.ndim == 3 and score.shape[:2] == box.shape[:2]


def _has_no_object_class(graph: Graph, logits: npt.NDArray[Any]) -> bool:
    """Whether the last class is "no object": there is one name fewer, or most queries of a grey image predict it."""
    names = class_count(graph)
    if names is not None:
        return names == logits.shape[2] - 1
    return bool(np.mean(as_float32(logits).argmax(axis=-1) == logits.shape[2] - 1) > 0.5)


def _logits_of(outputs: Arrays) -> str | None:
    """The output of class logits: `logits` of transformers, `pred_logits` of the papers' code; None without one."""
    return next((name for name in ("logits", "pred_logits") if _pair(outputs, "pred_boxes", name)), None)


def _recognise_transformers(*, no_object: bool):  # type: ignore[no-untyped-def]  # noqa: ANN202
    def recognise(graph: Graph, outputs: Arrays) -> str | None:
        name = _logits_of(outputs)
        if name is None or _has_no_object_class(graph, outputs[name]) != no_object:
            return None
        last = "the last class is no object, so softmax" if no_object else "no class is no object, so sigmoid"
        return f"outputs named {name} and pred_boxes; {last}"

    return recognise


def _read_transformers(*, no_object: bool):  # type: ignore[no-untyped-def]  # noqa: ANN202
    def read(graph: Graph, outputs: Arrays) -> OutputReader:
        name = _logits_of(outputs)
        if name is None:
            raise ValueError("it has no outputs logits (b, n, classes) and pred_boxes (b, n, 4)")
        options: Any = IMAGENET if no_object else {"scale": 1 / 255}
        spec = plain_spec(graph, placement="stretch", **options)
        classes = int(outputs[name].shape[2]) - no_object
        masks = "pred_masks" if "pred_masks" in outputs and outputs["pred_masks"].ndim == 4 else ""

        def decode(arrays: Arrays, floor: float) -> list[Detections]:
            return _decode(
                arrays["pred_boxes"], arrays[name], spec, floor, no_object=no_object, masks=arrays.get(masks)
            )

        return OutputReader(
            spec,
            classes,
            decode,
            (name, "pred_boxes", *([masks] if masks else [])),
            provides=frozenset({"boxes", "masks"} if masks else {"boxes"}),
            background="any" if no_object else "none",
            suppress_iou=None,
        )

    return read


def _recognise_rfdetr(graph: Graph, outputs: Arrays) -> str | None:
    del graph
    return "outputs named dets and labels" if _pair(outputs, "dets", "labels") else None


def _read_rfdetr(graph: Graph, outputs: Arrays) -> OutputReader:
    if not _pair(outputs, "dets", "labels"):
        raise ValueError("it has no outputs dets (b, n, 4) and labels (b, n, classes)")
    spec = plain_spec(graph, placement="stretch", **IMAGENET)
    masks = "masks" if "masks" in outputs and outputs["masks"].ndim == 4 else ""
    background: Background = "any"  # one class more than named, and COCO's category ids in the official files

    def decode(arrays: Arrays, floor: float) -> list[Detections]:
        return _decode(arrays["dets"], arrays["labels"], spec, floor, no_object=False, masks=arrays.get(masks))

    return OutputReader(
        spec,
        int(outputs["labels"].shape[2]),
        decode,
        ("dets", "labels", *([masks] if masks else [])),
        provides=frozenset({"boxes", "masks"} if masks else {"boxes"}),
        background=background,
        suppress_iou=None,
    )


def _decode(
    boxes: npt.NDArray[Any], logits: npt.NDArray[Any], spec: InputSpec, floor: float, *, no_object: bool,
    masks: npt.NDArray[Any] | None = None,
) -> list[Detections]:  # fmt: skip
    """Decode each query with its best class; masks are logits over the whole input."""
    detections = []
    for index, (box, logit) in enumerate(zip(as_float32(boxes), logits, strict=True)):
        probabilities = softmax(logit)[:, :-1] if no_object else expit(as_float32(logit))
        best = probabilities.max(axis=1)
        keep = np.flatnonzero(best >= floor)
        corners = cxcywh_to_xyxy(box[keep] * input_sides(spec))
        segments = None
        if masks is not None:
            size = (spec.height, spec.width)
            planes = as_float32(masks[index])
            mask_boxes = [(corner[0], corner[1], corner[2], corner[3]) for corner in corners.tolist()]
            segments = tuple(
                Segment(planes[row], None, 0.0, mask_box, size)
                for row, mask_box in zip(keep.tolist(), mask_boxes, strict=True)
            )
        classes = probabilities[keep].argmax(axis=1).astype(np.int64)
        detections.append(Detections(corners, best[keep], classes, segments=segments))
    return detections


DETR_SOFTMAX = Layout(_recognise_transformers(no_object=True), _read_transformers(no_object=True), pixels_vary=True)
DETR_SIGMOID = Layout(_recognise_transformers(no_object=False), _read_transformers(no_object=False), pixels_vary=True)
RF_DETR = Layout(_recognise_rfdetr, _read_rfdetr)
