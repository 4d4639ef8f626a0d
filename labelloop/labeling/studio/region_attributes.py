"""What is said of a region beside its shape and labels: flags such as ``truncated``, a pose, attributes, and its meta.

Label Studio keeps a region's ``meta`` as it is and shows the first text of ``meta.text`` to the annotator as a note;
who edits that replaces all texts by one. A flag is a word of the note, between commas or in a line of its own, so that
the annotator sees it and may take it away, or an answer to a per-region control. Attributes of
other kinds, as CVAT writes them to COCO files, are in ``meta.attributes``; fields of a COCO annotation that nobody
here knows in ``meta.coco``.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from labelloop.labeling.region import Region

CROWD = "crowd"
FLAGS = (CROWD, "truncated", "difficult", "occluded")
"""What can be so of an object or not: COCO's ``iscrowd``, and the flags of Pascal VOC."""
POSE = "pose"
ATTRIBUTES, FIELDS, TEXT = "attributes", "coco", "text"
"""Keys of a region's meta."""

_WORDS = {**{flag: flag for flag in FLAGS}, "iscrowd": CROWD}
_YES = frozenset({"true", "yes", "1", "1.0"})
_NO = frozenset({"false", "no", "0", "0.0"})
_PARTS = re.compile(r"[,;\n]")


class Remarks(msgspec.Struct, frozen=True, gc=False):
    """What is said of a region.

    Attributes:
        flags: Those of `FLAGS` that are so.
        pose: Pascal VOC's: ``Left``; empty where none is said.
        attributes: Further attributes by name.
        fields: Further fields of a COCO annotation.
        meta: The rest of the region's meta, notes of annotators included.
    """

    flags: frozenset[str] = frozenset()
    pose: str = ""
    attributes: Mapping[str, Any] = {}
    fields: Mapping[str, Any] = {}
    meta: Mapping[str, Any] = {}

    def __bool__(self) -> bool:
        return bool(self.flags or self.pose or self.attributes or self.fields or self.meta)


NONE = Remarks()


def flag_of(word: str) -> str | None:
    """The flag that a word names; None where it is none."""
    return _WORDS.get(word.strip().casefold())


def is_yes(word: str) -> bool:
    """Whether a word says yes."""
    return word.strip().casefold() in _YES


def remarks(region: Region) -> Remarks:
    """What the results of a region say of it. An answer goes before the note, the note before attributes."""
    meta = next((each.meta for each in region.result if each.meta), None) or {}
    if not meta and not region.attributes:
        return NONE
    attributes = meta.get(ATTRIBUTES)
    attributes = attributes if isinstance(attributes, dict) else {}
    fields = meta.get(FIELDS)
    flags = {
        flag: so for name, value in attributes.items() if (flag := flag_of(name)) and (so := _so(value)) is not None
    }
    pose = _text(attributes.get(POSE))
    for word in _words(meta.get(TEXT)):
        name, colon, value = word.partition(":")
        if flag := flag_of(word):
            flags[flag] = True
        elif colon and name.strip().casefold() == POSE:
            pose = value.strip()
    for control, answers in region.attributes.items():
        if control.casefold() == POSE:
            pose = _text(answers[0] if answers else "") or pose
        asked = flag_of(control)
        for answer in answers:
            if not isinstance(answer, str):
                continue
            if flag := flag_of(answer):
                flags[flag] = True
            elif asked and (so := _so(answer)) is not None:
                flags[asked] = so
    rest = {key: value for key, value in meta.items() if key not in {ATTRIBUTES, FIELDS, TEXT}}
    if notes := [kept for note in _notes(meta.get(TEXT)) if (kept := _without_flags(note))]:
        rest[TEXT] = notes
    return Remarks(
        frozenset(flag for flag, so in flags.items() if so),
        pose,
        attributes,
        fields if isinstance(fields, dict) else {},
        rest,
    )


def meta_of(said: Remarks) -> dict[str, Any]:
    """A region's meta that says it: flags and the pose as a line of its note."""
    notes = list(_notes(said.meta.get(TEXT)))
    there = {flag_of(word) for word in _words(notes)}
    words = [flag for flag in FLAGS if flag in said.flags - there]
    words += [f"{POSE}: {said.pose}"] if said.pose else []
    text = ["\n".join([*notes, ", ".join(words)])] if words else notes
    parts = {TEXT: text, ATTRIBUTES: dict(said.attributes), FIELDS: dict(said.fields)}
    rest = {key: value for key, value in said.meta.items() if key not in parts}
    return rest | {key: value for key, value in parts.items() if value}


def _notes(text: Any) -> Iterator[str]:
    yield from (each for each in (text if isinstance(text, list) else [text]) if isinstance(each, str))


def _words(text: Any) -> Iterator[str]:
    for note in _notes(text):
        yield from (part.strip() for part in _PARTS.split(note))


def _without_flags(note: str) -> str:
    """A note without the lines that only tell flags or a pose."""
    return "\n".join(line for line in note.split("\n") if not all(map(_is_flag, _PARTS.split(line))))


def _is_flag(word: str) -> bool:
    """Whether a word of a note is a flag or a pose."""
    return flag_of(word) is not None or word.partition(":")[0].strip().casefold() == POSE


def _so(value: Any) -> bool | None:
    """Whether a value says yes or no; None where it says neither."""
    if isinstance(value, list | tuple):
        return _so(value[0]) if len(value) == 1 else None
    if isinstance(value, bool | int | float | str):
        word = str(value).strip().casefold()
        return True if word in _YES else False if word in _NO else None
    return None


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""
