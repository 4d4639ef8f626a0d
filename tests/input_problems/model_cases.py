"""Model files: what `labelloop models inspect` recognises, refuses, and says."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ml_backend.checksums import write_checksum
from tests.input_problems.case import Case
from tests.ml_backend.conftest import build_onnx
from tests.ml_backend.layout_cases import HEIGHT, NAMES, WIDTH, yolov5, yolov8
from tests.ml_backend.layouts.test_misfits import CORNERS, MISFITS, TORCHVISION, custom_vision

SECTION = "Models: `labelloop models inspect`"


def inspected(outputs: Mapping[str, object], **options: object) -> Callable[[Path], Sequence[str]]:
    """Builds a graph of these outputs and inspects it."""

    def make(folder: Path) -> Sequence[str]:
        options.setdefault("shape", ("batch", 3, HEIGHT, WIDTH))
        return ["models", "inspect", str(build_onnx(folder / "model.onnx", outputs, **options))]

    return make


def states(**metadata: str) -> Callable[[Path], Sequence[str]]:
    """Inspects a file of Custom Vision's with this metadata of images."""

    def make(folder: Path) -> Sequence[str]:
        file = custom_vision(lambda outputs, **more: build_onnx(folder / "model.onnx", outputs, **more), **metadata)
        return ["models", "inspect", str(file)]

    return make


def spoiled(change: Callable[[bytes], bytes], *, checksum: bool) -> Callable[[Path], Sequence[str]]:
    """Inspects a file whose bytes were changed."""

    def make(folder: Path) -> Sequence[str]:
        case = yolov8()
        file = build_onnx(folder / "model.onnx", case.outputs, **case.options)
        if checksum:
            write_checksum(file)
        file.write_bytes(change(file.read_bytes()))
        return ["models", "inspect", str(file)]

    return make


def replaced(content: bytes) -> Callable[[Path], Sequence[str]]:
    """Inspects a file of these bytes."""
    return spoiled(lambda _: content, checksum=False)


def flipped(data: bytes) -> bytes:
    """Another byte in the middle."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]


SHARES = {
    "boxes": CORNERS, "labels": np.array([1, 2, 3]), "scores": np.array([0.9, 0.8, 0.7]),
}  # fmt: skip

CASES = (
    *(
        Case(problem, "refused", inspected(outputs, weights=TORCHVISION), (said.split(".*")[-1].strip(),), 1)
        for problem, (outputs, said) in MISFITS.items()
    ),
    Case("a file cut short", "refused", spoiled(lambda data: data[:-100], checksum=False), ("cannot be served",), 1),
    Case("a file of nothing", "refused", replaced(b""), ("the file is empty",), 1),
    Case("a pointer of Git LFS", "refused", replaced(b"version https://git-lfs.github.com"), ("`git lfs pull`",), 1),
    Case("a checkpoint of PyTorch", "refused", replaced(b"PK\x03\x04"), ("PyTorch",), 1),
    Case("a model of TensorFlow Lite", "refused", replaced(b"....TFL3"), ("tf2onnx",), 1),
    Case(
        "boxes, labels and scores after suppression, of unknown origin",
        "refused",
        inspected({**SHARES, "boxes": CORNERS * 60, "labels": np.array([1, 2, 2])}),
        ("`first = 0` in `[classes]`",),
        1,
    ),
    Case("a byte flipped, its `.sha256` next to it", "refused", spoiled(flipped, checksum=True), ("sha256",), 1),
    Case(
        "another file, the old `.sha256` next to it", "refused", spoiled(lambda _: b"x", checksum=True), ("sha256",), 1
    ),
    Case("`Image.BitmapPixelFormat` `Bgr8`", "read", states(BitmapPixelFormat="Bgr8"), ("BGR 0..1",), 0),
    Case(
        "`Image.NominalPixelRange` `NominalRange_0_255`",
        "read",
        states(BitmapPixelFormat="Bgr8", NominalPixelRange="NominalRange_0_255"),
        ("BGR 0..255",),
        0,
    ),
    Case(
        "`Image.BitmapPixelFormat` `Gray8`",
        "refused",
        states(BitmapPixelFormat="Gray8"),
        ("its metadata says GRAY pixels, and its input has 3 channels",),
        1,
    ),
    Case(
        "`Image.ColorSpaceGamma` `Linear`",
        "refused",
        states(ColorSpaceGamma="Linear"),
        ("Image.ColorSpaceGamma is 'Linear'",),
        1,
    ),
    Case(
        "normalised boxes, without a batch",
        "read",
        inspected(SHARES, metadata={"names": NAMES}, shape=(1, 3, HEIGHT, WIDTH)),
        ("normalised by the input",),
        0,
    ),
    Case("names of another count", "refused", inspected(yolov5().outputs, metadata={"names": ["a"]}), ("matches",), 1),
)
