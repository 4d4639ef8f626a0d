"""Mapped files outlive whoever reads them."""

import subprocess
import sys

AT_EXIT = """
import atexit, sys
import numpy as np
held = []
atexit.register(lambda: print(held[0].sum()))  # runs after whatever is registered later
from ml_backend.training.mapped_file import MappedFile
with open(sys.argv[1], "rb") as file:
    held.append(MappedFile(file).array(np.uint8, (4096,), 0))
"""


def test_arrays_are_readable_until_the_process_has_ended(tmp_path):
    (tmp_path / "ones").write_bytes(b"\x01" * 4096)
    command = [sys.executable, "-c", AT_EXIT, str(tmp_path / "ones")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "4096\n"), done.stderr
