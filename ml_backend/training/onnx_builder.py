"""Owns `Nodes`: appends operations to an ONNX graph, so that the places that do read as arithmetic."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

_TYPES: Mapping[Any, int] = {np.float32: TensorProto.FLOAT, np.float64: TensorProto.DOUBLE}

AXES_AS_INPUT = 18
"""Opset from which ReduceMax takes its axes as an input."""


class Nodes:
    """A copy of a model that operations are appended to.

    Operations are written as opset 11 and all later ones have them: the model keeps the opset of its exporter.
    """

    def __init__(self, model: onnx.ModelProto, *, prefix: str) -> None:
        """Copies the model.

        Args:
            model: Is left as it is.
            prefix: New tensors are named `labelloop.<prefix>.<number>`.
        """
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self._prefix = prefix
        self._taken = {output for node in model.graph.node for output in node.output}
        self._taken |= {tensor.name for tensor in model.graph.initializer}
        self._count = 0

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the graph's outputs."""
        return tuple(output.name for output in self.model.graph.output)

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the model says of itself."""
        return {entry.key: entry.value for entry in self.model.metadata_props}

    def fresh(self) -> str:
        """A tensor name that nothing has yet."""
        while True:
            self._count += 1
            name = f"labelloop.{self._prefix}.{self._count}"
            if name not in self._taken:
                return name

    def constant(self, value: npt.NDArray[Any]) -> str:
        """A constant tensor."""
        name = self.fresh()
        self.model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def add(self, operation: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Any operation with one output."""
        output = name or self.fresh()
        self.model.graph.node.append(
            helper.make_node(operation, list(inputs), [output], name=self.fresh(), **attributes)
        )
        return output

    def reshape(self, tensor: str, shape: Sequence[int], *, name: str = "") -> str:
        """0 keeps a dimension, -1 takes what is left."""
        return self.add("Reshape", tensor, self.constant(np.array(shape, np.int64)), name=name)

    def transpose(self, tensor: str, axes: Sequence[int]) -> str:
        """Axes in another order."""
        return self.add("Transpose", tensor, perm=list(axes))

    def concat(self, tensors: Sequence[str], *, axis: int, name: str = "") -> str:
        """Tensors side by side."""
        return self.add("Concat", *tensors, axis=axis, name=name)

    def cast(self, tensor: str, to: type, *, name: str = "") -> str:
        """To np.float32 or np.float64."""
        return self.add("Cast", tensor, to=_TYPES[to], name=name)

    def columns(self, tensor: str, start: int, stop: int, *, name: str = "") -> str:
        """`tensor[..., start:stop]` of three axes."""
        bounds = (self.constant(np.array([one], np.int64)) for one in (start, stop, 2))
        return self.add("Slice", tensor, *bounds, name=name)

    def greatest(self, tensor: str) -> str:
        """The largest number of each row of three axes: (b, n, k) -> (b, n, 1)."""
        opset = next((one.version for one in self.model.opset_import if one.domain in {"", "ai.onnx"}), 0)
        if opset < AXES_AS_INPUT:
            return self.add("ReduceMax", tensor, axes=[2], keepdims=1)
        return self.add("ReduceMax", tensor, self.constant(np.array([2], np.int64)), keepdims=1)

    def rows(self, tensor: str, start: int, stop: int) -> str:
        """`tensor[:, start:stop]`."""
        return self.add("Slice", tensor, *(self.constant(np.array([one], np.int64)) for one in (start, stop, 1)))

    def rename_output(self, old: str, new: str) -> None:
        """Gives a graph output another name inside the graph and out, so that its name is free."""
        for node in self.model.graph.node:
            node.input[:] = [new if one == old else one for one in node.input]
            node.output[:] = [new if one == old else one for one in node.output]
        self._taken.add(new)

    def free(self, name: str) -> None:
        """Gives a tensor of the graph another name where it has this one."""
        if name in self._taken:
            self.rename_output(name, self.fresh())
            self._taken.discard(name)

    def output(self, name: str, shape: Sequence[int | str]) -> None:
        """Declares a float32 tensor as an output of the graph."""
        self.model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)))

    def drop_outputs(self, *names: str) -> None:
        """Declares tensors as outputs no longer."""
        kept = [output for output in self.model.graph.output if output.name not in names]
        del self.model.graph.output[:]
        self.model.graph.output.extend(kept)

    def take_one(self) -> None:
        """Fixes the first axis of the inputs of four axes at one photo a run."""
        for tensor in self.model.graph.input:
            if len(tensor.type.tensor_type.shape.dim) == 4:
                tensor.type.tensor_type.shape.dim[0].dim_value = 1

    def tell(self, **metadata: object) -> None:
        """Writes metadata, as JSON where it is no text."""
        told = {**self.metadata, **{k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}}
        del self.model.metadata_props[:]
        for key, value in told.items():
            self.model.metadata_props.add(key=key, value=value)

    def close(self) -> onnx.ModelProto:
        """The model, without operations and constants that no output needs any more."""
        graph = self.model.graph
        needed = {output.name for output in graph.output}
        kept = []
        for node in reversed(graph.node):
            if needed & set(node.output):
                kept.append(node)
                needed |= {*node.input, *_captured(node)}
        constants = [tensor for tensor in graph.initializer if tensor.name in needed]
        del graph.node[:]
        graph.node.extend(reversed(kept))
        del graph.initializer[:]
        graph.initializer.extend(constants)
        del graph.value_info[:]
        return self.model


def _captured(node: onnx.NodeProto) -> set[str]:
    """Tensors of the outer graph that the branches of an If or the body of a Loop read."""
    names: set[str] = set()
    for attribute in node.attribute:
        for graph in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            for inner in graph.node:
                names |= {*inner.input, *_captured(inner)}
            names |= {output.name for output in graph.output}
    return names
