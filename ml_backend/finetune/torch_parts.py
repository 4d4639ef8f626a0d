"""Find torch, and the converter that needs it; nothing is imported before `require_torch`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
import warnings
from typing import Any

from ml_backend.finetune.errors import TorchMissing

PARTS = ("torch", "onnx2pytorch")


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


def use_threads(threads: int) -> str:
    """Limit torch to a number of CPU threads; returns the device that it would train on: cuda or cpu.

    Raises:
        TorchMissing: The extra is not installed.
    """
    require_torch()
    import torch

    torch.set_num_threads(max(threads, 1))
    return "cuda" if torch.cuda.is_available() else "cpu"


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
