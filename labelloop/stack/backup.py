"""Back up and restore a home folder: one archive with checksums, written online, restored all or nothing."""

import contextlib
import hashlib
import io
import os
import shutil
import sqlite3
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

import msgspec
import sqlalchemy

from labelloop import VERSION
from labelloop.service.db.engine import create_engine, open_database, revisions, supported_revisions
from labelloop.service.errors import LabelloopError, SchemaTooNew
from labelloop.service.jobs.heartbeats import WorkerHeartbeats
from labelloop.service.readiness import require_home, require_intact, sqlite_file
from labelloop.service.scratch import scratch_folder
from labelloop.service.settings import Settings, hide_password
from labelloop.service.system import restrict_to_owner
from labelloop.stack.state import running_supervisor

# Incremented when an older labelloop would misread a backup.
FORMAT = 1

MANIFEST, DATABASE, HOME, LABEL_STUDIO = "manifest.json", "database.sqlite3", "home", "label-studio"
STUDIO_DATABASE = "label_studio.sqlite3"

# Entries of a home folder that are not copied unchanged.
EXCLUDED = frozenset(
    {
        "data",  # Label Studio's data: backed up separately
        "label-studio", "logs", "run", "up.lock",  # recreated by `labelloop up`
        "media", "thumbnails", "mirror", "ml_backend/models", "ml_backend/sights", "ml_backend/backbones",  # caches
        "store",  # its models are backed up, its data sets on request
    }
)  # fmt: skip

_STUDIO_LEFT_OUT = frozenset({".cache", "export", STUDIO_DATABASE})
_SQLITE_ENDS = (".sqlite3", ".sqlite3-wal", ".sqlite3-shm", ".sqlite3-journal", ".migrate.lock")
_IN_MEMORY = 32 * 2**20
_BLOCK = 2**20
_CHECK_S = 600.0  # timeout of the integrity check of a database
_STAGING = ".restoring-"


class BackupError(LabelloopError):
    """A backup could not be written or restored; nothing was changed."""

    code = "backup"


class _File(msgspec.Struct, frozen=True):
    sha256: str
    size: int


class BackupManifest(msgspec.Struct, frozen=True, kw_only=True):
    """The manifest of a backup.

    Attributes:
        format: Version of the archive format.
        version: Version of the labelloop that wrote it.
        created_at: Unix time, seconds.
        schema: Revisions of the database's schema; empty if the backup has no database.
        label_studio: Whether the backup includes Label Studio's data.
        datasets: Whether the backup includes the data sets of the store.
        files: Checksum and size of every member of the archive except the manifest.
    """

    format: int = FORMAT
    version: str = VERSION
    created_at: float = 0.0
    schema: tuple[str, ...] = ()
    label_studio: bool = False
    datasets: bool = False
    files: dict[str, _File] = {}


class _Format(msgspec.Struct, frozen=True):
    format: int
    version: str = ""


@dataclass(frozen=True)
class BackupReport:
    """The result of writing or restoring a backup.

    Attributes:
        manifest: The backup's manifest.
        missing: Data of the loop that the backup does not include, each with its location.
        moved: Folder that the replaced files of the home folder were moved to; None if there were none.
    """

    manifest: BackupManifest
    missing: tuple[str, ...] = ()
    moved: Path | None = None


def write_backup(
    settings: Settings, target: Path, *, database: bool, label_studio: bool, datasets: bool
) -> BackupReport:
    """Write a backup with mode 0600 while the services run.

    The labelloop database is copied first: after a restore the next poll finds what Label Studio has beyond it.

    Args:
        settings: Home folder, database and store.
        target: The archive; it must not exist.
        database: Include the database, which must be SQLite.
        label_studio: Include the data of the Label Studio that `labelloop up` runs.
        datasets: Include the data sets in the home folder's store.

    Raises:
        BackupError: The target exists or is in the home folder, there is nothing to back up, or the database is on
            Postgres.
        DatabaseError: A database is damaged.
    """
    if target.exists():
        raise BackupError(f"{target} exists already.", fix="Give another name, or remove it first.")
    if not target.parent.is_dir():
        raise BackupError(f"There is no folder {target.parent}.", fix="Create it first, or give another name.")
    if not settings.home.is_dir():
        raise BackupError(f"There is no home folder {settings.home}.", fix="Set LABELLOOP_HOME to the one to back up.")
    if target.parent.resolve().is_relative_to(settings.home.resolve()):
        raise BackupError(
            f"{target} is in the home folder: every later backup would include it.",
            fix="Give a name outside of it, best on another disk.",
        )
    file = sqlite_file(settings.database_url) if database else None
    if database and file is None:
        raise BackupError(
            f"The database {hide_password(settings.database_url)} is on Postgres, which has its own backup.",
            fix="Write it with pg_dump, then the rest with `labelloop backup FILE --no-database`.",
        )
    studio = settings.home / "data"
    label_studio = label_studio and (studio / STUDIO_DATABASE).is_file()
    part = target.with_name(f"{target.name}.part")
    files: dict[str, _File] = {}
    schema: tuple[str, ...] = ()
    try:
        opened = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(opened, "wb") as out, tarfile.open(fileobj=out, mode="w:gz", compresslevel=6) as archive:
            if file is not None and file.is_file():
                _add_database(archive, files, DATABASE, file)
                schema = _schema_of(settings.database_url)
            for path, name in _home_files(settings.home, datasets=datasets, exclude={file}):
                _add_file(archive, files, f"{HOME}/{name}", path)
            if label_studio:
                _add_database(archive, files, f"{LABEL_STUDIO}/{STUDIO_DATABASE}", studio / STUDIO_DATABASE)
                for path, name in _files(studio, _STUDIO_LEFT_OUT):
                    _add_file(archive, files, f"{LABEL_STUDIO}/{name}", path)
            manifest = BackupManifest(
                created_at=time.time(), schema=schema, label_studio=label_studio, datasets=datasets, files=files
            )
            _add(archive, MANIFEST, io.BytesIO(msgspec.json.encode(manifest)), len(msgspec.json.encode(manifest)))
            archive.close()
            out.flush()
            os.fsync(out.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return BackupReport(manifest, tuple(_missing(settings, manifest)))


def restore_backup(settings: Settings, archive: Path, *, force: bool) -> BackupReport:
    """Restore a home folder; every file is verified before the first one is moved into place.

    Args:
        settings: The home folder.
        archive: The backup.
        force: Replace a home folder that is not empty; its files are moved aside.

    Raises:
        BackupError: The archive does not exist, is damaged or has unsafe members, or the home folder is not empty or
            in use.
        SchemaTooNew: A newer labelloop wrote it.
    """
    if not archive.is_file():
        raise BackupError(f"There is no backup {archive}.", fix="Give a file that `labelloop backup` wrote.")
    home = settings.home
    require_home(settings)
    restrict_to_owner(home)
    existing = [path for path in home.iterdir() if path.name not in EXCLUDED - {"data", "store"}]
    existing = [path for path in existing if not path.name.startswith(_STAGING)]
    if existing and not force:
        raise BackupError(
            f"The home folder {home} is not empty: it has {existing[0].name}.",
            fix="Set LABELLOOP_HOME to a new folder, or move the files aside: `labelloop restore FILE --force`.",
        )
    _require_idle(settings)
    for stale in home.glob(f"{_STAGING}*"):  # left by a killed restore
        shutil.rmtree(stale)
    staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=home))
    try:
        manifest = _extract(archive, staging)
        database = sqlite_file(Settings(home=staging / HOME).database_url)
        if manifest.schema and database is not None and not database.is_relative_to(staging) and database.exists():
            raise BackupError(f"The database {database} exists already.", fix="Move it aside and restore again.")
        moved = _move_aside(home, existing)
        for path in sorted((staging / HOME).iterdir()) if (staging / HOME).is_dir() else ():
            path.rename(home / path.name)
        if (staging / LABEL_STUDIO).is_dir():
            (staging / LABEL_STUDIO).rename(home / "data")
        if (staging / DATABASE).is_file():
            _move_database(staging / DATABASE, home)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    restored = Settings(home=home)
    if manifest.schema:
        open_database(restored).dispose()
    return BackupReport(manifest, tuple(_missing(restored, manifest)), moved)


def _move_database(file: Path, home: Path) -> None:
    """Move the database to the path in the restored settings, by default in the home folder."""
    target = sqlite_file(Settings(home=home).database_url) or home / "labelloop.sqlite3"
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(file, target)


def _require_idle(settings: Settings) -> None:
    holder = running_supervisor(settings.home)
    if holder is not None:
        raise BackupError(
            f"labelloop up (process {holder.pid}) runs in {settings.home}.", fix="Stop it first: `labelloop down`."
        )
    file = sqlite_file(settings.database_url)
    if file is not None and file.is_file() and _has_living_worker(settings.database_url):
        raise BackupError(f"A worker uses the database {file}.", fix="Stop the worker and the services first.")


def _has_living_worker(url: str) -> bool:
    engine = create_engine(url)
    try:
        newest = WorkerHeartbeats(engine).latest()
    except (
        sqlalchemy.exc.SQLAlchemyError
    ):  # an older schema or a damaged database, which may be why a backup is restored
        return False
    finally:
        engine.dispose()
    return newest is not None and newest.alive


def _move_aside(home: Path, existing: list[Path]) -> Path | None:
    if not existing:
        return None
    aside = home.with_name(f"{home.name}.before-restore-{time.strftime('%Y%m%d-%H%M%S')}")
    aside.mkdir(mode=0o700)
    for path in existing:
        shutil.move(path, aside / path.name)
    return aside


def _extract(archive: Path, to: Path) -> BackupManifest:
    """Extract every file below `to` and verify it against the manifest."""
    extracted: dict[str, _File] = {}
    manifest = None
    try:
        with tarfile.open(archive, mode="r:gz") as opened:
            for member in opened:
                name, source = _safe_name(archive, member), opened.extractfile(member)
                if name in extracted or source is None:
                    raise BackupError(f"{archive} has {member.name!r} twice.", fix="It is not a backup of labelloop.")
                if name == MANIFEST:
                    manifest = _read_manifest(archive, source.read())
                else:
                    extracted[name] = _unpack(source, to / name)
    except (tarfile.TarError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise BackupError(
            f"{archive} cannot be read: {error}.", fix="Use another backup: this one is damaged."
        ) from error
    if manifest is None:
        raise BackupError(f"{archive} has no manifest: it is truncated or not a backup.", fix="Use another backup.")
    wrong = sorted(
        name for name in extracted.keys() | manifest.files.keys() if extracted.get(name) != manifest.files.get(name)
    )
    if wrong:
        raise BackupError(
            f"{archive} is damaged: {wrong[0]} has the wrong content ({len(wrong)} of {len(manifest.files)} files).",
            fix="Use another backup.",
        )
    return manifest


def _read_manifest(archive: Path, data: bytes) -> BackupManifest:
    try:
        written = msgspec.json.decode(data, type=_Format)
        if written.format > FORMAT:
            raise SchemaTooNew(
                what=f"The backup {archive}", newer=f"format {written.format}, {written.version}", version=VERSION
            )
        manifest = msgspec.json.decode(data, type=BackupManifest)
    except msgspec.DecodeError as error:
        raise BackupError(f"The manifest of {archive} cannot be read: {error}.", fix="Use another backup.") from error
    if unknown := set(manifest.schema) - supported_revisions():
        raise SchemaTooNew(
            what=f"The backup {archive}",
            newer=f"{manifest.version}, schema {', '.join(sorted(unknown))}",
            version=VERSION,
        )
    return manifest


def _safe_name(archive: Path, member: tarfile.TarInfo) -> str:
    """The member's name if it is a regular file below one of the backup's folders."""
    path = PurePosixPath(member.name)
    top = {MANIFEST, DATABASE} if len(path.parts) == 1 else {HOME, LABEL_STUDIO}
    plain = member.isreg() and not path.is_absolute() and ".." not in path.parts and str(path) == member.name
    if not plain or path.parts[0] not in top or "\0" in member.name:
        raise BackupError(
            f"{archive} has the member {member.name!r}, which no backup of labelloop has; nothing was restored.",
            fix="Restore only what `labelloop backup` wrote.",
        )
    return member.name


def _unpack(source: IO[bytes], target: Path) -> _File:
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    digest, size = hashlib.sha256(), 0
    with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        while block := source.read(_BLOCK):
            digest.update(block)
            size += len(block)
            out.write(block)
    return _File(digest.hexdigest(), size)


def _home_files(home: Path, *, datasets: bool, exclude: set[Path | None]) -> Iterator[tuple[Path, str]]:
    store = home / "store"
    yield from (
        (path, name)
        for path, name in _files(home, EXCLUDED)
        if path not in exclude and not name.endswith(_SQLITE_ENDS) and not name.startswith(_STAGING)
    )
    for path, name in _files(store, frozenset()):
        if datasets or name.startswith("models/"):
            yield path, f"store/{name}"


def _files(folder: Path, exclude: frozenset[str]) -> Iterator[tuple[Path, str]]:
    """Every regular file below a folder with its relative name; symbolic links are not followed."""
    for path, folders, names in os.walk(folder):
        folder_path = Path(path)
        inside = folder_path.relative_to(folder)
        folders[:] = sorted(name for name in folders if (inside / name).as_posix() not in exclude)
        for name in sorted(names):
            relative = (inside / name).as_posix()
            if relative not in exclude and (folder_path / name).is_file() and not (folder_path / name).is_symlink():
                yield folder_path / name, relative


def _add_database(archive: tarfile.TarFile, files: dict[str, _File], name: str, file: Path) -> None:
    """Add a consistent copy made by SQLite's online backup; writers are not blocked."""
    require_intact(file, timeout_s=_CHECK_S)
    with scratch_folder() as folder:
        copy = folder / "copy.sqlite3"
        with (
            contextlib.closing(sqlite3.connect(file, timeout=30.0)) as source,
            contextlib.closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
        _add_file(archive, files, name, copy)


def _add_file(archive: tarfile.TarFile, files: dict[str, _File], name: str, path: Path) -> None:
    """Add a snapshot of a file that may be written meanwhile; skip a file that no longer exists."""
    digest, size = hashlib.sha256(), 0
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as copy:
        try:
            with path.open("rb") as source:
                while block := source.read(_BLOCK):
                    digest.update(block)
                    size += len(block)
                    copy.write(block)
        except FileNotFoundError:
            return
        copy.seek(0)
        _add(archive, name, copy, size)
    files[name] = _File(digest.hexdigest(), size)


def _add(archive: tarfile.TarFile, name: str, data: IO[bytes], size: int) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size, 0o600, time.time()
    archive.addfile(member, data)


def _schema_of(url: str) -> tuple[str, ...]:
    engine = create_engine(url)
    try:
        return tuple(sorted(revisions(engine)))
    finally:
        engine.dispose()


def _missing(settings: Settings, manifest: BackupManifest) -> Iterator[str]:
    """Data of the loop that the backup does not include."""
    database = hide_password(settings.database_url)
    if not manifest.schema:
        yield f"the database, {database}"
    elif sqlite_file(settings.database_url) is None:
        yield f"the database: the backup has {settings.home / 'labelloop.sqlite3'}, and the settings name {database}"
    if settings.store_url != f"file://{settings.home}/store":
        yield f"the store with the models and data sets, {settings.store_url}"
    elif not manifest.datasets:
        yield f"the data sets in {settings.home / 'store'}: `labelloop backup FILE --datasets` includes them"
    if not manifest.label_studio:
        yield f"Label Studio's data (projects, annotations, uploads) of {settings.label_studio_url}: back it up there"
    for name, path in (("model", settings.model), ("smart encoder", settings.smart_encoder)):
        if path is not None and not path.is_relative_to(settings.home):
            yield f"the {name} {path}"
