"""Owns getting a file of a known checksum: resumed where a connection broke off, in place only when it is whole."""

import functools
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import httpx

from labelloop.service.errors import LabelloopError
from ml_backend.catalogue.entries import Release

ATTEMPTS = 5
"""Times in a row that a connection may end without a single new byte."""

PAUSE_S = 1.0
"""Before the second attempt; it doubles with each."""

TIMEOUT_S = 30.0

Progress = Callable[[int, int | None], None]
"""Told the bytes that are there, and all of them where that is known."""


class NotPulled(LabelloopError):
    """A file of the catalogue could not be had."""

    code: ClassVar[str] = "model_not_pulled"
    status: ClassVar[int] = 502

    def __init__(self, release: Release, url: str, file: Path, reason: str) -> None:
        super().__init__(
            f"{url} could not be downloaded: {reason}.",
            fix="Run the command again, it goes on where it stopped. Without a network: download "
            f"{release.url} elsewhere, put it at {file} (sha256 {release.sha256}) and run the command again.",
        )
        self.url = url
        self.file = file
        self.reason = reason


class OtherBytes(LabelloopError):
    """What was downloaded is not what the catalogue names."""

    code: ClassVar[str] = "model_checksum_wrong"
    status: ClassVar[int] = 502

    def __init__(self, url: str, file: Path, wanted: str, found: str) -> None:
        super().__init__(
            f"{url} has the checksum {found}, and {wanted} is expected: nothing is kept of it.",
            fix="Run the command again. If it stays so, somebody on the way or its publisher changed the file: do not "
            f"put it at {file} by hand.",
        )


def download(
    release: Release, file: Path, *, url: str = "", client: httpx.Client, progress: Progress = lambda _done, _all: None
) -> bool:
    """Brings a file to its place, once.

    Args:
        release: What is wanted.
        file: Where it shall lie; its folder is made. What was loaded so far lies beside it, as `<file>.part`.
        url: Where it is loaded from; empty: where its publisher keeps it.
        client: Follows redirects.
        progress: Told after each piece.

    Returns:
        Whether anything was loaded: not where the very file lies there already.

    Raises:
        NotPulled: It cannot be had; what was loaded so far is kept, and gone on with the next time.
        OtherBytes: It is another file.
    """
    if file.is_file() and sha256_of(file) == release.sha256:
        return False
    url = url or release.url
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.part")
    resumed = part.is_file() and part.stat().st_size > 0
    load = functools.partial(_load, release, part, url, client=client, progress=progress, file=file)
    load()
    found = sha256_of(part)
    if found != release.sha256 and resumed:  # the part was of another file: once more from the beginning
        part.unlink()
        load()
        found = sha256_of(part)
    if found != release.sha256:
        part.unlink()
        raise OtherBytes(url, file, release.sha256, found)
    part.replace(file)
    return True


def sha256_of(file: Path) -> str:
    """The checksum of a file, in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _load(release: Release, part: Path, url: str, *, client: httpx.Client, progress: Progress, file: Path) -> None:
    failures, pause_s = 0, PAUSE_S
    while True:
        before = part.stat().st_size if part.is_file() else 0
        try:
            if _go_on(part, url, client, progress, release.size):
                return
            reason = "the connection ended before the file did"
        except httpx.HTTPStatusError as error:
            if error.response.status_code < 500:
                raise NotPulled(release, url, file, f"the server answers {error.response.status_code}") from None
            reason = f"the server answers {error.response.status_code}"
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
        except OSError as error:
            raise NotPulled(release, url, file, f"it cannot be written ({error})") from None
        now = part.stat().st_size if part.is_file() else 0
        failures = 0 if now > before else failures + 1
        if failures == ATTEMPTS:
            raise NotPulled(release, url, file, reason)
        if now <= before:
            time.sleep(pause_s)
            pause_s *= 2


def _go_on(part: Path, url: str, client: httpx.Client, progress: Progress, size: int | None) -> bool:
    """One connection; True where the file is whole, as far as the server says."""
    there = part.stat().st_size if part.is_file() else 0
    # Bytes as they are on the disk of the server: a range of a compressed answer would be a range of something else.
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={there}-"} if there else {})}
    with client.stream("GET", url, headers=headers) as answer:
        if answer.status_code == 416:  # there is nothing after what is there
            return True
        answer.raise_for_status()
        if answer.status_code != 206:
            there = 0
        told = answer.headers.get("Content-Length")
        whole = there + int(told) if told and told.isdigit() else size
        with part.open("ab" if there else "wb") as stream:
            progress(there, whole)
            for piece in answer.iter_raw():
                stream.write(piece)
                there += len(piece)
                progress(there, whole)
    return whole is None or there >= whole
