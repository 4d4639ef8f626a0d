"""Find torch, and the converter that needs it; nothing is imported before `require_torch`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
import warnings
from typing import Any, Literal

from ml_backend.finetune.errors import GpuMissing, TorchMissing

PARTS = ("torch", "onnx2pytorch")

Device = Literal["auto", "cpu", "cuda"]


def torch_missing() -> str:
    """Why fine-tuning cannot run here, in words; empty where it can."""
    missing = [name for name in PARTS if importlib.util.find_spec(name) is None]
    return f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed" if missing else ""


def require_torch() -> None:
    """Check that the extra is installed.

    Raises:
        TorchMissing: It is not.
    """
    if reason := torch_missing():
        raise TorchMissing(missing=reason)


def choose_device(device: Device) -> Literal["cpu", "cuda"]:
    """The device to compute on; `auto`: a GPU where torch finds one.

    Raises:
        GpuMissing: It is `cuda`, and torch finds no GPU.
    """
    import torch

    if device == "cpu":
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    if device == "cuda":
        cpu_build = torch.version.cuda is None and torch.version.hip is None
        raise GpuMissing(reason="this torch is a CPU build" if cpu_build else "no driver, or no GPU that it shows")
    return "cpu"


def use_threads(threads: int) -> Literal["cpu", "cuda"]:
    """Limit torch to a number of CPU threads; returns the device that it would train on.

    Raises:
        TorchMissing: The extra is not installed.
    """
    require_torch()
    import torch

    torch.set_num_threads(max(threads, 1))
    return choose_device("auto")


def import_converter() -> Any:
    """Import `onnx2pytorch.ConvertModel`.

    onnx2pytorch imports torchvision for five operators that detectors without built-in suppression do not have. Where
    torchvision cannot be imported (PyPI's with a CPU build of torch misses its compiled part), stand-ins take the
    place of these names during the import, and graphs with such an operator do not convert.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            importlib.import_module("torchvision.ops")
        except (ImportError, RuntimeError, OSError):
            return _import_without_torchvision().ConvertModel
        return importlib.import_module("onnx2pytorch").ConvertModel


def _import_without_torchvision() -> Any:
    def purge() -> None:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]

    purge()
    try:
        for name, attributes in _TORCHVISION.items():
            sys.modules[name] = types.ModuleType(name)
            for attribute in attributes:
                setattr(sys.modules[name], attribute, None)
        return importlib.import_module("onnx2pytorch")
    finally:
        purge()


# What onnx2pytorch takes from torchvision.
_TORCHVISION = {
    "torchvision": (),
    "torchvision.ops": ("deform_conv2d", "roi_align", "roi_pool"),
    "torchvision.io": ("ImageReadMode", "decode_image"),
}
