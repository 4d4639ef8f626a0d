"""What decoding costs a worker in memory, in a process of its own: options of malloc hold for a whole process."""

import ctypes
import subprocess
import sys

import pytest

DECODE = """
import io, resource
import numpy as np
from PIL import Image
from labelloop.service.media import load_image
from ml_backend.malloc import return_freed_memory

assert return_freed_memory()
photo = io.BytesIO()
pixels = np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)
Image.fromarray(pixels).save(photo, "JPEG", quality=90)

def faults(count):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        load_image(photo.getvalue(), max_side=416)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

faults(5)
print(faults(20) / 20)
before = resident()
large = [bytearray(8 * 2**20) for _ in range(8)]
del large
print(resident() - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_decoding_reuses_memory_and_large_blocks_are_returned():
    done = subprocess.run([sys.executable, "-c", DECODE], capture_output=True, text=True, check=True)
    faults, grown = map(float, done.stdout.split())
    assert faults < 200  # a new mapping for each image and copy: 700
    assert grown < 2**20
