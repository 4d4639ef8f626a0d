"""Base classes of layouts, and shared decoding: input size, anchor grids, box formats, best class per box."""

import ast
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.detection.box_voting import PlattCalibration
from ml_backend.detection.class_names import Background, parse_names
from ml_backend.detection.detections import Detections, Floats
from ml_backend.detection.onnx_graph import Arrays, Graph, as_float32
from ml_backend.detection.preprocess import InputSpec

# Input side in pixels where the graph leaves it open and the metadata has no `imgsz`.
DEFAULT_SIDE = 640

# Default IoU above which two boxes of a class are one object.
SUPPRESS_IOU = 0.45

# Strides of a detector's levels, the most common ones first.
STRIDE_SETS = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32), (16, 32))

# Pixel normalisation of networks pretrained on ImageNet.
IMAGENET: Mapping[str, Any] = {"scale": 1 / 255, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@dataclass(frozen=True)
class OutputReader:
    """A layout bound to one graph.

    Attributes:
        spec: Input format of the network.
        classes: Number of classes in the outputs; None: unknown.
        decode: (outputs, floor) -> one `Detections` per image, in input pixels, with scores of at least `floor`.
        outputs: Names of the outputs that `decode` reads; only these are computed.
        provides: Besides boxes: "turned", "masks", "keypoints"; or "classes" alone for classifiers.
        background: Which class may be the background: "first" where it is class 0, "any" where the graph does not tell.
        suppress_iou: IoU above which two boxes of a class are one object; None where the graph suppresses.
        calibrations: Of trained models: one per class for `fuse_candidates`; None: plain suppression.
        single_image: Whether a run takes one image, whatever batch the graph declares.
        keypoints: Keypoints per detection.
        embeddings: Output with frozen features of the candidates (b, n, d), whose indices are `Detections.rows`; empty:
            there is none.
        keypoint_names: Their names, where the layout tells them; empty: see `class_names.keypoint_names`.
        names: Class names of the family or the layout file, for files that have none.
    """

    spec: InputSpec
    classes: int | None
    decode: Callable[[Arrays, float], list[Detections]]
    outputs: tuple[str, ...]
    provides: frozenset[str] = field(default_factory=lambda: frozenset({"boxes"}))
    background: Background = "none"
    suppress_iou: float | None = SUPPRESS_IOU
    calibrations: tuple[PlattCalibration | None, ...] | None = None
    single_image: bool = False
    keypoints: int = 0
    embeddings: str = ""
    keypoint_names: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """One family of outputs.

    Attributes:
        recognise: (graph, trial outputs) -> why the graph has this layout, in words; None where it has not. Raises
            Misfit where the shapes match and the values do not.
        read: (graph, trial outputs) -> the layout bound to the graph. Raises ValueError, KeyError or IndexError where
            it does not match.
        pixels_vary: Whether its models differ in how images are shown, so that the usual way is an assumption.
    """

    recognise: Callable[[Graph, Arrays], str | None]
    read: Callable[[Graph, Arrays], OutputReader]
    pixels_vary: bool = False


def metadata_value(graph: Graph, key: str) -> Any:
    """Parse a metadata value: JSON, a Python literal as Ultralytics writes it (parsed, never evaluated), or text."""
    text = graph.metadata.get(key, "")
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    return text


def class_count(graph: Graph) -> int | None:
    """Number of class names in the metadata; None without names."""
    try:
        return len(parse_names(graph.metadata["names"]))
    except (KeyError, ValueError):
        return None


def image_size(graph: Graph) -> tuple[int, int]:
    """(height, width) of the graph's input; open sides come from the metadata's `imgsz`, else `DEFAULT_SIDE`."""
    sides = graph.image.shape[-3:] if graph.image else (None, None, None)
    height, width = sides[:2] if graph.channels_last else sides[1:]
    declared = metadata_value(graph, "imgsz")
    if not (
        isinstance(declared, list | tuple) and len(declared) == 2 and all(isinstance(side, int) for side in declared)
    ):
        declared = (DEFAULT_SIDE, DEFAULT_SIDE)
    return height or declared[0], width or declared[1]


def plain_spec(graph: Graph, **options: Any) -> InputSpec:
    """Build the input format from the graph's size, axes and dtype; pixel values are 0..255 unless options differ.

    Inputs of whole numbers take raw pixels, and one channel a grey image. The metadata `input` takes precedence over
    ONNX's `Image.` metadata, that over the operators at the start of the graph, and all over the options.

    Raises:
        ValueError: The metadata is unreadable, or requests an unsupported format; or the input is not for images.
    """
    if graph.channels not in {1, 3}:
        raise ValueError(f"its input has {graph.channels} channels, and images have 3 (RGB) or 1 (grey)")
    height, width = image_size(graph)
    if graph.image is not None and graph.image.dtype in WHOLE_NUMBERS:
        options |= {"scale": 1.0, **_PLAIN}
    elif not is_standard_image(graph):
        options |= graph.pixels
    if graph.channels == 1:
        options |= {"color": "GRAY", **_PLAIN}
    spec = InputSpec(
        height=height,
        width=width,
        layout="NHWC" if graph.channels_last else "NCHW",
        dtype=graph.image.dtype if graph.image else "float32",
        **{**options, **standard_pixels(graph)},
    )
    if (spec.color == "GRAY") != (graph.channels == 1):
        raise ValueError(f"its metadata says {spec.color} pixels, and its input has {graph.channels} channels")
    return apply_input_metadata(graph, spec) if "input" in graph.metadata else spec


# Types of inputs that take pixels as they are.
WHOLE_NUMBERS = frozenset({"uint8", "int32", "int64"})
_PLAIN: Any = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
# ONNX's image metadata (https://github.com/onnx/onnx/blob/main/docs/MetadataProps.md), as Custom Vision writes it: key
# -> value -> input options. Files with some of it and no range expect 0..1, as in Custom Vision's samples.
STANDARD_PIXELS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "Image.BitmapPixelFormat": {
        "Rgb8": {"color": "RGB"},
        "Bgr8": {"color": "BGR"},
        "Gray8": {"color": "GRAY"},
    },
    "Image.NominalPixelRange": {
        "NominalRange_0_255": {"scale": 1.0, **_PLAIN},
        "Normalized_0_1": {"scale": 1 / 255, **_PLAIN},
        "Normalized_1_1": {"scale": 1 / 127.5, **_PLAIN, "mean": (1.0, 1.0, 1.0)},
    },
    "Image.ColorSpaceGamma": {"SRGB": {}},
}


def is_standard_image(graph: Graph) -> bool:
    """Whether the graph has ONNX's image metadata."""
    return any(key in graph.metadata for key in STANDARD_PIXELS)


def standard_pixels(graph: Graph) -> dict[str, Any]:
    """Read input options from ONNX's image metadata; empty without it.

    Raises:
        ValueError: It requests an unsupported pixel format.
    """
    if not is_standard_image(graph):
        return {}
    options: dict[str, Any] = {"scale": 1 / 255, **_PLAIN}
    for key, meanings in STANDARD_PIXELS.items():
        value = graph.metadata.get(key)
        if value is not None and value not in meanings:
            raise ValueError(f"its metadata {key} is {value!r}, and only {' or '.join(meanings)} is supported")
        options.update(meanings.get(value or "", {}))
    return options


_PLACEMENTS: Mapping[str, str] = {
    "top-left": "top-left", "centre": "centre", "center": "centre", "stretch": "stretch", "crop": "crop",
}  # fmt: skip
# Range -> factor on pixel values, and what is subtracted then.
_RANGES = {"0..255": (1.0, 0.0), "0..1": (1 / 255, 0.0), "-1..1": (1 / 127.5, 1.0)}


def apply_input_metadata(graph: Graph, spec: InputSpec) -> InputSpec:
    """Override an input format by the metadata `input`.

    {"size": [h, w], "layout": "NCHW", "color": "RGB", "range": "0..1", "letterbox": "top-left, pad 114", "mean": [...],
    "std": [...]}: mean and standard deviation are of values in that range.

    Raises:
        ValueError: It cannot be read.
    """
    try:
        words = json.loads(graph.metadata["input"])
        grey = words.get("color") == "GRAY" and graph.channels == 3
        changed: dict[str, Any] = {}
        if "size" in words:
            changed["height"], changed["width"] = (int(side) for side in words["size"])
        if "layout" in words:
            changed["layout"] = {"NCHW": "NCHW", "NHWC": "NHWC"}[words["layout"]]
        if "color" in words and graph.channels == 3 and not grey:
            changed["color"] = {"RGB": "RGB", "BGR": "BGR"}[words["color"]]
        if "letterbox" in words:
            placement, _, pad = str(words["letterbox"]).partition(", pad ")
            changed["placement"] = _PLACEMENTS[placement.strip()]
            changed["pad"] = int(pad or 114)
        for key in ("mean", "std"):
            if key in words:
                red, green, blue = (float(value) for value in words[key])
                changed[key] = (red, green, blue)
        if "range" in words:
            changed["scale"], shift = _RANGES[words["range"]]
            red, green, blue = (value + shift for value in changed.get("mean", spec.mean))
            changed["mean"] = (red, green, blue)
        spec = replace(spec, **changed)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"its metadata `input` cannot be read ({error!r})") from None
    if grey:
        raise ValueError("its `input` says GRAY, and its graph takes 3 channels: give RGB or BGR")
    if spec.dtype in WHOLE_NUMBERS:
        if (spec.mean, spec.std) != tuple(_PLAIN.values()):
            raise ValueError(f"it takes whole numbers ({spec.dtype}), and its metadata `input` normalises pixels")
        return replace(spec, scale=1.0)
    return spec


def single_output(outputs: Arrays, rank: int) -> npt.NDArray[Any] | None:
    """The only output, where there is one of this rank; else None."""
    arrays = list(outputs.values())
    return arrays[0] if len(arrays) == 1 and arrays[0].ndim == rank else None


def level_sizes(height: int, width: int, strides: tuple[int, ...]) -> list[tuple[int, int]]:
    """(rows, columns) of each level; sides are rounded up, as padded by the network."""
    return [(-(-height // stride), -(-width // stride)) for stride in strides]


def grid_strides(height: int, width: int, anchors: int, *, anchors_per_cell: int = 1) -> tuple[int, ...] | None:
    """Find the strides whose cells add up to a number of anchors; None where no known set does.

    Args:
        height: Of the input, pixels.
        width: Of the input, pixels.
        anchors: Number of anchors in the output.
        anchors_per_cell: Anchors in each cell.
    """
    for strides in STRIDE_SETS:
        if anchors == anchors_per_cell * sum(rows * columns for rows, columns in level_sizes(height, width, strides)):
            return strides
    return None


@lru_cache(maxsize=32)
def grid(height: int, width: int, strides: tuple[int, ...]) -> tuple[Floats, Floats]:
    """Cells (n, 2) as x, y and strides (n, 1) of all anchors, float32, level by level in row-major order.

    Cached per size; the arrays are read-only.
    """
    cells, steps = [], []
    for stride, (rows, columns) in zip(strides, level_sizes(height, width, strides), strict=True):
        y, x = np.mgrid[:rows, :columns]
        cells.append(np.stack([x, y], axis=-1).reshape(-1, 2))
        steps.append(np.full((rows * columns, 1), stride))
    arrays = np.concatenate(cells).astype(np.float32), np.concatenate(steps).astype(np.float32)
    for array in arrays:
        array.flags.writeable = False
    return arrays


def best_class(boxes: Floats, scores: Floats, floor: float) -> Detections:
    """Assign each box its best class, and keep those with a score of at least `floor`; `rows` are indices of boxes.

    Args:
        boxes: (n, 4) float32 x_min, y_min, x_max, y_max.
        scores: (n, classes) float32 in [0, 1].
        floor: Minimum score.
    """
    if not scores.shape[1]:  # a head without classes
        return Detections(boxes[:0], scores[:0].reshape(-1), np.zeros(0, np.int64))
    classes = scores.argmax(axis=1)
    best = scores[np.arange(len(scores)), classes]
    keep = best >= floor
    return Detections(boxes[keep], best[keep], classes[keep].astype(np.int64), rows=np.flatnonzero(keep))


def cxcywh_to_xyxy(boxes: Floats) -> Floats:
    """Convert boxes (..., 4) from centre x, centre y, width, height to x_min, y_min, x_max, y_max; float32."""
    half = boxes[..., 2:4] / 2
    return np.concatenate([boxes[..., :2] - half, boxes[..., :2] + half], axis=-1).astype(np.float32)


def input_sides(spec: InputSpec) -> Floats:
    """Width, height, width, height of the input, (4,) float32: the scale of normalised boxes."""
    return np.array([spec.width, spec.height, spec.width, spec.height], np.float32)


def softmax(values: npt.NDArray[Any]) -> Floats:
    """Softmax over the last axis; float32."""
    exponentials = np.exp(as_float32(values) - as_float32(values).max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True), np.float32)


def in_unit_range(values: npt.NDArray[Any]) -> bool:
    """Whether all values lie in [0, 1] with a tolerance of 1e-3: probabilities do, a detector's logits do not."""
    return not values.size or bool(values.min() >= -1e-3 and values.max() <= 1 + 1e-3)


def is_whole(values: npt.NDArray[Any]) -> bool:
    """Whether all values are whole numbers, whatever their type."""
    return bool(np.all(values == np.round(values)))


# Operators that leave values as they are, or interpolate between them.
_PASSING = frozenset({
    "Cast", "Concat", "DequantizeLinear", "Flatten", "Identity", "QuantizeLinear", "Reshape", "Resize", "Slice",
    "Squeeze", "Transpose", "Unsqueeze", "Upsample",
})  # fmt: skip


def last_operator(graph: Graph, output: str) -> str:
    """The operator that computes the values of an output; empty where it is unknown."""
    return next((operator for operator in graph.nodes.path_to(output) if operator not in _PASSING), "")
