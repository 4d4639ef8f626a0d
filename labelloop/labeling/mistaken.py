"""What a file is that was given for Label Studio's tasks and is none, by its beginning: a wrong one is named."""

import io
import json
import re
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from itertools import islice
from typing import Any, NamedTuple

from labelloop.labeling.errors import MalformedTask
from labelloop.labeling.stream import iter_raw_tasks

HEAD_BYTES = 1 << 20
"""How much of a file `mistaken` wants to see."""
_LOOKED_AT = 20
_BOM = b"\xef\xbb\xbf"
_EXPORT = "In Label Studio choose Export > JSON (not JSON-MIN, CSV or TSV) and give that file."
_IMPORT = "`labelloop import` brings it into a Label Studio project."
_CONVERT = "Export it as COCO or Pascal VOC there; `labelloop import` brings those into a Label Studio project."
_UNPACK = "Unpack it and give the JSON file in it."
_STARTS = (  # first bytes -> what it is, and the fix
    (b"PK\x03\x04", "a zip file", _UNPACK),
    (b"\x1f\x8b", "a gzip file", "Unpack it (gunzip) and give the JSON file in it."),
    (b"BZh", "a bzip2 file", _UNPACK),
    (b"\xfd7zXZ", "an xz file", _UNPACK),
    (b"7z\xbc\xaf", "a 7z file", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd file", _UNPACK),
    (b"\xff\xfe", "text in UTF-16", "Save it as UTF-8."),
    (b"\xfe\xff", "text in UTF-16", "Save it as UTF-8."),
    (b"\x89PNG", "an image (PNG)", _EXPORT),
    (b"\xff\xd8\xff", "an image (JPEG)", _EXPORT),
    (b"PAR1", "a Parquet file", _EXPORT),
    (b"SQLite format 3", "an SQLite database", _EXPORT),
)
_MARKUP = (  # what stands in a text that begins with "<"
    (re.compile(rb"<annotations[\s>]"), "XML of CVAT", _CONVERT),
    (re.compile(rb"<annotation[\s>]"), "XML of Pascal VOC", f"Give the folder of them instead: {_IMPORT}"),
    (re.compile(rb"<View[\s>]"), "a label config", "Give it by --label-config, beside the file of tasks."),
    (re.compile(rb""), "XML or a web page", "If a script downloaded it, read it: it may be the log-in page."),
)
_KEYS = (  # keys of its objects, in lower case -> what it is, and the fix; the first that fits
    (
        {"image_id", "category_id"},
        "a list of COCO results",
        "`labelloop import` brings them into a Label Studio project.",
    ),
    ({"images", "annotations"}, "a COCO file", _IMPORT),
    ({"images", "categories"}, "a COCO file", _IMPORT),
    ({"annotations", "categories"}, "a COCO file", _IMPORT),
    ({"shapes", "imagepath"}, "a LabelMe file", _CONVERT),
    ({"_via_img_metadata"}, "a project of VGG Image Annotator (VIA)", _CONVERT),
    ({"filename", "regions"}, "an export of VGG Image Annotator (VIA)", _CONVERT),
    ({"labeled data"}, "JSON of Labelbox", _CONVERT),
    ({"data_row"}, "NDJSON of Labelbox", _CONVERT),
    ({"datarow"}, "NDJSON of Labelbox", _CONVERT),
    ({"size", "objects"}, "an annotation of Supervisely", _CONVERT),
    ({"classes", "projecttype"}, "meta.json of Supervisely", _CONVERT),
    ({"shapes", "tracks"}, "JSON of CVAT", _CONVERT),
    ({"categories", "items"}, "JSON of Datumaro", _CONVERT),
    ({"schema_ref", "item"}, "Darwin JSON of V7", _CONVERT),
    ({"source-ref"}, "a manifest of SageMaker Ground Truth", _CONVERT),
    ({"type", "class_names"}, "NDJSON of Ultralytics", _IMPORT),
    ({"type", "features"}, "GeoJSON", _EXPORT),
    ({"image", "annotations"}, "JSON of Create ML", _CONVERT),
    ({"label_config"}, "the settings of a project", _EXPORT),
    ({"results", "model_version"}, "the answer of an ML backend", _EXPORT),
    ({"results", "next"}, "one page of an answer of Label Studio's API", _EXPORT),
    ({"task_ids", "tasks"}, "a task list of Label Studio without its tasks", _EXPORT),
    (
        {"task", "result", "model_version"},
        "a list of predictions",
        "Predictions are no annotations. Export the tasks that hold them: " + _EXPORT,
    ),
    (
        {"result", "score"},
        "a list of predictions",
        "Predictions are no annotations. Export the tasks that hold them: " + _EXPORT,
    ),
    (
        {"task", "result"},
        "an annotation of a target storage",
        "`labelloop export` takes the folder or s3:// prefix that it lies in.",
    ),
    ({"result"}, "a list of annotations without their tasks", _EXPORT),
    ({"annotation_id"}, "JSON-MIN, which leaves out what is needed", _EXPORT),
    ({"annotator"}, "JSON-MIN, which leaves out what is needed", _EXPORT),
    ({"lead_time"}, "JSON-MIN, which leaves out what is needed", _EXPORT),
)
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}\[\]:]', re.DOTALL)
_COCO = re.compile(rb'\{\s*"(info|images|annotations|categories|licenses)"')
_SHOWN = 6
_BROKEN: Any = object()


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
    if not text.strip(b"\0"):
        return Mistaken("nothing but zero bytes", "Its download or copy did not finish: get it again.")
    for start, what, fix in _STARTS:
        if text.startswith(start):
            return Mistaken(what, fix)
    if b"\0" in text[:2]:
        return Mistaken("text in UTF-16", "Save it as UTF-8.")
    if text.startswith(b"<"):
        return next(Mistaken(what, fix) for sign, what, fix in _MARKUP if sign.search(text))
    if text[:1] not in {b"[", b"{"}:
        return Mistaken("no JSON", _EXPORT)
    return _other_json(head)


def _other_json(head: bytes) -> Mistaken | None:
    raw = list(islice(_items(head), _LOOKED_AT))
    found = [each for each in map(_decoded, raw) if each is not _BROKEN]
    objects = [each for each in found if isinstance(each, dict)]
    if any(isinstance(each.get("data"), dict) for each in objects):
        return None
    if raw and not found:
        return Mistaken("no JSON between its braces", _EXPORT)
    keys = {str(key) for each in objects for key in each} or _keys(head)
    lower = {key.lower() for key in keys}
    nested = {
        str(key).lower() for each in objects for value in each.values() if isinstance(value, dict) for key in value
    }
    for key in ("detail", "error"):
        if len(objects) == 1 and key in objects[0]:
            said = f"an error answer of an API: {objects[0][key]!r:.200}"
            return Mistaken(said, "Read it: most often the request had no valid token.")
    for wanted, what, fix in _KEYS:
        if wanted <= lower or wanted <= nested:
            return Mistaken(what, fix)
    if _COCO.match(head.removeprefix(_BOM).lstrip()):
        return Mistaken("a COCO file", _IMPORT)
    if objects:
        shown = ", ".join(sorted(keys)[:_SHOWN]) + (", ..." if len(keys) > _SHOWN else "")
        return Mistaken(f"JSON whose objects have no data (they have {shown or 'no keys'})", _EXPORT)
    if found:
        return Mistaken("a JSON list without objects", _EXPORT)
    return None


def _items(head: bytes) -> Iterator[bytes]:
    try:
        yield from iter_raw_tasks(io.BytesIO(head))
    except MalformedTask:  # also where the head is cut: what stands before it tells enough
        return


def _decoded(raw: bytes) -> Any:
    try:
        return json.loads(raw)  # takes NaN too, as `read_task` does
    except (ValueError, RecursionError):
        return _BROKEN


def _keys(text: bytes) -> AbstractSet[str]:
    """The keys of the first object of a text that may end within it."""
    found, depth, last = set(), 0, b""
    outermost = 2 if text.removeprefix(_BOM).lstrip().startswith(b"[") else 1
    for token in _TOKEN.findall(text[: 1 << 16]):
        if token in b"{[":
            depth += 1
        elif token in b"}]":
            depth -= 1
            if depth < outermost:
                break
        elif token == b":" and depth == outermost:
            found.add(last[1:-1].decode(errors="replace"))
        last = token
    return found
