"""Read the texts of a line with their labelled spans: of Text, HyperText and Paragraphs, with offsets in characters."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html.parser import HTMLParser
from typing import Any

import msgspec

from exporters.tasks.flat import Json
from exporters.tasks.line import TaskLine
from labelloop.labeling.studio.config import LabelConfig, ObjectTag

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
# Text content of these elements is not shown.
_HIDDEN = frozenset({"script", "style", "head", "template"})


class Span(msgspec.Struct, frozen=True):
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
    spans: tuple[Span, ...] = ()
    losses: tuple[tuple[str, str], ...] = ()
    notes: Mapping[str, int] = {}


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
    for name, text, starts in _texts(line.data, config, by_object):
        if text is None:
            reason = TEXT_ELSEWHERE
            continue
        read.append(_document(name, text, starts, by_object.get(name, ())))
    return read, "" if read else reason


def _span_objects(config: LabelConfig) -> Iterator[ObjectTag]:
    names = dict.fromkeys(name for control in config.controls_of(*_SPAN_TAGS) for name in control.to_names)
    for name in names:
        tag = config.objects.get(name)
        if tag is not None and tag.tag.lower() in _TEXT_TAGS:
            yield tag


def _texts(
    data: Mapping[str, Any], config: LabelConfig | None, by_object: Mapping[str, Sequence[Json]]
) -> Iterator[tuple[str, str | None, Sequence[int]]]:
    """Yield (object, text, first character of each paragraph); the text is None if it is at an address."""
    if config is None:
        yield from ((name, text, ()) for name, text in _guessed_texts(data, by_object))
        return
    for tag in _span_objects(config):
        value = data.get(tag.value)
        if tag.attributes.get("valueType", "").lower() == "url":
            yield tag.name, None, ()
        elif tag.tag.lower() == "paragraphs" and isinstance(value, list):
            key = tag.attributes.get("textKey", tag.attributes.get("textkey", "text"))
            parts = [str(part.get(key) or "") if isinstance(part, dict) else str(part) for part in value]
            starts = [0]
            for part in parts:
                starts.append(starts[-1] + len(part) + 1)
            yield tag.name, "\n".join(parts), starts[:-1]
        elif isinstance(value, str | int | float):
            yield tag.name, _shown(value) if tag.tag.lower() == "hypertext" else str(value), ()


def _guessed_texts(data: Mapping[str, Any], by_object: Mapping[str, Sequence[Json]]) -> Iterator[tuple[str, str]]:
    texts = {key: value for key, value in data.items() if isinstance(value, str) and "://" not in value[:16]}
    for name, regions in by_object.items():
        keys = [key for key in (name, *texts) if key in texts]
        yield from [(name, texts[key]) for key in keys if not _document(name, texts[key], (), regions).losses][:1]
    if not by_object and len(texts) == 1:
        yield from texts.items()


def _document(name: str, text: str, starts: Sequence[int], regions: Iterable[Json]) -> Document:
    spans: list[Span] = []
    losses: list[tuple[str, str]] = []
    notes = {UTF16: 0, TRIMMED: 0}
    for region in regions:
        number = str(region.get("id") or "")
        labels = tuple(str(label) for label in region["labels"])
        ends = _ends(region["shape"], starts)
        if not labels or ends is None:
            losses.append((number, NO_OFFSETS if labels else NO_LABEL))
            continue
        placed = _placed(text, *ends, region["shape"].get("text"))
        if placed is None:
            losses.append((number, NOT_ITS_TEXT))
            continue
        start, end, is_utf16 = placed
        marked = text[start:end]
        first, last = start + len(marked) - len(marked.lstrip()), end - len(marked) + len(marked.rstrip())
        if first >= last:
            losses.append((number, NO_OFFSETS))
            continue
        notes[UTF16] += is_utf16
        notes[TRIMMED] += (first, last) != (start, end)
        spans.append(Span(number, first, last, labels))
    spans.sort(key=lambda span: (span.start, span.end))
    return Document(name, text, tuple(spans), tuple(losses), notes)


def _ends(shape: Mapping[str, Any], starts: Sequence[int]) -> tuple[int, int] | None:
    """Return the first and last character of a span; None if it has no offsets, or the end is not after the start."""
    start, end = shape.get("start"), shape.get("end")
    if starts:  # paragraphs: which one, and the offset in it
        try:
            start = starts[int(str(start))] + int(shape["startOffset"])
            end = starts[int(str(end))] + int(shape["endOffset"])
        except (KeyError, ValueError, TypeError, IndexError):
            return None
    elif isinstance(offsets := shape.get("globalOffsets"), dict):
        start, end = offsets.get("start"), offsets.get("end")
    if type(start) is not int or type(end) is not int or not 0 <= start < end:
        return None
    return start, end


def _placed(text: str, start: int, end: int, stated: object) -> tuple[int, int, bool] | None:
    """Return the span in characters, and whether its offsets were in UTF-16 units; None if its text is not there.

    JavaScript counts UTF-16 units: a character beyond U+FFFF, such as an emoji, is two.
    """
    wanted = _squeezed(stated) if isinstance(stated, str) and stated else None
    if end <= len(text) and (wanted is None or _squeezed(text[start:end]) == wanted):
        return start, end, False
    if not text.isascii():
        data = text.encode("utf-16-le", "surrogatepass")
        before, marked = data[: 2 * start], data[2 * start : 2 * end]
        if 2 * end <= len(data):
            first = len(before.decode("utf-16-le", "replace"))
            found = marked.decode("utf-16-le", "replace")
            if wanted is None or _squeezed(found) == wanted:
                return first, first + len(found), True
    return None


def _squeezed(text: str) -> str:
    """Return a text for comparison: Label Studio writes line breaks as two characters, or leaves them out."""
    return "".join(text.replace("\\n", "\n").split())


class _Text(HTMLParser):
    """Collects the text of HTML as a browser's ``textContent`` has it."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del attrs
        self._hidden += tag in _HIDDEN

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in _HIDDEN and self._hidden > 0

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(data)


def _shown(value: object) -> str:
    parser = _Text()
    parser.feed(str(value))
    parser.close()
    return "".join(parser.parts)
