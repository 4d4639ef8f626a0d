"""Fixtures of the ML backend's tests: ONNX graphs made on the spot, photos of scikit-image, a client of the app."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from labelloop.service.media import DecodedImage, MediaError, MediaMissing
from labelloop.service.settings import Settings
from ml_backend.server.app import create_app

SHARED = Path(__file__).parents[3] / "shared"
BOXES = """<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">
<Label value="Cat"/><Label value="Person"/><Label value="Car"/></RectangleLabels></View>"""


def build_onnx(
    path: Path,
    outputs: Mapping[str, np.ndarray],
    *,
    shape: Sequence[int | str] = ("batch", 3, 64, 96),
    metadata: Mapping[str, object] | None = None,
    dtype: int = TensorProto.FLOAT,
    extra_inputs: Mapping[str, tuple[int, Sequence[int | str]]] | None = None,
    text_head: bool = False,
    weights: Sequence[str] = (),
    last: str = "",
    only_unlike: bool = False,
) -> Path:
    """A graph whose outputs are these arrays (1, ...), repeated for every photo of the batch, whatever it shows.

    The input is summed up and multiplied by zero, so that the graph cannot be run without a photo of the right size.
    `extra_inputs` are inputs besides the image: name -> type and shape; they are summed up in the same way. With
    `text_head` outputs pass two transposed convolutions, which keep them, and a sigmoid. `weights` are names of weights
    that nothing uses, and `last` an operator that outputs pass last. With `only_unlike` rows (n, ...) appear only on
    images that are not of one colour, as of a network that detects nothing on the trial's grey image.
    """
    nodes = [helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT)]
    constants = [numpy_helper.from_array(np.zeros(1, np.float32), "zero")]
    constants.append(numpy_helper.from_array(np.arange(len(shape))[-3:], "axes"))
    nodes.append(helper.make_node("ReduceSum", ["pixels", "axes"], ["summed"], keepdims=1))
    nodes.append(helper.make_node("Mul", ["summed", "zero"], ["nothing"]))
    nothing, inputs = "nothing", [helper.make_tensor_value_info("images", dtype, list(shape))]
    for name, (kind, sides) in (extra_inputs or {}).items():
        inputs.append(helper.make_tensor_value_info(name, kind, list(sides)))
        nodes.append(helper.make_node("Cast", [name], [f"{name}.real"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("ReduceSum", [f"{name}.real"], [f"{name}.sum"], keepdims=0))
        nodes.append(helper.make_node("Mul", [f"{name}.sum", "zero"], [f"{name}.zero"]))
        nodes.append(helper.make_node("Add", [nothing, f"{name}.zero"], [f"{name}.nothing"]))
        nothing = f"{name}.nothing"
    constants += [numpy_helper.from_array(np.zeros(1, np.float32), name) for name in weights]
    if only_unlike:
        rows = len(next(iter(outputs.values())))
        constants.append(numpy_helper.from_array(np.full(rows, 0.01, np.float32), "least"))
        nodes.append(helper.make_node("ReduceMax", ["pixels"], ["most"], keepdims=0))
        nodes.append(helper.make_node("ReduceMin", ["pixels"], ["fewest"], keepdims=0))
        nodes.append(helper.make_node("Sub", ["most", "fewest"], ["spread"]))
        nodes.append(helper.make_node("Greater", ["spread", "least"], ["unlike"]))
    infos = []
    for name, array in outputs.items():
        value = np.asarray(array)
        whole = (np.issubdtype(value.dtype, np.integer) and value.ndim < 3) or value.dtype == np.float16
        kind = helper.np_dtype_to_tensor_dtype(value.dtype) if whole else TensorProto.FLOAT
        constants.append(numpy_helper.from_array(value if whole else value.astype(np.float32), f"{name}.value"))
        constants.append(numpy_helper.from_array(np.array([-1] + [1] * (value.ndim - 1)), f"{name}.rank"))
        nodes.append(helper.make_node("Reshape", [nothing, f"{name}.rank"], [f"{name}.shaped"]))
        nodes.append(helper.make_node("Cast", [f"{name}.shaped"], [f"{name}.nothing_"], to=kind))
        final = f"{name}.in" if text_head or last or only_unlike else name
        nodes.append(helper.make_node("Add", [f"{name}.value", f"{name}.nothing_"], [final]))
        if last:
            nodes.append(helper.make_node(last, [final], [name]))
        if only_unlike:
            nodes.append(helper.make_node("Compress", [final, "unlike"], [name], axis=0))
        if text_head:
            kernel = np.ones((1, 1, 1, 1), value.dtype if whole else np.float32)
            constants.append(numpy_helper.from_array(kernel, f"{name}.kernel"))
            nodes.append(helper.make_node("ConvTranspose", [f"{name}.in", f"{name}.kernel"], [f"{name}.up"]))
            nodes.append(helper.make_node("ConvTranspose", [f"{name}.up", f"{name}.kernel"], [f"{name}.upper"]))
            nodes.append(helper.make_node("Sigmoid", [f"{name}.upper"], [name]))
        first = shape[0] if value.ndim and value.shape[0] == 1 and len(shape) == 4 else f"{name}.n"
        infos.append(helper.make_tensor_value_info(name, kind, [first, *value.shape[1:]]))
    graph = helper.make_graph(nodes, "tiny", inputs, infos, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    for key, value in (metadata or {}).items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value if isinstance(value, str) else json.dumps(value)
    onnx.save(model, path)
    return path


@pytest.fixture
def make_onnx(tmp_path) -> Callable[..., Path]:
    """make_onnx(outputs, name="tiny.onnx", **build_onnx's) -> the file."""
    return lambda outputs, name="tiny.onnx", **options: build_onnx(tmp_path / name, outputs, **options)


@pytest.fixture
def labelloop_model(make_onnx) -> Callable[..., Path]:
    """A model of the layout `labelloop`, input 96 x 64: by default a cat, a person, and a car that just misses 0.3."""

    def make(
        boxes=((10, 8, 30, 24), (40, 16, 80, 56), (0, 0, 20, 20)),
        objectness=(0.9, 0.8, 0.5),
        scores=((0.9, 0.1, 0.0), (0.2, 1.0, 0.1), (0.0, 0.1, 0.5)),
        names=("cat", "person", "car"),
        **options,
    ):
        logged = {
            "size": [64, 96],
            "layout": "NCHW",
            "color": "RGB",
            "range": "0..255",
            "letterbox": "top-left, pad 114",
        }
        outputs = {"boxes": [boxes], "objectness": [objectness], "scores": [scores]}
        metadata = {"names": list(names), "input": logged}
        return make_onnx(outputs, metadata=metadata, **options)

    return make


class Album:
    """Photos by address, and errors by address; counts what was asked."""

    def __init__(self, photos: Mapping[str, np.ndarray | MediaError]) -> None:
        self.photos = dict(photos)
        self.asked: list[tuple[str, int | None]] = []

    def photo(self, url: str, *, task_id: int | None = None, max_side: int | None = None, **_: object) -> DecodedImage:
        self.asked.append((url, task_id))
        result = self.photos.get(url, MediaMissing(url, "there is no such image"))
        if isinstance(result, Exception):
            raise result
        return DecodedImage(result, result.shape[1], result.shape[0])


@pytest.fixture
def album() -> Callable[..., Album]:
    """album(address=array | error, ...) -> where the app gets its photos from."""
    return lambda photos=None, **more: Album({**(photos or {}), **more})


@pytest.fixture
def client_of(tmp_path, wait_until) -> Callable[..., object]:
    """client_of(model, photos, **settings): a client of the app with its model in memory."""

    def make(model=None, photos=None, *, loaded=True, **options):
        settings = Settings(home=tmp_path / "home", model=model, **options)
        client = create_app(settings, photos=photos if photos is not None else Album({})).test_client()
        if loaded:
            wait_until(lambda: "model" in client.get("/ready").json["checks"] and _settled(client))
        return client

    return make


def _settled(client) -> bool:
    return "still being loaded" not in client.get("/ready").json["checks"]["model"]


@pytest.fixture
def boxes_config() -> str:
    """A label config with labels Cat, Person and Car for rectangles."""
    return BOXES


@pytest.fixture(scope="session")
def astronaut() -> np.ndarray:
    from skimage import data

    return data.astronaut()


@pytest.fixture(scope="session")
def chelsea() -> np.ndarray:
    from skimage import data

    return data.chelsea()


@pytest.fixture(scope="session")
def shared() -> Path:
    """Development material next to the checkout; what needs it is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the development material in {SHARED}")
    return SHARED
