"""FOREIGN: files of other tools and of Label Studio itself that are no data set here, each with what to do instead."""

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from labelloop.service.datasets.errors import DatasetError, Flawed
from labelloop.service.datasets.text import json_of

_READ = "Export COCO, Pascal VOC or YOLO from it, and import that."
_TASKS = "Import it in Label Studio (the project's Import), or make a data set of it: labelloop export --from."
_PREDICTIONS = "a list of Label Studio's predictions"
_PREDICT = (
    "Send it to Label Studio: POST /api/projects/NUMBER/import/predictions. `labelloop import --as predictions` takes a"
    " model's results as COCO results or YOLO."
)


class Foreign(NamedTuple):
    """A kind of JSON.

    Attributes:
        what: What it is, after "it is".
        keys: Sets of keys; an object with all keys of one of them is of this kind.
        fix: What to do instead.
    """

    what: str
    keys: tuple[frozenset[str], ...]
    fix: str


def _sets(*names: str) -> tuple[frozenset[str], ...]:
    return tuple(frozenset(each.split(",")) for each in names)


FOREIGN: Mapping[str, Foreign] = {
    "label studio": Foreign("Label Studio's own JSON", _sets("tasks", "data,annotations", "data,predictions"), _TASKS),
    "label studio predictions": Foreign(
        _PREDICTIONS, _sets("task,result,model_version", "task,result,score"), _PREDICT
    ),
    "label studio annotation": Foreign(
        "an annotation of Label Studio's, as its target storage writes them",
        _sets("result,completed_by", "id,result,task"),
        "Make a data set of the folder or bucket that holds them all: labelloop export --from.",
    ),
    "label studio plain predictions": Foreign(_PREDICTIONS, _sets("task,result"), _PREDICT),
    "label studio min": Foreign(
        "Label Studio's JSON-MIN, which lacks the shapes' sizes",
        _sets("annotation_id,annotator"),
        "Export JSON instead, and make a data set of it: labelloop export --from.",
    ),
    "label studio data": Foreign(
        "a list of Label Studio's tasks", _sets("data,id", "data,meta", "data,created_at"), _TASKS
    ),
    "labelbox": Foreign(
        "Labelbox's export", _sets("Labeled Data", "data_row", "DataRow ID", "data_row,projects"), _READ
    ),
    "labelme": Foreign("LabelMe's JSON", _sets("shapes,imagePath", "shapes,imageData"), _READ),
    "via": Foreign(
        "the VGG Image Annotator's JSON", _sets("_via_img_metadata", "_via_settings", "regions,filename"), _READ
    ),
    "createml": Foreign("CreateML's JSON", _sets("image,annotations", "imagefilename,annotation"), _READ),
    "datumaro": Foreign("Datumaro's JSON", _sets("items,categories", "items,dm_format_version"), _READ),
    "supervisely": Foreign("Supervisely's JSON", _sets("objects,size", "classes,projectType"), _READ),
    "geojson": Foreign("GeoJSON", _sets("type,features"), _READ),
    "ground truth": Foreign("a manifest of SageMaker Ground Truth", _sets("source-ref"), _READ),
    "vertex": Foreign("Vertex AI's JSON Lines", _sets("imageGcsUri"), _READ),
    "darwin": Foreign("V7 Darwin's JSON", _sets("item,annotations", "image,annotations,dataset"), _READ),
}
"""Kind -> how it is told: by the keys of the object, or of the first object of a list or of JSON Lines."""

_MAGIC = {
    b"PK\x03\x04": ("a zip archive", "Is its name right? A zip ends in .zip."),
    b"\x1f\x8b": ("a gzip archive", "Unpack it, and import the folder."),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "Unpack it, and import the folder."),
    b"Rar!": ("a RAR archive", "Unpack it, and import the folder."),
    b"\xff\xd8\xff": ("a photo", "Import the folder that holds it."),
    b"\x89PNG": ("a photo", "Import the folder that holds it."),
    b"<": ("XML or a web page", "For Pascal VOC, give the folder of the XML files."),
}


def foreign(data: bytes) -> Foreign | None:
    """What a file is that is no data set; None where it is none of the known kinds."""
    keys = _keys(data)
    return next(
        (kind for kind in FOREIGN.values() if any(wanted <= keys for wanted in kind.keys)),
        None,
    )


def no_data_set(data: bytes, place: str, *, otherwise: str, fix: str = "") -> DatasetError:
    """The error for a file that is not what a reader wants: by what it is, else as the reader says."""
    found = foreign(data)
    if found is not None:
        return DatasetError(place, f"it is {found.what}", fix=found.fix)
    if not data.strip():
        return DatasetError(place, "it is empty", fix=fix)
    for magic, (what, instead) in _MAGIC.items():
        if data.lstrip().startswith(magic):
            return DatasetError(place, f"it is {what}", fix=instead)
    return DatasetError(place, otherwise, fix=fix)


def _keys(data: bytes) -> frozenset[str]:
    """The keys of an object, or of the first object of a list or of JSON Lines."""
    for kind in (dict[str, msgspec.Raw], list[msgspec.Raw]):
        try:
            found = json_of(data, kind)
        except Flawed:
            continue
        if isinstance(found, dict):
            return frozenset(found)
        return _keys(bytes(found[0])) if found and bytes(found[0]).lstrip().startswith(b"{") else frozenset()
    first = data.lstrip().partition(b"\n")[0]
    return _keys(first) if first.startswith(b"{") and len(first) < len(data.strip()) else frozenset()
