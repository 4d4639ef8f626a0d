"""Stream the tasks of a file, a JSON array (Label Studio's export) or JSON lines, in constant memory.

An array is split where its objects close, found by numpy in blocks. Tasks are decoded lazily, one at a time, and not
retained, so the cost of the garbage collector does not grow with the file.
"""

import io
import json
import re
from collections.abc import Iterator
from typing import BinaryIO, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from labelloop.labeling.errors import MalformedTask, TruncatedFile
from labelloop.labeling.studio.task import Task, read_task

BLOCK_BYTES = 1 << 18
_BOM = b"\xef\xbb\xbf"
_ESCAPE = re.compile(rb"\\.", re.DOTALL)
_SURROGATES = re.compile(  # a surrogate pair, a lone surrogate, or any other escape
    rb"\\(?:(u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)
_SURROGATE_START = re.compile(rb"\\u[dD]")  # a scan for each of the two takes four times as long
_BETWEEN = b" \t\n\r\v\f,[]"
_COMMA = b" \t\n\r,"
_WRAPPER = re.compile(  # an object with a list "tasks", preceded only by scalar values
    rb'\s*\{\s*(?:"[^"\\]*"\s*:\s*(?:null|true|false|-?[0-9][0-9.eE+-]*|"[^"\\]*")\s*,\s*)*"tasks"\s*:\s*\['
)
_TAIL = 1 << 16
# Bytes of a task from which its end is found before it is read.
_HUGE = 16 << 20
_Form = Literal["array", "lines", "object", "wrapped"]
_OPEN, _CLOSE, _QUOTE = ord("{"), ord("}"), ord('"')


def iter_tasks(file: BinaryIO) -> Iterator[Task]:
    """Yield the tasks of a file, in order.

    Args:
        file: Open for reading bytes, at its beginning: a JSON array of tasks, JSON lines, a single task, or an object
            whose ``tasks`` is such an array.

    Raises:
        MalformedTask: A task cannot be read. To continue after it, use `iter_raw_tasks` and decode with `read_task`.
        TruncatedFile: The file ends in the middle of a task or of its array.
    """
    for raw in iter_raw_tasks(file):
        yield read_task(raw)


def iter_raw_tasks(file: BinaryIO) -> Iterator[bytes]:
    """Yield the JSON text of each task of a file. The argument is that of `iter_tasks`.

    An invalid item is yielded too; it does not affect the others. If items cannot be separated, the file is invalid.

    Raises:
        TruncatedFile: The file ends in the middle of a task or of its array.
        MalformedTask: The file is not JSON, has content after its end, or is one page of several.
    """
    head, at, form = _begin(file)
    if form == "lines":
        yield from _lines(head, file, at)
    elif form == "wrapped":
        yield from _wrapped(head, file, at)
    else:
        yield from _objects(head, file, at, array=form == "array")


def check_complete(file: BinaryIO) -> None:
    """Check the last bytes of a file of tasks: detects most truncated files without reading them.

    Args:
        file: As for `iter_tasks`, and seekable. Its position is reset to the beginning.

    Raises:
        TruncatedFile: The file ends in the middle of a task or of its array.
    """
    head, _, form = _begin(file)
    size = file.seek(0, io.SEEK_END)
    if form == "lines":
        line_start, line = _last_line(file, size)
        if not _is_json(line):
            raise TruncatedFile(line_start, size)
    elif head.strip():
        file.seek(max(0, size - _TAIL))
        if not file.read().rstrip().endswith(b"]" if form == "array" else b"}"):
            raise TruncatedFile(size, size)
    file.seek(0)


def _begin(file: BinaryIO) -> tuple[bytes, int, _Form]:
    """The first block of a file, its offset in bytes, and the form of the file."""
    head = file.read(BLOCK_BYTES)
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
    """Whether a file that starts with an object has one object per line, instead of one over several lines."""
    lines = head.lstrip().split(b"\n", 3)[:-1]
    return any(line.startswith(b"{") and _is_json(line) for line in lines)


def _is_json(text: bytes) -> bool:
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except RecursionError:  # nested too deeply to be read: reported when the task is decoded
        return True
    except msgspec.DecodeError:
        try:
            json.loads(text)  # accepts NaN, as `read_task` does
        except (ValueError, RecursionError):
            return False
    return True


def _last_line(file: BinaryIO, size: int) -> tuple[int, bytes]:
    """The offset and the text of the last line that is not blank."""
    window = _TAIL
    while True:
        first = max(0, size - window)
        file.seek(first)
        tail = file.read(size - first).rstrip()
        newline = tail.rfind(b"\n")
        if newline >= 0 or not first:
            return first + newline + 1, tail[newline + 1 :].removeprefix(_BOM)
        window *= 2


def _lines(rest: bytes, file: BinaryIO, at: int) -> Iterator[bytes]:
    last, begins = b"", at
    while True:
        *lines, rest = rest.split(b"\n")
        for line in lines:
            if text := line.strip():
                last, begins = text, at
                yield _without_lone_surrogates(text) if _may_have_surrogates(text) else text
            at += len(line) + 1
        if len(rest) >= _HUGE and file.seekable():
            text, is_last = _read_line(file, at)
            if is_last:
                rest = text
                break
            if line := text.strip():
                last, begins = line, at
                yield _without_lone_surrogates(line) if _may_have_surrogates(line) else line
            at, rest = at + len(text) + 1, b""
        block = file.read(max(BLOCK_BYTES, len(rest)))
        if not block:
            break
        rest += block
    if text := rest.strip():
        last, begins = text, at
    if last and not _is_json(last):
        raise TruncatedFile(begins, at + len(rest))
    if text:
        yield _without_lone_surrogates(text)


def _read_line(file: BinaryIO, start: int) -> tuple[bytes, bool]:
    """Read the line that starts at an offset, and whether it is the last: see `_read_object`."""
    file.seek(start)
    stop = start
    while block := file.read(BLOCK_BYTES):
        length = block.find(b"\n")
        stop += len(block) if length < 0 else length
        if length >= 0:
            break
    file.seek(start)
    line = file.read(stop - start)
    return line, not file.read(1)


def _wrapped(head: bytes, file: BinaryIO, at: int) -> Iterator[bytes]:
    """The tasks of ``{"tasks": [...], "total": 3}``, a page of Label Studio's API."""
    wrapper = _WRAPPER.match(head)
    assert wrapper
    count, rest = 0, b""
    for item in _objects(head[wrapper.end() :], file, at + wrapper.end(), array=False, wrapped=True):
        if item.startswith(b"]"):
            rest = item
        else:
            count += 1
            yield item
    try:
        total = msgspec.json.decode(head[: wrapper.end()] + rest).get("total")
    except (msgspec.DecodeError, RecursionError) as error:
        raise MalformedTask(None, "", f'the object around "tasks" is not JSON: {error}') from error
    if type(total) is int and total > count:
        raise MalformedTask(None, "", f"it contains {count} of {total} tasks: it is one page of several")


def _objects(buffer: bytes, file: BinaryIO, at: int, *, array: bool, wrapped: bool = False) -> Iterator[bytes]:
    """The objects of a text; ``wrapped``: those of an array inside an object, then the text after that array."""
    while True:
        end = 0
        has_surrogates = _may_have_surrogates(buffer)
        for start, stop in _spans(buffer):
            between = buffer[end:start]
            if wrapped and between.lstrip(_COMMA).startswith(b"]"):
                break
            yield from _between(between)
            yield _without_lone_surrogates(buffer[start:stop]) if has_surrogates else buffer[start:stop]
            end = stop
        at, buffer = at + end, buffer[end:]
        if len(buffer) >= _HUGE and not wrapped and file.seekable() and (start := buffer.find(b"{")) >= 0:
            between, begin = buffer[:start], at + start
            del buffer
            yield from _between(between)
            text = _read_object(file, begin)
            at = begin + len(text)
            yield _without_lone_surrogates(text) if _may_have_surrogates(text) else text
            del text
            buffer = file.read(BLOCK_BYTES)
            continue
        # Twice the remainder: a huge task is scanned a few times, not once per block.
        block = file.read(max(BLOCK_BYTES, 2 * len(buffer)))
        if not block:
            break
        buffer += block
    rest, ends = buffer.strip(_COMMA), at + len(buffer)
    if wrapped and rest.startswith(b"]"):
        if not rest.endswith(b"}"):
            raise TruncatedFile(ends, ends)
        yield rest
        return
    loose = _stray_items(buffer)
    if (array and not rest.endswith(b"]")) or wrapped or (loose is None and b"{" in rest):
        begins = at + buffer.find(b"{") if b"{" in buffer else ends
        raise TruncatedFile(begins, ends)
    if loose is None:
        raise MalformedTask(None, "", f"it continues after its end: {rest.strip(b'[]')[:40]!r} before byte {ends}")
    yield from loose


def _read_object(file: BinaryIO, start: int) -> bytes:
    """Read the object that starts at an offset, and be at its end: the file is scanned first, then read once.

    A buffer that grows until the end is found takes several times the memory of a huge task.

    Raises:
        TruncatedFile: The file ends within it.
    """
    file.seek(start)
    depth, quoted, position, held = 0, False, start, b""
    while block := file.read(BLOCK_BYTES):
        block = held + block
        # A backslash at the end belongs to what follows.
        held = b"\\" if (len(block) - len(block.rstrip(b"\\"))) % 2 else b""
        block = block[: len(block) - len(held)]
        plain = _ESCAPE.sub(b"__", block) if b"\\" in block else block
        text = np.frombuffer(plain, dtype=np.uint8)
        braces = np.flatnonzero((text == _OPEN) | (text == _CLOSE))
        quotes = text == _QUOTE
        braces = braces[_inside_strings(quotes, braces) == quoted]
        depths = depth + np.cumsum(np.where(text[braces] == _OPEN, 1, -1))
        if (closed := np.flatnonzero(depths == 0)).size:
            stop = position + int(braces[closed[0]]) + 1
            file.seek(start)
            return file.read(stop - start)
        depth = int(depths[-1]) if depths.size else depth
        quoted ^= bool(np.count_nonzero(quotes) & 1)
        position += len(block)
    raise TruncatedFile(start, position + len(held))


def _may_have_surrogates(text: bytes) -> bool:
    return _SURROGATE_START.search(text) is not None


def _without_lone_surrogates(text: bytes) -> bytes:
    """JSON with each lone surrogate replaced by U+FFFD.

    Text with a lone surrogate cannot be encoded as UTF-8, and so not be written to any file.
    """
    return _SURROGATES.sub(lambda match: match[0] if match[1] or match[2] is None else rb"\ufffd", text)


def _between(text: bytes) -> list[bytes]:
    """The items between two objects; text that is not JSON is one (invalid) item."""
    loose = _stray_items(text)
    return [text.strip(_COMMA)] if loose is None else loose


def _stray_items(between: bytes) -> list[bytes] | None:
    """The items between two objects that are not objects, such as null: each is one invalid task.

    None if the text is not JSON.
    """
    if not between.strip(_BETWEEN):
        return []
    text = between.strip(_COMMA)
    for inner in (text, text.removeprefix(b"["), text.removesuffix(b"]"), text.removeprefix(b"[").removesuffix(b"]")):
        try:
            return [bytes(item) for item in msgspec.json.decode(b"[%b]" % inner, type=list[msgspec.Raw])]
        except (msgspec.DecodeError, RecursionError):
            continue
    return None


def _spans(buffer: bytes) -> list[tuple[int, int]]:
    """(start, end) of each complete outermost object of a text that starts outside any object."""
    # An escape sequence must not count as a quote or brace.
    plain = _ESCAPE.sub(b"__", buffer) if b"\\" in buffer else buffer
    text = np.frombuffer(plain, dtype=np.uint8)
    braces = np.flatnonzero(text >= _OPEN)  # one pass over the bytes; few others are this large
    kinds = text[braces]
    braces = braces[(kinds == _OPEN) | (kinds == _CLOSE)]
    braces = braces[~_inside_strings(text == _QUOTE, braces)]
    kinds = text[braces] == _OPEN
    depth = np.cumsum(np.where(kinds, np.int8(1), np.int8(-1)), dtype=np.int64)
    closed = np.flatnonzero((depth == 0) & ~kinds)
    if not closed.size:
        return []
    opened = np.concatenate(([0], closed[:-1] + 1))
    return list(zip(braces[opened].tolist(), (braces[closed] + 1).tolist(), strict=True))


def _inside_strings(quotes: NDArray[np.bool_], positions: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(n,): whether each position is inside a string: an odd number of quotes precedes it, counted 64 at a time."""
    bits = np.packbits(quotes, bitorder="little")
    words = np.concatenate((bits, np.zeros(-len(bits) % 8, np.uint8))).view("<u8")
    before = np.concatenate(([0], np.cumsum(np.bitwise_count(words), dtype=np.int64)))
    word, bit = positions >> 6, (positions & 63).astype(np.uint64)
    within = np.bitwise_count(words[word] & ((np.uint64(1) << bit) - np.uint64(1)))
    odd: NDArray[np.bool_] = (before[word] + within) & 1 == 1
    return odd
