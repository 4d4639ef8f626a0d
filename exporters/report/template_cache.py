"""Keep compiled templates on disk, as Python keeps compiled modules: compiling takes longer than a small export."""

import sys
from contextlib import suppress
from pathlib import Path

from jinja2 import FileSystemBytecodeCache
from jinja2.bccache import Bucket


class TemplateCache(FileSystemBytecodeCache):
    """Compiled templates in the ``__pycache__`` of a folder; none where that cannot be written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "__pycache__"
        super().__init__(str(self._folder), "%s.jinja.cache")

    def dump_bytecode(self, bucket: Bucket) -> None:
        """Write a compiled template, unless Python is asked to write none."""
        if sys.dont_write_bytecode:
            return
        with suppress(OSError):
            self._folder.mkdir(exist_ok=True)
            super().dump_bytecode(bucket)

    def load_bytecode(self, bucket: Bucket) -> None:
        """Read a compiled template; one that is cut off or of another version is compiled again."""
        with suppress(OSError, EOFError, ValueError, TypeError):
            super().load_bytecode(bucket)
