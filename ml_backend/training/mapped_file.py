"""A file mapped into memory read-only, without an open file descriptor.

`mmap.mmap` keeps a descriptor per mapping until Python 3.13, and a process may open 1024 files.
"""

import ctypes
import mmap
import os
import weakref
from functools import cache
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt


class MappedFile:
    """The bytes of a file; the file may be deleted meanwhile, but must not shrink."""

    def __init__(self, file: BinaryIO) -> None:
        """Map an open file, which may be closed then.

        Raises:
            OSError: It is empty, or cannot be mapped.
        """
        self.size = os.fstat(file.fileno()).st_size
        address = _libc().mmap(None, self.size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
        if address == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), "the file cannot be mapped")
        self._address = address
        # Arrays refer to the buffer, so that the mapping lives as long as the last of them.
        self._buffer = (ctypes.c_char * self.size).from_address(address)
        unmap = weakref.finalize(self._buffer, _libc().munmap, address, self.size)
        unmap.atexit = False  # arrays may still be read while the process ends; the system unmaps it then

    def array(self, dtype: npt.DTypeLike, shape: tuple[int, ...], offset: int) -> npt.NDArray[Any]:
        """A read-only array on the bytes from `offset` on."""
        count = int(np.prod(shape, dtype=np.int64))
        array: npt.NDArray[Any] = np.frombuffer(memoryview(self._buffer), dtype, count, offset).reshape(shape)
        array.flags.writeable = False
        return array

    def release(self) -> None:
        """Take its pages out of this process; the next access maps them again, mostly from the system's file cache."""
        _libc().madvise(self._address, self.size, mmap.MADV_DONTNEED)


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    libc.mmap.restype, libc.mmap.argtypes = pointer, [pointer, size, number, number, number, ctypes.c_long]
    libc.munmap.argtypes, libc.madvise.argtypes = [pointer, size], [pointer, size, number]
    return libc
