"""Owns what an ONNX file says of itself: its inputs, outputs and metadata, without running it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = Mapping[str, npt.NDArray[Any]]
"""What one run of a graph gave: output name -> array."""

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
}

AUXILIARY: Mapping[str, Callable[[int, int], npt.NDArray[Any]]] = {
    "orig_target_sizes": lambda height, width: np.array([width, height]),  # RT-DETR, D-FINE, DEIM
    "im_shape": lambda height, width: np.array([height, width]),  # PaddleDetection
    "scale_factor": lambda _height, _width: np.array([1, 1]),  # the same
    "pixel_mask": lambda _height, _width: np.array(1),  # transformers: no pixel is padding
}
"""Inputs beside the photo -> what they are given, so that boxes come in pixels of what the graph is shown."""


@dataclass(frozen=True)
class Tensor:
    """One input or output: its name, its shape (None where the graph leaves a dimension open) and its numpy type."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str

    def __str__(self) -> str:
        """`boxes [?, 3549, 4] float32`."""
        return f"{self.name} [{', '.join('?' if n is None else str(n) for n in self.shape)}] {self.dtype}"


@dataclass(frozen=True)
class Graph:
    """The face of an ONNX file."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def image(self) -> Tensor | None:
        """The input that takes the photo; None where there is not exactly one.

        The only one of four dimensions, or of three where the graph takes one photo without a batch.
        """
        inputs = [tensor for tensor in self.inputs if tensor.name not in AUXILIARY]
        for rank in (4, 3):
            images = [tensor for tensor in inputs if len(tensor.shape) == rank]
            if images:
                return images[0] if len(inputs) == 1 else None
        return None

    @property
    def batched(self) -> bool:
        """Whether the first axis of the input counts photos."""
        return self.image is not None and len(self.image.shape) == 4

    @property
    def channels_last(self) -> bool:
        """Whether the colours are the input's last axis."""
        sides = self.image.shape[-3:] if self.image else ()
        return bool(sides) and sides[2] == 3 and sides[0] != 3

    def feeds(self, height: int, width: int, count: int) -> Arrays:
        """What the inputs beside the photo are given; `AUXILIARY` says which are known.

        Args:
            height: Of the photos as the graph is shown them, pixels.
            width: The same.
            count: How many photos.
        """
        fed = {}
        for tensor in self.inputs:
            if tensor.name in AUXILIARY:
                value = AUXILIARY[tensor.name](height, width)
                shape = value.shape or tuple(
                    told or side for told, side in zip(tensor.shape[1:], (height, width), strict=False)
                )
                fed[tensor.name] = np.broadcast_to(value, (count, *shape)).astype(tensor.dtype)
        return fed

    @property
    def dynamic_batch(self) -> bool:
        """Whether one run takes as many photos as one likes."""
        return self.image is not None and self.batched and self.image.shape[0] is None

    def describe_outputs(self, seen: Arrays | None = None) -> str:
        """The outputs in words, with the shapes that a trial run gave where there was one."""
        if seen is None:
            return "; ".join(str(tensor) for tensor in self.outputs)
        return "; ".join(f"{name} {list(array.shape)} {array.dtype}" for name, array in seen.items())


def read_graph(session: Any) -> Graph:
    """The face of an `onnxruntime.InferenceSession`."""
    return Graph(
        inputs=tuple(_tensor(node) for node in session.get_inputs()),
        outputs=tuple(_tensor(node) for node in session.get_outputs()),
        metadata=dict(session.get_modelmeta().custom_metadata_map),
    )


def _tensor(node: Any) -> Tensor:
    shape = tuple(n if isinstance(n, int) and n > 0 else None for n in node.shape)
    return Tensor(name=node.name, shape=shape, dtype=_DTYPES.get(node.type, node.type))


def as_float32(array: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """The array as float32, the same object where it is that already (fp16 graphs give fp16 outputs)."""
    return array.astype(np.float32, copy=False)
