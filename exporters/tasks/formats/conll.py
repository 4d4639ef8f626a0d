"""conll: labelled spans as CoNLL-2003 columns with BIO tags, a token per line."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import ClassVar

import msgspec

from exporters.formats.base import FormatContext, OutputTree, Record
from exporters.tasks.documents import Document, TextSpan, documents, has_spans
from exporters.tasks.formats.base import EncodedLine, SplitFiles, TaskFormat
from exporters.tasks.line import TaskLine
from exporters.tasks.tokens import Token, aligned, tokenize

MISALIGNED = "a span that begins or ends inside a token"
OVERLAPPING = "a span that overlaps a longer one"
FURTHER_LABELS = "further labels of a span: a token has one tag"
RELATIONS = "relations, for which the format has no place"
_HEAD = "-DOCSTART- -X- -X- O\n\n"


class SpanFormat(TaskFormat):
    """A format of labelled spans."""

    needs: ClassVar[str] = "it needs Labels of a Text, HyperText or Paragraphs, and the label config has none"

    @classmethod
    def fits(cls, context: FormatContext) -> bool:
        """See `TaskFormat.fits`."""
        return context.config is None or has_spans(context.config)


class Conll(SpanFormat):
    """A document per text, a token per line as ``token -X- _ TAG``, an empty line after each line of the text."""

    name: ClassVar[str] = "conll"

    def encode_line(self, line: TaskLine) -> EncodedLine:
        """See `TaskFormat.encode_line`."""
        read, reason = documents(line, self.context.config)
        if reason:
            return EncodedLine(None, dropped=reason)
        texts: list[str] = []
        losses: list[tuple[str, str]] = []
        notes = Counter({RELATIONS: len(line.flat.relations)})
        entries = 0
        for document in read:
            tokens = tokenize(document.text)
            kept, lost = exclusive_spans(document, tokens)
            losses += [*document.losses, *lost]
            entries += len(kept)
            notes.update(document.notes)
            notes[FURTHER_LABELS] += sum(len(span.labels) - 1 for span, _, _ in kept)
            texts.append(conll_text(document.text, tokens, kept))
        return EncodedLine(msgspec.json.encode("".join(texts)), entries, losses=losses, notes=notes)

    def write_files(self, records: Iterable[Record], output: OutputTree) -> None:
        """See `TaskFormat.write_files`."""
        with SplitFiles(output, ".conll", splits=self.context.splits) as files:
            for record in records:
                files.of(record.split).write(msgspec.json.decode(record.body, type=str).encode())


# A span with its first and its last token.
TokenSpan = tuple[TextSpan, int, int]


def exclusive_spans(document: Document, tokens: Sequence[Token]) -> tuple[list[TokenSpan], list[tuple[str, str]]]:
    """Return the spans that BIO tags can hold, in order, and the others with the reason.

    Of overlapping spans the longest is kept, then the first, as ``spacy.util.filter_spans`` does.
    """
    losses: list[tuple[str, str]] = []
    placed: list[TokenSpan] = []
    for span in document.spans:
        at = aligned(tokens, span.start, span.end)
        if at is None:
            losses.append((span.id, MISALIGNED))
        else:
            placed.append((span, *at))
    kept: list[TokenSpan] = []
    taken: set[int] = set()
    for span, first, last in sorted(placed, key=lambda one: (one[1] - one[2], one[1])):
        if taken.isdisjoint((first, last)):  # a longer span that is there covers one of the ends
            kept.append((span, first, last))
            taken.update(range(first, last + 1))
        else:
            losses.append((span.id, OVERLAPPING))
    return sorted(kept, key=lambda one: one[1]), losses


def conll_text(text: str, tokens: Sequence[Token], spans: Iterable[TokenSpan]) -> str:
    """Return the lines of a document."""
    tags = ["O"] * len(tokens)
    for span, first, last in spans:
        label = "_".join(span.labels[0].split()) or "_"
        tags[first] = f"B-{label}"
        tags[first + 1 : last + 1] = [f"I-{label}"] * (last - first)
    lines = [_HEAD]
    end = 0
    for token, tag in zip(tokens, tags, strict=True):
        if end and "\n" in text[end : token.start] and not tag.startswith("I-"):
            lines.append("\n")
        lines.append(f"{text[token.start : token.end]} -X- _ {tag}\n")
        end = token.end
    return "".join([*lines, "\n"])
