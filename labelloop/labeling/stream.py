"""A file of tasks, one task at a time: a JSON array (Label Studio's export) or JSON lines, in flat memory.

An array is cut where its braces close, found by numpy in blocks: no task is decoded before it is asked for, and none is
kept. Each piece is then decoded by itself, which also keeps the garbage collector's cost from growing with the file.
"""

import re
from collections.abc import Iterator
from typing import BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from labelloop.labeling.errors import MalformedTask
from labelloop.labeling.task import Task, read_task

_BLOCK = 1 << 18
_BOM = b"\xef\xbb\xbf"
_ESCAPE = re.compile(rb"\\.", re.DOTALL)
_SURROGATES = re.compile(  # a whole character, a half, or any other escape
    rb"\\(?:(u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)
_BETWEEN = b" \t\n\r\v\f,[]"
_OPEN, _CLOSE, _QUOTE = ord("{"), ord("}"), ord('"')


def iter_tasks(file: BinaryIO) -> Iterator[Task]:
    """The tasks of a file, in its order.

    Args:
        file: Open for reading bytes, at its beginning: a JSON array of tasks, JSON lines, or a single task.

    Raises:
        MalformedTask: A task cannot be read, or the file ends in the middle of one. To go on after a task that cannot
            be read, take `iter_raw_tasks` and decode each with `read_task`.
    """
    for raw in iter_raw_tasks(file):
        yield read_task(raw)


def iter_raw_tasks(file: BinaryIO) -> Iterator[bytes]:
    """The JSON text of each task of a file, not decoded. Takes what `iter_tasks` takes.

    Raises:
        MalformedTask: The file is no JSON between its objects, or ends in the middle of one.
    """
    head = file.read(_BLOCK)
    head = head.removeprefix(_BOM)
    start = head.lstrip()[:1]
    if start not in {b"", b"[", b"{"}:
        raise MalformedTask(None, "", "expected a JSON array of tasks, or a task a line")
    if start == b"{" and _is_lines(head):
        yield from _lines(head, file)
    else:
        yield from _objects(head, file, array=start == b"[")


def _is_lines(head: bytes) -> bool:
    """Whether a file that starts with an object has one a line, rather than one written over several lines."""
    first, newline, _ = head.lstrip().partition(b"\n")
    if not newline:
        return False
    try:
        msgspec.json.decode(first, type=msgspec.Raw)
    except msgspec.DecodeError:
        return False
    return True


def _lines(rest: bytes, file: BinaryIO) -> Iterator[bytes]:
    while True:
        *lines, rest = rest.split(b"\n")
        for line in lines:
            if line.strip():
                yield _mended(line.strip()) if _may_have_halves(line) else line.strip()
        block = file.read(max(_BLOCK, len(rest)))
        if not block:
            break
        rest += block
    if rest.strip():
        yield _mended(rest.strip())


def _objects(buffer: bytes, file: BinaryIO, *, array: bool) -> Iterator[bytes]:
    while True:
        end = 0
        halves = _may_have_halves(buffer)
        for start, stop in _spans(buffer):
            yield from _loose(buffer[end:start])
            yield _mended(buffer[start:stop]) if halves else buffer[start:stop]
            end = stop
        buffer = buffer[end:]
        # Twice what is left: a huge task is then scanned a few times, not once a block.
        block = file.read(max(_BLOCK, 2 * len(buffer)))
        if not block:
            break
        buffer += block
    yield from _loose(buffer)
    if array and not buffer.rstrip().endswith(b"]"):
        raise MalformedTask(None, "", "the file ends before its array does")


def _may_have_halves(text: bytes) -> bool:
    return b"\\" in text and (b"\\ud" in text or b"\\uD" in text)


def _mended(text: bytes) -> bytes:
    """JSON in which each half of a character (a lone surrogate) is the sign for what is no character, U+FFFD.

    A text with such a half cannot be written anywhere: not as UTF-8, so not to any file.
    """
    return _SURROGATES.sub(lambda found: found[0] if found[1] or found[2] is None else rb"\ufffd", text)


def _loose(between: bytes) -> list[bytes]:
    """What stands between two objects and is none, such as null: each is one task that cannot be read."""
    if not between.strip(_BETWEEN):
        return []
    text = between.strip(b" \t\r\n,")
    for inner in (text, text.removeprefix(b"["), text.removesuffix(b"]"), text.removeprefix(b"[").removesuffix(b"]")):
        try:
            return [bytes(each) for each in msgspec.json.decode(b"[%b]" % inner, type=list[msgspec.Raw])]
        except msgspec.DecodeError:
            continue
    found = text.strip(b"[]")
    raise MalformedTask(None, "", f"expected tasks (objects), found {found[:40]!r}, or the file ends within a task")


def _spans(buffer: bytes) -> list[tuple[int, int]]:
    """Where each whole outermost object of a text begins and ends; the text starts outside of any."""
    # An escape is two bytes that are neither quote nor brace to us.
    plain = _ESCAPE.sub(b"__", buffer) if b"\\" in buffer else buffer
    text = np.frombuffer(plain, dtype=np.uint8)
    braces = np.flatnonzero(text >= _OPEN)  # one look at each byte finds little besides
    kinds = text[braces]
    braces = braces[(kinds == _OPEN) | (kinds == _CLOSE)]
    braces = braces[~_in_text(text == _QUOTE, braces)]
    kinds = text[braces] == _OPEN
    depth = np.cumsum(np.where(kinds, np.int8(1), np.int8(-1)), dtype=np.int64)
    closed = np.flatnonzero((depth == 0) & ~kinds)
    if not closed.size:
        return []
    opened = np.concatenate(([0], closed[:-1] + 1))
    return list(zip(braces[opened].tolist(), (braces[closed] + 1).tolist(), strict=True))


def _in_text(quotes: NDArray[np.bool_], places: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether a place lies within quotes: an odd number of them stands before it. They are counted 64 at a time."""
    bits = np.packbits(quotes, bitorder="little")
    words = np.concatenate((bits, np.zeros(-len(bits) % 8, np.uint8))).view("<u8")
    before = np.concatenate(([0], np.cumsum(np.bitwise_count(words), dtype=np.int64)))
    word, bit = places >> 6, (places & 63).astype(np.uint64)
    here = np.bitwise_count(words[word] & ((np.uint64(1) << bit) - np.uint64(1)))
    odd: NDArray[np.bool_] = (before[word] + here) & 1 == 1
    return odd
