"""What a file is that was given for Label Studio's tasks and is none, told by its beginning: a wrong one is named."""

import io
import re
from typing import NamedTuple

import msgspec

from labelloop.labeling.errors import MalformedTask
from labelloop.labeling.stream import iter_raw_tasks

HEAD_BYTES = 1 << 20
"""How much of a file `mistaken` wants to see."""
_BOM = b"\xef\xbb\xbf"
_COCO = re.compile(rb'\{\s*"(info|images|annotations|categories|licenses)"')
_EXPORT = "In Label Studio choose Export > JSON (not JSON-MIN, CSV or TSV) and give that file."
_STARTS = (  # first bytes -> what it is, and the fix
    (b"PK\x03\x04", "a zip file", "Unpack it and give the JSON file in it."),
    (b"\x1f\x8b", "a gzip file", "Unpack it (gunzip) and give the JSON file in it."),
    (b"\xff\xfe", "text in UTF-16", "Save it as UTF-8."),
    (b"\xfe\xff", "text in UTF-16", "Save it as UTF-8."),
    (b"<", "XML or a web page", "If you downloaded it with a script, look at what it says: it may be the log-in page."),
)


class Mistaken(NamedTuple):
    """What a file is, in a few words, and what to do."""

    what: str
    fix: str


def mistaken(head: bytes) -> Mistaken | None:
    """What a file is that is no export of tasks; None: tasks, or nothing that is known by its beginning.

    Args:
        head: The first `HEAD_BYTES` of it, or all.
    """
    text = head.removeprefix(_BOM).lstrip()
    if not text:
        return Mistaken("empty", "Export it again. That of a project without tasks holds [].")
    for start, what, fix in _STARTS:
        if text.startswith(start):
            return Mistaken(what, fix)
    if text[:1] not in {b"[", b"{"}:
        return Mistaken("no JSON", _EXPORT)
    if _COCO.match(text):
        return Mistaken("a COCO file", "`labelloop import` brings it into a Label Studio project.")
    try:
        first = msgspec.json.decode(next(iter_raw_tasks(io.BytesIO(head)), b"{}"))
    except (MalformedTask, msgspec.DecodeError):
        return None
    if "data" in first or not first:
        return None
    if {"image_id", "category_id"} <= first.keys():
        return Mistaken("a list of COCO results", "`labelloop import` brings them into a Label Studio project.")
    if {"task", "result"} <= first.keys():
        return Mistaken(
            "an annotation of a target storage", "`labelloop export` takes the folder or s3:// prefix that it lies in."
        )
    if {"annotation_id", "annotator", "lead_time"} & first.keys():
        return Mistaken("JSON-MIN, which leaves out what is needed", _EXPORT)
    return None
