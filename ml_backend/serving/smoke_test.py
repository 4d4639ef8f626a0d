"""Load and run a model once in a subprocess, before anything is served with it.

It takes a subprocess because ONNX Runtime does not survive a fork: workers forked after a session was opened crash on
exit.
"""

import subprocess
import sys
from pathlib import Path

import msgspec

from ml_backend.errors import ModelBroken, ModelError
from ml_backend.inference.detector import load_detector
from ml_backend.inference.session_cache import OnnxSessionCache


class ModelSummary(msgspec.Struct, frozen=True):
    """Version, output layout and classes of a model.

    Attributes:
        version: Its version string.
        layout: The layout of its outputs.
        why: Why that layout was chosen.
        names: Its class names.
        source: Where the names come from.
    """

    version: str
    layout: str
    why: str
    names: tuple[str, ...]
    source: str


class _Refused(msgspec.Struct, frozen=True):
    error: str
    fix: str


class _Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    good: ModelSummary | None = None
    bad: _Refused | None = None


def check_model(
    path: Path,
    *,
    layout: str = "",
    names: Path | None = None,
    session_folder: Path | None = None,
    timeout_s: float = 120.0,
) -> ModelSummary:
    """Load the model and run it once, in a subprocess.

    Args:
        path: The ONNX file.
        layout: Forced layout; empty: detected.
        names: File of its class names; None: from the model's metadata or the file next to it.
        session_folder: Where to cache the optimised session, so that workers load it faster.
        timeout_s: Longest time in seconds.

    Raises:
        ModelError: It cannot be served.
    """
    command = [
        sys.executable,
        "-m",
        "ml_backend.serving.smoke_test",
        str(path),
        layout,
        str(names or ""),
        str(session_folder or ""),
    ]
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout_s, check=False)
        answer = msgspec.json.decode(done.stdout.splitlines()[-1] if done.stdout else b"", type=_Answer)
    except subprocess.TimeoutExpired:
        raise ModelBroken(path=path, reason=f"it did not load within {timeout_s:.0f} s") from None
    except msgspec.DecodeError:  # the process died: out of memory, or a crash inside ONNX Runtime
        raise ModelBroken(path=path, reason=f"loading it ended the process with status {done.returncode}") from None
    if answer.good is None:
        refused = answer.bad or _Refused("The model cannot be served.", "")
        raise ModelError(refused.error, fix=refused.fix)
    return answer.good


def _main(path: str, layout: str, names: str, session_folder: str) -> None:
    folder = Path(session_folder) if session_folder else None
    if folder is not None:
        OnnxSessionCache(folder).invalidate()  # a check always loads the model itself
    try:
        detector = load_detector(
            Path(path), layout=layout, threads=1, names=Path(names) if names else None, cache_folder=folder
        )
    except ModelError as error:
        answer = _Answer(bad=_Refused(error.message, error.fix))
    else:
        classes = detector.names
        answer = _Answer(
            good=ModelSummary(detector.version, detector.layout, detector.why, classes.names, classes.source)
        )
    print(msgspec.json.encode(answer).decode())


if __name__ == "__main__":
    _main(*sys.argv[1:])
