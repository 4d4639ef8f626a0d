"""Owns opening a user's segmenter once in a process of its own, to say before anything is served that it cannot be.

A process of its own for the reason that `ml_backend.serving.smoke_test` gives.
"""

import subprocess
import sys
from pathlib import Path

import msgspec

from labelloop.service.settings import Settings
from ml_backend.errors import ModelBroken, ModelError


class _Answer(msgspec.Struct, frozen=True):
    error: str = ""
    fix: str = ""


def check_segmenter(settings: Settings, *, timeout_s: float = 300.0) -> str:
    """Opens what the settings name for smart tools.

    Args:
        settings: `smart_encoder` and `smart_decoder`.
        timeout_s: Longest time that it may take.

    Returns:
        The segmenter in words.

    Raises:
        ModelError: It cannot be served; the message says why, and the fix what to do.
    """
    encoder, decoder = settings.smart_encoder, settings.smart_decoder
    if encoder is None or decoder is None:
        return "the network that comes with labelloop"
    command = [sys.executable, "-m", "ml_backend.smart.check", str(encoder.expanduser()), str(decoder.expanduser())]
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout_s, check=False)
        answer = msgspec.json.decode(done.stdout.splitlines()[-1] if done.stdout else b"", type=_Answer)
    except subprocess.TimeoutExpired:
        raise ModelBroken(encoder, f"it was not loaded after {timeout_s:.0f} s") from None
    except msgspec.DecodeError:
        raise ModelBroken(encoder, f"loading it ended the process with status {done.returncode}") from None
    if answer.error:
        raise ModelError(answer.error, fix=answer.fix)
    return f"{encoder.name} and {decoder.name}"


def _main(encoder: str, decoder: str) -> None:
    from ml_backend.smart.sam import Sam

    try:
        Sam(Path(encoder), Path(decoder), threads=1)
        answer = _Answer()
    except ModelError as error:
        answer = _Answer(error.message, error.fix)
    print(msgspec.json.encode(answer).decode())


if __name__ == "__main__":
    _main(*sys.argv[1:])
