"""Attributes of a region's object: flags such as ``truncated``, pose, further attributes, and notes.

Label Studio preserves a region's ``meta`` and shows the first text of ``meta.text`` as a note; editing it replaces all
texts by one. A flag is a word of the note, between commas or on a line of its own, so annotators see and can remove it;
or it is an answer to a per-region control. Other attributes, as CVAT writes them to COCO files, are in
``meta.attributes``, unknown fields of a COCO annotation in ``meta.coco``.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from labelloop.labeling.region import Region

CROWD = "crowd"
# COCO's ``iscrowd`` and the flags of Pascal VOC.
FLAGS = (CROWD, "truncated", "difficult", "occluded")
POSE = "pose"
# Keys of a region's meta.
ATTRIBUTES, FIELDS, TEXT = "attributes", "coco", "text"

_WORDS = {**{flag: flag for flag in FLAGS}, "iscrowd": CROWD}
_TRUE_WORDS = frozenset({"true", "yes", "1", "1.0"})
_FALSE_WORDS = frozenset({"false", "no", "0", "0.0"})
_SEPARATORS = re.compile(r"[,;\n]")


class ObjectAttributes(msgspec.Struct, frozen=True, gc=False):
    """Attributes of an object.

    Attributes:
        flags: The `FLAGS` that are set.
        pose: Pascal VOC's pose, such as ``Left``; empty if none.
        attributes: Further attributes by name.
        fields: Further fields of a COCO annotation.
        meta: The rest of the region's meta, including annotators' notes.
    """

    flags: frozenset[str] = frozenset()
    pose: str = ""
    attributes: Mapping[str, Any] = {}
    fields: Mapping[str, Any] = {}
    meta: Mapping[str, Any] = {}

    def __bool__(self) -> bool:
        return bool(self.flags or self.pose or self.attributes or self.fields or self.meta)


NO_OBJECT_ATTRIBUTES = ObjectAttributes()


def flag_of(word: str) -> str | None:
    """The flag with this name; None if there is none."""
    return _WORDS.get(word.strip().casefold())


def is_true(word: str) -> bool:
    """Whether a word means true."""
    return word.strip().casefold() in _TRUE_WORDS


def is_false(word: str) -> bool:
    """Whether a word means false."""
    return word.strip().casefold() in _FALSE_WORDS


def read_object_attributes(region: Region) -> ObjectAttributes:
    """Read an object's attributes from its results. Answers override the note, the note overrides attributes."""
    return object_attributes(next((result.meta for result in region.result if result.meta), None), region.attributes)


def object_attributes(
    meta: Mapping[str, Any] | None, answers_by_control: Mapping[str, tuple[Any, ...]]
) -> ObjectAttributes:
    """Like `read_object_attributes`, from a region's ``meta`` and its answers by control."""
    flags: dict[str, bool] = {}
    pose = ""
    if not meta:
        pose = _read_answers(answers_by_control, flags, pose)
        flagged = frozenset(flag for flag, is_set in flags.items() if is_set)
        return ObjectAttributes(flagged, pose) if flagged or pose else NO_OBJECT_ATTRIBUTES
    attributes = meta.get(ATTRIBUTES)
    attributes = attributes if isinstance(attributes, dict) else {}
    fields = meta.get(FIELDS)
    for name, value in attributes.items():
        if (flag := flag_of(name)) and (is_set := _as_bool(value)) is not None:
            flags[flag] = is_set
    pose = _text(attributes.get(POSE))
    for word in _words(meta.get(TEXT)):
        name, colon, value = word.partition(":")
        if flag := flag_of(word):
            flags[flag] = True
        elif colon and name.strip().casefold() == POSE:
            pose = value.strip()
    pose = _read_answers(answers_by_control, flags, pose)
    rest = {key: value for key, value in meta.items() if key not in {ATTRIBUTES, FIELDS, TEXT}}
    if notes := [remaining for note in _notes(meta.get(TEXT)) if (remaining := _without_flags(note))]:
        rest[TEXT] = notes
    return ObjectAttributes(
        frozenset(flag for flag, is_set in flags.items() if is_set),
        pose,
        attributes,
        fields if isinstance(fields, dict) else {},
        rest,
    )


def _read_answers(answers_by_control: Mapping[str, tuple[Any, ...]], flags: dict[str, bool], pose: str) -> str:
    """Set the flags that answers state, and return the pose: theirs, or ``pose``."""
    for control, answers in answers_by_control.items():
        if control.casefold() == POSE:
            pose = _text(answers[0] if answers else "") or pose
        control_flag = flag_of(control)
        for answer in answers:
            if not isinstance(answer, str):
                continue
            if flag := flag_of(answer):
                flags[flag] = True
            elif control_flag and (is_set := _as_bool(answer)) is not None:
                flags[control_flag] = is_set
    return pose


def to_meta(metadata: ObjectAttributes) -> dict[str, Any]:
    """A region's meta with these attributes; flags and pose become a line of its note."""
    notes = list(_notes(metadata.meta.get(TEXT)))
    noted = {flag_of(word) for word in _words(notes)}
    words = [flag for flag in FLAGS if flag in metadata.flags - noted]
    words += [f"{POSE}: {metadata.pose}"] if metadata.pose else []
    text = ["\n".join([*notes, ", ".join(words)])] if words else notes
    parts = {TEXT: text, ATTRIBUTES: dict(metadata.attributes), FIELDS: dict(metadata.fields)}
    rest = {key: value for key, value in metadata.meta.items() if key not in parts}
    return rest | {key: value for key, value in parts.items() if value}


def _notes(text: Any) -> Iterator[str]:
    yield from (note for note in (text if isinstance(text, list) else [text]) if isinstance(note, str))


def _words(text: Any) -> Iterator[str]:
    for note in _notes(text):
        yield from (part.strip() for part in _SEPARATORS.split(note))


def _without_flags(note: str) -> str:
    """A note without the lines that contain only flags or a pose."""
    return "\n".join(line for line in note.split("\n") if not all(map(_is_flag, _SEPARATORS.split(line))))


def _is_flag(word: str) -> bool:
    """Whether a word of a note is a flag or a pose."""
    return flag_of(word) is not None or word.partition(":")[0].strip().casefold() == POSE


def _as_bool(value: Any) -> bool | None:
    """A value as a boolean; None if it is neither true nor false."""
    if isinstance(value, list | tuple):
        return _as_bool(value[0]) if len(value) == 1 else None
    if isinstance(value, bool | int | float | str):
        word = str(value).strip().casefold()
        return True if word in _TRUE_WORDS else False if word in _FALSE_WORDS else None
    return None


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""
