"""What a file is that was given for an export of Label Studio, told by its beginning: a wrong one is named at once."""

import io
import re
from pathlib import Path

import msgspec

from exporters.errors import NotTasks
from labelloop.labeling.errors import MalformedTask
from labelloop.labeling.stream import iter_raw_tasks

_HEAD = 1 << 20
_BOM = b"\xef\xbb\xbf"
_COCO = re.compile(rb'\{\s*"(info|images|annotations|categories|licenses)"')
_STARTS = (  # first bytes -> what it is, and the fix; without one: how to export from Label Studio
    (b"PK\x03\x04", "a zip file", "Unpack it and give the JSON file in it."),
    (b"\x1f\x8b", "a gzip file", "Unpack it (gunzip) and give the JSON file in it."),
    (b"\xff\xfe", "text in UTF-16", "Save it as UTF-8."),
    (b"\xfe\xff", "text in UTF-16", "Save it as UTF-8."),
    (b"<", "XML or a web page", "If you downloaded it with a script, look at what it says: it may be the log-in page."),
)


def check_tasks(path: Path, name: str) -> None:
    """Look at the beginning of a file of tasks; one that is broken further on is not for here.

    Args:
        path: The file.
        name: What the user calls it.

    Raises:
        NotTasks: It is something else, which the error names.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
    text = head.removeprefix(_BOM).lstrip()
    if not text:
        raise NotTasks(name, "empty", "Export it again. That of a project without tasks holds [].")
    for start, what, fix in _STARTS:
        if text.startswith(start):
            raise NotTasks(name, what, fix)
    if text[:1] not in {b"[", b"{"}:
        raise NotTasks(name, "no JSON")
    if _COCO.match(text):
        raise NotTasks(name, "a COCO file", "`labelloop import` brings it into a Label Studio project.")
    try:
        first = msgspec.json.decode(next(iter_raw_tasks(io.BytesIO(head)), b"{}"))
    except (MalformedTask, msgspec.DecodeError):
        return
    if "data" in first or not first:
        return
    if {"image_id", "category_id"} <= first.keys():
        raise NotTasks(name, "a list of COCO results", "`labelloop import` brings them into a Label Studio project.")
    if {"task", "result"} <= first.keys():
        raise NotTasks(name, "an annotation of a target storage", "Give the folder or s3:// prefix that it lies in.")
    if {"annotation_id", "annotator", "lead_time"} & first.keys():
        raise NotTasks(name, "JSON-MIN, which leaves out what an export needs")
