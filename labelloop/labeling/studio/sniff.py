"""Identify files that are no export of tasks, or no data set, by their first bytes, for a helpful error."""

import codecs
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import islice
from typing import Any, NamedTuple

from labelloop.labeling.errors import MalformedTask
from labelloop.labeling.studio.stream import iter_raw_tasks

# Bytes of a file that `sniff_file_type` needs.
HEAD_BYTES = 1 << 20
_MAX_ITEMS = 20
_BOM = b"\xef\xbb\xbf"
_EXPORT = "In Label Studio choose Export > JSON (not JSON-MIN, CSV or TSV) and pass that file."
_IMPORT = "Import it into a Label Studio project: `labelloop import`."
_CONVERT = "Export it there as COCO or Pascal VOC, and import that into a Label Studio project: `labelloop import`."
_UNPACK = "Unpack it and pass the JSON file in it."
_LFS = "Fetch it with `git lfs pull`."
_FOLDER = "Unpack it, and import the folder."
_IMAGE_FOLDER = "Import the folder that contains it."
_READ = "Export COCO, Pascal VOC or YOLO from it, and import that."
_TASKS = "Import it in Label Studio (the project's Import), or export it as a data set: labelloop export --from."
_TARGET = "Export the folder or bucket that contains them all as a data set: labelloop export --from."
_PREDICT = (
    "Send it to Label Studio: POST /api/projects/NUMBER/import/predictions. `labelloop import --as predictions` takes a"
    " model's results as COCO results or YOLO."
)
_NO_TASKS = "Predictions are not annotations. Export the tasks that contain them: " + _EXPORT
_SIGNATURES = (  # (first bytes, description, fix if tasks are expected, fix if a data set is expected)
    (b"PK\x03\x04", "a zip file", _UNPACK, "Check its name: a zip file ends in .zip."),
    (b"\x1f\x8b", "a gzip file", "Unpack it (gunzip) and pass the JSON file in it.", _FOLDER),
    (b"BZh", "a bzip2 file", _UNPACK, _FOLDER),
    (b"\xfd7zXZ", "an xz file", _UNPACK, _FOLDER),
    (b"7z\xbc\xaf", "a 7z file", _UNPACK, _FOLDER),
    (b"Rar!", "a RAR file", _UNPACK, _FOLDER),
    (b"\x28\xb5\x2f\xfd", "a zstd file", _UNPACK, _FOLDER),
    (b"\x89PNG", "an image (PNG)", _EXPORT, _IMAGE_FOLDER),
    (b"\xff\xd8\xff", "an image (JPEG)", _EXPORT, _IMAGE_FOLDER),
    (b"PAR1", "a Parquet file", _EXPORT, _READ),
    (b"SQLite format 3", "an SQLite database", _EXPORT, _READ),
    (b"version https://git-lfs.github.com/spec/", "a pointer of Git LFS, not the file itself", _LFS, _LFS),
)
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
_CVAT = "Pass the XML file, or the folder that contains it."
_VOC = "For Pascal VOC, pass the folder of the XML files."
_MARKUP = (  # (pattern, description, both fixes) of a text that starts with "<"
    (re.compile(rb"<annotations[\s>]"), "XML of CVAT", f"Use the folder that contains it. {_IMPORT}", _CVAT),
    (re.compile(rb"<annotation[\s>]"), "XML of Pascal VOC", f"Use the folder that contains it. {_IMPORT}", _VOC),
    (re.compile(rb"<View[\s>]"), "a label config", "Pass it as --label-config, together with the file of tasks.", _VOC),
    (
        re.compile(rb""),
        "XML or a web page",
        "If a script downloaded it, open it: it may be the log-in page.",
        _VOC,
    ),
)


class JsonKind(NamedTuple):
    """A recognised kind of JSON.

    Attributes:
        what: Its description, after "it is".
        keys: Sets of keys in lower case; an object with all keys of one set is of this kind.
        fix_for_tasks: What to do if Label Studio's tasks are expected; empty: these are tasks.
        fix_for_data_set: What to do if a data set is expected; empty: it may be one.
    """

    what: str
    keys: tuple[frozenset[str], ...]
    fix_for_tasks: str
    fix_for_data_set: str


def _key_sets(*names: str) -> tuple[frozenset[str], ...]:
    return tuple(frozenset(keys.split(",")) for keys in names)


# Kinds of JSON, recognised by the keys of the objects in a file; the first match counts.
KINDS: Mapping[str, JsonKind] = {
    "coco results": JsonKind(
        "a list of COCO results",
        _key_sets("image_id,category_id"),
        "Import them into a Label Studio project: `labelloop import`.",
        "",
    ),
    "coco": JsonKind(
        "a COCO file", _key_sets("images,annotations", "images,categories", "annotations,categories"), _IMPORT, ""
    ),
    "ultralytics": JsonKind("NDJSON of Ultralytics", _key_sets("type,class_names"), _IMPORT, ""),
    "label studio page": JsonKind(
        "one page of a response of Label Studio's API", _key_sets("results,next"), _EXPORT, ""
    ),
    "label studio list": JsonKind(
        "a task list of Label Studio without its tasks", _key_sets("task_ids,tasks"), _EXPORT, _TASKS
    ),
    "label studio": JsonKind(
        "Label Studio's own JSON",
        _key_sets("tasks", "data,annotations", "data,completions", "data,predictions"),
        "",
        _TASKS,
    ),
    "label studio predictions": JsonKind(
        "a list of predictions of Label Studio",
        _key_sets("task,result,model_version", "task,result,score"),
        _NO_TASKS,
        _PREDICT,
    ),
    "predictions alone": JsonKind("a list of predictions", _key_sets("result,score"), _NO_TASKS, _PREDICT),
    "label studio annotation": JsonKind(
        "an annotation of Label Studio, as its target storage writes it",
        _key_sets("id,result,task"),
        "Pass its folder or the s3://, gs:// or az:// address to `labelloop export`.",
        _TARGET,
    ),
    "label studio plain predictions": JsonKind(
        "a list of predictions of Label Studio", _key_sets("task,result"), _NO_TASKS, _PREDICT
    ),
    "annotations alone": JsonKind(
        "a list of annotations without their tasks", _key_sets("result,completed_by"), _EXPORT, _TARGET
    ),
    "results alone": JsonKind("a list of annotations without their tasks", _key_sets("result"), _EXPORT, ""),
    "label studio min": JsonKind(
        "Label Studio's JSON-MIN, which lacks the shapes' sizes",
        _key_sets("annotation_id,annotator"),
        _EXPORT,
        "Export JSON instead, and export that as a data set: labelloop export --from.",
    ),
    "parts of json-min": JsonKind(
        "JSON-MIN, which lacks required fields", _key_sets("annotation_id", "annotator", "lead_time"), _EXPORT, ""
    ),
    "settings": JsonKind("the settings of a project", _key_sets("label_config"), _EXPORT, ""),
    "ml backend": JsonKind("a response of an ML backend", _key_sets("results,model_version"), _EXPORT, _PREDICT),
    "label studio data": JsonKind(
        "a list of Label Studio's tasks", _key_sets("data,id", "data,meta", "data,created_at"), "", _TASKS
    ),
    "labelbox": JsonKind(
        "Labelbox's export", _key_sets("labeled data", "data_row", "datarow", "datarow id"), _CONVERT, _READ
    ),
    "labelme": JsonKind(
        "LabelMe's JSON", _key_sets("shapes,imagepath", "shapes,imagedata", "version,flags,shapes"), _IMPORT, ""
    ),
    "via": JsonKind(
        "the VGG Image Annotator's JSON",
        _key_sets("_via_img_metadata", "_via_settings", "regions,filename"),
        _CONVERT,
        _READ,
    ),
    "cvat": JsonKind("JSON of CVAT", _key_sets("shapes,tracks"), _CONVERT, _READ),
    "createml": JsonKind("Create ML's JSON", _key_sets("image,annotations", "imagefilename,annotation"), _IMPORT, ""),
    "datumaro": JsonKind("Datumaro's JSON", _key_sets("items,categories", "items,dm_format_version"), _CONVERT, _READ),
    "supervisely": JsonKind("Supervisely's JSON", _key_sets("objects,size", "classes,projecttype"), _CONVERT, _READ),
    "geojson": JsonKind("GeoJSON", _key_sets("type,features"), _EXPORT, _READ),
    "ground truth": JsonKind("a manifest of SageMaker Ground Truth", _key_sets("source-ref"), _CONVERT, _READ),
    "vertex": JsonKind("Vertex AI's JSON Lines", _key_sets("imagegcsuri"), _CONVERT, _READ),
    "darwin": JsonKind(
        "V7 Darwin's JSON",
        _key_sets("item,annotations", "item,schema_ref", "image,annotations,dataset"),
        _CONVERT,
        _READ,
    ),
}

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}\[\]:]', re.DOTALL)
_COCO = re.compile(rb'\{\s*"(info|images|annotations|categories|licenses)"')
_MAX_LISTED_KEYS = 6
_BROKEN: Any = object()


class WrongFileType(NamedTuple):
    """A short description of a file, and what to do with it."""

    what: str
    fix: str


def sniff_file_type(head: bytes) -> WrongFileType | None:
    """Identify a file that is no export of tasks; None: it contains tasks, or is not recognised.

    Args:
        head: The first `HEAD_BYTES` of the file, or all of it.
    """
    text = head.removeprefix(_BOM).lstrip()
    if not text:
        return WrongFileType("empty", "Export it again. The export of a project without tasks is [].")
    if not text.strip(b"\0"):
        return WrongFileType("nothing but zero bytes", "Its download or copy is incomplete: repeat it.")
    if match := _by_signature(text):
        return WrongFileType(match[0], match[1])
    if text.startswith(_UTF16_BOMS) or b"\0" in text[:2]:
        return WrongFileType("text in UTF-16", "Save it as UTF-8.")
    if text[:1] not in {b"[", b"{"}:
        return WrongFileType("not JSON", _EXPORT)
    return _other_json(head)


def sniff_non_data_set(head: bytes) -> WrongFileType | None:
    """Identify a file that is no data set; None: it may be one, or is not recognised.

    Args:
        head: The first `HEAD_BYTES` of the file, or all of it.
    """
    if head.startswith(_UTF16_BOMS):
        head = head.decode("utf-16", "replace").encode()
    text = head.removeprefix(_BOM).lstrip()
    if not text:
        return WrongFileType("empty", "Export it again.")
    if match := _by_signature(text):
        return WrongFileType(match[0], match[2])
    if text[:1] not in {b"[", b"{"}:
        return None
    kind = _kind(head, _objects_of(head))
    return WrongFileType(kind.what, kind.fix_for_data_set) if kind and kind.fix_for_data_set else None


def _is_utf8(head: bytes) -> bool:
    """Whether the start of a file is UTF-8; its last character may be cut."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return True


def json_kind(head: bytes) -> str:
    """The key of `KINDS` of JSON that may be truncated; empty if it is not recognised."""
    kind = _kind(head, _objects_of(head)) if head.removeprefix(_BOM).lstrip()[:1] in {b"[", b"{"} else None
    return next((name for name, value in KINDS.items() if value is kind), "")


def _by_signature(text: bytes) -> tuple[str, str, str] | None:
    """(description, fix for tasks, fix for data sets) of a binary or markup file, by its signature."""
    for start, *description in _SIGNATURES:
        if text.startswith(start):
            return description[0], description[1], description[2]
    if text.startswith(b"<"):
        return next((what, *fixes) for sign, what, *fixes in _MARKUP if sign.search(text))  # type: ignore[return-value]
    return None


def _kind(head: bytes, objects: Sequence[dict[str, Any]]) -> JsonKind | None:
    """The kind by the keys of the objects, of the outer object, or of objects nested in them."""
    outer = {key.lower() for key in _keys(head)}
    keys = {str(key).lower() for item in objects for key in item}
    inner = {
        str(key).lower() for item in objects for value in item.values() if isinstance(value, dict) for key in value
    }
    for kind in KINDS.values():
        if any(
            required <= keys or required <= outer or (len(required) > 1 and required <= inner) for required in kind.keys
        ):
            return kind
    return None


def _objects_of(head: bytes) -> list[dict[str, Any]]:
    decoded = map(_decoded, islice(_items(head), _MAX_ITEMS))
    return [item for item in decoded if isinstance(item, dict)]


def _other_json(head: bytes) -> WrongFileType | None:
    raw = list(islice(_items(head), _MAX_ITEMS))
    values = [value for value in map(_decoded, raw) if value is not _BROKEN]
    objects = [item for item in values if isinstance(item, dict)]
    if any(isinstance(item.get("data"), dict) for item in objects):
        return None
    if raw and not values:
        if not _is_utf8(head):
            return WrongFileType("text that is not UTF-8", "Save it as UTF-8.")
        return WrongFileType("not JSON between its braces", _EXPORT)
    for key in ("detail", "error"):
        if len(objects) == 1 and key in objects[0]:
            message = f"an error response of an API: {objects[0][key]!r:.200}"
            return WrongFileType(message, "Read the message: most often the request had no valid token.")
    kind = _kind(head, objects)
    if kind is not None and kind.fix_for_tasks:
        return WrongFileType(kind.what, kind.fix_for_tasks)
    if _COCO.match(head.removeprefix(_BOM).lstrip()):
        return WrongFileType("a COCO file", _IMPORT)
    if objects:
        keys = sorted({str(key) for item in objects for key in item})
        listed = ", ".join(keys[:_MAX_LISTED_KEYS]) + (", ..." if len(keys) > _MAX_LISTED_KEYS else "")
        return WrongFileType(f"JSON whose objects have no data (they have {listed or 'no keys'})", _EXPORT)
    if values:
        return WrongFileType("a JSON list without objects", _EXPORT)
    return None


def _items(head: bytes) -> Iterator[bytes]:
    try:
        yield from iter_raw_tasks(io.BytesIO(head))
    except MalformedTask:  # also at the end of a truncated head: the items before it are enough
        return


def _decoded(raw: bytes) -> Any:
    try:
        return json.loads(raw)  # accepts NaN, as `read_task` does
    except (ValueError, RecursionError):
        return _BROKEN


def _keys(text: bytes) -> AbstractSet[str]:
    """The keys of the first object of a text that may be truncated within it."""
    keys, depth, last = set(), 0, b""
    outermost = 2 if text.removeprefix(_BOM).lstrip().startswith(b"[") else 1
    for token in _TOKEN.findall(text[: 1 << 16]):
        if token in b"{[":
            depth += 1
        elif token in b"}]":
            depth -= 1
            if depth < outermost:
                break
        elif token == b":" and depth == outermost:
            keys.add(last[1:-1].decode(errors="replace"))
        last = token
    return keys
