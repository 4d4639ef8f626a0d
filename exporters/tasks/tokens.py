"""Split a text into tokens with exact offsets, the same for every language.

A token is a run of letters, combining marks, digits and ``_``, or any other single character that is no space, with its
marks. Scripts that write no spaces between words (Han, kana, Thai, Lao, Khmer, Burmese) have one token per letter.
"""

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple

# The rule in one line, for files and pages that state it.
TOKENIZER = (
    "a run of letters, marks, digits and _, or one other character that is no space; in scripts without spaces between"
    " words one letter"
)
_ASCII = re.compile(r"\w+|[^\w\s]", re.ASCII)
# First and last code points of scripts that write no spaces between words.
_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x2FDF),  # radicals
    (0x3005, 0x3007),
    (0x3021, 0x312F),  # kana, Bopomofo
    (0x31A0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),  # Han
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),
    (0x20000, 0x3FFFF),
)

# Code points among which combining marks are.
_MAY_BE_MARKS = (range(0x300, 0x1F000), range(0xE0100, 0xE01F0))


class Token(NamedTuple):
    """A token: ``text[start:end]``, in characters (code points)."""

    start: int
    end: int


def tokenize(text: str) -> list[Token]:
    """Return the tokens of a text, in order; they do not overlap, and only spaces lie between them."""
    pattern = _ASCII if text.isascii() else _pattern()
    return [Token(*match.span()) for match in pattern.finditer(text)]


def aligned(tokens: Sequence[Token], start: int, end: int) -> tuple[int, int] | None:
    """Return the first and last token of a span; None if one of its ends is inside a token, or it has none."""
    first = bisect_left(tokens, start, key=lambda token: token.start)
    last = bisect_left(tokens, end, key=lambda token: token.end)
    is_aligned = last < len(tokens) and first <= last and tokens[first].start == start and tokens[last].end == end
    return (first, last) if is_aligned else None


@cache
def _pattern() -> re.Pattern[str]:
    """Return the pattern of a token. Word characters of Python's patterns do not include combining marks."""
    marks = _letters(
        _runs(code for codes in _MAY_BE_MARKS for code in codes if unicodedata.category(chr(code))[0] == "M")
    )
    unspaced = _letters(_UNSPACED)
    return re.compile(rf"[{unspaced}][{marks}]*|(?:(?![{unspaced}])[\w{marks}])+|[^\w\s][{marks}]*")


def _runs(codes: Iterable[int]) -> list[tuple[int, int]]:
    """Return the first and last of each run of consecutive numbers."""
    runs: list[tuple[int, int]] = []
    for code in codes:
        if runs and runs[-1][1] == code - 1:
            runs[-1] = (runs[-1][0], code)
        else:
            runs.append((code, code))
    return runs


def _letters(ranges: Iterable[tuple[int, int]]) -> str:
    """Return ranges of code points as they stand in a character class."""
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges)
