"""Read COCO captions: ``annotations/captions_val2017.json``, several texts for each image.

Format: https://cocodataset.org/#format-data, "Image Captioning": an annotation has ``image_id`` and ``caption``.
"""

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import msgspec

from labelloop.labeling.splits import split_of
from labelloop.service.datasets.coco_files import split_folder
from labelloop.service.datasets.coco_records import CocoImage, coco_id
from labelloop.service.datasets.errors import DatasetError, MalformedData, unreadable_error
from labelloop.service.datasets.files import DatasetFiles, ImageFiles
from labelloop.service.datasets.model import DataSet, DatasetImage, DatasetProblem
from labelloop.service.datasets.shapes import image_size_or_zero
from labelloop.service.datasets.text import decode_json

# JSON files whose content is read to find captions.
_MAX_SNIFFED_FILES = 5
_IDS = "ids of captions: not kept"


class _Caption(msgspec.Struct):
    image_id: Any = None
    caption: Any = None

    def __post_init__(self) -> None:
        self.image_id = coco_id(self.image_id)


class _CaptionFile(msgspec.Struct):
    images: list[Any] = []
    annotations: list[Any] = []


def is_captions(data: bytes) -> bool:
    """Whether a COCO file has captions and no objects."""
    if b'"caption"' not in data:
        return False
    try:
        content = decode_json(data, _CaptionFile)
    except MalformedData:
        return False
    first = next((entry for entry in content.annotations if isinstance(entry, dict)), {})
    return bool(content.images) and "caption" in first and not first.keys() & {"bbox", "segmentation", "category_id"}


def caption_files(files: DatasetFiles) -> list[str]:
    """The JSON files with captions of a folder and its direct subfolders, by name, else by content."""
    names = [name for name in files.names if name.endswith(".json") and name.count("/") < 2]
    if named := [name for name in names if PurePosixPath(name).name.startswith("captions")]:
        return named
    return [name for name in names[:_MAX_SNIFFED_FILES] if is_captions(files.read(name))]


def read_captions(files: DatasetFiles, images: ImageFiles, file: str = "") -> DataSet:
    """Read the caption files of a folder, or one file.

    Args:
        files: The files of the data set.
        images: Its image files.
        file: The only file to read; empty: all.

    Raises:
        DatasetError: There is no caption file, or one is damaged.
    """
    names = [file] if file else caption_files(files)
    contents: dict[str, _CaptionFile] = {}
    for name in names:
        data = files.read(name)
        try:
            contents[name] = decode_json(data, _CaptionFile)
        except MalformedData as error:
            raise unreadable_error(data, f"{files.location}/{name}", default=f"it is not COCO ({error})") from None
    if not any(content.images for content in contents.values()):
        raise DatasetError(
            files.location, "it has no COCO captions", fix="A file of captions has images and annotations."
        )

    def read() -> Iterator[DatasetImage | DatasetProblem]:
        for name, content in contents.items():
            yield from _read_file(content, name, images)

    return DataSet("coco-captions", read, counts={_IDS: sum(len(content.annotations) for content in contents.values())})


def _read_file(content: _CaptionFile, file: str, images: ImageFiles) -> Iterator[DatasetImage | DatasetProblem]:
    folder = split_folder(file)
    listed: dict[Any, CocoImage] = {}
    texts: dict[Any, list[str]] = {}
    for entry in content.images:
        image = msgspec.convert(entry, CocoImage) if isinstance(entry, dict) else CocoImage()
        if type(image.id) not in {int, str} or not isinstance(image.file_name, str) or not image.file_name:
            yield DatasetProblem(f"{file}: an image", f"id or file_name is missing: {entry!r:.60}")
        elif image.id in listed:
            yield DatasetProblem(f"{file}: image {image.id}", "another image has the same id")
        else:
            listed[image.id] = image
            texts[image.id] = []
    for index, entry in enumerate(content.annotations):
        caption = msgspec.convert(entry, _Caption) if isinstance(entry, dict) else _Caption()
        text = caption.caption.strip() if isinstance(caption.caption, str) else ""
        if type(caption.image_id) not in {int, str} or caption.image_id not in listed:
            yield DatasetProblem(
                f"{file}: annotations[{index}]", f"its image {caption.image_id!r:.40} is not in images"
            )
        elif not text:
            yield DatasetProblem(f"{file}: annotations[{index}]", f"its caption is {caption.caption!r:.40}, not text")
        else:
            texts[caption.image_id].append(text)
    for image_id, image in listed.items():
        name, prefixed = image.file_name, f"{folder}/{image.file_name}"
        address = next((url for url in (image.coco_url, image.flickr_url) if isinstance(url, str) and "://" in url), "")
        yield DatasetImage(
            prefixed if images.find(name) is None and images.find(prefixed) is not None else name,
            *image_size_or_zero(image.width, image.height),
            texts=tuple(dict.fromkeys(texts[image_id])),
            url=address,
            split=split_of(folder),
            labelled=bool(texts[image_id]),
        )
