"""Owns the layouts of DETR's family as transformers and RF-DETR export it: class logits and normalised boxes a query.

DETR itself (https://arxiv.org/abs/2005.12872) takes a softmax whose last class is "no object"; its followers (RT-DETR,
Deformable DETR, D-FINE, RF-DETR) a sigmoid a class.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.detection.class_names import Spare
from ml_backend.detection.detections import Detections
from ml_backend.detection.masks import Segment
from ml_backend.detection.onnx_graph import Arrays, Graph, as_float32
from ml_backend.detection.preprocess import InputSpec
from ml_backend.layouts.base import (
    IMAGENET,
    Layout,
    Reader,
    from_centre,
    named,
    plain_spec,
    sides,
    sigmoid,
    softmax,
)  # fmt: skip


def _pair(seen: Arrays, boxes: str, logits: str) -> bool:
    if boxes not in seen or logits not in seen:
        return False
    box, score = seen[boxes], seen[logits]
    return box.ndim == 3 and box.shape[2] == 4 and score.ndim == 3 and score.shape[:2] == box.shape[:2]


def _ends_in_nothing(graph: Graph, logits: npt.NDArray[Any]) -> bool:
    """Whether the last class is "no object": what most queries see on a grey photo; or the names are one fewer."""
    told = named(graph)
    if told is not None:
        return told == logits.shape[2] - 1
    return bool(np.mean(as_float32(logits).argmax(axis=-1) == logits.shape[2] - 1) > 0.5)


def _recognise_transformers(*, nothing: bool):  # type: ignore[no-untyped-def]  # noqa: ANN202
    def recognise(graph: Graph, seen: Arrays) -> str | None:
        if not _pair(seen, "pred_boxes", "logits") or _ends_in_nothing(graph, seen["logits"]) != nothing:
            return None
        last = "the last class is no object, so softmax" if nothing else "no class stands for no object, so sigmoid"
        return f"outputs named logits and pred_boxes; {last}"

    return recognise


def _read_transformers(*, nothing: bool):  # type: ignore[no-untyped-def]  # noqa: ANN202
    def read(graph: Graph, seen: Arrays) -> Reader:
        if not _pair(seen, "pred_boxes", "logits"):
            raise ValueError("it has no outputs logits (b, n, classes) and pred_boxes (b, n, 4)")
        options: Any = IMAGENET if nothing else {"scale": 1 / 255}
        spec = plain_spec(graph, placement="stretch", **options)
        classes = int(seen["logits"].shape[2]) - nothing
        return Reader(
            spec,
            classes,
            lambda arrays, floor: _decode(arrays["pred_boxes"], arrays["logits"], spec, floor, nothing=nothing),
            ("logits", "pred_boxes"),
            spare="any" if nothing else "none",
            suppress_iou=None,
        )

    return read


def _recognise_rfdetr(graph: Graph, seen: Arrays) -> str | None:
    del graph
    return "outputs named dets and labels" if _pair(seen, "dets", "labels") else None


def _read_rfdetr(graph: Graph, seen: Arrays) -> Reader:
    if not _pair(seen, "dets", "labels"):
        raise ValueError("it has no outputs dets (b, n, 4) and labels (b, n, classes)")
    spec = plain_spec(graph, placement="stretch", **IMAGENET)
    masks = "masks" if "masks" in seen and seen["masks"].ndim == 4 else ""
    spare: Spare = "any"  # one class more than there are, and COCO's own numbers in the official files

    def decode(arrays: Arrays, floor: float) -> list[Detections]:
        return _decode(arrays["dets"], arrays["labels"], spec, floor, nothing=False, masks=arrays.get(masks))

    return Reader(
        spec,
        int(seen["labels"].shape[2]),
        decode,
        ("dets", "labels", *([masks] if masks else [])),
        gives=frozenset({"boxes", "masks"} if masks else {"boxes"}),
        spare=spare,
        suppress_iou=None,
    )


def _decode(
    boxes: npt.NDArray[Any], logits: npt.NDArray[Any], spec: InputSpec, floor: float, *, nothing: bool,
    masks: npt.NDArray[Any] | None = None,
) -> list[Detections]:  # fmt: skip
    """Each query with its best class; a mask is a logit over the whole input."""
    found = []
    for index, (box, logit) in enumerate(zip(as_float32(boxes), logits, strict=True)):
        shares = softmax(logit)[:, :-1] if nothing else sigmoid(logit)
        best = shares.max(axis=1)
        keep = np.flatnonzero(best >= floor)
        corners = from_centre(box[keep] * sides(spec))
        segments = None
        if masks is not None:
            size = (spec.height, spec.width)
            planes = as_float32(masks[index])
            cut = [(one[0], one[1], one[2], one[3]) for one in corners.tolist()]
            segments = tuple(
                Segment(planes[row], None, 0.0, at, size) for row, at in zip(keep.tolist(), cut, strict=True)
            )
        classes = shares[keep].argmax(axis=1).astype(np.int64)
        found.append(Detections(corners, best[keep], classes, segments=segments))
    return found


DETR_SOFTMAX = Layout(_recognise_transformers(nothing=True), _read_transformers(nothing=True))
DETR_SIGMOID = Layout(_recognise_transformers(nothing=False), _read_transformers(nothing=False))
RF_DETR = Layout(_recognise_rfdetr, _read_rfdetr)
