"""Owns `Sam`: the Segment Anything family as a user exported it to ONNX, an encoder and a decoder.

What each file wants follows from the names and shapes of its inputs, as the usual exporters leave them:

- SAM, MobileSAM: the encoder takes (1, 3, 1024, 1024) normalised and padded, or (h, w, 3) of 0..255; the decoder
  `point_coords`, `point_labels`, `mask_input`, `has_mask_input`, `orig_im_size`.
- SAM 2: the encoder takes (1, 3, 1024, 1024) normalised and stretched, and gives `high_res_feats_*` too.
- EfficientSAM: the encoder takes `batched_images` (1, 3, h, w) of 0..1, of any size; the decoder `batched_point_coords`
  and `batched_point_labels`, in pixels of the photo.

Kirillov et al. 2023, https://arxiv.org/abs/2304.02643: a box is two points, of the labels 2 and 3; a click has 1, or 0
where it says "not this"; (0, 0) with the label -1 stands for "no box".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ml_backend.detection.onnx_graph import Arrays, Graph, Tensor, as_float32, read_graph
from ml_backend.errors import ModelBroken
from ml_backend.inference.run_limit import RunLimit
from ml_backend.inference.session import open_session
from ml_backend.smart.crop_mask import InstanceMask
from ml_backend.smart.prompts import Prompt

SIDE = 1024
"""Pixels of the longer side of what an encoder is shown, where its input leaves it open."""

_MEAN = np.array([123.675, 116.28, 103.53], np.float32)
_STD = np.array([58.395, 57.12, 57.375], np.float32)

PROMPTS = ("point_coords", "point_labels", "mask_input", "has_mask_input", "orig_im_size")
"""The decoder's inputs that say what was drawn, `batched_` before them or not; all others are the encoder's."""

MASK_SIDE = 256
STEEP = 4.0
"""Logits are divided by it: beyond, a pixel counts as sure."""


@dataclass(frozen=True, eq=False)
class _Seen:
    """A photo as the encoder sees it.

    Attributes:
        arrays: The encoder's outputs.
        scale: Pixels of the decoder's coordinates a pixel of the photo: across, down.
        inner: (width, height) of the photo in the encoder's input, whose own size is `frame`.
    """

    arrays: Arrays
    columns: int
    rows: int
    scale: tuple[float, float]
    inner: tuple[int, int]
    frame: tuple[int, int]


class Sam:
    """The segmenter `sam`. The embedding of a photo is what `look` gives, so it is computed once a photo."""

    name = "sam"

    def __init__(self, encoder: Path, decoder: Path, *, threads: int = 0) -> None:
        """Opens both files.

        Args:
            encoder: Gives the embedding of a photo.
            decoder: Gives masks for points and boxes.
            threads: Of one run; 0: one a core.

        Raises:
            ModelMissing, ModelBroken: One cannot be opened, or is no such file; the message says which.
        """
        cv2.setNumThreads(1)
        self._paths = encoder, decoder
        self._encoder, self._decoder = (open_session(path, threads=threads) for path in (encoder, decoder))
        self._sees, self._draws = read_graph(self._encoder), read_graph(self._decoder)
        self._turn = Lock()
        self._limit = RunLimit()
        self._fits()

    def look(self, image: npt.NDArray[np.uint8]) -> _Seen:
        """The embedding: a second or several, once a photo."""
        shown = show(self._sees, image)
        with self._turn:  # an encoder's run takes all cores, and hundreds of megabytes
            outputs = self._run(self._encoder, self._paths[0], {self._sees.inputs[0].name: shown.pixels})
        names = [tensor.name for tensor in self._sees.outputs]
        rows, columns = image.shape[:2]
        return _Seen(dict(zip(names, outputs, strict=True)), columns, rows, shown.scale, shown.inner, shown.frame)

    def segment(self, look: Any, prompt: Prompt) -> InstanceMask | None:
        """The object; None where the decoder sees none."""
        seen: _Seen = look
        points, labels = _points(prompt)
        if not len(points):
            return None
        outputs = self._run(self._decoder, self._paths[1], self._fed(seen, points, labels))
        arrays = dict(zip((tensor.name for tensor in self._draws.outputs), outputs, strict=True))
        mask, score = _best(arrays)
        return _cutout(_laid_out(mask, seen), score)

    def _run(self, session: Any, path: Path, feeds: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        try:
            outputs: list[npt.NDArray[Any]] = self._limit.run(session, None, feeds)
        except Exception as error:  # ONNX Runtime raises a family of its own that derives from Exception alone
            raise ModelBroken(path, str(error).splitlines()[0][:300]) from error
        return outputs

    def _fits(self) -> None:
        encoder, decoder = self._paths
        image = self._sees.inputs[0]
        if len(self._sees.inputs) != 1 or len(image.shape) not in {3, 4}:
            raise ModelBroken(
                encoder, f"it is no encoder of one photo. Its inputs: {_said(self._sees.inputs)}", fix=_FIX
            )
        wanted = {_plain(tensor.name) for tensor in self._draws.inputs}
        if not {"point_coords", "point_labels"} <= wanted:
            raise ModelBroken(decoder, f"it takes no points. Its inputs: {_said(self._draws.inputs)}", fix=_FIX)
        given = {tensor.name for tensor in self._sees.outputs}
        for tensor in self._draws.inputs:
            if _plain(tensor.name) not in PROMPTS and self._source(tensor) is None:
                raise ModelBroken(
                    decoder, f"its input {tensor} is none of the encoder's outputs {sorted(given)}", fix=_FIX
                )
        if not any("mask" in tensor.name for tensor in self._draws.outputs):
            raise ModelBroken(decoder, f"it gives no masks. Its outputs: {_said(self._draws.outputs)}", fix=_FIX)

    def _source(self, wanted: Tensor) -> str | None:
        """Which of the encoder's outputs a decoder's input is: of the same name, else the only one that fits."""
        outputs = self._sees.outputs
        if wanted.name in {tensor.name for tensor in outputs}:
            return wanted.name
        fitting = [one.name for one in outputs if _agree(one.shape, wanted.shape)]
        return fitting[0] if len(fitting) == 1 else None

    def _fed(
        self, seen: _Seen, points: npt.NDArray[np.float32], labels: npt.NDArray[np.float32]
    ) -> dict[str, npt.NDArray[Any]]:
        batched = any(tensor.name.startswith("batched_") for tensor in self._draws.inputs)
        if not batched and 2.0 not in labels:
            points, labels = np.vstack([points, [[0.0, 0.0]]]), np.append(labels, -1.0)
        scaled = points * np.array([1.0, 1.0] if batched else seen.scale)
        values: dict[str, npt.NDArray[Any]] = {
            "point_coords": scaled[None, None] if batched else scaled[None],
            "point_labels": labels[None, None] if batched else labels[None],
            "mask_input": self._no_mask(),
            "has_mask_input": np.zeros(1),
            "orig_im_size": np.array([seen.rows, seen.columns]),
        }
        fed = {}
        for tensor in self._draws.inputs:
            name = _plain(tensor.name)
            value = values[name] if name in PROMPTS else seen.arrays[self._source(tensor) or ""]
            fed[tensor.name] = value.astype(tensor.dtype, copy=False)
        return fed

    def _no_mask(self) -> npt.NDArray[Any]:
        told = next((tensor.shape for tensor in self._draws.inputs if tensor.name == "mask_input"), ())
        return np.zeros([side or usual for side, usual in zip(told, (1, 1, MASK_SIDE, MASK_SIDE), strict=False)])


@dataclass(frozen=True, eq=False)
class _Shown:
    pixels: npt.NDArray[Any]
    scale: tuple[float, float]
    inner: tuple[int, int]
    frame: tuple[int, int]


def show(graph: Graph, image: npt.NDArray[np.uint8]) -> _Shown:
    """A photo as this encoder wants it.

    Args:
        graph: Of the encoder.
        image: (h, w, 3) RGB.
    """
    wanted = graph.inputs[0]
    rows, columns = image.shape[:2]
    last = len(wanted.shape) == 3 or wanted.shape[-1] == 3
    sides = wanted.shape[-3:-1] if last else wanted.shape[-2:]
    height, width = sides[0] or SIDE, sides[1] or SIDE
    fixed = sides[0] is not None and sides[1] is not None
    stretched = fixed and any("high_res" in tensor.name for tensor in graph.outputs)
    scale = min(width / columns, height / rows)
    whole = wanted.name.startswith("batched_")  # the graph scales and normalises by itself
    scale = min(1.0, scale) if whole and not fixed else scale
    inner = (width, height) if stretched else (max(1, int(columns * scale + 0.5)), max(1, int(rows * scale + 0.5)))
    pixels = cv2.resize(image, inner, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    values: npt.NDArray[Any] = pixels.astype(np.float32)
    if whole:
        values = values / 255
    elif len(wanted.shape) == 4:
        values = (values - _MEAN) / _STD
    if fixed and inner != (width, height):
        values = np.pad(values, ((0, height - inner[1]), (0, width - inner[0]), (0, 0)))
    values = values if last else values.transpose(2, 0, 1)
    values = values if len(wanted.shape) == 3 else values[None]
    # Of an open size a graph makes a square of SIDE by itself: it pads, or stretches where it scales at all.
    frame = inner if whole else (width, height) if fixed else (SIDE, SIDE)
    across, down = inner[0] / columns, inner[1] / rows
    return _Shown(np.ascontiguousarray(values, wanted.dtype), (across, down), inner, frame)


def _points(prompt: Prompt) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Points (n, 2) in pixels of the photo, and their labels (n,)."""
    points, labels = [], []
    if prompt.box is not None:
        left, top, right, bottom = prompt.box.bounds
        points, labels = [(left, top), (right, bottom)], [2.0, 3.0]
    for some, label in ((prompt.positives, 1.0), (prompt.negatives, 0.0)):
        points += list(some)
        labels += [label] * len(some)
    return np.array(points, np.float32).reshape(-1, 2), np.array(labels, np.float32)


def _best(arrays: Arrays) -> tuple[npt.NDArray[np.float32], float]:
    """The mask that the decoder holds for the best, as logits (h, w), and how good it says it is.

    Small masks go before those at the photo's size: some exports of the latter hold for one shape of photo alone.
    """
    masks = [name for name in arrays if "mask" in name and arrays[name].ndim >= 4]
    name = next((name for name in masks if "low_res" in name), masks[0])
    planes = as_float32(arrays[name])
    planes = planes.reshape(-1, *planes.shape[-2:])
    said = next((as_float32(array).ravel() for name, array in arrays.items() if "iou" in name), np.zeros(0))
    place = int(said.argmax()) if len(said) == len(planes) else 0
    score = float(said[place]) if len(said) > place else 0.5
    return planes[place], min(1.0, max(0.0, score))


def _laid_out(mask: npt.NDArray[np.float32], seen: _Seen) -> npt.NDArray[np.float32]:
    """Logits over the photo, from logits over the encoder's frame (low resolution) or over the photo itself."""
    size = seen.columns, seen.rows
    rows, columns = mask.shape
    if (columns, rows) == size:
        return mask
    across, down = columns / seen.frame[0], rows / seen.frame[1]
    part = mask[: max(1, round(seen.inner[1] * down)), : max(1, round(seen.inner[0] * across))]
    return np.asarray(cv2.resize(part, size, interpolation=cv2.INTER_LINEAR), np.float32)


def _cutout(logits: npt.NDArray[np.float32], score: float) -> InstanceMask | None:
    found = logits > 0
    rows, columns = np.flatnonzero(found.any(1)), np.flatnonzero(found.any(0))
    if not len(rows):
        return None
    top, bottom = max(0, int(rows[0]) - 1), min(len(logits), int(rows[-1]) + 2)
    left, right = max(0, int(columns[0]) - 1), min(logits.shape[1], int(columns[-1]) + 2)
    level = np.clip(logits[top:bottom, left:right] / STEEP, -1, 1)
    return InstanceMask(np.ascontiguousarray(level), (left, top, right, bottom), score)


def _plain(name: str) -> str:
    return name.removeprefix("batched_")


def _agree(one: tuple[int | None, ...], other: tuple[int | None, ...]) -> bool:
    return len(one) == len(other) and all(None in {a, b} or a == b for a, b in zip(one, other, strict=True))


def _said(tensors: tuple[Tensor, ...]) -> str:
    return "; ".join(map(str, tensors))


_FIX = (
    "Give the encoder and the decoder of one export of SAM, MobileSAM, EfficientSAM or SAM 2 as "
    "LABELLOOP_SMART_ENCODER and LABELLOOP_SMART_DECODER."
)
