"""Tiny exports with the interfaces of the SAM family, which segment bright pixels in a box or near a click."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE, FINE, COARSE = 1024, 256, 64


@dataclass(frozen=True)
class Export:
    """The interface of one exporter's two files."""

    encoder_input: str
    image: tuple  # of the encoder's input
    scale: float  # of a bright pixel's value above the middle, which becomes 1
    middle: float
    stretched: bool = False
    batched: bool = False
    high_res: bool = False
    sized_masks: bool = False
    embedding: str = "image_embeddings"


EXPORTS = {
    "sam": Export("images", (1, 3, SIDE, SIDE), 2, 0),
    "sam, masks at the image's size": Export("x", (1, 3, SIDE, SIDE), 2, 0, sized_masks=True),
    "mobile-sam, raw pixels": Export("input_image", ("h", "w", 3), 100, 127),
    "sam2": Export("image", (1, 3, SIDE, SIDE), 2, 0, stretched=True, high_res=True, embedding="image_embed"),
    "efficient-sam": Export("batched_images", ("b", 3, "h", "w"), 0.4, 0.5, stretched=True, batched=True),
}


class Build:
    """Nodes of one graph."""

    def __init__(self):
        self.nodes, self.constants = [], []

    def add(self, op, *inputs, name=None, **attributes):
        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        name = name or f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, names, [name], **attributes))
        return name

    def constant(self, value):
        array = np.float32(value) if isinstance(value, int | float) else np.asarray(value)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def save(self, path: Path, inputs, outputs):
        def infos(tensors):
            return [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in tensors]

        graph = helper.make_graph(self.nodes, "sam", infos(inputs), infos(outputs), self.constants)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
        return path


FLOAT = TensorProto.FLOAT


def write_export(export: Export, folder: Path) -> tuple[Path, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    return _encoder(export, folder / "encoder.onnx"), _decoder(export, folder / "decoder.onnx")


def _encoder(export: Export, path: Path) -> Path:
    """Brightness on a grid of 64 x 64 cells, repeated in all 256 channels."""
    build = Build()
    values = export.encoder_input
    if len(export.image) == 3:
        values = build.add("Unsqueeze", build.add("Transpose", values, perm=[2, 0, 1]), np.array([0]))
    values = build.add("Div", build.add("Sub", values, export.middle), export.scale)
    if len(export.image) == 3:  # the graph pads
        sides = build.add("Shape", values, start=2)
        spare = build.add("Sub", np.array([SIDE, SIDE]), sides)
        values = build.add("Pad", values, build.add("Concat", np.zeros(6, np.int64), spare, axis=0))
    if export.batched:  # the graph stretches
        values = build.add("Resize", values, "", "", np.array([1, 3, SIDE, SIDE]), mode="linear")
    grey = build.add("ReduceMean", values, np.array([1]), keepdims=1)
    cells = build.add("AveragePool", grey, kernel_shape=[16, 16], strides=[16, 16])
    outputs = [(export.embedding, FLOAT, [1, 256, COARSE, COARSE])]
    build.add("Tile", cells, np.array([1, 256, 1, 1]), name=export.embedding)
    if export.high_res:
        for index, (channels, side) in enumerate(((32, 256), (64, 128))):
            name = f"high_res_feats_{index}"
            build.add("Expand", np.zeros((1, 1, 1, 1)), np.array([1, channels, side, side]), name=name)
            outputs.insert(index, (name, FLOAT, [1, channels, side, side]))
    return build.save(path, [(export.encoder_input, FLOAT, list(export.image))], outputs)


def _decoder(export: Export, path: Path) -> Path:
    """Three masks; the second has the best predicted IoU: bright pixels in the box and near a click."""
    build, prefix = Build(), "batched_" if export.batched else ""
    points, labels = f"{prefix}point_coords", f"{prefix}point_labels"
    inputs = [(export.embedding, FLOAT, [1, 256, COARSE, COARSE])]
    if export.high_res:
        inputs += [("high_res_feats_0", FLOAT, [1, 32, 256, 256]), ("high_res_feats_1", FLOAT, [1, 64, 128, 128])]
    many = ["b", "q"] if export.batched else [1]
    inputs += [(points, FLOAT, [*many, "n", 2]), (labels, FLOAT, [*many, "n"])]
    if not export.batched:
        inputs += [("mask_input", FLOAT, [1, 1, FINE, FINE]), ("has_mask_input", FLOAT, [1])]
    if export.batched or export.sized_masks:
        inputs.append(("orig_im_size", TensorProto.INT64 if export.batched else FLOAT, [2]))
    flat, flat_labels = build.add("Reshape", points, np.array([-1, 2])), build.add("Reshape", labels, np.array([-1]))
    if export.batched:  # image pixels -> stretched square
        size = build.add("Cast", "orig_im_size", to=FLOAT)
        wide = build.add("Gather", size, np.array([1, 0]))
        flat = build.add("Div", build.add("Mul", flat, float(SIDE)), wide)
    middles = (np.arange(FINE) + 0.5) * SIDE / FINE
    grid = np.stack(np.meshgrid(middles, middles), -1)[None].astype(np.float32)  # (1, 256, 256, 2)
    bright = build.add(
        "Resize", build.add("ReduceMean", export.embedding, np.array([1]), keepdims=1), "", "",
        np.array([1, 1, FINE, FINE]), mode="linear",
    )  # fmt: skip
    bright = build.add("Reshape", bright, np.array([FINE, FINE]))
    first, second = (_of(build, flat, flat_labels, label) for label in (2.0, 3.0))
    low = build.add("ReduceMin", build.add("Sub", grid, first), np.array([0, 3]), keepdims=0)
    high = build.add("ReduceMin", build.add("Sub", second, grid), np.array([0, 3]), keepdims=0)
    in_box = build.add("Div", build.add("Min", low, high), 100.0)
    near_click = build.add("Sub", 1.5, build.add("Div", _distance(build, flat, flat_labels, grid, 1.0), 150.0))
    excluded = build.add("Sub", build.add("Div", _distance(build, flat, flat_labels, grid, 0.0), 100.0), 1.0)
    inside = build.add("Where", _any(build, flat_labels, 2.0), in_box, near_click)
    mask = build.add("Min", build.add("Mul", bright, 3.0), inside)
    mask = build.add("Where", _any(build, flat_labels, 0.0), build.add("Min", mask, excluded), mask)
    three = build.add(
        "Concat", *(build.add("Unsqueeze", mask_, np.array([0])) for mask_ in _three(build, mask)), axis=0
    )
    lead = [1, 1, 3] if export.batched else [1, 3]
    low_res = build.add("Reshape", three, np.array([*lead, FINE, FINE]), name="low_res_masks")
    outputs = [("low_res_masks", FLOAT, [*lead, FINE, FINE])]
    if export.sized_masks:  # cropped and resized to the image; no other masks
        outputs = [_sized(build, low_res)]
    build.add("Reshape", np.array([0.2, 0.9, 0.4]), np.array(lead), name="iou_predictions")
    outputs.append(("iou_predictions", FLOAT, lead))
    return build.save(path, inputs, outputs)


def _three(build, mask):
    nothing = build.add("Sub", build.add("Mul", mask, 0.0), 5.0)
    return nothing, mask, build.add("Neg", nothing)


def _any(build, labels, label):
    return build.add(
        "Greater",
        build.add("ReduceMax", build.add("Cast", build.add("Equal", labels, label), to=FLOAT), keepdims=0),
        0.5,
    )


def _of(build, flat, labels, label):
    """The point with a label; far away without one."""
    chosen = build.add("Unsqueeze", build.add("Equal", labels, label), np.array([1]))
    fill = -1e6 if label == 2.0 else 1e6
    return build.add(
        "ReduceMax" if label == 2.0 else "ReduceMin", build.add("Where", chosen, flat, fill), np.array([0]), keepdims=1
    )


def _distance(build, flat, labels, grid, label):
    """Distance from each pixel to the nearest point with a label; huge without one."""
    apart = build.add("Sub", grid, build.add("Reshape", flat, np.array([-1, 1, 1, 2])))
    squared = build.add("ReduceSum", build.add("Mul", apart, apart), np.array([3]), keepdims=0)
    chosen = build.add("Reshape", build.add("Equal", labels, label), np.array([-1, 1, 1]))
    return build.add(
        "Sqrt", build.add("ReduceMin", build.add("Where", chosen, squared, 1e12), np.array([0]), keepdims=0)
    )


def _sized(build, low_res):
    size = build.add("Cast", "orig_im_size", to=TensorProto.FLOAT)
    longest = build.add("ReduceMax", size, keepdims=1)
    inner = build.add(
        "Cast", build.add("Round", build.add("Div", build.add("Mul", size, float(FINE)), longest)), to=TensorProto.INT64
    )
    part = build.add("Slice", low_res, np.array([0, 0]), inner, np.array([2, 3]))
    whole = build.add("Concat", np.array([1, 3]), build.add("Cast", "orig_im_size", to=TensorProto.INT64), axis=0)
    build.add("Resize", part, "", "", whole, mode="linear", name="masks")
    return ("masks", FLOAT, [1, 3, "h", "w"])
