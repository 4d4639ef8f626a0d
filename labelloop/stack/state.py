"""What `labelloop up` remembers between runs, and the lock by which one home folder has one supervisor."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from labelloop import VERSION
from labelloop.service.errors import SchemaTooNew
from labelloop.stack.errors import AlreadyRunning, StackError


class DemoProject(msgspec.Struct, frozen=True):
    """A project that `labelloop up` made.

    Attributes:
        id: Its id in Label Studio.
        photos: How many photographs it has.
        complete: False while it is being made, so that an interrupted one is seen.
    """

    id: int
    photos: int = 0
    complete: bool = False


FORMAT = 1
"""Raised when an older labelloop would misread the state."""


class State(msgspec.Struct, frozen=True):
    """What has been made so far: the annotators' accounts, and the projects by where their photos came from."""

    people: tuple[str, ...] = ()
    projects: dict[str, DemoProject] = {}
    format: int = FORMAT


class _Written(msgspec.Struct, frozen=True):
    format: int = FORMAT


class Holder(msgspec.Struct, frozen=True):
    """The supervisor that runs: its process and where Label Studio is."""

    pid: int
    url: str


def read_state(folder: Path) -> State:
    """The state, empty when there is none.

    Raises:
        SchemaTooNew: A newer labelloop wrote it.
        StackError: It is no state.
    """
    file = folder / "state.json"
    if not file.exists():
        return State()
    try:
        written = msgspec.json.decode(file.read_bytes(), type=_Written).format
        if written > FORMAT:
            raise SchemaTooNew(f"The state file {file}", f"format {written}", VERSION)
        return msgspec.json.decode(file.read_bytes(), type=State)
    except msgspec.DecodeError as error:
        raise StackError(
            f"The state file {file} cannot be read: {error}.",
            fix="Restore a backup (`labelloop restore FILE --force`), or delete the file: `labelloop up` then makes a "
            "new demo project.",
        ) from error


def write_state(folder: Path, state: State) -> None:
    """Replace the state in one step."""
    part = folder / "state.json.part"
    part.write_bytes(msgspec.json.encode(state))
    part.replace(folder / "state.json")


@contextmanager
def sole_supervisor(home: Path, url: str) -> Iterator[None]:
    """Hold the home folder while the stack runs.

    Raises:
        AlreadyRunning: Another process holds it; the message names it and its address.
    """
    with _lock_file(home).open("a+b") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _read_holder(home)
            told = f" (process {holder.pid}), with Label Studio at {holder.url}" if holder else ""
            raise AlreadyRunning(
                f"labelloop up is running already in {home}{told}.",
                fix="Use it, or end it first: Ctrl-C in its terminal, or `labelloop down`.",
            ) from None
        lock.truncate(0)
        lock.write(msgspec.json.encode(Holder(os.getpid(), url)))
        lock.flush()
        try:
            yield
        finally:
            lock.truncate(0)


def running(home: Path) -> Holder | None:
    """The supervisor that holds the home folder, None when nobody does."""
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


def _read_holder(home: Path) -> Holder | None:
    try:
        return msgspec.json.decode(_lock_file(home).read_bytes(), type=Holder)
    except msgspec.DecodeError:
        return None
