"""Keep ``latest/`` equal to the plain files of the published version, for readers that know only files.

``latest/VERSION.json`` says which version the folder holds (``complete``), or that it is being written (``updating``).
One process at a time writes it, under a lock of the store, and always the version that ``HEAD.json`` names at that
moment: the last one makes the folder equal to the newest version, whatever a killed process left.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec

from exporters.dataset.mirror import (
    Mirror,
    MirrorCounts,
    PreviousFiles,
    content_tag,
    file_tag,
    image_tag,
    open_mirror,
)
from exporters.dataset.plain_files import PlainVersion
from exporters.dataset.readme import readme
from exporters.dataset.versions import read_head, read_version
from exporters.errors import DatasetDamaged, LatestTakenOver, VersionNotFound
from exporters.model.manifest import DatasetManifest
from labelloop.service.store import ObjectNotFound, Store

FOLDER = "latest/"
VERSION_FILE = "VERSION.json"
README = "README.md"
REPORT = "report.html"
_LOCK = "latest"
# Seconds that an export waits for others that write the folder; a dead one loses its lock after ten.
_WAIT_S = 3600.0
# Seconds between two checks that the lock is still ours.
_CHECK_S = 5.0
_log = logging.getLogger(__name__)

# Called with (files done, files in all or None).
FileProgress = Callable[[int, int | None], None]


class LatestState(msgspec.Struct, frozen=True, omit_defaults=True):
    """``latest/VERSION.json``.

    Attributes:
        state: ``complete``: every file is of the version. ``updating``: files of other versions may be among them.
        version: The version.
        manifest: Its manifest.
        manifest_sha256: The checksum of that manifest.
        formats: The folders of formats.
        previous: While updating: the version that was there before.
        at: When it was written, UTC.
        files: The number of files; 0 while updating.
    """

    state: Literal["complete", "updating"]
    version: str
    manifest: str
    manifest_sha256: str
    formats: tuple[str, ...] = ()
    previous: str = ""
    at: str = ""
    files: int = 0

    @property
    def is_complete(self) -> bool:
        """Whether every file is of the version."""
        return self.state == "complete"


class LatestUpdate(msgspec.Struct, frozen=True):
    """What an update of ``latest/`` did.

    Attributes:
        version: The version that it holds now.
        counts: The files that were written, removed and left alone; None if it held the version before.
    """

    version: str
    counts: MirrorCounts | None = None


def read_latest(store: Store) -> LatestState | None:
    """Return what ``latest/`` holds; None if there is no such folder, or its ``VERSION.json`` is unreadable."""
    try:
        return msgspec.json.decode(store.get(FOLDER + VERSION_FILE), type=LatestState)
    except (ObjectNotFound, msgspec.DecodeError):
        return None


def update_latest(
    store: Store,
    *,
    scratch: Path,
    plain: PlainVersion | None = None,
    check: bool = False,
    progress: FileProgress | None = None,
) -> LatestUpdate | None:
    """Make ``latest/`` equal to the published version.

    Args:
        store: Where the data set lives.
        scratch: A folder on this machine's disk.
        plain: The plain files of a version, if they are laid out already; used if it is the published one.
        check: Compare the files also if ``VERSION.json`` says that they are of the version.
        progress: Called after each file.

    Returns:
        What was done; None if no version is published.

    Raises:
        LatestTakenOver: this process lost its lock to another one, which finishes the update.
        StoreError: the store cannot be read or written. The next update repairs the folder.
        DatasetDamaged: an object of the version is missing or damaged.
    """
    with store.lock(_LOCK, wait_s=_WAIT_S) as is_held:
        head, _ = read_head(store)
        if head is None:
            return None
        before = read_latest(store)
        if not check and before and before.is_complete and before.manifest_sha256 == head.sha256:
            return LatestUpdate(head.version)
        with ExitStack() as stack:
            if plain is None or plain.manifest.version != head.version:
                folder = scratch / "latest"
                folder.mkdir()
                plain = stack.enter_context(PlainVersion(store, read_version(store, head.version), folder))
                plain.pack_images(archives=False)
            state = LatestState(
                state="updating",
                version=head.version,
                manifest=head.manifest,
                manifest_sha256=head.sha256,
                formats=tuple(plain.manifest.formats),
                previous=before.version if before else "",
                at=_now(),
            )
            _write_state(store, state)
            previous = partial(_files_of, store, before.version, scratch) if before and before.is_complete else None
            counts = _mirror(store, plain, _Guard(store, is_held), progress, None if check else previous)
            if not is_held():
                raise LatestTakenOver(url=store.url)
            done = msgspec.structs.replace(
                state, state="complete", previous="", at=_now(), files=counts.written + counts.same
            )
            _write_state(store, done)
    if counts.unverified:
        _log.warning("latest_files_sent_again", extra={"files": counts.unverified, "reason": "etags are no checksums"})
    return LatestUpdate(head.version, counts)


def _mirror(
    store: Store,
    plain: PlainVersion,
    guard: "_Guard",
    progress: FileProgress | None,
    previous: PreviousFiles | None,
) -> MirrorCounts:
    def on_files(done: int) -> None:
        guard.check()
        if progress:
            progress(done, None)

    with closing(open_mirror(store, FOLDER, keep=VERSION_FILE, on_files=on_files, previous=previous)) as mirror:
        add_plain_files(mirror, store, plain)
        mirror.finish()
    return mirror.counts


def add_plain_files(mirror: Mirror, store: Store, plain: PlainVersion) -> None:
    """Add everything that ``latest/`` holds to a mirror, but `VERSION_FILE`."""
    manifest = plain.manifest
    stored = {file.path: file for file in manifest.files}
    mirror.add(README, readme(store.url, manifest, folder=FOLDER).encode())
    if plain.report is not None:
        mirror.add_file(REPORT, plain.report, _key(manifest, REPORT))
    elif REPORT in stored:
        mirror.add(REPORT, store.get(stored[REPORT].key))
    for name, path in plain.tables.items():
        mirror.add_file(name, path, _key(manifest, name))
    for fmt in plain.formats:
        for name, data in fmt.archived_labels():
            mirror.add(name, data)
        for name, path in fmt.files.items():
            mirror.add_file(name, path, _key(manifest, name))
    for name, copy in plain.image_paths():
        mirror.add_image(name, copy)


def _files_of(store: Store, version: str, scratch: Path) -> Iterator[tuple[str, int]]:
    """Yield the path and the tag of each file of a version; none if the version is gone."""
    folder = scratch / "previous"
    folder.mkdir()
    try:
        with PlainVersion(store, read_version(store, version), folder) as plain:
            plain.pack_images(archives=False)
            yield README, content_tag(readme(store.url, plain.manifest, folder=FOLDER).encode())
            if report := _key(plain.manifest, REPORT):
                yield REPORT, content_tag(store.get(report))
            for fmt in plain.formats:
                yield from ((name, content_tag(data)) for name, data in fmt.archived_labels())
                yield from ((name, file_tag(path)) for name, path in fmt.files.items())
            yield from ((name, file_tag(path)) for name, path in plain.tables.items())
            yield from ((name, image_tag(copy)) for name, copy in plain.image_paths())
    except (VersionNotFound, DatasetDamaged):
        return


class _Guard:
    """Checks from time to time that the lock is still held. Raises `LatestTakenOver`."""

    def __init__(self, store: Store, is_held: Callable[[], bool]) -> None:
        self._url, self._is_held = store.url, is_held
        self._next = time.monotonic() + _CHECK_S

    def check(self) -> None:
        """Check, unless that was done a moment ago."""
        if time.monotonic() >= self._next:
            if not self._is_held():
                raise LatestTakenOver(url=self._url)
            self._next = time.monotonic() + _CHECK_S


def _key(manifest: DatasetManifest, path: str) -> str:
    """Return the key of a file of a version; empty if the version has none of its own."""
    return next((file.key for file in manifest.files if file.path == path), "")


def _write_state(store: Store, state: LatestState) -> None:
    data = msgspec.json.format(msgspec.json.encode(state), indent=2) + b"\n"
    store.put(FOLDER + VERSION_FILE, data, content_type="application/json")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
