"""The state file of `labelloop up`, and the lock that allows one supervisor per home folder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from labelloop import VERSION
from labelloop.service.errors import SchemaTooNew
from labelloop.stack.errors import StackError


class DemoProject(msgspec.Struct, frozen=True):
    """A project that `labelloop up` created.

    Attributes:
        id: Its id in Label Studio.
        photos: Its number of images.
        complete: False until its creation has finished.
    """

    id: int
    photos: int = 0
    complete: bool = False


# Incremented when an older labelloop would misread the state.
FORMAT = 1


class StackState(msgspec.Struct, frozen=True):
    """What earlier runs of `labelloop up` created and were told.

    Attributes:
        people: E-mail addresses of the created accounts.
        projects: The created projects by the source of their images.
        label_studio: Folder of Label Studio's installation outside the home folder (`--label-studio`); empty: inside.
    """

    people: tuple[str, ...] = ()
    projects: dict[str, DemoProject] = {}
    label_studio: str = ""
    format: int = FORMAT


class _Written(msgspec.Struct, frozen=True):
    format: int = FORMAT


class SupervisorInfo(msgspec.Struct, frozen=True):
    """The running supervisor: its process id and the address of Label Studio."""

    pid: int
    url: str


def read_state(folder: Path) -> StackState:
    """Read the state; empty if there is no file.

    Raises:
        SchemaTooNew: A newer labelloop wrote it.
        StackError: The file cannot be decoded.
    """
    file = folder / "state.json"
    if not file.exists():
        return StackState()
    try:
        written = msgspec.json.decode(file.read_bytes(), type=_Written).format
        if written > FORMAT:
            raise SchemaTooNew(what=f"The state file {file}", newer=f"format {written}", version=VERSION)
        return msgspec.json.decode(file.read_bytes(), type=StackState)
    except msgspec.DecodeError as error:
        raise StackError(
            f"The state file {file} cannot be read: {error}.",
            fix="Restore a backup (`labelloop restore FILE --force`), or delete the file: `labelloop up` then "
            "creates a new demo project.",
        ) from error


def write_state(folder: Path, state: StackState) -> None:
    """Replace the state file atomically."""
    part = folder / "state.json.part"
    part.write_bytes(msgspec.json.encode(state))
    part.replace(folder / "state.json")


@contextmanager
def sole_supervisor(home: Path, url: str | None) -> Iterator[None]:
    """Lock the home folder while the stack runs.

    Args:
        home: The home folder.
        url: Address of Label Studio; None: nothing is started, and no other process may start it meanwhile.

    Raises:
        StackError: Another process holds the lock; the message has its id and address.
    """
    with _lock_file(home).open("a+b") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _read_holder(home)
            details = f" (process {holder.pid}), with Label Studio at {holder.url}" if holder else ""
            raise StackError(
                f"labelloop up is running already in {home}{details}.",
                fix="Use it, or stop it first: Ctrl-C in its terminal, or `labelloop down`.",
                code="already_running",
            ) from None
        lock.truncate(0)
        if url is not None:
            lock.write(msgspec.json.encode(SupervisorInfo(os.getpid(), url)))
            lock.flush()
        try:
            yield
        finally:
            lock.truncate(0)


def running_supervisor(home: Path) -> SupervisorInfo | None:
    """The supervisor that holds the lock of the home folder, or None."""
    if not _lock_file(home).exists():
        return None
    with _lock_file(home).open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _read_holder(home)
    return None


def _lock_file(home: Path) -> Path:
    return home / "up.lock"


def _read_holder(home: Path) -> SupervisorInfo | None:
    try:
        return msgspec.json.decode(_lock_file(home).read_bytes(), type=SupervisorInfo)
    except msgspec.DecodeError:
        return None
