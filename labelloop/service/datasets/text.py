"""Text and JSON of other tools as they come: with a byte order mark, in UTF-16, with Python's NaN; else `Flawed`."""

import codecs
import json
from typing import Any, TypeVar

import msgspec

from labelloop.service.datasets.errors import Flawed

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_T = TypeVar("_T")


def text_of(data: bytes) -> str:
    """The text of a file in UTF-8, or in UTF-16 or UTF-32 with their marks. Raises `Flawed`: it is none."""
    mark, encoding = next(((mark, name) for mark, name in _MARKS if data.startswith(mark)), (b"", "utf-8"))
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        raise Flawed(f"it is no text in UTF-8 (byte {len(mark) + error.start})") from None
    if "\0" in text:
        raise Flawed(f"it is no text (a zero at character {text.index(chr(0))})")
    return text


def lines_of(data: bytes) -> list[str]:
    """The lines of a text, stripped, without the empty ones. Raises `Flawed`."""
    return [line for each in text_of(data).splitlines() if (line := each.strip())]


def json_of(data: bytes, kind: type[_T] | Any = Any) -> Any:
    """The value of a JSON text as ``kind``. NaN and Infinity, which Python writes, are read as null.

    Raises:
        Flawed: It is no JSON, or another kind of value.
    """
    if any(data.startswith(mark) for mark, _ in _MARKS):
        data = text_of(data).encode()
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise Flawed(str(error)) from None
    except (msgspec.DecodeError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
    if b"NaN" in data or b"Infinity" in data:
        try:
            plain = json.loads(data, parse_constant=lambda _: None)
            return msgspec.json.decode(msgspec.json.encode(plain), type=kind)
        except (ValueError, RecursionError, OverflowError) as error:  # ValueError: also what msgspec raises
            reason = str(error) if isinstance(error, msgspec.ValidationError) else reason
    raise Flawed(reason)
