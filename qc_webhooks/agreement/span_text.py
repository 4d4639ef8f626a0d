"""Describe spans in words: the marked text, and where it is in characters, seconds, frames or times."""

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from qc_webhooks.agreement.answers import Span

_LONGEST_TEXT = 40
# Characters shown before the first one that must be seen.
_CONTEXT = 12


def span_place(span: Span) -> str:
    """Where a span is: `at "Berlin" (characters 34 to 40)`, "from 6.1 s to 6.7 s", "in frames 61 to 67"."""
    return PLACES[span.unit](span)


def cut(text: str, start: int = 0, most: int = _LONGEST_TEXT) -> str:
    """A text, or a part of it if it is too long.

    Args:
        text: The text, see `one_line`.
        start: Index of the first character that must be seen.
        most: Maximum number of characters.
    """
    if len(text) <= most:
        return text
    first = min(max(start - _CONTEXT, 0), len(text) - most + 1)
    if first:
        first = text.find(" ", first, start) + 1 or first  # from the beginning of a word
    before = "\u2026" if first else ""
    rest, room = text[first:], most - len(before)
    return before + (rest if len(rest) <= room else f"{rest[: room - 1]}\u2026")


def one_line(text: str) -> str:
    """A text without line breaks and repeated spaces."""
    return " ".join(text.split())


def number_text(value: float) -> str:
    """A number as people write it: "1234567", "0.3"."""
    return f"{value:.12g}"


def _characters(span: Span) -> str:
    paragraph = f"paragraph {int(span.scope) + 1}, " if span.scope.isdecimal() else ""
    place = f"{paragraph}characters {number_text(span.start)} to {number_text(span.end)}"
    text = cut(one_line(span.text))
    return f'at "{text}" ({place})' if text else f"at {place}"


def _frames(span: Span) -> str:
    first, last = number_text(span.start), number_text(span.end - 1)  # the last one is included
    return f"in frame {first}" if first == last else f"in frames {first} to {last}"


def _seconds(span: Span) -> str:
    channel = f" in channel {int(span.scope) + 1}" if span.scope.isdecimal() and int(span.scope) else ""
    return f"{_from_to(span, _clock)}{channel}"


def _from_to(span: Span, write: Callable[[float], str]) -> str:
    first, last = write(span.start), write(span.end)
    return f"at {first}" if first == last else f"from {first} to {last}"


def _clock(seconds: float) -> str:
    """Seconds as in the editor's timeline: "6.25 s", from one minute on "1:06.25", "1:01:06.25"."""
    if not 60 <= seconds < math.inf:
        return f"{number_text(round(seconds, 2))} s"
    minutes, rest = divmod(round(seconds, 2), 60)
    hours, minutes = divmod(int(minutes), 60)
    whole, fraction = divmod(round(rest * 100), 100)
    tail = f"{whole:02d}" + (f".{fraction:02d}" if fraction else "")
    return f"{hours}:{minutes:02d}:{tail}" if hours else f"{minutes}:{tail}"


def _moment(seconds: float) -> str:
    """Seconds since 1970 as a date and a time (UTC); the parts that are 0 at the end are left out."""
    try:
        moment = datetime.fromtimestamp(round(seconds, 3), UTC)
    except (OSError, OverflowError, ValueError):  # one end is a time, the other a number beyond the year 9999
        return number_text(seconds)
    text = moment.strftime("%Y-%m-%d %H:%M:%S") + (f".{moment.microsecond // 1000:03d}" if moment.microsecond else "")
    # a time without a date is read as one of 1900-01-01
    return text.removesuffix(":00").removeprefix("1900-01-01 ").removesuffix(" 00:00")


# Unit of a span's ends -> where it is, in words.
PLACES: Mapping[str, Callable[[Span], str]] = {
    "character": _characters,
    "second": _seconds,
    "frame": _frames,
    "number": lambda span: _from_to(span, number_text),
    "time": lambda span: _from_to(span, _moment),
}
