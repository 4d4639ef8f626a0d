"""Templates of the report, compiled once: compiling takes longer than a small export."""

import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemBytecodeCache, FileSystemLoader, StrictUndefined
from jinja2.bccache import Bucket

from labelloop.service.charts import count as thousands


class TemplateCache(FileSystemBytecodeCache):
    """Compiled templates in the ``__pycache__`` of a folder, as of modules; none where that cannot be written."""

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


@cache
def environment() -> Environment:
    """Return the environment of the templates: everything is escaped."""
    folder = Path(__file__).parent
    created = Environment(
        loader=FileSystemLoader(folder),
        bytecode_cache=TemplateCache(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    created.filters["readable"] = _readable
    created.filters["thousands"] = thousands
    return created


def _readable(value: Any) -> str:
    """A value of the manifest as text."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_readable(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_readable(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
