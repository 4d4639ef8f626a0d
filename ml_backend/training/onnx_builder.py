"""Builder that appends operations to an ONNX graph."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

_TYPES: Mapping[Any, int] = {np.float32: TensorProto.FLOAT, np.float64: TensorProto.DOUBLE}

# Opset from which ReduceMax takes its axes as an input.
AXES_AS_INPUT = 18


class GraphBuilder:
    """A copy of a model that operations are appended to.

    Operations are valid from opset 11 on: the model keeps the opset of its exporter.
    """

    def __init__(self, model: onnx.ModelProto, *, prefix: str) -> None:
        """Copy the model.

        Args:
            model: Stays unchanged.
            prefix: New tensors are named `labelloop.<prefix>.<number>`.
        """
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self._prefix = prefix
        self._used_names = {output for node in model.graph.node for output in node.output}
        self._used_names |= {tensor.name for tensor in model.graph.initializer}
        self._count = 0

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the graph's outputs."""
        return tuple(output.name for output in self.model.graph.output)

    @property
    def metadata(self) -> Mapping[str, str]:
        """The model's metadata."""
        return {entry.key: entry.value for entry in self.model.metadata_props}

    def new_name(self) -> str:
        """Return an unused tensor name."""
        while True:
            self._count += 1
            name = f"labelloop.{self._prefix}.{self._count}"
            if name not in self._used_names:
                return name

    def constant(self, value: npt.NDArray[Any]) -> str:
        """Add a constant tensor."""
        name = self.new_name()
        self.model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def add(self, operation: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Append an operation with one output; return the output's name."""
        output = name or self.new_name()
        self.model.graph.node.append(
            helper.make_node(operation, list(inputs), [output], name=self.new_name(), **attributes)
        )
        return output

    def reshape(self, tensor: str, shape: Sequence[int], *, name: str = "") -> str:
        """Reshape; 0 keeps a dimension, -1 infers it."""
        return self.add("Reshape", tensor, self.constant(np.array(shape, np.int64)), name=name)

    def transpose(self, tensor: str, axes: Sequence[int]) -> str:
        """Permute the axes."""
        return self.add("Transpose", tensor, perm=list(axes))

    def concat(self, tensors: Sequence[str], *, axis: int, name: str = "") -> str:
        """Concatenate tensors along an axis."""
        return self.add("Concat", *tensors, axis=axis, name=name)

    def cast(self, tensor: str, to: type, *, name: str = "") -> str:
        """Cast to np.float32 or np.float64."""
        return self.add("Cast", tensor, to=_TYPES[to], name=name)

    def to_float32(self, tensor: str) -> str:
        """Cast to float32."""
        return self.cast(tensor, np.float32)

    def columns(self, tensor: str, start: int, stop: int, *, name: str = "") -> str:
        """Slice `tensor[..., start:stop]` of three axes."""
        bounds = (self.constant(np.array([value], np.int64)) for value in (start, stop, 2))
        return self.add("Slice", tensor, *bounds, name=name)

    def reduce_max(self, tensor: str) -> str:
        """Maximum over the last axis: (b, n, k) -> (b, n, 1)."""
        opset = next((entry.version for entry in self.model.opset_import if entry.domain in {"", "ai.onnx"}), 0)
        if opset < AXES_AS_INPUT:
            return self.add("ReduceMax", tensor, axes=[2], keepdims=1)
        return self.add("ReduceMax", tensor, self.constant(np.array([2], np.int64)), keepdims=1)

    def rows(self, tensor: str, start: int, stop: int) -> str:
        """Slice `tensor[:, start:stop]`."""
        return self.add("Slice", tensor, *(self.constant(np.array([value], np.int64)) for value in (start, stop, 1)))

    def rename_output(self, old: str, new: str) -> None:
        """Rename a graph output inside the graph and out."""
        for node in self.model.graph.node:
            node.input[:] = [new if tensor == old else tensor for tensor in node.input]
            node.output[:] = [new if tensor == old else tensor for tensor in node.output]
        self._used_names.add(new)

    def release_name(self, name: str) -> None:
        """Rename a tensor of the graph where it has this name."""
        if name in self._used_names:
            self.rename_output(name, self.new_name())
            self._used_names.discard(name)

    def output(self, name: str, shape: Sequence[int | str]) -> None:
        """Declare a float32 tensor as an output of the graph."""
        self.model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)))

    def drop_outputs(self, *names: str) -> None:
        """Remove tensors from the graph's outputs."""
        remaining = [output for output in self.model.graph.output if output.name not in names]
        del self.model.graph.output[:]
        self.model.graph.output.extend(remaining)

    def fix_batch_to_one(self) -> None:
        """Set the batch axis of four-dimensional inputs to 1."""
        for tensor in self.model.graph.input:
            if len(tensor.type.tensor_type.shape.dim) == 4:
                tensor.type.tensor_type.shape.dim[0].dim_value = 1

    def set_metadata(self, **metadata: object) -> None:
        """Add metadata, as JSON where the value is not a string."""
        entries = {**self.metadata, **{k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}}
        del self.model.metadata_props[:]
        for key, value in entries.items():
            self.model.metadata_props.add(key=key, value=value)

    def build(self) -> onnx.ModelProto:
        """Return the model without operations and constants that no output needs."""
        graph = self.model.graph
        needed = {output.name for output in graph.output}
        reversed_nodes = []
        for node in reversed(graph.node):
            if needed & set(node.output):
                reversed_nodes.append(node)
                needed |= {*node.input, *_captured(node)}
        constants = [tensor for tensor in graph.initializer if tensor.name in needed]
        del graph.node[:]
        graph.node.extend(reversed(reversed_nodes))
        del graph.initializer[:]
        graph.initializer.extend(constants)
        del graph.value_info[:]
        return self.model


def _captured(node: onnx.NodeProto) -> set[str]:
    """Outer tensors that the branches of an If or the body of a Loop read."""
    names: set[str] = set()
    for attribute in node.attribute:
        for graph in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            for inner in graph.node:
                names |= {*inner.input, *_captured(inner)}
            names |= {output.name for output in graph.output}
    return names
