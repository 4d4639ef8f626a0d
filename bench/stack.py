"""The whole loop, brought up for a bench by the command that users type."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from labelloop.service.settings import Settings
from labelloop.stack.ports import free_port

ROOT = Path(__file__).parents[1]


@contextmanager
def running_stack() -> Iterator[Settings]:
    """`labelloop up` in a home of its own for the length of the block; its settings. Label Studio is installed once."""
    shared = os.environ.get("LABELLOOP_HOME", str(ROOT / ".labelloop"))
    ports = [f"--{name}={free_port()}" for name in ("port", "ml-port", "qc-port")]
    command = [sys.executable, "-m", "labelloop.cli.main", "up", f"--label-studio={shared}/label-studio", *ports]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "up.log")
        with log.open("wb") as out:
            stack = subprocess.Popen(command, env=environment(Path(folder)), stdout=out, stderr=out)
        try:
            until = time.monotonic() + 600
            while b"The loop is up" not in log.read_bytes():
                if stack.poll() is not None or time.monotonic() > until:
                    raise SystemExit(f"The stack did not come up:\n{log.read_text()}")
                time.sleep(0.5)
            yield Settings(home=folder)
        finally:
            stack.send_signal(signal.SIGINT)
            stack.wait(60)


def environment(home: Path) -> dict[str, str]:
    """Of commands that work with this home."""
    return os.environ | {"LABELLOOP_HOME": str(home), "NO_PROXY": "localhost,127.0.0.1"}
