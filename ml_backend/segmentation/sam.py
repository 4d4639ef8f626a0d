"""Segment Anything models exported to ONNX as an encoder and a decoder.

The model family follows from the names and shapes of the inputs:

- SAM, MobileSAM: the encoder takes (1, 3, 1024, 1024) normalised and padded, or (h, w, 3) of 0..255; the decoder
`point_coords`, `point_labels`, `mask_input`, `has_mask_input`, `orig_im_size`.
- SAM 2: the encoder takes (1, 3, 1024, 1024) normalised and stretched, and also outputs `high_res_feats_*`.
- EfficientSAM: the encoder takes `batched_images` (1, 3, h, w) of 0..1, of any size; the decoder `batched_point_coords`
and `batched_point_labels`, in pixels of the image.

Kirillov et al. 2023, https://arxiv.org/abs/2304.02643: a box is two points with labels 2 and 3; a click has label 1, a
negative click 0; (0, 0) with label -1 means "no box".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from labelloop.labeling.geometry.shapes import Rectangle
from ml_backend.detection.onnx_graph import Arrays, Graph, Tensor, as_float32, read_graph
from ml_backend.errors import ModelBroken
from ml_backend.inference.run_limit import RunLimit
from ml_backend.inference.session import open_session
from ml_backend.segmentation.crop_mask import InstanceMask
from ml_backend.segmentation.pixel_head import PixelHead, report_unused
from ml_backend.segmentation.prompt import Prompt

# Longer side in pixels of the encoder's input, where its shape is open.
SIDE = 1024

_MEAN = np.array([123.675, 116.28, 103.53], np.float32)
_STD = np.array([58.395, 57.12, 57.375], np.float32)

# Prompt inputs of the decoder, with or without the prefix `batched_`; all others are encoder outputs.
PROMPTS = ("point_coords", "point_labels", "mask_input", "has_mask_input", "orig_im_size")

MASK_SIDE = 256
# Mask logits are divided by it and clipped to [-1, 1].
LOGIT_SCALE = 4.0


@dataclass(frozen=True, eq=False)
class _ImageEmbedding:
    """The encoder's outputs for an image.

    Attributes:
        arrays: By output name.
        columns: Width of the image, pixels.
        rows: Height of the image, pixels.
        scale: Decoder coordinates per image pixel: x, y.
        inner: (width, height) of the image in the encoder's input.
        frame: (width, height) of the encoder's input.
    """

    arrays: Arrays
    columns: int
    rows: int
    scale: tuple[float, float]
    inner: tuple[int, int]
    frame: tuple[int, int]


class SamSegmenter:
    """The segmenter `sam`; `embed` computes an image's embedding once."""

    name = "sam"

    def __init__(self, encoder: Path, decoder: Path, *, threads: int = 0) -> None:
        """Open both files.

        Args:
            encoder: Computes the embedding of an image.
            decoder: Predicts masks for points and boxes.
            threads: Threads per run; 0: one per core.

        Raises:
            ModelMissing: A file does not exist.
            ModelBroken: A file cannot be opened, or is not of this kind.
        """
        cv2.setNumThreads(1)
        self._paths = encoder, decoder
        self._encoder, self._decoder = (open_session(path, threads=threads) for path in (encoder, decoder))
        self._encoder_graph, self._decoder_graph = read_graph(self._encoder), read_graph(self._decoder)
        self._encoder_lock = Lock()
        self._limit = RunLimit()
        self._check_files()

    def embed(self, image: npt.NDArray[np.uint8]) -> _ImageEmbedding:
        """Compute the embedding, once per image; it takes a second or more."""
        encoder_image = encoder_input(self._encoder_graph, image)
        with self._encoder_lock:  # an encoder's run takes all cores, and hundreds of megabytes
            outputs = self._run(
                self._encoder, self._paths[0], {self._encoder_graph.inputs[0].name: encoder_image.pixels}
            )
        names = [tensor.name for tensor in self._encoder_graph.outputs]
        rows, columns = image.shape[:2]
        return _ImageEmbedding(
            dict(zip(names, outputs, strict=True)),
            columns,
            rows,
            encoder_image.scale,
            encoder_image.inner,
            encoder_image.frame,
        )

    def segment(self, embedding: Any, prompt: Prompt, head: PixelHead | None = None) -> InstanceMask | None:
        """Segment the object; None where the decoder finds none. Heads are of the included network: it uses none."""
        _ignore(head)
        image_embedding: _ImageEmbedding = embedding
        points, labels = _points(prompt)
        if not len(points):
            return None
        outputs = self._run(self._decoder, self._paths[1], self._decoder_feeds(image_embedding, points, labels))
        arrays = dict(zip((tensor.name for tensor in self._decoder_graph.outputs), outputs, strict=True))
        mask, score = _best(arrays)
        return _instance_mask(_mask_on_image(mask, image_embedding), score)

    def segment_boxes(
        self, embedding: Any, boxes: Sequence[Rectangle], head: PixelHead | None = None
    ) -> list[InstanceMask | None]:
        """Segment each box; the decoders take one prompt a run."""
        _ignore(head)
        return [self.segment(embedding, Prompt(box)) for box in boxes]

    def _run(self, session: Any, path: Path, feeds: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        try:
            outputs: list[npt.NDArray[Any]] = self._limit.run(session, None, feeds)
        except Exception as error:  # ONNX Runtime raises errors that derive from Exception alone
            raise ModelBroken(path=path, reason=str(error).splitlines()[0][:300]) from error
        return outputs

    def _check_files(self) -> None:
        encoder, decoder = self._paths
        image = self._encoder_graph.inputs[0]
        if len(self._encoder_graph.inputs) != 1 or len(image.shape) not in {3, 4}:
            raise ModelBroken(
                path=encoder,
                reason=f"it is not an encoder of one image. Its inputs: {_describe(self._encoder_graph.inputs)}",
                fix=_FIX,
            )
        decoder_inputs = {_without_prefix(tensor.name) for tensor in self._decoder_graph.inputs}
        if not {"point_coords", "point_labels"} <= decoder_inputs:
            raise ModelBroken(
                path=decoder,
                reason=f"it takes no points. Its inputs: {_describe(self._decoder_graph.inputs)}",
                fix=_FIX,
            )
        encoder_outputs = {tensor.name for tensor in self._encoder_graph.outputs}
        for tensor in self._decoder_graph.inputs:
            if _without_prefix(tensor.name) not in PROMPTS and self._source(tensor) is None:
                raise ModelBroken(
                    path=decoder,
                    reason=f"its input {tensor} is none of the encoder's outputs {sorted(encoder_outputs)}",
                    fix=_FIX,
                )
        if not any("mask" in tensor.name for tensor in self._decoder_graph.outputs):
            raise ModelBroken(
                path=decoder,
                reason=f"it gives no masks. Its outputs: {_describe(self._decoder_graph.outputs)}",
                fix=_FIX,
            )

    def _source(self, wanted: Tensor) -> str | None:
        """Find the encoder output for a decoder input: by name, else the only one of a matching shape."""
        outputs = self._encoder_graph.outputs
        if wanted.name in {tensor.name for tensor in outputs}:
            return wanted.name
        matching = [output.name for output in outputs if _shapes_match(output.shape, wanted.shape)]
        return matching[0] if len(matching) == 1 else None

    def _decoder_feeds(
        self, embedding: _ImageEmbedding, points: npt.NDArray[np.float32], labels: npt.NDArray[np.float32]
    ) -> dict[str, npt.NDArray[Any]]:
        batched = any(tensor.name.startswith("batched_") for tensor in self._decoder_graph.inputs)
        if not batched and 2.0 not in labels:
            points, labels = np.vstack([points, [[0.0, 0.0]]]), np.append(labels, -1.0)
        scaled = points * np.array([1.0, 1.0] if batched else embedding.scale)
        values: dict[str, npt.NDArray[Any]] = {
            "point_coords": scaled[None, None] if batched else scaled[None],
            "point_labels": labels[None, None] if batched else labels[None],
            "mask_input": self._no_mask(),
            "has_mask_input": np.zeros(1),
            "orig_im_size": np.array([embedding.rows, embedding.columns]),
        }
        feeds = {}
        for tensor in self._decoder_graph.inputs:
            name = _without_prefix(tensor.name)
            value = values[name] if name in PROMPTS else embedding.arrays[self._source(tensor) or ""]
            feeds[tensor.name] = value.astype(tensor.dtype, copy=False)
        return feeds

    def _no_mask(self) -> npt.NDArray[Any]:
        shape = next((tensor.shape for tensor in self._decoder_graph.inputs if tensor.name == "mask_input"), ())
        return np.zeros([side or default for side, default in zip(shape, (1, 1, MASK_SIDE, MASK_SIDE), strict=False)])


@dataclass(frozen=True, eq=False)
class _EncoderInput:
    pixels: npt.NDArray[Any]
    scale: tuple[float, float]
    inner: tuple[int, int]
    frame: tuple[int, int]


def encoder_input(graph: Graph, image: npt.NDArray[np.uint8]) -> _EncoderInput:
    """Prepare an image for the encoder.

    Args:
        graph: Of the encoder.
        image: (h, w, 3) uint8 RGB.
    """
    image_input = graph.inputs[0]
    rows, columns = image.shape[:2]
    channels_last = len(image_input.shape) == 3 or image_input.shape[-1] == 3
    sides = image_input.shape[-3:-1] if channels_last else image_input.shape[-2:]
    height, width = sides[0] or SIDE, sides[1] or SIDE
    fixed = sides[0] is not None and sides[1] is not None
    stretched = fixed and any("high_res" in tensor.name for tensor in graph.outputs)
    scale = min(width / columns, height / rows)
    normalised_by_graph = image_input.name.startswith("batched_")  # the graph resizes and normalises
    scale = min(1.0, scale) if normalised_by_graph and not fixed else scale
    inner = (width, height) if stretched else (max(1, int(columns * scale + 0.5)), max(1, int(rows * scale + 0.5)))
    pixels = cv2.resize(image, inner, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    values: npt.NDArray[Any] = pixels.astype(np.float32)
    if normalised_by_graph:
        values = values / 255
    elif len(image_input.shape) == 4:
        values = (values - _MEAN) / _STD
    if fixed and inner != (width, height):
        values = np.pad(values, ((0, height - inner[1]), (0, width - inner[0]), (0, 0)))
    values = values if channels_last else values.transpose(2, 0, 1)
    values = values if len(image_input.shape) == 3 else values[None]
    # Graphs of open size pad or stretch the image to a square of SIDE.
    frame = inner if normalised_by_graph else (width, height) if fixed else (SIDE, SIDE)
    across, down = inner[0] / columns, inner[1] / rows
    return _EncoderInput(np.ascontiguousarray(values, image_input.dtype), (across, down), inner, frame)


def _points(prompt: Prompt) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Points (n, 2) float32 in pixels of the image, and their labels (n,) float32."""
    points, labels = [], []
    if prompt.box is not None:
        left, top, right, bottom = prompt.box.bounds
        points, labels = [(left, top), (right, bottom)], [2.0, 3.0]
    for clicks, label in ((prompt.positives, 1.0), (prompt.negatives, 0.0)):
        points += list(clicks)
        labels += [label] * len(clicks)
    return np.array(points, np.float32).reshape(-1, 2), np.array(labels, np.float32)


def _best(arrays: Arrays) -> tuple[npt.NDArray[np.float32], float]:
    """The decoder's best mask as logits (h, w) float32, and its predicted IoU.

    Low-resolution masks take precedence: some exports of full-size masks only work for one image shape.
    """
    masks = [name for name in arrays if "mask" in name and arrays[name].ndim >= 4]
    name = next((name for name in masks if "low_res" in name), masks[0])
    planes = as_float32(arrays[name])
    planes = planes.reshape(-1, *planes.shape[-2:])
    predicted_iou = next((as_float32(array).ravel() for name, array in arrays.items() if "iou" in name), np.zeros(0))
    best = int(predicted_iou.argmax()) if len(predicted_iou) == len(planes) else 0
    score = float(predicted_iou[best]) if len(predicted_iou) > best else 0.5
    return planes[best], min(1.0, max(0.0, score))


def _mask_on_image(mask: npt.NDArray[np.float32], embedding: _ImageEmbedding) -> npt.NDArray[np.float32]:
    """Resize logits over the encoder's frame (low resolution), or over the image, to the image."""
    size = embedding.columns, embedding.rows
    rows, columns = mask.shape
    if (columns, rows) == size:
        return mask
    across, down = columns / embedding.frame[0], rows / embedding.frame[1]
    part = mask[: max(1, round(embedding.inner[1] * down)), : max(1, round(embedding.inner[0] * across))]
    return np.asarray(cv2.resize(part, size, interpolation=cv2.INTER_LINEAR), np.float32)


def _instance_mask(logits: npt.NDArray[np.float32], score: float) -> InstanceMask | None:
    mask = logits > 0
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    top, bottom = max(0, int(rows[0]) - 1), min(len(logits), int(rows[-1]) + 2)
    left, right = max(0, int(columns[0]) - 1), min(logits.shape[1], int(columns[-1]) + 2)
    level = np.clip(logits[top:bottom, left:right] / LOGIT_SCALE, -1, 1)
    return InstanceMask(np.ascontiguousarray(level), (left, top, right, bottom), score)


def _ignore(head: PixelHead | None) -> None:
    if head is not None:
        report_unused(head, "the segmenter sam is not refitted; unset LABELLOOP_SMART_ENCODER to use the head")


def _without_prefix(name: str) -> str:
    return name.removeprefix("batched_")


def _shapes_match(shape: tuple[int | None, ...], other: tuple[int | None, ...]) -> bool:
    return len(shape) == len(other) and all(None in {a, b} or a == b for a, b in zip(shape, other, strict=True))


def _describe(tensors: tuple[Tensor, ...]) -> str:
    return "; ".join(map(str, tensors))


_FIX = (
    "Give the encoder and the decoder of one export of SAM, MobileSAM, EfficientSAM or SAM 2 as "
    "LABELLOOP_SMART_ENCODER and LABELLOOP_SMART_DECODER."
)
