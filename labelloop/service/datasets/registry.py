"""The registry of data set readers, opening a data set, and format detection."""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec

from labelloop.labeling.studio.sniff import HEAD_BYTES, sniff_non_data_set
from labelloop.service.datasets.coco import read_coco_files
from labelloop.service.datasets.coco_captions import is_captions, read_captions
from labelloop.service.datasets.coco_files import candidate_files
from labelloop.service.datasets.coco_results import read_results
from labelloop.service.datasets.createml import is_createml, read_createml
from labelloop.service.datasets.cvat import is_cvat, read_cvat
from labelloop.service.datasets.dota import read_dota
from labelloop.service.datasets.errors import DatasetError, unreadable_error
from labelloop.service.datasets.files import DatasetFiles, ImageFiles, open_files
from labelloop.service.datasets.image_folder_metadata import METADATA, is_table, read_image_folder_metadata
from labelloop.service.datasets.image_folders import SPLITS, read_image_folders, read_unlabelled
from labelloop.service.datasets.labelme import is_labelme, read_labelme
from labelloop.service.datasets.layouts import detect_layouts, images_of, single_dataset
from labelloop.service.datasets.model import DataSet, DatasetImage, DatasetProblem
from labelloop.service.datasets.ndjson import read_ndjson
from labelloop.service.datasets.open_images import is_open_images, read_open_images
from labelloop.service.datasets.panoptic import is_panoptic, read_panoptic
from labelloop.service.datasets.semantic_masks import read_semantic_masks
from labelloop.service.datasets.voc import read_voc
from labelloop.service.datasets.yolo import read_yolo
from labelloop.service.datasets.yolo_rows import ROW_PARSERS
from labelloop.service.settings import Settings
from labelloop.service.store import is_bucket_url

# Characters that XML excludes (https://www.w3.org/TR/xml/#charsets); Label Studio stores labels in XML.
_INVALID_IN_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_FIX = (
    "Pass a folder or zip of a data set or of images, or a file of COCO, NDJSON, CVAT, LabelMe, Create ML or Open"
    " Images."
)
# Endings of the names of files that are data sets in a bucket.
_FILE_ENDINGS = (".json", ".ndjson", ".jsonl", ".xml", ".csv")
# Maximum number of folders of which one JSON file is read if no format was detected.
_MAX_SNIFFED_FOLDERS = 50


class DatasetSource(msgspec.Struct, frozen=True):
    """The location of a data set.

    Attributes:
        files: The files of its folder or prefix.
        images: Its image files.
        file: The name in ``files`` of the file that the user gave; empty for a folder.
    """

    files: DatasetFiles
    images: ImageFiles
    file: str = ""

    def annotation_file(self, *endings: str) -> str:
        """The file that the user gave, else the only file with one of these endings.

        Raises:
            DatasetError: No file or several files match.
        """
        if self.file:
            return self.file
        matches = [name for name in self.files.names if name.endswith(endings) and name.count("/") < 2]
        if len(matches) != 1:
            count = "no" if not matches else f"more than one ({len(matches)})"
            raise DatasetError(
                self.files.location, f"there is {count} file {' or '.join(endings)}", fix="Pass the file itself."
            )
        return matches[0]


def _file_reader(read: Callable[[bytes, str], DataSet], *endings: str) -> Callable[[DatasetSource], DataSet]:
    def reader(source: DatasetSource) -> DataSet:
        name = source.annotation_file(*endings)
        return read(source.files.read(name), f"{source.files.location}/{name}")

    return reader


def _yolo_reader(task: str) -> Callable[[DatasetSource], DataSet]:
    return lambda source: read_yolo(source.files, source.images, task, config_file=source.file)


# Format -> reader; ``yolo`` detects its task from the rows. A reader raises `DatasetError` for another format.
READERS: Mapping[str, Callable[[DatasetSource], DataSet]] = {
    "coco": lambda source: read_coco_files(
        source.files, source.images, [source.file] if source.file else candidate_files(source.files)
    ),
    "coco-results": _file_reader(read_results, ".json"),
    "voc": lambda source: read_voc(source.files, source.images),
    "yolo": _yolo_reader(""),
    **{f"yolo-{task}": _yolo_reader(task) for task in ROW_PARSERS},
    "yolo-classify": lambda source: read_image_folders(source.images),
    "labelme": lambda source: read_labelme(source.files, source.images, source.file),
    "cvat": lambda source: read_cvat(source.files, source.file),
    "createml": lambda source: read_createml(source.files, source.images, source.file),
    "dota": lambda source: read_dota(source.files, source.images),
    "open-images": lambda source: read_open_images(source.files, source.images, source.file),
    "coco-captions": lambda source: read_captions(source.files, source.images, source.file),
    "coco-panoptic": lambda source: read_panoptic(source.files, source.images, source.file),
    "semantic-png": lambda source: read_semantic_masks(source.files, source.images),
    "imagefolder": lambda source: read_image_folder_metadata(source.files, source.images, source.file),
    "ndjson": _file_reader(read_ndjson, ".ndjson"),
    "images": lambda source: read_unlabelled(source.images, source.files),
}


def open_source(source: str, settings: Settings, *, images: str = "", single: bool = True) -> DatasetSource:
    """Locate a data set: its files, and its image files in ``images`` or in the data set itself.

    Args:
        source: A folder, a file, ``s3://BUCKET/PREFIX`` or ``s3://BUCKET/KEY.json``; also ``gs://`` and ``az://``.
        settings: S3 endpoint and credentials.
        images: Folder or ``s3://BUCKET/PREFIX`` of the images; empty: the data set.
        single: Whether the folder must have a single data set, possibly in a subfolder.

    Raises:
        DatasetError: The source does not exist or has several data sets.
    """
    source = source.removeprefix("file://")
    name = ""
    if is_bucket_url(source) and source.endswith(_FILE_ENDINGS):
        source, _, name = source.rpartition("/")
    elif not is_bucket_url(source) and (path := Path(source).expanduser()).is_file() and not _is_zip(path):
        source, name = str(path.parent), path.name
    files = open_files(source, settings)
    part = single_dataset(files) if single and not name else files
    return DatasetSource(part, ImageFiles(open_files(images, settings)) if images else images_of(part, files), name)


def _is_zip(path: Path) -> bool:
    return path.suffix.lower() == ".zip"


def read_dataset(source: DatasetSource, format: str = "auto") -> DataSet:  # noqa: A002 - the name of the CLI option
    """Open a data set.

    Args:
        source: Its location.
        format: One of `READERS`, or ``auto`` to detect it.

    Raises:
        DatasetError: The source has another format.
    """
    data = READERS[detect_format(source) if format == "auto" else format](source)
    if format == "auto" and not source.file:
        data = msgspec.structs.replace(data, notes=(*data.notes, *_other_layouts(source, data.format)))
    for name in (*data.labels, *data.keypoint_names, *data.choices):
        if (match := _INVALID_IN_XML.search(name)) is not None:
            where = f"{source.files.location}/{source.file}".rstrip("/")
            what = f"the class or key point {name!r:.60} has a character that labels cannot have ({match[0]!r})"
            raise DatasetError(where, what, fix="Rename it.")

    def images() -> Iterator[DatasetImage | DatasetProblem]:
        for item in data.images():
            name = item.name if isinstance(item, DatasetImage) else item.item
            plain = name.encode("utf-8", "backslashreplace").decode()
            if plain == name:
                yield item
            elif isinstance(item, DatasetProblem):
                yield DatasetProblem(plain, item.reason)
            else:
                yield DatasetProblem(plain, "its name is not UTF-8; rename the file")

    return msgspec.structs.replace(data, images=images)


def detect_format(source: DatasetSource) -> str:
    """The name of the reader for a source, from the name and first character of the file or the files of the folder.

    Raises:
        DatasetError: The source has a format that no reader supports, such as a Label Studio export.
    """
    if source.file:
        return _detect_file_format(source)
    names = source.files.names
    if "HEAD.json" in names and any(name.startswith("versions/") for name in names):
        raise DatasetError(
            source.files.location,
            "it is a data set of `labelloop export`, whose files are packed",
            fix=f"Unpack it: labelloop dataset pull {source.files.location} --format coco --to DIR, and import DIR.",
        )
    if detected := detect_layouts(source.files, source.images):
        return detected[0]
    _refuse_foreign_labels(source.files)
    folders = {name.split("/", 1)[0] for name in source.images.names if name.count("/") > 1}
    return "yolo-classify" if folders and folders <= SPLITS else "images"


def _other_layouts(source: DatasetSource, chosen: str) -> Iterator[str]:
    """A note on each other format that the folder has labels of, or may have."""
    for name in detect_layouts(source.files, source.images):
        if name != chosen and (name.partition("-")[0] != chosen.partition("-")[0] or name.startswith("coco-")):
            yield f"it has labels of the format {name} too: `--format {name}` reads those"
    folders = sorted({name.split("/", 1)[0] for name in source.images.names if "/" in name})
    if chosen == "images" and len(folders) > 1:
        shown = ", ".join(folders[:3]) + (", ..." if len(folders) > 3 else "")
        yield f"its folders ({shown}) are not read as classes: `--format yolo-classify` reads them"


def _refuse_foreign_labels(files: DatasetFiles) -> None:
    """Check one JSON file per folder. Raises `DatasetError` if it has labels in an unsupported format."""
    samples = {name.rpartition("/")[0]: name for name in reversed(files.names) if name.endswith((".json", ".jsonl"))}
    for name in list(samples.values())[:_MAX_SNIFFED_FOLDERS]:
        if (foreign := sniff_non_data_set(files.read(name)[:HEAD_BYTES])) is not None:
            raise DatasetError(f"{files.location}/{name}", f"it is {foreign.what}", fix=foreign.fix)


def _detect_file_format(source: DatasetSource) -> str:
    name = source.file
    if name.endswith((".yaml", ".yml", ".data", ".names")):
        return "yolo"
    if name.lower().endswith(".txt"):
        fix = "Pass its folder; for DOTA the folder that has labelTxt/."
        raise DatasetError(f"{source.files.location}/{name}", "it is one label file of a folder", fix=fix)
    data = source.files.read(name)
    if name.rpartition("/")[2] == METADATA:
        return "imagefolder"
    if name.endswith((".ndjson", ".jsonl")):
        return "ndjson"
    for format_name, is_present in _FILE_DETECTORS.items():
        if is_present(data):
            return format_name
    start = data.lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n\0")[:1]
    if start not in {b"[", b"{"} or sniff_non_data_set(data[:HEAD_BYTES]) is not None:
        raise unreadable_error(
            data,
            f"{source.files.location}/{name}",
            default="it is not JSON, XML, CSV, YAML, NDJSON or zip of a data set",
            fix=_FIX,
        )
    return "coco-results" if start == b"[" else "coco"


# Format -> whether the content of a file is of it.
_FILE_DETECTORS: Mapping[str, Callable[[bytes], bool]] = {
    "cvat": is_cvat,
    "labelme": is_labelme,
    "createml": is_createml,
    "coco-panoptic": is_panoptic,
    "coco-captions": is_captions,
    "open-images": is_open_images,
    "imagefolder": is_table,
}
