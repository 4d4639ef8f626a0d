"""The images of a data set that is checked: a version of `labelloop export`, or any folder that `validate` reads."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from exporters.dataset.shards import read_index, read_table
from exporters.errors import DatasetNotFound
from exporters.formats.base import LEFT_OUT
from exporters.formats.decode import best_format, decode_objects
from exporters.look.cache import identity_of
from exporters.look.reader import ImageLocation
from exporters.model.manifest import IMAGES, PHOTOS, DatasetManifest, ImageCopy
from exporters.model.records import Box, Image
from labelloop.labeling.geometry.shapes import Interval, KeyPoint
from labelloop.labeling.splits import split_of
from labelloop.service.datasets import (
    READERS,
    DatasetImage,
    DatasetProblem,
    DatasetSource,
    detect_format,
    detect_layouts,
    images_of,
    open_source,
    sub_datasets,
)
from labelloop.service.settings import Settings
from labelloop.service.store import Store

# What an image is in where the data set has no splits.
NO_SPLIT = ""


class CheckedObject(msgspec.Struct, frozen=True, gc=False):
    """An object of an image: its class and its box in pixels that the labels are for."""

    label: str
    box: Box


class CheckedImage(msgspec.Struct, frozen=True):
    """An image of a data set.

    Attributes:
        name: Its name in the data set.
        split: Its split; empty if the data set has none.
        width: Of the image that the labels are for, in pixels; 0 if not stated.
        height: Like the width.
        location: Where it is; None if it is not known.
        identity: Names its content or its file, see `exporters.look.cache`.
        objects: Its objects that have a box.
        classes: The classes of the whole image.
        labelled: Whether the data set has labels for it.
        task: Its task in Label Studio; 0 if unknown.
    """

    name: str
    split: str
    width: int
    height: int
    location: ImageLocation | None
    identity: bytes
    objects: tuple[CheckedObject, ...] = ()
    classes: tuple[str, ...] = ()
    labelled: bool = True
    task: int = 0


class CheckedDataset(msgspec.Struct, frozen=True):
    """A data set that is checked.

    Attributes:
        title: Its name for people.
        classes: Its classes in order; those in use are added.
        images: Iterates over its images from the start at each call; unreadable labels are `DatasetProblem`.
        store: Where fingerprints are kept with the data set; None: on this machine only.
    """

    title: str
    classes: tuple[str, ...]
    images: Callable[[], Iterator[CheckedImage | DatasetProblem]]
    store: Store | None = None


def version_dataset(store: Store, manifest: DatasetManifest) -> CheckedDataset:
    """Open a version of `labelloop export`. Raises `DatasetDamaged` while its images are read."""
    names = {number: label for label, number in manifest.classes.items()}
    format_name = best_format(manifest.formats)

    def images() -> Iterator[CheckedImage]:
        index = read_index(store, manifest) if len(manifest.generations) > 1 else None
        decode = msgspec.json.Decoder(Image).decode
        tables = [read_table(store, manifest, name, index=index) for name in (IMAGES, format_name or IMAGES)]
        copies = _Copies(store, manifest, index)
        for record, labels in zip(*tables, strict=True):
            image, body = decode(record.body), bytes(labels.body)
            objects = decode_objects(format_name, body, image, manifest) if format_name and body != LEFT_OUT else ()
            copy = copies.find(image.file_name)
            if copy is not None:
                location = ImageLocation(store=store.url, key=copy.store_key, copy=copy)
                identity = identity_of(f"content {copy.content_key}")
            else:
                location, identity = locate_address(image.url, image.task)
            yield CheckedImage(
                image.file_name,
                image.split,
                image.width,
                image.height,
                location,
                identity,
                tuple(CheckedObject(names.get(item.class_id, f"class {item.class_id}"), item.box) for item in objects),
                task=image.task,
            )

    return CheckedDataset(f"{store.url} {manifest.version}", tuple(manifest.classes), images, store)


def locate_address(url: str, task: int | None = None) -> tuple[ImageLocation, bytes]:
    """Return the location and identity of an image by its address in the data of a task.

    The identity does not change when an object behind an address is overwritten; images are cached by address too.
    """
    return ImageLocation(url=url, task=task or None), identity_of(f"url {url}")


class _Copies:
    """Looks up the copies of images, in the order of the images: both tables have the order of the tasks."""

    def __init__(self, store: Store, manifest: DatasetManifest, index: Any) -> None:
        decode = msgspec.json.Decoder(ImageCopy).decode
        self._records = (decode(record.body) for record in read_table(store, manifest, PHOTOS, index=index))
        self._waiting: dict[str, ImageCopy] = {}

    def find(self, name: str) -> ImageCopy | None:
        """Return the copy of an image; None if it was not copied."""
        if name in self._waiting:
            return self._waiting.pop(name)
        for copy in self._records:  # an image that could not be copied has none: what follows is kept until asked for
            if copy.file_name == name:
                return copy
            self._waiting[copy.file_name] = copy
        return None


def folder_dataset(place: str, settings: Settings) -> CheckedDataset:
    """Open a folder, a zip, a file or a bucket that `labelloop dataset validate` reads.

    Raises:
        DatasetNotFound: There is no data set.
        DatasetError: The labels have a format that is not supported.
    """
    if "://" not in place and not Path(place).expanduser().exists():
        raise DatasetNotFound(location=place, reason="there is no such file or folder")
    sources = list(_sources(place, settings))
    if not sources:
        raise DatasetNotFound(location=place, reason="it contains no images or labels of a known format")
    opened = [(prefix, source, READERS[layout](source)) for prefix, layout, source in sources]
    classes = dict.fromkeys(label for _, _, data in opened for label in (*data.labels, *data.choices))

    def images() -> Iterator[CheckedImage | DatasetProblem]:
        for prefix, source, data in opened:
            for item in data.images():
                yield item if isinstance(item, DatasetProblem) else _checked(item, source, prefix)

    return CheckedDataset(place, tuple(classes), images)


def _sources(place: str, settings: Settings) -> Iterator[tuple[str, str, DatasetSource]]:
    """(name of the subfolder with /, format, source) of each data set in a place."""
    whole = open_source(place, settings, single=False)
    if whole.file:
        yield "", detect_format(whole), whole
        return
    subsets: Mapping[str, Any] = sub_datasets(whole.files)
    for name, files in subsets.items():
        source = DatasetSource(files, images_of(files, whole.files if len(subsets) == 1 else files))
        layouts = detect_layouts(files, source.images) or ([detect_format(source)] if source.images.names else [])
        if layouts:  # one image counts once, also where its labels are there in several formats
            yield f"{name}/" if name else "", layouts[0], source


def _checked(image: DatasetImage, source: DatasetSource, prefix: str) -> CheckedImage:
    name = prefix + image.name
    location, identity = _locate(image, source)
    split = image.split or next(filter(None, map(split_of, PurePosixPath(name).parts[:-1])), NO_SPLIT)
    width, height = image.width, image.height
    return CheckedImage(
        name,
        split,
        width,
        height,
        location,
        identity,
        tuple(
            CheckedObject(item.label, item.geometry.bounds)
            for item in image.objects
            if not item.crowd and not isinstance(item.geometry, KeyPoint | Interval)
        ),
        image.choices,
        labelled=image.labelled,
        task=image.task or 0,
    )


def _locate(image: DatasetImage, source: DatasetSource) -> tuple[ImageLocation | None, bytes]:
    name = source.images.find(image.name)
    if name is None:
        return locate_address(image.url) if image.url else (None, identity_of(f"missing {image.name}"))
    files = source.images.files
    path = files.path(name)
    if path is None:
        return locate_address(files.url(name))
    try:
        status = path.stat()
    except OSError:
        return ImageLocation(path=str(path)), identity_of(f"file {path}")
    return ImageLocation(path=str(path)), identity_of(f"file {path.absolute()} {status.st_size} {status.st_mtime_ns}")
