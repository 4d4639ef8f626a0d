"""Write zip archives in constant memory, with bytes that depend on the content alone, and read them back in order.

Format: APPNOTE.TXT 6.3 of PKWARE, with Zip64 for archives over 4 GiB or 65,535 files. The standard library's writer
holds about 600 bytes of memory per file and takes three times as long for small files.
"""

import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_LOCAL, _CENTRAL = struct.Struct("<IHHHHHIIIHH"), struct.Struct("<IHHHHHHIIIHHHHHII")
_END = struct.Struct("<IHHHHIIH")
_END64, _LOCATOR64 = struct.Struct("<IQHHIIQQQQ"), struct.Struct("<IIQI")
_STORED, _DEFLATED = 0, 8
_UTF8 = 0x800
_DATE = 0x21  # 1 January 1980, the first that the format knows
_UNIX, _MODE = 3 << 8, 0o100644 << 16
_MAX_32, _MAX_16 = 0xFFFFFFFF, 0xFFFF
# Smaller files are stored: compressing them costs more time than it saves bytes.
_COMPRESS_FROM = 1024
# Files are kilobytes: the usual buffer of 8 KB would be written for a few of them.
_BUFFER_BYTES = 1 << 18
# Window and memory of the compressor. With the defaults, clearing its memory takes five times as long as compressing a
# label file, for the same size.
_WINDOW_BITS, _MEMORY_LEVEL = -13, 5


class ZipWriter:
    """Writes an archive file by file.

    Args:
        path: The archive; it is replaced.

    Attributes:
        path: The archive.
        files: The number of files.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = 0
        self._file = path.open("wb", buffering=_BUFFER_BYTES)
        self._directory: BinaryIO = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115 - closed by `close`
        self._offset = 0

    def add(self, name: str, data: bytes, *, compress: bool = True) -> None:
        """Add a file; large text is compressed unless ``compress`` is false."""
        method, packed = _STORED, data
        if compress and len(data) >= _COMPRESS_FROM:
            compressor = zlib.compressobj(1, zlib.DEFLATED, _WINDOW_BITS, _MEMORY_LEVEL)
            packed = compressor.compress(data) + compressor.flush()
            if len(packed) < len(data):
                method = _DEFLATED
            else:
                packed = data
        self._start(name, method, zlib.crc32(data), len(packed), len(data))
        self._file.write(packed)

    def add_file(self, name: str, path: Path) -> None:
        """Add a file of any size, stored."""
        size, checksum = path.stat().st_size, 0
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                checksum = zlib.crc32(chunk, checksum)
            file.seek(0)
            self._start(name, _STORED, checksum, size, size)
            shutil.copyfileobj(file, self._file, 1 << 20)

    def flush(self) -> None:
        """Make the files readable by `read_files`."""
        if not self._file.closed:
            self._file.flush()

    def close(self) -> None:
        """Write the central directory."""
        if self._file.closed:
            return
        start, self._directory_size = self._offset, self._directory.tell()
        self._directory.seek(0)
        shutil.copyfileobj(self._directory, self._file, 1 << 20)
        self._directory.close()
        if self.files >= _MAX_16 or start + self._directory_size >= _MAX_32:
            record = (0x06064B50, _END64.size - 12, 45, 45, 0, 0, self.files, self.files, self._directory_size, start)
            self._file.write(_END64.pack(*record))
            self._file.write(_LOCATOR64.pack(0x07064B50, 0, start + self._directory_size, 1))
        files = min(self.files, _MAX_16)
        sizes = min(self._directory_size, _MAX_32), min(start, _MAX_32)
        self._file.write(_END.pack(0x06054B50, 0, 0, files, files, *sizes, 0))
        self._file.close()

    def discard(self) -> None:
        """Close the files; the archive is incomplete."""
        self._directory.close()
        self._file.close()

    def _start(self, name: str, method: int, checksum: int, packed: int, size: int) -> None:
        """Write the header of a file, and its entry in the directory."""
        raw = name.encode()
        flags = 0 if name.isascii() else _UTF8
        sizes, extra = (packed, size), b""
        if packed >= _MAX_32 or size >= _MAX_32:
            sizes, extra = (_MAX_32, _MAX_32), struct.pack("<HHQQ", 1, 16, size, packed)
        needed = 45 if extra else 20
        head = (needed, flags, method, 0, _DATE, checksum, *sizes, len(raw))
        self._file.write(_LOCAL.pack(0x04034B50, *head, len(extra)) + raw + extra)
        start, at = self._offset, self._offset
        self._offset += _LOCAL.size + len(raw) + len(extra) + packed
        if start >= _MAX_32:
            needed, at = 45, _MAX_32
            places = struct.pack("<Q", start)
            extra = struct.pack("<HH", 1, max(0, len(extra) - 4) + 8) + extra[4:] + places
        entry = _CENTRAL.pack(
            0x02014B50, _UNIX | 45, needed, *head[1:], len(extra), 0, 0, 0, _MODE, at
        )  # comment, disk and internal attributes are empty
        self._directory.write(entry + raw + extra)
        self.files += 1


def read_files(path: Path, files: int) -> Iterator[tuple[str, bytes]]:
    """Yield the name and content of the first files of an archive of `ZipWriter`, also of one not closed yet."""
    with path.open("rb", buffering=_BUFFER_BYTES) as file:
        for _ in range(files):
            *_, method, _time, _date, _crc, packed, size, name_bytes, extra_bytes = _LOCAL.unpack(
                file.read(_LOCAL.size)
            )
            name = file.read(name_bytes).decode()
            extra = file.read(extra_bytes)
            if extra:
                size, packed = struct.unpack("<QQ", extra[4:20])
            data = file.read(packed)
            yield name, zlib.decompress(data, -15, size) if method == _DEFLATED else data
