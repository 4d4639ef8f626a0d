"""Which pixel values a graph expects, read from the operators that it applies to its input before anything else.

Exports with the normalisation inside begin with Sub, Div or the like by constants: they take raw pixels, or pixels in
0..1, and the preprocessing that is usual for the network must not be applied a second time.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

# Operators that leave the values as they are, and that only look at the shape.
_PASSING = frozenset({"Cast", "Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Resize"})
_LOOKING = frozenset({"Shape", "Size"})

# Start of the names of tensors that `ml_backend.training` adds to graphs.
_ADDED = "labelloop."

# Operators followed at most.
MAX_OPERATORS = 16

# Largest magnitude of normalised pixels; ImageNet's reach 2.7.
MAX_NORMALISED = 5.0

# Mean of red, green, blue of ImageNet in 0..1; other data sets have the same order.
_IMAGENET_MEAN = np.array([0.485, 0.456, 0.406])

Floats = npt.NDArray[np.float64]


def pixel_options(path: Path, image: str) -> Mapping[str, Any]:
    """Options of `InputSpec` that the first operators of a graph decide; empty where they decide nothing.

    Args:
        path: The ONNX file; empty where it cannot be parsed.
        image: Name of its image input.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load(path, load_external_data=False).graph
    except (OSError, DecodeError):
        return {}
    # The folder of the file itself: onnx follows no link to external values.
    factor, shift = _first_affine(graph, image, path.resolve().parent)
    return _options(factor, shift)


def _first_affine(graph: Any, image: str, folder: Path) -> tuple[Floats, Floats]:
    """Factor and shift, of one value or one a channel, of the operators before the first that is not affine."""
    constants = {weight.name: weight for weight in graph.initializer}
    for node in graph.node:
        for item in node.attribute if node.op_type == "Constant" else ():
            if item.name == "value":
                constants[node.output[0]] = item.t
    users: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in set(node.input):
            users.setdefault(name, []).append(node)
    factor: Floats = np.ones(1)
    shift: Floats = np.zeros(1)
    tensor = image
    for _ in range(MAX_OPERATORS):
        following = [
            node
            for node in users.get(tensor, ())
            if node.op_type not in _LOOKING and not node.output[0].startswith(_ADDED)
        ]
        if len(following) != 1:
            break
        node = following[0]
        if node.op_type not in _PASSING:
            changed = _applied(node, tensor, (factor, shift), constants, folder)
            if changed is None:
                break
            factor, shift = changed
        tensor = node.output[0]
    return factor, shift


def _applied(
    node: Any, tensor: str, affine: tuple[Floats, Floats], constants: Mapping[str, Any], folder: Path
) -> tuple[Floats, Floats] | None:
    """Factor and shift after an operator; None where it is not affine with constants of one value or one a channel."""
    if node.op_type not in {"Sub", "Add", "Mul", "Div"} or len(node.input) != 2:
        return None
    first = node.input[0] == tensor
    value = _constant(constants.get(node.input[1] if first else node.input[0]), folder)
    if value is None:
        return None
    factor, shift = affine
    if node.op_type == "Add":
        return factor, shift + value
    if node.op_type == "Mul":
        return factor * value, shift * value
    if node.op_type == "Sub":
        return (factor, shift - value) if first else (-factor, value - shift)
    return (factor / value, shift / value) if first and np.all(value != 0) else None


def _constant(tensor: Any, folder: Path) -> Floats | None:
    from onnx import numpy_helper
    from onnx.checker import ValidationError

    if tensor is None or int(np.prod(tensor.dims)) not in {1, 3}:
        return None
    try:
        return np.asarray(numpy_helper.to_array(tensor, str(folder)), np.float64).reshape(-1)
    except (ValueError, TypeError, OSError, ValidationError):  # no numbers, or its file is not there
        return None


def _options(factor: Floats, shift: Floats) -> Mapping[str, Any]:
    if np.allclose(factor, 1) and np.allclose(shift, 0):
        return {}
    factor, shift = np.broadcast_arrays(factor, shift)

    def most(value: float) -> float:
        return float(np.abs(np.stack([shift, factor * value + shift])).max())

    subtracts_mean = bool(np.allclose(factor, 1) and (shift < -50).all() and (shift > -200).all())
    if most(255) <= MAX_NORMALISED or subtracts_mean:
        full = 255.0
    elif most(1) <= MAX_NORMALISED or np.allclose(factor, 255):
        full = 1.0
    else:
        return {}
    options: dict[str, Any] = {"scale": full / 255 if full == 1 else 1.0, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    mean = -shift / factor / full
    if len(mean) == 3:
        for color, order in (("RGB", _IMAGENET_MEAN), ("BGR", _IMAGENET_MEAN[::-1])):
            if np.allclose(mean, order, atol=0.01):
                options["color"] = color
    return options
