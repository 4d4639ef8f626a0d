"""A version laid out as plain folders that a trainer reads, checksums verified, photos fetched where it has none."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TypeVar

import msgspec

from exporters.dataset import Image
from exporters.errors import BadOption, DatasetDamaged
from exporters.formats import FORMATS
from exporters.manifest import File, Manifest
from labelloop.service.media import Media, MediaError
from labelloop.service.store import NotThere, Store

_CATALOGUE = "images.jsonl"
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
    progress: Callable[[int, int], None] | None = None,
) -> Pulled:
    """Write the formats of a version under ``to``: in it where one is asked for, else each in its own folder.

    Photos come from the version where it holds copies, else from their source through ``media``; without ``media``
    none are fetched.

    Raises:
        BadOption: the version does not have the format.
        DatasetDamaged: a file is missing or is not what the manifest says.
    """
    wanted = tuple(formats) or manifest.formats
    if not set(wanted) <= set(manifest.formats):
        raise BadOption("--format", ",".join(wanted), "one or more of " + ", ".join(manifest.formats))
    folders = {name: to if len(wanted) == 1 else to / name for name in wanted}
    files = [(folders[name], file) for file in manifest.files if (name := file.path.partition("/")[0]) in folders]
    copies = {file.path: file for file in manifest.files if file.path.startswith("images/")}
    done = 0

    def tell(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, len(files) + sum(manifest.splits.values()))

    def fetch_file(entry: tuple[Path, File]) -> None:
        folder, file = entry
        _write(_inside(folder, file.path.partition("/")[2]), _read(store, manifest, file))

    photos, missing = 0, []
    catalogue = next((file for file in manifest.files if file.path == _CATALOGUE), None)

    def fetch_photo(image: Image) -> str | None:
        copy = copies.get(f"images/{image.split}/{image.file_name}")
        try:
            if copy is not None:
                data = _read(store, manifest, copy)
            elif media is not None:
                data = media.path(image.url, task_id=image.task).read_bytes()
            else:
                return ""
        except (MediaError, OSError) as error:
            return str(error)
        for name, folder in folders.items():
            place = FORMATS[name].image_folder.format(split=image.split)
            _write(_inside(folder, f"{place}/{image.file_name}"), data)
        return None

    with ThreadPoolExecutor(_THREADS) as threads:
        for part in _batches(files, 256):
            tell(sum(1 for _ in threads.map(fetch_file, part)))
        if catalogue is not None and (copies or media is not None):
            lines = _read(store, manifest, catalogue).splitlines()
            for some in _batches([msgspec.json.decode(line, type=Image) for line in lines], 256):
                for image, reason in zip(some, threads.map(fetch_photo, some), strict=True):
                    photos += reason is None
                    if reason:
                        missing.append((image.url, reason))
                tell(len(some))
    return Pulled(manifest.version, folders, len(files), photos, tuple(missing))


def _read(store: Store, manifest: Manifest, file: File) -> bytes:
    key = f"versions/{manifest.version}/{file.path}"
    try:
        data = store.get(key)
    except NotThere as error:
        raise DatasetDamaged(store.url, key, "the manifest lists it and it is not there") from error
    if len(data) != file.size or hashlib.sha256(data).hexdigest() != file.sha256:
        raise DatasetDamaged(store.url, key, "its bytes are not those that the manifest lists")
    return data


def _inside(folder: Path, path: str) -> Path:
    parts = PurePosixPath(path).parts
    if not parts or ".." in parts or path.startswith("/") or "\\" in path:
        raise DatasetDamaged(str(folder), path, "the path leads out of the folder")
    return folder.joinpath(*parts)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _batches(items: list[_T], size: int) -> Iterator[list[_T]]:
    rest = iter(items)
    while part := list(islice(rest, size)):
        yield part
