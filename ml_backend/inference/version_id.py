"""Model version string: returned by `/setup` and stored with every prediction.

When the two differ, Label Studio requests predictions again whenever a task is opened. The string is therefore a hash
of exactly the bytes that decide predictions: it is equal in every worker and after restarts, known before the model is
loaded, and changes with the model file, its name sidecars, its layout file, its `preprocessor_config.json`, a forced
layout, the version's thresholds and its heads.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

from ml_backend.checksums import file_checksum
from ml_backend.detection.class_names import sidecars
from ml_backend.errors import ModelMissing
from ml_backend.layouts.image_processor import processor_of
from ml_backend.layouts.layout_file import layout_file_of

# Increased when a release decodes an unchanged file differently.
REVISION = 2


def model_version(
    path: Path,
    *,
    layout: str = "",
    thresholds: Mapping[str, float] | None = None,
    heads: Mapping[str, bytes] | None = None,
) -> str:
    """Compute `<file name>-<12 hex digits>`, e.g. ``base-1f2e3d4c5b6a``.

    Args:
        path: The ONNX file; its external weights (`<file>.data`) count too.
        layout: The forced layout; empty where it is recognised.
        thresholds: Minimum score of pre-labels by class, where the version has its own.
        heads: Content of the file of each head, by kind, where the version has some.

    Raises:
        ModelMissing: The file does not exist or cannot be read.
    """
    digest = hashlib.sha256(f"labelloop {REVISION} {layout}\n".encode())
    if thresholds:
        digest.update(json.dumps(dict(sorted(thresholds.items()))).encode())
    for name, content in sorted((heads or {}).items()):
        digest.update(f"{name} {hashlib.sha256(content).hexdigest()}\n".encode())
    weights = path.with_name(f"{path.name}.data")
    try:
        declared = layout_file_of(path) if not layout else None
        more = filter(None, [declared, processor_of(path)])
        for file in (path, *([weights] if weights.is_file() else []), *sidecars(path), *more):
            digest.update(bytes.fromhex(file_checksum(file)))
    except OSError:
        raise ModelMissing(path=path) from None
    name = re.sub(r"[^A-Za-z0-9._]+", "-", path.stem).strip("-.") or "model"
    return f"{name}-{digest.hexdigest()[:12]}"
