"""A version laid out as plain folders that a trainer reads, checksums verified, photos beside the labels."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

import msgspec

from exporters.dataset.folder import Folder, inside
from exporters.dataset.published_files import job_of
from exporters.dataset.pull_images import PulledPhotos, images_there
from exporters.dataset.shards import read_index, read_table
from exporters.dataset.staging import Staging
from exporters.dataset.task_index import Index
from exporters.errors import BadOption
from exporters.formats import FORMATS
from exporters.formats.base import Record, held
from exporters.model.manifest import DROPPED, IMAGES, PHOTOS, Manifest, Photo
from exporters.model.records import Image
from labelloop.service.disk import annotate_enospc
from labelloop.service.media import Media
from labelloop.service.store import Store

_THREADS = 8
_AT_A_TIME = 256
_T = TypeVar("_T")


class Pulled(msgspec.Struct, frozen=True):
    """What was laid out: files written in ``folders`` (by format), and the photos that could not be had, with why.

    ``lying`` photos lie on their side by their EXIF, of those that came anew.
    """

    version: str
    folders: dict[str, Path]
    files: int
    photos: int
    missing: tuple[tuple[str, str], ...] = ()
    lying: int = 0


def pull(
    store: Store,
    manifest: Manifest,
    *,
    to: Path,
    formats: Iterable[str] = (),
    media: Media | None = None,
    copies: bool = True,
    link: bool = False,
    upright: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Pulled:
    """Write the formats of a version under ``to``: in it where one is asked for, else each in its own folder.

    Nothing in ``to`` changes before all of it is there; then what another version had left there goes: see `Staging`.
    Photos come from the version where it holds copies, else from their source through ``media``; without ``media``
    none are fetched. Where several formats are asked for, a photo is one file with several names. ``images.jsonl`` (the
    source of each image) and ``dropped.jsonl`` (what is not in the version, and why) lie beside the formats.

    Args:
        store: where the data set lives.
        manifest: the version.
        to: the folder.
        formats: those wanted; all of the version by default.
        media: reads photos from their source.
        copies: whether the version's own copies of photos are laid out.
        link: whether photos that are files of this machine are linked, not copied.
        upright: whether the pixels of photos that lie on their side by their EXIF are turned.
        progress: told (images done, images in all), each format and the photos by themselves.

    Raises:
        BadOption: the version does not have the format.
        InTheWay: the folder holds something of somebody else under a name that is to be laid out.
        DatasetDamaged: an object is missing or is not what the manifest says.
    """
    wanted = tuple(formats) or manifest.formats
    if not set(wanted) <= set(manifest.formats):
        raise BadOption("--format", ",".join(wanted), "one or more of " + ", ".join(manifest.formats))
    with annotate_enospc(to), Staging(to) as staging:
        work = _Pull(store, manifest, wanted, staging, progress)
        files = work.labels()
        missing: list[tuple[str, str]] = []
        photos = lying = 0
        if copies or media is not None:
            staging.check(*work.photo_folders)
            there = images_there(staging.earlier())
            layer = PulledPhotos(
                store,
                media,
                places=lambda split, name: work.places(staging.root, split, name),
                earlier=lambda split, name: work.places(to, split, name),
                there=there,
                link=link,
                upright=upright,
            )
            photos, missing = work.photos(layer, copies=copies, fetch=media is not None)
            lying = layer.lying
        work.finish()
        staging.put()
    folders = {name: to / folder for name, folder in work.folders.items()}
    return Pulled(manifest.version, folders, files, photos, tuple(missing), lying)


class _Pull:
    """The steps of a pull, in order: ``labels``, ``photos``, ``finish``."""

    def __init__(
        self,
        store: Store,
        manifest: Manifest,
        formats: tuple[str, ...],
        staging: Staging,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._store, self._manifest, self._root, self._progress = store, manifest, staging.root, progress
        self.folders: Mapping[str, str] = {name: "" if len(formats) == 1 else name for name in formats}
        self._index: Index | None = read_index(store, manifest) if len(manifest.generations) > 1 else None
        self._images = sum(manifest.splits.values())
        self._done = 0

    @property
    def photo_folders(self) -> set[str]:
        """The entries of the target that photos will add."""
        found = {f"{folder or FORMATS[name].image_folder}".partition("/")[0] for name, folder in self.folders.items()}
        return {name for name in found if not name.startswith(".")}  # packed elsewhere

    def labels(self) -> int:
        """Write the files of each format, and the two tables; gives how many files the formats have."""
        files = 0
        for name, folder in self.folders.items():
            place = Folder(self._root / folder)
            FORMATS[name](job_of(self._manifest)).write_files(held(self._told(self._table(name))), place)
            files += place.files
        for name in (IMAGES, DROPPED):
            with (self._root / f"{name}.jsonl").open("wb") as file:
                file.writelines(bytes(record.body) + b"\n" for record in self._table(name))
        return files

    def places(self, root: Path, split: str, file_name: str) -> list[Path]:
        """The names of a photo in the folders of the formats."""
        return list(
            dict.fromkeys(
                inside(root / folder, f"{FORMATS[name].image_folder.format(split=split)}/{file_name}")
                for name, folder in self.folders.items()
            )
        )

    def photos(self, layer: PulledPhotos, *, copies: bool, fetch: bool) -> tuple[int, list[tuple[str, str]]]:
        """Lay the photos out: how many there are, and those that could not be had, with why."""
        photos, missing = 0, []
        copied: set[str] = set()
        with ThreadPoolExecutor(_THREADS) as threads:
            for part in _batches(self._copies() if copies else iter(()), _AT_A_TIME):
                photos += sum(1 for _ in threads.map(layer.copy, part))
                copied |= {photo.file_name for _, photo in part}
                self._tell(len(part))
            if fetch and len(copied) < self._images:
                decode = msgspec.json.Decoder(Image).decode
                catalogue = (decode(record.body) for record in self._table(IMAGES))
                for some in _batches((image for image in catalogue if image.file_name not in copied), _AT_A_TIME):
                    for image, reason in zip(some, threads.map(layer.fetch, some), strict=True):
                        photos += reason is None
                        if reason:
                            missing.append((image.url, reason))
                    self._tell(len(some))
        return photos, missing

    def finish(self) -> None:
        """Let the formats pack what they pack."""
        for name, folder in self.folders.items():
            FORMATS[name](job_of(self._manifest)).finish(self._root / folder)

    def _table(self, name: str) -> Iterator[Record]:
        return read_table(self._store, self._manifest, name, index=self._index)

    def _copies(self) -> Iterator[tuple[str, Photo]]:
        decode = msgspec.json.Decoder(Photo).decode
        for record in self._table(PHOTOS):
            yield record.split, decode(record.body)

    def _told(self, records: Iterable[Record]) -> Iterator[Record]:
        for record in records:
            yield record
            self._tell()

    def _tell(self, count: int = 1) -> None:
        self._done += count
        if self._progress:
            self._progress(self._done, self._images * (len(self.folders) + 1))


def _batches(items: Iterator[_T], size: int) -> Iterator[list[_T]]:
    while part := list(islice(items, size)):
        yield part
