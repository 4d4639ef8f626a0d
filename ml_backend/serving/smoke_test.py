"""Owns opening a model once in a process of its own, to say what it is before anything is served with it.

A process of its own, because ONNX Runtime does not survive a fork: a server that opened a session before it forked its
workers would see them crash when they end.
"""

import subprocess
import sys
from pathlib import Path

import msgspec

from ml_backend.errors import ModelBroken, ModelError
from ml_backend.inference.detector import load_detector
from ml_backend.inference.session_cache import OnnxSessionCache


class Checked(msgspec.Struct, frozen=True):
    """What a model is.

    Attributes:
        version: Its version string.
        layout: The layout of its outputs, and `why` it was chosen.
        names: Its classes, and `source`, where their names were found.
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
    good: Checked | None = None
    bad: _Refused | None = None


def check_model(
    path: Path, *, layout: str = "", names: Path | None = None, kept: Path | None = None, timeout_s: float = 120.0
) -> Checked:
    """Opens the model and tries it once.

    Args:
        path: The ONNX file.
        layout: Forced layout; empty: recognised.
        names: File of its class names; None: those in the model, or beside it.
        kept: Folder in which its opening is kept, so that the workers open it in a fraction of the time.
        timeout_s: Longest time that it may take.

    Raises:
        ModelError: It cannot be served; the message says why, and the fix what to do.
    """
    command = [
        sys.executable,
        "-m",
        "ml_backend.serving.smoke_test",
        str(path),
        layout,
        str(names or ""),
        str(kept or ""),
    ]
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout_s, check=False)
        answer = msgspec.json.decode(done.stdout.splitlines()[-1] if done.stdout else b"", type=_Answer)
    except subprocess.TimeoutExpired:
        raise ModelBroken(path, f"it was not loaded after {timeout_s:.0f} s") from None
    except msgspec.DecodeError:  # it took the process with it: killed for memory, or a fault inside ONNX Runtime
        raise ModelBroken(path, f"loading it ended the process with status {done.returncode}") from None
    if answer.good is None:
        refused = answer.bad or _Refused("The model cannot be served.", "")
        raise ModelError(refused.error, fix=refused.fix)
    return answer.good


def _main(path: str, layout: str, names: str, kept: str) -> None:
    folder = Path(kept) if kept else None
    if folder is not None:
        OnnxSessionCache(folder).invalidate()  # a check opens and tries in earnest
    try:
        found = load_detector(Path(path), layout=layout, threads=1, names=Path(names) if names else None, kept=folder)
    except ModelError as error:
        answer = _Answer(bad=_Refused(error.message, error.fix))
    else:
        classes = found.names
        answer = _Answer(good=Checked(found.version, found.layout, found.why, classes.names, classes.source))
    print(msgspec.json.encode(answer).decode())


if __name__ == "__main__":
    _main(*sys.argv[1:])
