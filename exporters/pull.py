"""A version laid out as plain folders that a trainer reads, checksums verified, photos fetched where it has none."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

import msgspec

from exporters.dataset import Image
from exporters.errors import BadOption
from exporters.folder import Folder, inside
from exporters.formats import FORMATS
from exporters.formats.format import Record
from exporters.manifest import DROPPED, IMAGES, PHOTOS, Manifest, Photo
from exporters.tables import read_index, read_photo, read_table
from exporters.whole import job_of
from labelloop.service.media import Media, MediaError
from labelloop.service.store import Store

_THREADS = 8
_T = TypeVar("_T")


class Pulled(msgspec.Struct, frozen=True):
    """What was laid out: files written in ``folders`` (by format), and the photos that could not be had, with why."""

    version: str
    folders: dict[str, Path]
    files: int
    photos: int
    missing: tuple[tuple[str, str], ...] = ()


def pull(
    store: Store,
    manifest: Manifest,
    *,
    to: Path,
    formats: Iterable[str] = (),
    media: Media | None = None,
    copies: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Pulled:
    """Write the formats of a version under ``to``: in it where one is asked for, else each in its own folder.

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
        progress: told (images done, images in all), each format and the photos by themselves.

    Raises:
        BadOption: the version does not have the format.
        DatasetDamaged: an object is missing or is not what the manifest says.
    """
    wanted = tuple(formats) or manifest.formats
    if not set(wanted) <= set(manifest.formats):
        raise BadOption("--format", ",".join(wanted), "one or more of " + ", ".join(manifest.formats))
    folders = {name: to if len(wanted) == 1 else to / name for name in wanted}
    index = read_index(store, manifest) if len(manifest.generations) > 1 else None
    images = sum(manifest.splits.values())
    done = 0

    def tell(count: int = 1) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, images * (len(wanted) + 1))

    def told(records: Iterator[Record]) -> Iterator[Record]:
        for record in records:
            yield record
            tell()

    files = 0
    for name, root in folders.items():
        folder = Folder(root)
        FORMATS[name](job_of(manifest)).lay(told(read_table(store, manifest, name, index=index)), folder)
        files += folder.files

    to.mkdir(parents=True, exist_ok=True)
    for name in (IMAGES, DROPPED):
        with (to / f"{name}.jsonl").open("wb") as file:
            file.writelines(bytes(record.body) + b"\n" for record in read_table(store, manifest, name, index=index))

    def names_of(split: str, file_name: str) -> list[Path]:
        return list(
            dict.fromkeys(
                inside(root, f"{FORMATS[name].image_folder.format(split=split)}/{file_name}")
                for name, root in folders.items()
            )
        )

    def lay_copy(each: tuple[str, Photo]) -> None:
        split, photo = each
        _write(names_of(split, photo.file_name), read_photo(store, photo))

    def lay_photo(image: Image) -> str | None:
        assert media is not None
        try:
            data = media.path(image.url, task_id=image.task).read_bytes()
        except (MediaError, OSError) as error:
            return str(error)
        _write(names_of(image.split, image.file_name), data)
        return None

    photos, missing = 0, []
    with ThreadPoolExecutor(_THREADS) as threads:
        copied = set()
        for part in _batches(_photos(store, manifest) if copies else iter(()), 256):
            photos += sum(1 for _ in threads.map(lay_copy, part))
            copied |= {photo.file_name for _, photo in part}
            tell(len(part))
        if media is not None and len(copied) < images:
            decode = msgspec.json.Decoder(Image).decode
            catalogue = (decode(record.body) for record in read_table(store, manifest, IMAGES, index=index))
            for some in _batches((image for image in catalogue if image.file_name not in copied), 256):
                for image, reason in zip(some, threads.map(lay_photo, some), strict=True):
                    photos += reason is None
                    if reason:
                        missing.append((image.url, reason))
                tell(len(some))
    for name, root in folders.items():
        FORMATS[name](job_of(manifest)).finish(root)
    return Pulled(manifest.version, folders, files, photos, tuple(missing))


def _photos(store: Store, manifest: Manifest) -> Iterator[tuple[str, Photo]]:
    decode = msgspec.json.Decoder(Photo).decode
    for record in read_table(store, manifest, PHOTOS):
        yield record.split, decode(record.body)


def _write(places: list[Path], data: bytes) -> None:
    """One file under each of the names, linked where the disk can."""
    first, *others = places
    first.parent.mkdir(parents=True, exist_ok=True)
    first.unlink(missing_ok=True)  # a link of another pull keeps what it has
    first.write_bytes(data)
    for other in others:
        other.parent.mkdir(parents=True, exist_ok=True)
        other.unlink(missing_ok=True)
        try:
            other.hardlink_to(first)
        except OSError:
            other.write_bytes(data)


def _batches(items: Iterator[_T], size: int) -> Iterator[list[_T]]:
    while part := list(islice(items, size)):
        yield part
