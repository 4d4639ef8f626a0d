"""Write an ONNX detector whose outputs no built-in layout knows: red and blue blobs on a 256 x 256 image.

    python make_model.py blobs.onnx photo.png

It stands for a model of your own: two outputs, `places` with the centre of a blob (y first) and its sides, in shares of
the image, and `certainty` with a logit for each of two classes.
"""

import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageDraw

SIDE, CELL = 256, 16
CELLS = SIDE // CELL
BLOB = 48  # pixels


def graph() -> onnx.ModelProto:
    """Average colours of cells, and boxes of one size around their centres."""
    colours = np.array([[1.0, -0.5, -0.5], [-0.5, -0.5, 1.0]], np.float32)[:, :, None, None]
    blob = np.ones((2, 1, 3, 3), np.float32) / 9  # a blob covers three cells
    middle = (np.arange(CELLS, dtype=np.float32) + 0.5) / CELLS
    y, x = np.meshgrid(middle, middle, indexing="ij")
    places = np.stack([y, x, np.full_like(y, BLOB / SIDE), np.full_like(y, BLOB / SIDE)], -1).reshape(1, -1, 4)
    constants = {"colours": colours, "blob": blob, "all": places, "gain": np.float32(30), "bias": np.float32(0.35)}
    constants["shape"] = np.array([1, 2, -1], np.int64)
    nodes = [
        helper.make_node("Conv", ["image", "colours"], ["redness"]),
        helper.make_node("AveragePool", ["redness"], ["cells"], kernel_shape=[CELL] * 2, strides=[CELL] * 2),
        helper.make_node("Conv", ["cells", "blob"], ["smooth"], group=2, pads=[1, 1, 1, 1]),
        helper.make_node("Sub", ["smooth", "bias"], ["above"]),
        helper.make_node("Mul", ["above", "gain"], ["logits"]),
        helper.make_node("Reshape", ["logits", "shape"], ["by_class"]),
        helper.make_node("Transpose", ["by_class"], ["certainty"], perm=[0, 2, 1]),
        helper.make_node("Identity", ["all"], ["places"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIDE, SIDE])
    outputs = [
        helper.make_tensor_value_info("places", TensorProto.FLOAT, [1, CELLS * CELLS, 4]),
        helper.make_tensor_value_info("certainty", TensorProto.FLOAT, [1, CELLS * CELLS, 2]),
    ]
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    made = helper.make_graph(nodes, "blobs", [image], outputs, weights)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def photo() -> Image.Image:
    """A red disc and a blue square."""
    image = Image.new("RGB", (SIDE, SIDE), (120, 120, 120))
    draw = ImageDraw.Draw(image)
    draw.ellipse((40, 48, 88, 96), fill=(230, 20, 20))
    draw.rectangle((152, 160, 200, 208), fill=(20, 20, 230))
    return image


if __name__ == "__main__":
    model, picture = sys.argv[1:]
    onnx.save(graph(), model)
    photo().save(picture)
