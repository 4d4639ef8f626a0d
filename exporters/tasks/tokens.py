"""Split a text into tokens with exact offsets, the same for every language.

A token is a run of letters, combining marks, digits and ``_``, or any other single character that is no space. Scripts
that write no spaces between words (Han, kana, Thai, Lao, Khmer, Burmese) have one token per letter with its marks.
"""

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

# The rule in one line, for files and pages that state it.
TOKENIZER = "a run of letters, marks, digits and _, or one other character; one letter in scripts without spaces"
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


class Token(NamedTuple):
    """A token: ``text[start:end]``, in characters (code points)."""

    start: int
    end: int


def tokenize(text: str) -> list[Token]:
    """Return the tokens of a text, in order; they do not overlap, and only spaces lie between them."""
    if text.isascii():
        return [Token(*match.span()) for match in _ASCII.finditer(text)]
    tokens: list[Token] = []
    start = -1  # of the word that is being read
    for index, letter in enumerate(text):
        is_mark = unicodedata.category(letter).startswith("M")
        is_word = letter.isalnum() or letter == "_" or is_mark
        begins = not (is_mark and start >= 0) and (not is_word or _is_unspaced(letter) or _ends_word(text, index))
        if start >= 0 and (not is_word or begins):
            tokens.append(Token(start, index))
            start = -1
        if is_word and start < 0:
            start = index
        elif not is_word and not letter.isspace():
            tokens.append(Token(index, index + 1))
    if start >= 0:
        tokens.append(Token(start, len(text)))
    return tokens


def aligned(tokens: Sequence[Token], start: int, end: int) -> tuple[int, int] | None:
    """Return the first and last token of a span; None if one of its ends is inside a token, or it has none."""
    first = bisect_left(tokens, start, key=lambda token: token.start)
    last = bisect_left(tokens, end, key=lambda token: token.end)
    is_aligned = last < len(tokens) and first <= last and tokens[first].start == start and tokens[last].end == end
    return (first, last) if is_aligned else None


def _is_unspaced(letter: str) -> bool:
    code = ord(letter)
    return code >= 0x0E00 and any(first <= code <= last for first, last in _UNSPACED)


def _ends_word(text: str, index: int) -> bool:
    """Whether the letter before was one of a script without spaces, and is a token of its own."""
    previous = index - 1
    while previous >= 0 and unicodedata.category(text[previous]).startswith("M"):
        previous -= 1
    return previous >= 0 and _is_unspaced(text[previous])
