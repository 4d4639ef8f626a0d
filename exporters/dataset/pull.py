"""Pull a version into plain folders for a trainer: verified labels, with the images next to them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

import msgspec

from exporters.dataset.folder import DiskTree, safe_join
from exporters.dataset.plain_files import format_context
from exporters.dataset.pull_images import ImageLayout, image_sources
from exporters.dataset.shards import read_index, read_table
from exporters.dataset.staging import Staging
from exporters.dataset.task_index import TaskIndex
from exporters.errors import BadOption
from exporters.formats.base import Record, included
from exporters.model.manifest import DROPPED, IMAGES, PHOTOS, DatasetManifest, ImageCopy
from exporters.model.records import Image
from exporters.tasks.table import TASK_FORMATS, format_class
from labelloop.service.media import Media
from labelloop.service.store import Store
from labelloop.service.system import annotate_enospc

_THREADS = 8
_AT_A_TIME = 256
_T = TypeVar("_T")


class Pulled(msgspec.Struct, frozen=True):
    """The result of a pull.

    Attributes:
        version: The version.
        folders: Format -> its folder.
        files: The number of files of the formats.
        photos: The number of images.
        missing: Images that are not available: (address, reason).
        rotated: The number of new images whose EXIF orientation is not upright.
    """

    version: str
    folders: dict[str, Path]
    files: int
    images: int
    missing: tuple[tuple[str, str], ...] = ()
    rotated: int = 0


def pull(
    store: Store,
    manifest: DatasetManifest,
    *,
    to: Path,
    formats: Iterable[str] = (),
    media: Media | None = None,
    copies: bool = True,
    link: bool = False,
    upright: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Pulled:
    """Write the formats of a version under ``to``: directly for one format, else each in its own folder.

    Nothing in ``to`` changes before the pull is complete; then files of another version are replaced: see `Staging`.
    Images come from the version if it has copies, else from their source through ``media``; without ``media`` none are
    fetched. With several formats an image is one file with several hard links. ``images.jsonl`` (the source of each
    image) and ``dropped.jsonl`` (what is not in the version, and why) are written as well.

    Args:
        store: where the data set lives.
        manifest: the version.
        to: the folder.
        formats: the formats to write; all of the version by default.
        media: reads images from their source.
        copies: whether the version's own copies of images are used.
        link: whether images that are files of this machine are symbolic links instead of copies.
        upright: whether the pixels of images are rotated by their EXIF orientation.
        progress: called with (images done, images in all), counted per format and once for the images.

    Raises:
        BadOption: the version does not have the format.
        ExportError: the folder has an entry of another origin under a name that would be written.
        DatasetDamaged: an object is missing or does not match the manifest.
    """
    wanted = tuple(formats) or manifest.formats
    if not set(wanted) <= set(manifest.formats):
        raise BadOption("--format", ",".join(wanted), "one or more of " + ", ".join(manifest.formats))
    with annotate_enospc(to), Staging(to) as staging:
        steps = _PullSteps(store, manifest, wanted, staging, progress)
        files = steps.labels()
        missing: list[tuple[str, str]] = []
        images = rotated = 0
        if steps.with_images and (copies or media is not None):
            staging.check(*steps.image_folders)
            sources = image_sources(staging.previous_images())
            layout = ImageLayout(
                store,
                media,
                places=lambda split, name: steps.places(staging.root, split, name),
                earlier=lambda split, name: steps.places(to, split, name),
                sources=sources,
                link=link,
                upright=upright,
            )
            images, missing = steps.images(layout, copies=copies, fetch=media is not None)
            rotated = layout.rotated
        steps.finish()
        staging.publish()
    folders = {name: to / folder for name, folder in steps.folders.items()}
    return Pulled(manifest.version, folders, files, images, tuple(missing), rotated)


class _PullSteps:
    """The steps of a pull, in order: ``labels``, ``images``, ``finish``."""

    def __init__(
        self,
        store: Store,
        manifest: DatasetManifest,
        formats: tuple[str, ...],
        staging: Staging,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._store, self._manifest, self._root, self._progress = store, manifest, staging.root, progress
        self.folders: Mapping[str, str] = {name: "" if len(formats) == 1 else name for name in formats}
        self.with_images = {name: folder for name, folder in self.folders.items() if name not in TASK_FORMATS}
        self._index: TaskIndex | None = read_index(store, manifest) if len(manifest.generations) > 1 else None
        self._images = sum(manifest.splits.values())
        self._done = 0

    @property
    def image_folders(self) -> set[str]:
        """The entries of the target that images will add."""
        entries = {
            f"{folder or format_class(name).image_folder}".partition("/")[0]
            for name, folder in self.with_images.items()
        }
        return {name for name in entries if not name.startswith(".")}  # packed elsewhere

    def labels(self) -> int:
        """Write the files of each format, and the two tables. Return the number of files of the formats."""
        files = 0
        for name, folder in self.folders.items():
            output = DiskTree(self._root / folder)
            format_class(name)(format_context(self._manifest)).write_files(
                included(self._with_progress(self._table(name))), output
            )
            files += output.files
        for name in (IMAGES, DROPPED):
            with (self._root / f"{name}.jsonl").open("wb") as file:
                file.writelines(bytes(record.body) + b"\n" for record in self._table(name))
        return files

    def places(self, root: Path, split: str, file_name: str) -> list[Path]:
        """Return the paths of an image in the folders of the formats."""
        return list(
            dict.fromkeys(
                safe_join(root / folder, f"{format_class(name).image_folder.format(split=split)}/{file_name}")
                for name, folder in self.with_images.items()
            )
        )

    def images(self, layout: ImageLayout, *, copies: bool, fetch: bool) -> tuple[int, list[tuple[str, str]]]:
        """Write the images. Return how many, and those not available with the reason."""
        count, missing = 0, []
        copied: set[str] = set()
        with ThreadPoolExecutor(_THREADS) as threads:
            for batch in _batches(self._copies() if copies else iter(()), _AT_A_TIME):
                count += sum(1 for _ in threads.map(layout.copy, batch))
                copied |= {copy.file_name for _, copy in batch}
                self._advance(len(batch))
            if fetch and len(copied) < self._images:
                decode = msgspec.json.Decoder(Image).decode
                catalogue = (decode(record.body) for record in self._table(IMAGES))
                for images in _batches((image for image in catalogue if image.file_name not in copied), _AT_A_TIME):
                    for image, reason in zip(images, threads.map(layout.fetch, images), strict=True):
                        count += reason is None
                        if reason:
                            missing.append((image.url, reason))
                    self._advance(len(images))
        return count, missing

    def finish(self) -> None:
        """Call `Format.finish` of each format."""
        for name, folder in self.folders.items():
            format_class(name)(format_context(self._manifest)).finish(self._root / folder)

    def _table(self, name: str) -> Iterator[Record]:
        return read_table(self._store, self._manifest, name, index=self._index)

    def _copies(self) -> Iterator[tuple[str, ImageCopy]]:
        decode = msgspec.json.Decoder(ImageCopy).decode
        for record in self._table(PHOTOS):
            yield record.split, decode(record.body)

    def _with_progress(self, records: Iterable[Record]) -> Iterator[Record]:
        for record in records:
            yield record
            self._advance()

    def _advance(self, count: int = 1) -> None:
        self._done += count
        if self._progress:
            self._progress(self._done, self._images * (len(self.folders) + 1))


def _batches(items: Iterator[_T], size: int) -> Iterator[list[_T]]:
    while part := list(islice(items, size)):
        yield part
