"""Owns what an ONNX file says of itself: its inputs, outputs and metadata, without running it."""

from __future__ import annotations

from collections.abc import Mapping
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
        """The input that takes the photo: the only one of four dimensions; None where there is not exactly one."""
        images = [tensor for tensor in self.inputs if len(tensor.shape) == 4]
        return images[0] if len(images) == 1 else None

    @property
    def dynamic_batch(self) -> bool:
        """Whether one run takes as many photos as one likes."""
        return self.image is not None and self.image.shape[0] is None

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
