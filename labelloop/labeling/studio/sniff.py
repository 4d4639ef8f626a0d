"""KINDS: what a file is that is no export of tasks, or no data set, by its beginning: a wrong one is named."""

import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import islice
from typing import Any, NamedTuple

from labelloop.labeling.errors import MalformedTask
from labelloop.labeling.studio.stream import iter_raw_tasks

HEAD_BYTES = 1 << 20
"""How much of a file `mistaken` wants to see."""
_LOOKED_AT = 20
_BOM = b"\xef\xbb\xbf"
_EXPORT = "In Label Studio choose Export > JSON (not JSON-MIN, CSV or TSV) and give that file."
_IMPORT = "`labelloop import` brings it into a Label Studio project."
_CONVERT = "Export it as COCO or Pascal VOC there; `labelloop import` brings those into a Label Studio project."
_UNPACK = "Unpack it and give the JSON file in it."
_FOLDER = "Unpack it, and import the folder."
_PHOTO = "Import the folder that holds it."
_READ = "Export COCO, Pascal VOC or YOLO from it, and import that."
_TASKS = "Import it in Label Studio (the project's Import), or make a data set of it: labelloop export --from."
_TARGET = "Make a data set of the folder or bucket that holds them all: labelloop export --from."
_PREDICT = (
    "Send it to Label Studio: POST /api/projects/NUMBER/import/predictions. `labelloop import --as predictions` takes a"
    " model's results as COCO results or YOLO."
)
_NO_TASKS = "Predictions are no annotations. Export the tasks that hold them: " + _EXPORT
_STARTS = (  # first bytes -> what it is, the fix where tasks are wanted, the fix where a data set is
    (b"PK\x03\x04", "a zip file", _UNPACK, "Is its name right? A zip ends in .zip."),
    (b"\x1f\x8b", "a gzip file", "Unpack it (gunzip) and give the JSON file in it.", _FOLDER),
    (b"BZh", "a bzip2 file", _UNPACK, _FOLDER),
    (b"\xfd7zXZ", "an xz file", _UNPACK, _FOLDER),
    (b"7z\xbc\xaf", "a 7z file", _UNPACK, _FOLDER),
    (b"Rar!", "a RAR file", _UNPACK, _FOLDER),
    (b"\x28\xb5\x2f\xfd", "a zstd file", _UNPACK, _FOLDER),
    (b"\x89PNG", "a photo (PNG)", _EXPORT, _PHOTO),
    (b"\xff\xd8\xff", "a photo (JPEG)", _EXPORT, _PHOTO),
    (b"PAR1", "a Parquet file", _EXPORT, _READ),
    (b"SQLite format 3", "an SQLite database", _EXPORT, _READ),
)
_WIDE = (b"\xff\xfe", b"\xfe\xff")
_VOC = "For Pascal VOC, give the folder of the XML files."
_MARKUP = (  # what stands in a text that begins with "<"
    (re.compile(rb"<annotations[\s>]"), "XML of CVAT", _CONVERT, _READ),
    (re.compile(rb"<annotation[\s>]"), "XML of Pascal VOC", f"Give the folder of them instead: {_IMPORT}", _VOC),
    (re.compile(rb"<View[\s>]"), "a label config", "Give it by --label-config, beside the file of tasks.", _VOC),
    (
        re.compile(rb""),
        "XML or a web page",
        "If a script downloaded it, read it: it may be the log-in page.",
        _VOC,
    ),
)


class Kind(NamedTuple):
    """A kind of JSON.

    Attributes:
        what: What it is, after "it is".
        keys: Sets of keys in lower case; an object with all keys of one of them is of this kind.
        instead_of_tasks: What to do where Label Studio's tasks are wanted; empty: it is them.
        instead_of_labels: What to do where a data set is wanted; empty: it may be one.
    """

    what: str
    keys: tuple[frozenset[str], ...]
    instead_of_tasks: str
    instead_of_labels: str


def _sets(*names: str) -> tuple[frozenset[str], ...]:
    return tuple(frozenset(each.split(",")) for each in names)


KINDS: Mapping[str, Kind] = {
    "coco results": Kind(
        "a list of COCO results",
        _sets("image_id,category_id"),
        "`labelloop import` brings them into a Label Studio project.",
        "",
    ),
    "coco": Kind(
        "a COCO file", _sets("images,annotations", "images,categories", "annotations,categories"), _IMPORT, ""
    ),
    "ultralytics": Kind("NDJSON of Ultralytics", _sets("type,class_names"), _IMPORT, ""),
    "label studio page": Kind("one page of an answer of Label Studio's API", _sets("results,next"), _EXPORT, ""),
    "label studio list": Kind(
        "a task list of Label Studio without its tasks", _sets("task_ids,tasks"), _EXPORT, _TASKS
    ),
    "label studio": Kind("Label Studio's own JSON", _sets("tasks", "data,annotations", "data,predictions"), "", _TASKS),
    "label studio predictions": Kind(
        "a list of predictions of Label Studio",
        _sets("task,result,model_version", "task,result,score"),
        _NO_TASKS,
        _PREDICT,
    ),
    "predictions alone": Kind("a list of predictions", _sets("result,score"), _NO_TASKS, _PREDICT),
    "label studio annotation": Kind(
        "an annotation of Label Studio's, as its target storage writes them",
        _sets("id,result,task"),
        "`labelloop export` takes the folder or s3:// prefix that it lies in.",
        _TARGET,
    ),
    "label studio plain predictions": Kind(
        "a list of predictions of Label Studio", _sets("task,result"), _NO_TASKS, _PREDICT
    ),
    "annotations alone": Kind(
        "a list of annotations without their tasks", _sets("result,completed_by"), _EXPORT, _TARGET
    ),
    "results alone": Kind("a list of annotations without their tasks", _sets("result"), _EXPORT, ""),
    "label studio min": Kind(
        "Label Studio's JSON-MIN, which lacks the shapes' sizes",
        _sets("annotation_id,annotator"),
        _EXPORT,
        "Export JSON instead, and make a data set of it: labelloop export --from.",
    ),
    "parts of json-min": Kind(
        "JSON-MIN, which leaves out what is needed", _sets("annotation_id", "annotator", "lead_time"), _EXPORT, ""
    ),
    "settings": Kind("the settings of a project", _sets("label_config"), _EXPORT, ""),
    "ml backend": Kind("the answer of an ML backend", _sets("results,model_version"), _EXPORT, _PREDICT),
    "label studio data": Kind(
        "a list of Label Studio's tasks", _sets("data,id", "data,meta", "data,created_at"), "", _TASKS
    ),
    "labelbox": Kind("Labelbox's export", _sets("labeled data", "data_row", "datarow", "datarow id"), _CONVERT, _READ),
    "labelme": Kind("LabelMe's JSON", _sets("shapes,imagepath", "shapes,imagedata"), _CONVERT, _READ),
    "via": Kind(
        "the VGG Image Annotator's JSON",
        _sets("_via_img_metadata", "_via_settings", "regions,filename"),
        _CONVERT,
        _READ,
    ),
    "cvat": Kind("JSON of CVAT", _sets("shapes,tracks"), _CONVERT, _READ),
    "createml": Kind("Create ML's JSON", _sets("image,annotations", "imagefilename,annotation"), _CONVERT, _READ),
    "datumaro": Kind("Datumaro's JSON", _sets("items,categories", "items,dm_format_version"), _CONVERT, _READ),
    "supervisely": Kind("Supervisely's JSON", _sets("objects,size", "classes,projecttype"), _CONVERT, _READ),
    "geojson": Kind("GeoJSON", _sets("type,features"), _EXPORT, _READ),
    "ground truth": Kind("a manifest of SageMaker Ground Truth", _sets("source-ref"), _CONVERT, _READ),
    "vertex": Kind("Vertex AI's JSON Lines", _sets("imagegcsuri"), _CONVERT, _READ),
    "darwin": Kind(
        "V7 Darwin's JSON", _sets("item,annotations", "item,schema_ref", "image,annotations,dataset"), _CONVERT, _READ
    ),
}
"""Kind -> how it is told: by the keys of a file's objects. The first that fits counts."""

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}\[\]:]', re.DOTALL)
_COCO = re.compile(rb'\{\s*"(info|images|annotations|categories|licenses)"')
_SHOWN = 6
_BROKEN: Any = object()


class WrongFileType(NamedTuple):
    """What a file is, in a few words, and what to do."""

    what: str
    fix: str


def sniff_file_type(head: bytes) -> WrongFileType | None:
    """What a file is that is no export of tasks; None: tasks, or nothing that is known by its beginning.

    Args:
        head: The first `HEAD_BYTES` of it, or all.
    """
    text = head.removeprefix(_BOM).lstrip()
    if not text:
        return WrongFileType("empty", "Export it again. That of a project without tasks holds [].")
    if not text.strip(b"\0"):
        return WrongFileType("nothing but zero bytes", "Its download or copy did not finish: get it again.")
    if found := _by_signs(text):
        return WrongFileType(found[0], found[1])
    if text.startswith(_WIDE) or b"\0" in text[:2]:
        return WrongFileType("text in UTF-16", "Save it as UTF-8.")
    if text[:1] not in {b"[", b"{"}:
        return WrongFileType("no JSON", _EXPORT)
    return _other_json(head)


def no_labels(head: bytes) -> WrongFileType | None:
    """What a file is that is no data set; None: it may be one, or nothing is known of its kind.

    Args:
        head: The first `HEAD_BYTES` of it, or all.
    """
    if head.startswith(_WIDE):
        head = head.decode("utf-16", "replace").encode()
    text = head.removeprefix(_BOM).lstrip()
    if not text:
        return WrongFileType("empty", "Export it again.")
    if found := _by_signs(text):
        return WrongFileType(found[0], found[2])
    if text[:1] not in {b"[", b"{"}:
        return None
    kind = _kind(head, _objects_of(head))
    return WrongFileType(kind.what, kind.instead_of_labels) if kind and kind.instead_of_labels else None


def _by_signs(text: bytes) -> tuple[str, str, str] | None:
    """What begins so: what it is, and both fixes."""
    for start, *told in _STARTS:
        if text.startswith(start):
            return told[0], told[1], told[2]
    if text.startswith(b"<"):
        return next((what, *fixes) for sign, what, *fixes in _MARKUP if sign.search(text))  # type: ignore[return-value]
    return None


def _kind(head: bytes, objects: Sequence[dict[str, Any]]) -> Kind | None:
    """By the keys of its objects, or of the object that holds them; else by those of the objects in these."""
    outer = {key.lower() for key in _keys(head)}
    keys = {str(key).lower() for each in objects for key in each}
    inner = {
        str(key).lower() for each in objects for value in each.values() if isinstance(value, dict) for key in value
    }
    for kind in KINDS.values():
        if any(each <= keys or each <= outer or (len(each) > 1 and each <= inner) for each in kind.keys):
            return kind
    return None


def _objects_of(head: bytes) -> list[dict[str, Any]]:
    decoded = map(_decoded, islice(_items(head), _LOOKED_AT))
    return [each for each in decoded if isinstance(each, dict)]


def _other_json(head: bytes) -> WrongFileType | None:
    raw = list(islice(_items(head), _LOOKED_AT))
    found = [each for each in map(_decoded, raw) if each is not _BROKEN]
    objects = [each for each in found if isinstance(each, dict)]
    if any(isinstance(each.get("data"), dict) for each in objects):
        return None
    if raw and not found:
        return WrongFileType("no JSON between its braces", _EXPORT)
    for key in ("detail", "error"):
        if len(objects) == 1 and key in objects[0]:
            said = f"an error answer of an API: {objects[0][key]!r:.200}"
            return WrongFileType(said, "Read it: most often the request had no valid token.")
    kind = _kind(head, objects)
    if kind is not None and kind.instead_of_tasks:
        return WrongFileType(kind.what, kind.instead_of_tasks)
    if _COCO.match(head.removeprefix(_BOM).lstrip()):
        return WrongFileType("a COCO file", _IMPORT)
    if objects:
        keys = sorted({str(key) for each in objects for key in each})
        shown = ", ".join(keys[:_SHOWN]) + (", ..." if len(keys) > _SHOWN else "")
        return WrongFileType(f"JSON whose objects have no data (they have {shown or 'no keys'})", _EXPORT)
    if found:
        return WrongFileType("a JSON list without objects", _EXPORT)
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
