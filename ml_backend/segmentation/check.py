"""Load a user's segmenter once in a subprocess, to report errors before it is served.

The reason for the subprocess is given in `ml_backend.serving.smoke_test`.
"""

import subprocess
import sys
from pathlib import Path

import msgspec

from labelloop.service.settings import Settings
from ml_backend.errors import ModelBroken, ModelError, ModelMissing


class _Answer(msgspec.Struct, frozen=True):
    error: str = ""
    fix: str = ""


def check_segmenter(settings: Settings, *, timeout_s: float = 300.0) -> str:
    """Load the segmenter that the settings name.

    Args:
        settings: With `smart_encoder` and `smart_decoder`.
        timeout_s: Maximum time in seconds.

    Returns:
        A description of the segmenter.

    Raises:
        ModelError: It cannot be served; the message gives the reason, and `fix` the remedy.
    """
    encoder, decoder = settings.smart_encoder, settings.smart_decoder
    if encoder is None or decoder is None:
        return "the network included in labelloop"
    for setting, file in (("LABELLOOP_SMART_ENCODER", encoder), ("LABELLOOP_SMART_DECODER", decoder)):
        if not file.expanduser().is_file():
            raise ModelMissing(
                path=file, fix=f"Correct {setting}, or unset it and its pair: the included network is used then."
            )
    command = [
        sys.executable,
        "-m",
        "ml_backend.segmentation.check",
        str(encoder.expanduser()),
        str(decoder.expanduser()),
    ]
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout_s, check=False)
        answer = msgspec.json.decode(done.stdout.splitlines()[-1] if done.stdout else b"", type=_Answer)
    except subprocess.TimeoutExpired:
        raise ModelBroken(path=encoder, reason=f"it was not loaded after {timeout_s:.0f} s") from None
    except msgspec.DecodeError:
        raise ModelBroken(path=encoder, reason=f"loading it ended the process with status {done.returncode}") from None
    if answer.error:
        raise ModelError(answer.error, fix=answer.fix)
    return f"{encoder.name} and {decoder.name}"


def _main(encoder: str, decoder: str) -> None:
    from ml_backend.segmentation.sam import SamSegmenter

    try:
        SamSegmenter(Path(encoder), Path(decoder), threads=1)
        answer = _Answer()
    except ModelError as error:
        answer = _Answer(error.message, error.fix)
    print(msgspec.json.encode(answer).decode())


if __name__ == "__main__":
    _main(*sys.argv[1:])
