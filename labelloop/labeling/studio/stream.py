"""A file of tasks, one task at a time: a JSON array (Label Studio's export) or JSON lines, in flat memory.

An array is cut where its braces close, found by numpy in blocks: no task is decoded before it is asked for, and none is
kept. Each piece is then decoded by itself, which also keeps the garbage collector's cost from growing with the file.
"""

import io
import json
import re
from collections.abc import Iterator
from typing import BinaryIO, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from labelloop.labeling.errors import EndsEarly, MalformedTask
from labelloop.labeling.studio.task import Task, read_task

_BLOCK = 1 << 18
_BOM = b"\xef\xbb\xbf"
_ESCAPE = re.compile(rb"\\.", re.DOTALL)
_SURROGATES = re.compile(  # a whole character, a half, or any other escape
    rb"\\(?:(u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)
_BETWEEN = b" \t\n\r\v\f,[]"
_COMMA = b" \t\n\r,"
_WRAPPER = re.compile(  # an object with a list "tasks", after plain values
    rb'\s*\{\s*(?:"[^"\\]*"\s*:\s*(?:null|true|false|-?[0-9][0-9.eE+-]*|"[^"\\]*")\s*,\s*)*"tasks"\s*:\s*\['
)
_TAIL = 1 << 16
_Form = Literal["array", "lines", "object", "wrapped"]
_OPEN, _CLOSE, _QUOTE = ord("{"), ord("}"), ord('"')


def iter_tasks(file: BinaryIO) -> Iterator[Task]:
    """The tasks of a file, in its order.

    Args:
        file: Open for reading bytes, at its beginning: a JSON array of tasks, JSON lines, a single task, or an object
            whose ``tasks`` is such an array.

    Raises:
        MalformedTask: A task cannot be read. To go on after it, take `iter_raw_tasks` and decode each with `read_task`.
        EndsEarly: The file ends in the middle of a task or of its array.
    """
    for raw in iter_raw_tasks(file):
        yield read_task(raw)


def iter_raw_tasks(file: BinaryIO) -> Iterator[bytes]:
    """The JSON text of each task of a file, not decoded. Takes what `iter_tasks` takes.

    An item that is no task costs itself alone. Where no further item can be told apart, the whole file is in doubt.

    Raises:
        EndsEarly: The file ends in the middle of a task or of its array.
        MalformedTask: The file is no JSON, goes on after its end, or holds one page of several.
    """
    head, at, form = _begin(file)
    if form == "lines":
        yield from _lines(head, file, at)
    elif form == "wrapped":
        yield from _wrapped(head, file, at)
    else:
        yield from _objects(head, file, at, array=form == "array")


def check_end(file: BinaryIO) -> None:
    """Look at the last bytes of a file of tasks, whatever its size: most files that were cut are found so.

    Args:
        file: As `iter_tasks` takes it, and seekable. It is left at its beginning.

    Raises:
        EndsEarly: The file ends in the middle of a task or of its array.
    """
    head, _, form = _begin(file)
    size = file.seek(0, io.SEEK_END)
    if form == "lines":
        begins, line = _last_line(file, size)
        if not _is_whole(line):
            raise EndsEarly(begins, size)
    elif head.strip():
        file.seek(max(0, size - _TAIL))
        if not file.read().rstrip().endswith(b"]" if form == "array" else b"}"):
            raise EndsEarly(size, size)
    file.seek(0)


def _begin(file: BinaryIO) -> tuple[bytes, int, _Form]:
    """The first block of a file, the byte that it begins at, and the file's form."""
    head = file.read(_BLOCK)
    at = len(_BOM) if head.startswith(_BOM) else 0
    head = head[at:]
    start = head.lstrip()[:1]
    if start not in {b"", b"[", b"{"}:
        raise MalformedTask(None, "", "expected a JSON array of tasks, or a task a line")
    if start != b"{":
        return head, at, "array" if start else "object"
    if _WRAPPER.match(head):
        return head, at, "wrapped"
    return head, at, "lines" if _is_lines(head) else "object"


def _is_lines(head: bytes) -> bool:
    """Whether a file that starts with an object has one a line, rather than one written over several lines."""
    lines = head.lstrip().split(b"\n", 3)[:-1]
    return any(line.startswith(b"{") and _is_whole(line) for line in lines)


def _is_whole(text: bytes) -> bool:
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except RecursionError:  # nested more deeply than is read: what is wrong with it is its own affair
        return True
    except msgspec.DecodeError:
        try:
            json.loads(text)  # takes NaN too, as `read_task` does
        except (ValueError, RecursionError):
            return False
    return True


def _last_line(file: BinaryIO, size: int) -> tuple[int, bytes]:
    """The last line that is not blank, and the byte that it begins at."""
    wanted = _TAIL
    while True:
        first = max(0, size - wanted)
        file.seek(first)
        tail = file.read(size - first).rstrip()
        newline = tail.rfind(b"\n")
        if newline >= 0 or not first:
            return first + newline + 1, tail[newline + 1 :].removeprefix(_BOM)
        wanted *= 2


def _lines(rest: bytes, file: BinaryIO, at: int) -> Iterator[bytes]:
    last, begins = b"", at
    while True:
        *lines, rest = rest.split(b"\n")
        for line in lines:
            if text := line.strip():
                last, begins = text, at
                yield _mended(text) if _may_have_halves(text) else text
            at += len(line) + 1
        block = file.read(max(_BLOCK, len(rest)))
        if not block:
            break
        rest += block
    if text := rest.strip():
        last, begins = text, at
    if last and not _is_whole(last):
        raise EndsEarly(begins, at + len(rest))
    if text:
        yield _mended(text)


def _wrapped(head: bytes, file: BinaryIO, at: int) -> Iterator[bytes]:
    """The tasks of ``{"tasks": [...], "total": 3}``, which is a page of what Label Studio's API answers."""
    found = _WRAPPER.match(head)
    assert found
    count, rest = 0, b""
    for item in _objects(head[found.end() :], file, at + found.end(), array=False, wrapped=True):
        if item.startswith(b"]"):
            rest = item
        else:
            count += 1
            yield item
    try:
        total = msgspec.json.decode(head[: found.end()] + rest).get("total")
    except (msgspec.DecodeError, RecursionError) as error:
        raise MalformedTask(None, "", f'the object around "tasks" is no JSON: {error}') from error
    if type(total) is int and total > count:
        raise MalformedTask(None, "", f"it holds {count} of {total} tasks: it is one page of several")


def _objects(buffer: bytes, file: BinaryIO, at: int, *, array: bool, wrapped: bool = False) -> Iterator[bytes]:
    """The objects of a text; ``wrapped``: those of an array that stands in an object, and last what follows it."""
    while True:
        end = 0
        halves = _may_have_halves(buffer)
        for start, stop in _spans(buffer):
            between = buffer[end:start]
            if wrapped and between.lstrip(_COMMA).startswith(b"]"):
                break
            yield from _between(between)
            yield _mended(buffer[start:stop]) if halves else buffer[start:stop]
            end = stop
        at, buffer = at + end, buffer[end:]
        # Twice what is left: a huge task is then scanned a few times, not once a block.
        block = file.read(max(_BLOCK, 2 * len(buffer)))
        if not block:
            break
        buffer += block
    rest, ends = buffer.strip(_COMMA), at + len(buffer)
    if wrapped and rest.startswith(b"]"):
        if not rest.endswith(b"}"):
            raise EndsEarly(ends, ends)
        yield rest
        return
    loose = _loose(buffer)
    if (array and not rest.endswith(b"]")) or wrapped or (loose is None and b"{" in rest):
        begins = at + buffer.find(b"{") if b"{" in buffer else ends
        raise EndsEarly(begins, ends)
    if loose is None:
        raise MalformedTask(None, "", f"it goes on after its end: {rest.strip(b'[]')[:40]!r} before byte {ends}")
    yield from loose


def _may_have_halves(text: bytes) -> bool:
    return b"\\" in text and (b"\\ud" in text or b"\\uD" in text)


def _mended(text: bytes) -> bytes:
    """JSON in which each half of a character (a lone surrogate) is the sign for what is no character, U+FFFD.

    A text with such a half cannot be written anywhere: not as UTF-8, so not to any file.
    """
    return _SURROGATES.sub(lambda found: found[0] if found[1] or found[2] is None else rb"\ufffd", text)


def _between(text: bytes) -> list[bytes]:
    """What stands between two objects; what is no JSON is one item, which cannot be read either."""
    loose = _loose(text)
    return [text.strip(_COMMA)] if loose is None else loose


def _loose(between: bytes) -> list[bytes] | None:
    """What stands between two objects and is none, such as null: each is one task that cannot be read.

    None where it is no JSON.
    """
    if not between.strip(_BETWEEN):
        return []
    text = between.strip(_COMMA)
    for inner in (text, text.removeprefix(b"["), text.removesuffix(b"]"), text.removeprefix(b"[").removesuffix(b"]")):
        try:
            return [bytes(each) for each in msgspec.json.decode(b"[%b]" % inner, type=list[msgspec.Raw])]
        except (msgspec.DecodeError, RecursionError):
            continue
    return None


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
