"""Read the texts of a line with their labelled spans: of Text, HyperText and Paragraphs, with offsets in characters."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Self

import msgspec

from exporters.tasks.flat import Json
from exporters.tasks.hypertext import HyperText, parse_hypertext
from exporters.tasks.line import TaskLine
from labelloop.labeling.studio.config import LabelConfig, ObjectTag, data_value

NO_LABEL = "a span without a label"
NOT_ITS_TEXT = "a span whose text is not at its offsets"
NO_OFFSETS = "a span without offsets in the text"
NO_TEXT = "no text to label spans in"
TEXT_ELSEWHERE = "its text is at an address, not in the task"
UTF16 = "spans with offsets in UTF-16 units, converted to characters"
TRIMMED = "spans with spaces at an end, without them"
# Types of results that label spans.
SPAN_TYPES = frozenset({"labels", "hypertextlabels", "paragraphlabels"})
_SPAN_TAGS = ("Labels", "HyperTextLabels", "ParagraphLabels")
_TEXT_TAGS = frozenset({"text", "hypertext", "paragraphs"})


class TextSpan(msgspec.Struct, frozen=True):
    """A labelled span: ``text[start:end]``, in characters (code points)."""

    id: str
    start: int
    end: int
    labels: tuple[str, ...]


class Document(msgspec.Struct, frozen=True):
    """A text with its spans, in order.

    Attributes:
        object: The name of its object tag.
        text: The text.
        spans: Its spans; they may overlap.
        losses: Spans that cannot be placed: (region id, reason).
        notes: What was changed, with its number.
    """

    object: str
    text: str
    spans: tuple[TextSpan, ...] = ()
    losses: tuple[tuple[str, str], ...] = ()
    notes: Mapping[str, int] = {}


class Paragraphs(msgspec.Struct, frozen=True):
    """The paragraphs of a dialogue as one text, a line each, with the first character of each."""

    text: str
    starts: tuple[int, ...]

    @classmethod
    def join(cls, parts: Sequence[str]) -> Self:
        """Join paragraphs."""
        return cls("\n".join(parts), tuple(accumulate((len(part) + 1 for part in parts), initial=0))[:-1])

    def position(self, number: object, offset: object) -> int | None:
        """Return the position of a character of a paragraph; None if there is no such paragraph."""
        text = str(number)
        if not text.isdecimal() or int(text) >= len(self.starts) or type(offset) is not int:
            return None
        return self.starts[int(text)] + offset


# What is shown of a value: a text, the paragraphs of a dialogue, or HTML.
_Shown = str | Paragraphs | HyperText


class _Characters:
    """Finds the spans of a text, whose offsets may be in UTF-16 units.

    JavaScript counts UTF-16 units: a character beyond U+FFFF, such as an emoji, is two. Programs count characters. The
    stored texts of the spans show which it is; the offsets of most spans of a text decide for those that fit both.

    Args:
        text: The text.
        stated: The offsets of its spans with their stored texts.
    """

    def __init__(self, text: str, stated: Iterable[tuple[int, int, object]]) -> None:
        self._text = text
        beyond = [] if text.isascii() else [index for index, letter in enumerate(text) if letter > "\uffff"]
        # First unit of each character of two units.
        self._pairs = [index + number for number, index in enumerate(beyond)]
        stated = list(stated) if beyond else []
        fits = [
            sum(self._is_at(*self._ends(*ends, is_utf16=units), marked) for *ends, marked in stated) for units in _UNITS
        ]
        self._units = _UNITS if fits[0] >= fits[1] else _UNITS[::-1]

    def place(self, start: int, end: int, marked: object) -> tuple[int, int, bool] | None:
        """Return the span in characters, and whether its offsets were converted; None if its text is not there."""
        for units in self._units if self._pairs else _UNITS[:1]:
            ends = self._ends(start, end, is_utf16=units)
            if self._is_at(*ends, marked):
                return *ends, units and ends != (start, end)
        return None

    def _ends(self, start: int, end: int, *, is_utf16: bool) -> tuple[int, int]:
        if not is_utf16:
            return start, end
        return start - bisect_left(self._pairs, start), end - bisect_left(self._pairs, end)

    def _is_at(self, start: int, end: int, marked: object) -> bool:
        if end > len(self._text):
            return False
        return not isinstance(marked, str) or not marked or _squeezed(self._text[start:end]) == _squeezed(marked)


# Whether offsets are in UTF-16 units.
_UNITS = (False, True)


def has_spans(config: LabelConfig) -> bool:
    """Whether a label config labels spans of a text."""
    return any(True for _ in _span_objects(config))


def documents(line: TaskLine, config: LabelConfig | None) -> tuple[list[Document], str]:
    """Return the texts of a line that spans are labelled in, and why there are none.

    Without a label config these are the texts of its spans, or the only text of its data.
    """
    by_object: dict[str, list[Json]] = {}
    for region in line.flat.regions:
        if str(region.get("type")).lower() in SPAN_TYPES and "sequence" not in region["shape"]:
            by_object.setdefault(str(region.get("object") or ""), []).append(region)
    read: list[Document] = []
    reason = NO_TEXT
    for name, shown in _texts(line.data, config, by_object):
        if shown is None:
            reason = TEXT_ELSEWHERE
            continue
        read.append(_document(name, shown, by_object.get(name, ())))
    return read, "" if read else reason


def _span_objects(config: LabelConfig) -> Iterator[ObjectTag]:
    names = dict.fromkeys(name for control in config.controls_of(*_SPAN_TAGS) for name in control.to_names)
    for name in names:
        tag = config.objects.get(name)
        if tag is not None and tag.tag.lower() in _TEXT_TAGS:
            yield tag


def _texts(
    data: Mapping[str, Any], config: LabelConfig | None, by_object: Mapping[str, Sequence[Json]]
) -> Iterator[tuple[str, _Shown | None]]:
    """Yield (object, what it shows); None if that is at an address."""
    if config is None:
        yield from _guessed_texts(data, by_object)
        return
    for tag in _span_objects(config):
        value = data_value(data, tag.value)
        if tag.attributes.get("valueType", "").lower() == "url":
            yield tag.name, None
        elif tag.tag.lower() == "paragraphs" and isinstance(value, list):
            key = tag.attributes.get("textKey", tag.attributes.get("textkey", "text"))
            parts = [str(part.get(key) or "") if isinstance(part, dict) else str(part) for part in value]
            yield tag.name, Paragraphs.join(parts)
        elif isinstance(value, str | int | float):
            yield tag.name, parse_hypertext(str(value)) if tag.tag.lower() == "hypertext" else str(value)


def _guessed_texts(data: Mapping[str, Any], by_object: Mapping[str, Sequence[Json]]) -> Iterator[tuple[str, _Shown]]:
    texts = {key: value for key, value in data.items() if isinstance(value, str)}
    for name, regions in by_object.items():
        is_html = any(str(region.get("type")).lower() == "hypertextlabels" for region in regions)
        keys = dict.fromkeys(key for key in (name, *texts) if key in texts)
        shown: Iterator[_Shown] = (parse_hypertext(texts[key]) if is_html else texts[key] for key in keys)
        yield from [(name, one) for one in shown if not _document(name, one, regions).losses][:1]
    sentences = [(key, text) for key, text in texts.items() if " " in text and "://" not in text[:16]]
    if not by_object and len(sentences) == 1:
        yield from sentences


def _document(name: str, shown: _Shown, regions: Iterable[Json]) -> Document:
    text = shown if isinstance(shown, str) else shown.text
    spans: list[TextSpan] = []
    losses: list[tuple[str, str]] = []
    notes = {UTF16: 0, TRIMMED: 0}
    placed = [(region, _ends(region["shape"], shown)) for region in regions]
    characters = _Characters(text, [(*ends, region["shape"].get("text")) for region, ends in placed if ends])
    for region, ends in placed:
        number = str(region.get("id") or "")
        labels = tuple(str(label) for label in region["labels"])
        if not labels or ends is None:
            losses.append((number, NO_OFFSETS if labels else NO_LABEL))
            continue
        found = characters.place(*ends, region["shape"].get("text"))
        if found is None:
            losses.append((number, NOT_ITS_TEXT))
            continue
        start, end, is_utf16 = found
        marked = text[start:end]
        first, last = start + len(marked) - len(marked.lstrip()), end - len(marked) + len(marked.rstrip())
        if first >= last:
            losses.append((number, NO_OFFSETS))
            continue
        notes[UTF16] += is_utf16
        notes[TRIMMED] += (first, last) != (start, end)
        spans.append(TextSpan(number, first, last, labels))
    spans.sort(key=lambda span: (span.start, span.end))
    return Document(name, text, tuple(spans), tuple(losses), notes)


def _ends(shape: Mapping[str, Any], shown: _Shown) -> tuple[int, int] | None:
    """Return the first and last character of a span; None if it has no offsets, or the end is not after the start."""
    start, end = shape.get("start"), shape.get("end")
    if isinstance(shown, Paragraphs):
        start = shown.position(start, shape.get("startOffset"))
        end = shown.position(end, shape.get("endOffset"))
    elif isinstance(offsets := shape.get("globalOffsets"), dict):
        start, end = offsets.get("start"), offsets.get("end")
    elif isinstance(shown, HyperText) and isinstance(start, str):
        start = shown.position(start, shape.get("startOffset"))
        end = shown.position(end, shape.get("endOffset"))
    if type(start) is not int or type(end) is not int or not 0 <= start < end:
        return None
    return start, end


def _squeezed(text: str) -> str:
    """Return a text for comparison: Label Studio writes line breaks as two characters, or leaves them out."""
    return "".join(text.replace("\\n", "\n").split())
