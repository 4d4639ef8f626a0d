"""Owns what a layout is, and what all of them share: the input's size, grids of anchors, the best class of a box."""

import ast
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.detection.box_voting import PlattCalibration
from ml_backend.detection.class_names import Spare, parse_names
from ml_backend.detection.detections import Detections, Floats
from ml_backend.detection.onnx_graph import Arrays, Graph, as_float32
from ml_backend.detection.preprocess import InputSpec

DEFAULT_SIDE = 640
"""Pixels a side where a graph leaves its input's size open and its metadata says none."""

SUPPRESS_IOU = 0.45
"""Overlap above which two boxes of a class are one object, where neither graph nor layout says otherwise."""

STRIDE_SETS = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32), (16, 32))
"""Strides of the levels of a detector's head, the usual ones first."""

IMAGENET: Mapping[str, Any] = {"scale": 1 / 255, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
"""How most networks that begin with weights of ImageNet want their pixels."""


@dataclass(frozen=True)
class Reader:
    """A layout bound to one graph.

    Attributes:
        spec: What the network wants to be shown.
        classes: How many classes the outputs have; None where they do not say.
        decode: One `Detections` a photo of the batch, in input pixels, of scores at or above the floor given.
        outputs: The names of the outputs that `decode` reads; no other is computed for nothing.
        gives: Beside boxes: "turned", "masks", "keypoints"; or "classes" alone where the whole photo is classified.
        spare: Which class may have no name: "first" where 0 is the background, "any" where the graph cannot tell.
        suppress_iou: Overlap above which two boxes of a class are one object; None where the graph suppresses.
        lines: Of a learned model what `consent.settled` needs, a class each; None: `suppress` alone.
        alone: Whether one run takes one photo, whatever the batch that the graph declares.
        points: How many keypoints each detection has.
    """

    spec: InputSpec
    classes: int | None
    decode: Callable[[Arrays, float], list[Detections]]
    outputs: tuple[str, ...]
    gives: frozenset[str] = field(default_factory=lambda: frozenset({"boxes"}))
    spare: Spare = "none"
    suppress_iou: float | None = SUPPRESS_IOU
    lines: tuple[PlattCalibration | None, ...] | None = None
    alone: bool = False
    points: int = 0


@dataclass(frozen=True)
class Layout:
    """One family of outputs.

    Attributes:
        recognise: Why the graph is of this layout, in words; None where it is not. Gets the graph and the trial run.
            Raises Misfit where it has the shape of the layout and its numbers do not fit.
        read: The layout bound to the graph. Raises ValueError, KeyError or IndexError where it does not fit.
    """

    recognise: Callable[[Graph, Arrays], str | None]
    read: Callable[[Graph, Arrays], Reader]


def told(graph: Graph, key: str) -> Any:
    """A value of the metadata: JSON, a Python literal as Ultralytics writes it (parsed, never evaluated), or text."""
    text = graph.metadata.get(key, "")
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    return text


def named(graph: Graph) -> int | None:
    """How many classes the metadata names; None where it names none."""
    try:
        return len(parse_names(graph.metadata["names"]))
    except (KeyError, ValueError):
        return None


def image_size(graph: Graph) -> tuple[int, int]:
    """(height, width) of the graph's input; where it is open the metadata's `imgsz`, else `DEFAULT_SIDE`."""
    sides = graph.image.shape[-3:] if graph.image else (None, None, None)
    height, width = sides[:2] if graph.channels_last else sides[1:]
    asked = told(graph, "imgsz")
    if not (isinstance(asked, list | tuple) and len(asked) == 2 and all(isinstance(one, int) for one in asked)):
        asked = (DEFAULT_SIDE, DEFAULT_SIDE)
    return height or asked[0], width or asked[1]


def plain_spec(graph: Graph, **options: Any) -> InputSpec:
    """An input of the graph's own size, axes and type; pixel values 0..255 unless the options say otherwise.

    What the metadata `input` says wins over ONNX's own `Image.` metadata, and both over the options.

    Raises:
        ValueError: The metadata cannot be read, or asks for what is not done.
    """
    height, width = image_size(graph)
    spec = InputSpec(
        height=height,
        width=width,
        layout="NHWC" if graph.channels_last else "NCHW",
        dtype=graph.image.dtype if graph.image else "float32",
        **{**options, **standard_pixels(graph)},
    )
    return told_spec(graph, spec) if "input" in graph.metadata else spec


_PLAIN: Any = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
STANDARD_PIXELS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "Image.BitmapPixelFormat": {"Rgb8": {"color": "RGB"}, "Bgr8": {"color": "BGR"}},
    "Image.NominalPixelRange": {
        "NominalRange_0_255": {"scale": 1.0, **_PLAIN},
        "Normalized_0_1": {"scale": 1 / 255, **_PLAIN},
        "Normalized_1_1": {"scale": 1 / 127.5, **_PLAIN, "mean": (1.0, 1.0, 1.0)},
    },
    "Image.ColorSpaceGamma": {"SRGB": {}},
}
"""ONNX's metadata of images (https://github.com/onnx/onnx/blob/main/docs/MetadataProps.md), as Custom Vision writes it:
key -> value -> what it means for the input. Where a file has some of it and no range, Custom Vision's programs give
0..1."""


def is_standard_image(graph: Graph) -> bool:
    """Whether the file has ONNX's metadata of images."""
    return any(key in graph.metadata for key in STANDARD_PIXELS)


def standard_pixels(graph: Graph) -> dict[str, Any]:
    """What ONNX's metadata of images says of the input; nothing where the file has none.

    Raises:
        ValueError: It asks for pixels that are not made here.
    """
    if not is_standard_image(graph):
        return {}
    found: dict[str, Any] = {"scale": 1 / 255, **_PLAIN}
    for key, meanings in STANDARD_PIXELS.items():
        value = graph.metadata.get(key)
        if value is not None and value not in meanings:
            raise ValueError(f"its metadata {key} is {value!r}, and photos are given as {' or '.join(meanings)}")
        found.update(meanings.get(value or "", {}))
    return found


_PLACEMENTS: Mapping[str, str] = {
    "top-left": "top-left", "centre": "centre", "center": "centre", "stretch": "stretch", "crop": "crop",
}  # fmt: skip
_RANGES = {"0..255": 1.0, "0..1": 1 / 255}


def told_spec(graph: Graph, spec: InputSpec) -> InputSpec:
    """The input as the metadata `input` describes it, the rest as in `spec`.

    {"size": [h, w], "layout": "NCHW", "color": "RGB", "range": "0..1", "letterbox": "top-left, pad 114",
    "mean": [...], "std": [...]}: mean and deviation are of values in that range.

    Raises:
        ValueError: It cannot be read.
    """
    try:
        words = json.loads(graph.metadata["input"])
        changed: dict[str, Any] = {}
        if "size" in words:
            changed["height"], changed["width"] = (int(side) for side in words["size"])
        if "layout" in words:
            changed["layout"] = {"NCHW": "NCHW", "NHWC": "NHWC"}[words["layout"]]
        if "color" in words:
            changed["color"] = {"RGB": "RGB", "BGR": "BGR"}[words["color"]]
        if "letterbox" in words:
            placement, _, pad = str(words["letterbox"]).partition(", pad ")
            changed["placement"] = _PLACEMENTS[placement.strip()]
            changed["pad"] = int(pad or 114)
        if "range" in words:
            changed["scale"] = _RANGES[words["range"]]
        for key in ("mean", "std"):
            if key in words:
                red, green, blue = (float(value) for value in words[key])
                changed[key] = (red, green, blue)
        return replace(spec, **changed)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"its metadata `input` cannot be read ({error!r})") from None


def only(seen: Arrays, rank: int) -> npt.NDArray[Any] | None:
    """The one output, where there is only one and of this rank."""
    arrays = list(seen.values())
    return arrays[0] if len(arrays) == 1 and arrays[0].ndim == rank else None


def level_sizes(height: int, width: int, strides: tuple[int, ...]) -> list[tuple[int, int]]:
    """(rows, columns) of each level; a side that a stride does not divide is padded, so it counts up."""
    return [(-(-height // stride), -(-width // stride)) for stride in strides]


def grid_strides(height: int, width: int, anchors: int, *, each: int = 1) -> tuple[int, ...] | None:
    """The strides whose cells, `each` anchors a cell, make up this many anchors; None where none of the sets does."""
    for strides in STRIDE_SETS:
        if anchors == each * sum(rows * columns for rows, columns in level_sizes(height, width, strides)):
            return strides
    return None


@lru_cache(maxsize=32)
def grid(height: int, width: int, strides: tuple[int, ...]) -> tuple[Floats, Floats]:
    """Cell (n, 2) as x, y and stride (n, 1) of each anchor, levels in the order of the strides, rows first.

    Made once a size, as every photo asks for it: nobody may write into them.
    """
    cells, steps = [], []
    for stride, (rows, columns) in zip(strides, level_sizes(height, width, strides), strict=True):
        y, x = np.mgrid[:rows, :columns]
        cells.append(np.stack([x, y], axis=-1).reshape(-1, 2))
        steps.append(np.full((rows * columns, 1), stride))
    made = np.concatenate(cells).astype(np.float32), np.concatenate(steps).astype(np.float32)
    for array in made:
        array.flags.writeable = False
    return made


def best_class(boxes: Floats, scores: Floats, floor: float) -> Detections:
    """Each box with its best class: boxes (n, 4), scores (n, classes); those of at least the floor."""
    if not scores.shape[1]:  # a head that was shown nothing yet
        return Detections(boxes[:0], scores[:0].reshape(-1), np.zeros(0, np.int64))
    classes = scores.argmax(axis=1)
    best = scores[np.arange(len(scores)), classes]
    keep = best >= floor
    return Detections(boxes[keep], best[keep], classes[keep].astype(np.int64))


def from_centre(boxes: Floats) -> Floats:
    """Centre x, centre y, width, height -> x_min, y_min, x_max, y_max, over the last axis."""
    half = boxes[..., 2:4] / 2
    return np.concatenate([boxes[..., :2] - half, boxes[..., :2] + half], axis=-1).astype(np.float32)


def sides(spec: InputSpec) -> Floats:
    """Width, height, width, height of the input: what normalised boxes are multiplied with."""
    return np.array([spec.width, spec.height, spec.width, spec.height], np.float32)


def sigmoid(values: npt.NDArray[Any]) -> Floats:
    """1 / (1 + e^-x), without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * as_float32(values))), np.float32)


def softmax(values: npt.NDArray[Any]) -> Floats:
    """Over the last axis."""
    powers = np.exp(as_float32(values) - as_float32(values).max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), np.float32)


def is_share(values: npt.NDArray[Any]) -> bool:
    """Whether all values lie in [0, 1], as probabilities do and logits of a detector never all do."""
    return not values.size or bool(values.min() >= -1e-3 and values.max() <= 1 + 1e-3)
