"""spacy-jsonl: labelled spans as Prodigy's JSON Lines, which spaCy reads with ``Doc.char_span``.

Format: https://prodi.gy/docs/api-interfaces#spans_manual (text, tokens, spans) and #relations.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import msgspec

from exporters.tasks.documents import Document, documents
from exporters.tasks.flat import Json
from exporters.tasks.formats.base import EncodedLine, LineFormat
from exporters.tasks.formats.conll import SpanFormat
from exporters.tasks.line import TaskLine
from exporters.tasks.tokens import Token, aligned, tokenize

UNALIGNED = "spans that begin or end inside a token: without token_start and token_end"
LOOSE_RELATION = "relations that do not join two spans of one text on token boundaries, left out"
_encode = msgspec.json.Encoder().encode


class SpacyJsonl(SpanFormat, LineFormat):
    """A line per text, with all of its spans, overlapping ones too; a span is there once for each of its labels."""

    name: ClassVar[str] = "spacy-jsonl"

    def encode_line(self, line: TaskLine) -> EncodedLine:
        """See `TaskFormat.encode_line`."""
        read, reason = documents(line, self.context.config)
        if reason:
            return EncodedLine(None, dropped=reason)
        notes = Counter({UNALIGNED: 0, LOOSE_RELATION: len(line.flat.relations)})
        lines = []
        for document in read:
            made = _line(document, line.flat.relations)
            meta = {"task": line.task, "annotation": line.annotation.get("id"), "object": document.object}
            lines.append(made | {"meta": meta, "answer": "accept"})
            notes.update(document.notes)
            notes[UNALIGNED] += sum("token_start" not in span for span in made["spans"])
            notes[LOOSE_RELATION] -= len(made.get("relations", ()))
        return EncodedLine(
            _encode(lines),
            sum(len(made["spans"]) for made in lines),
            losses=[loss for document in read for loss in document.losses],
            notes=notes,
        )


def _line(document: Document, relations: Sequence[Mapping[str, Any]]) -> Json:
    text, tokens = document.text, tokenize(document.text)
    spans: list[Json] = []
    by_id: dict[str, Json] = {}
    for span in document.spans:
        at = aligned(tokens, span.start, span.end)
        ends = {"start": span.start, "end": span.end}
        if at is not None:
            ends |= {"token_start": at[0], "token_end": at[1]}
            by_id[span.id] = ends | {"label": span.labels[0]}
        spans += [ends | {"label": label} for label in span.labels]
    made: Json = {"text": text, "tokens": [_token(text, number, token) for number, token in enumerate(tokens)]}
    made["spans"] = spans
    linked = [_relation(one, by_id) for one in relations if {str(one["from"]), str(one["to"])} <= by_id.keys()]
    return made | ({"relations": linked} if linked else {})


def _token(text: str, number: int, token: Token) -> Json:
    return {
        "text": text[token.start : token.end],
        "start": token.start,
        "end": token.end,
        "id": number,
        "ws": text[token.end : token.end + 1] == " ",
    }


def _relation(relation: Mapping[str, Any], by_id: Mapping[str, Json]) -> Json:
    """Return a relation; one drawn from right to left has its ends exchanged. A span's head is its last token."""
    ends = str(relation["from"]), str(relation["to"])
    head, child = (by_id[end] for end in (ends[::-1] if relation.get("direction") == "left" else ends))
    labels = relation.get("labels")
    return {
        "head": head["token_end"],
        "child": child["token_end"],
        "head_span": head,
        "child_span": child,
        "label": str(labels[0]) if isinstance(labels, list) and labels else "",
    }
