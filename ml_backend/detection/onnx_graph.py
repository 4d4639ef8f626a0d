"""Inputs, outputs and metadata of an ONNX graph, without a run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.detection.cut import CUT, ROWS, CutGrid
from ml_backend.detection.pixel_operators import pixel_options

# Output with frozen features of the whole image (b, g), which labelloop adds to graphs; no layout reads it.
IMAGE_FEATURES = "labelloop.image_features"

# Outputs of one run: name -> array.
Arrays = Mapping[str, npt.NDArray[Any]]

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
}
# Types that an image input may have.
DTYPES = frozenset(_DTYPES.values())

# Additional inputs and their values, chosen so that boxes come in pixels of the network's input.
AUXILIARY_INPUTS: Mapping[str, Callable[[int, int], npt.NDArray[Any]]] = {
    "orig_target_sizes": lambda height, width: np.array([width, height]),  # RT-DETR, D-FINE, DEIM
    "im_shape": lambda height, width: np.array([height, width]),  # PaddleDetection
    "scale_factor": lambda _height, _width: np.array([1, 1]),  # the same
    "pixel_mask": lambda _height, _width: np.array(1),  # transformers: no pixel is padding
}


@dataclass(frozen=True)
class Tensor:
    """An input or output: name, shape (None for open dimensions) and numpy dtype."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str

    def __str__(self) -> str:
        """Format as `boxes [?, 3549, 4] float32`."""
        return f"{self.name} [{', '.join('?' if n is None else str(n) for n in self.shape)}] {self.dtype}"


@dataclass(frozen=True)
class Nodes:
    """Nodes and weights of a graph by name, without values.

    Attributes:
        producers: Tensor -> operator that computes it, and the operator's inputs.
        weights: Names of the initializers.
    """

    producers: Mapping[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)
    weights: frozenset[str] = frozenset()

    def path_to(self, output: str, most: int = 16) -> tuple[str, ...]:
        """Operators that lead to an output, last first, along the first computed input of each."""
        operators: list[str] = []
        while output in self.producers and len(operators) < most:
            operator, inputs = self.producers[output]
            operators.append(operator)
            output = next((name for name in inputs if name in self.producers), "")
        return tuple(operators)


@dataclass(frozen=True)
class Graph:
    """Inputs, outputs and metadata of an ONNX file.

    Attributes:
        inputs: In the order of the file.
        outputs: In the order of the file, without `IMAGE_FEATURES`.
        metadata: The file's own.
        image_features: Whether there is an output `IMAGE_FEATURES`.
        path: The file, for `nodes`; None: unknown.
        cut: Its grid where its input may be a smaller rectangle; its shapes are those for the whole input.
        known_pixels: `pixels` of an earlier reading of the file, so that it is not parsed again; None: unknown.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)
    image_features: bool = False
    path: Path | None = None
    cut: CutGrid | None = None
    known_pixels: Mapping[str, Any] | None = None

    @cached_property
    def pixels(self) -> Mapping[str, Any]:
        """Input options that its first operators decide, read on first use; none where `input` is given."""
        if self.known_pixels is not None:
            return self.known_pixels
        if self.path is None or self.image is None or "input" in self.metadata:
            return {}
        return pixel_options(self.path, self.image.name)

    @cached_property
    def nodes(self) -> Nodes:
        """Nodes of the graph, parsed on first use; empty where the file cannot be parsed."""
        if self.path is None:
            return Nodes()
        import onnx
        from google.protobuf.message import DecodeError

        try:
            graph = onnx.load(self.path, load_external_data=False).graph
        except (OSError, DecodeError):
            return Nodes()
        producers = {name: (node.op_type, tuple(node.input)) for node in graph.node for name in node.output}
        return Nodes(producers, frozenset(weight.name for weight in graph.initializer))

    @property
    def image(self) -> Tensor | None:
        """The image input; None where there is not exactly one.

        It is the only input of four dimensions, or of three where the graph takes one image without a batch axis.
        """
        inputs = [tensor for tensor in self.inputs if tensor.name not in AUXILIARY_INPUTS]
        for rank in (4, 3):
            images = [tensor for tensor in inputs if len(tensor.shape) == rank]
            if images:
                return images[0] if len(inputs) == 1 else None
        return None

    @property
    def batched(self) -> bool:
        """Whether the input has a batch axis."""
        return self.image is not None and len(self.image.shape) == 4

    @property
    def channels_last(self) -> bool:
        """Whether the channels are the input's last axis."""
        sides = self.image.shape[-3:] if self.image else ()
        return bool(sides) and sides[2] in {1, 3} and sides[0] not in {1, 3}

    @property
    def channels(self) -> int:
        """Channels of the image input; 3 where the graph leaves them open."""
        sides = self.image.shape[-3:] if self.image else (3, None, None)
        return (sides[2] if self.channels_last else sides[0]) or 3

    def auxiliary_feeds(self, height: int, width: int, count: int) -> Arrays:
        """Build the feeds of the auxiliary inputs in `AUXILIARY_INPUTS`.

        Args:
            height: Of the network's input, pixels.
            width: Of the network's input, pixels.
            count: Batch size.
        """
        feeds = {}
        for tensor in self.inputs:
            if tensor.name in AUXILIARY_INPUTS:
                value = AUXILIARY_INPUTS[tensor.name](height, width)
                shape = value.shape or tuple(
                    dimension or side for dimension, side in zip(tensor.shape[1:], (height, width), strict=False)
                )
                feeds[tensor.name] = np.broadcast_to(value, (count, *shape)).astype(tensor.dtype)
        return feeds

    def describe_outputs(self, outputs: Arrays | None = None) -> str:
        """Describe the outputs, with the shapes of a trial run where there is one."""
        if outputs is None:
            return "; ".join(str(tensor) for tensor in self.outputs)
        return "; ".join(f"{name} {list(array.shape)} {array.dtype}" for name, array in outputs.items())


def read_graph(session: Any, path: Path | None = None) -> Graph:
    """Read the graph of an `onnxruntime.InferenceSession`; `path` is its file."""
    inputs = tuple(_tensor(node) for node in session.get_inputs() if node.name != ROWS)
    outputs = tuple(_tensor(node) for node in session.get_outputs())
    metadata = dict(session.get_modelmeta().custom_metadata_map)
    graph = Graph(
        inputs=inputs,
        outputs=tuple(tensor for tensor in outputs if tensor.name != IMAGE_FEATURES),
        metadata={key: value for key, value in metadata.items() if key != CUT},
        image_features=any(tensor.name == IMAGE_FEATURES for tensor in outputs),
        path=path,
    )
    return _closed(graph, CutGrid.parse(metadata[CUT])) if CUT in metadata else graph


def _closed(graph: Graph, cut: CutGrid) -> Graph:
    """A graph whose input was opened, with the shapes for its whole input."""
    image, last = graph.image, graph.channels_last
    assert image is not None
    sides = (cut.height, cut.width)
    shape = (image.shape[0], *sides, image.shape[3]) if last else (*image.shape[:2], *sides)
    return replace(
        graph,
        inputs=tuple(replace(tensor, shape=shape) if tensor is image else tensor for tensor in graph.inputs),
        outputs=tuple(replace(tensor, shape=cut.shapes.get(tensor.name, tensor.shape)) for tensor in graph.outputs),
        cut=cut,
    )


def _tensor(node: Any) -> Tensor:
    shape = tuple(n if isinstance(n, int) and n > 0 else None for n in node.shape)
    return Tensor(name=node.name, shape=shape, dtype=_DTYPES.get(node.type, node.type))


def as_float32(array: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Convert to float32 without a copy where possible (fp16 graphs output fp16)."""
    return array.astype(np.float32, copy=False)
