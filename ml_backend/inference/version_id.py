"""Owns the version string: the one truth that `/setup` answers and every prediction carries.

Label Studio asks for predictions again when the two differ, at every opening of a task. So the string is made from the
bytes that decide what is predicted and from nothing else: it is the same in every worker and after every restart, it is
known before the model is in memory, and it changes with the model file, with the names beside it, with a forced layout
and with thresholds that come with the model.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

from ml_backend.checksums import checksum_now
from ml_backend.detection.class_names import sidecars
from ml_backend.errors import ModelMissing

REVISION = 1
"""Raised when a release decodes an unchanged file otherwise than the one before it."""


def model_version(path: Path, *, layout: str = "", thresholds: Mapping[str, float] | None = None) -> str:
    """`<file name>-<12 hex digits>`, e.g. ``base-1f2e3d4c5b6a``.

    Args:
        path: The ONNX file; weights beside it (`<file>.data`) count too.
        layout: The layout that was forced; empty where it is recognised.
        thresholds: Lowest score of a pre-label by class, where the version has its own.

    Raises:
        ModelMissing: The file is not there or cannot be read.
    """
    digest = hashlib.sha256(f"labelloop {REVISION} {layout}\n".encode())
    if thresholds:
        digest.update(json.dumps(dict(sorted(thresholds.items()))).encode())
    weights = path.with_name(f"{path.name}.data")
    try:
        for file in (path, *([weights] if weights.is_file() else []), *sidecars(path)):
            digest.update(bytes.fromhex(checksum_now(file)))
    except OSError:
        raise ModelMissing(path) from None
    name = re.sub(r"[^A-Za-z0-9._]+", "-", path.stem).strip("-.") or "model"
    return f"{name}-{digest.hexdigest()[:12]}"
