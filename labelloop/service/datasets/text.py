"""Decode text, JSON and numbers of other tools: byte order marks, UTF-16, UTF-32, NaN; else `MalformedData`."""

import codecs
import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TypeVar

import msgspec

from labelloop.service.datasets.errors import MalformedData

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_T = TypeVar("_T")


def decode_text(data: bytes) -> str:
    """Decode UTF-8, or UTF-16 and UTF-32 with a byte order mark. Raises `MalformedData`."""
    mark, encoding = next(((mark, name) for mark, name in _BOMS if data.startswith(mark)), (b"", "utf-8"))
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        raise MalformedData(f"it is not UTF-8 text (byte {len(mark) + error.start})") from None
    if "\0" in text:
        raise MalformedData(f"it is not text (a null at character {text.index(chr(0))})")
    return text


def decode_lines(data: bytes) -> list[str]:
    """The stripped non-empty lines of a text. Raises `MalformedData`."""
    return [line for raw_line in decode_text(data).splitlines() if (line := raw_line.strip())]


def parse_float(text: str, limit: float) -> float:
    """Parse a number.

    Raises:
        MalformedData: ``not a number``, or ``out of range``: NaN, or an absolute value of at least ``limit``.
    """
    try:
        value = float(text)
    except ValueError:
        raise MalformedData("not a number") from None
    if not abs(value) < limit:
        raise MalformedData("out of range")
    return value


def parse_floats(texts: Sequence[str], limit: float) -> list[float]:
    """Parse numbers. Raises `MalformedData`, which names the first text that `parse_float` rejects."""
    with suppress(ValueError):
        values = list(map(float, texts))
        if all(abs(value) < limit for value in values):
            return values
    values = []
    for text in texts:
        try:
            values.append(parse_float(text, limit))
        except MalformedData as error:
            raise MalformedData(f"{text!r:.40} is {error}") from None
    return values


def decode_json(data: bytes, kind: type[_T] | Any = Any) -> Any:
    """Decode JSON as ``kind``. NaN and Infinity, which Python writes, are read as null.

    Raises:
        MalformedData: The data is not JSON or not of this type.
    """
    if any(data.startswith(mark) for mark, _ in _BOMS):
        data = decode_text(data).encode()
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise MalformedData(str(error)) from None
    except (msgspec.DecodeError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
    if b"NaN" in data or b"Infinity" in data:
        try:
            plain = json.loads(data, parse_constant=lambda _: None)
            return msgspec.json.decode(msgspec.json.encode(plain), type=kind)
        except (ValueError, RecursionError, OverflowError) as error:  # msgspec errors are ValueErrors
            reason = str(error) if isinstance(error, msgspec.ValidationError) else reason
    raise MalformedData(reason)
