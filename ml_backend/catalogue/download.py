"""Download a file of known checksum: resumable, moved into place only after the checksum matched."""

import functools
import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from labelloop.service.errors import LabelloopError
from ml_backend.catalogue.entries import Release

# Consecutive connections without a new byte before giving up.
ATTEMPTS = 5

# Delay before the second attempt, seconds; doubles with each.
PAUSE_S = 1.0

TIMEOUT_S = 30.0

# Called with the bytes received so far, and the total where it is known.
Progress = Callable[[int, int | None], None]


class DownloadFailed(LabelloopError):
    """A file of the catalogue could not be downloaded."""

    code = "model_not_pulled"
    status = 502
    message = "{url} could not be downloaded: {reason}."
    fix = (
        "Run the command again; it resumes the download. Without a network: download "
        "{release.url} elsewhere, put it at {file} (sha256 {release.sha256}) and run the command again."
    )


def download(
    release: Release, file: Path, *, url: str = "", client: httpx.Client, progress: Progress = lambda _done, _all: None
) -> bool:
    """Download a file unless it exists with the right checksum.

    Args:
        release: URL and checksum of the file.
        file: Destination; its folder is created. A partial download is stored next to it as `<file>.part`.
        url: Download from here instead of `release.url`.
        client: HTTP client; must follow redirects.
        progress: Called after each chunk.

    Returns:
        Whether anything was downloaded.

    Raises:
        DownloadFailed: The download failed; the partial file is kept and resumed next time.
        LabelloopError: The checksum differs.
    """
    if file.is_file() and sha256_of(file) == release.sha256:
        return False
    url = url or release.url
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.part")
    resumed = part.is_file() and part.stat().st_size > 0
    load = functools.partial(_download_part, release, part, url, client=client, progress=progress, file=file)
    load()
    checksum = sha256_of(part)
    if checksum != release.sha256 and resumed:  # the partial file was of another file: start over
        part.unlink()
        load()
        checksum = sha256_of(part)
    if checksum != release.sha256:
        part.unlink()
        raise LabelloopError(
            f"{url} has the checksum {checksum} instead of {release.sha256}; the download was deleted.",
            fix="Run the command again. If it fails again, the file was changed by its publisher or on the way: do not "
            f"put it at {file} by hand.",
            code="model_checksum_wrong",
            status=502,
        )
    part.replace(file)
    return True


def sha256_of(file: Path) -> str:
    """SHA-256 of a file, in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _download_part(
    release: Release, part: Path, url: str, *, client: httpx.Client, progress: Progress, file: Path
) -> None:
    failures, pause_s = 0, PAUSE_S
    while True:
        before = part.stat().st_size if part.is_file() else 0
        try:
            if _resume(part, url, client, progress, release.size):
                return
            reason = "the connection ended before the file did"
        except httpx.HTTPStatusError as error:
            if error.response.status_code < 500:
                raise DownloadFailed(
                    release=release, url=url, file=file, reason=f"the server answers {error.response.status_code}"
                ) from None
            reason = f"the server answers {error.response.status_code}"
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
        except OSError as error:
            raise DownloadFailed(
                release=release, url=url, file=file, reason=f"it cannot be written ({error})"
            ) from None
        now = part.stat().st_size if part.is_file() else 0
        failures = 0 if now > before else failures + 1
        if failures == ATTEMPTS:
            raise DownloadFailed(release=release, url=url, file=file, reason=reason)
        if now <= before:
            time.sleep(pause_s)
            pause_s *= 2


def _resume(part: Path, url: str, client: httpx.Client, progress: Progress, size: int | None) -> bool:
    """One connection; True if the file is complete as far as the server says."""
    received = part.stat().st_size if part.is_file() else 0
    # Identity encoding: a byte range of a compressed response would be a range of other bytes.
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={received}-"} if received else {})}
    with client.stream("GET", url, headers=headers) as response:
        if response.status_code == 416:  # range not satisfiable: nothing follows the received bytes
            return True
        response.raise_for_status()
        if response.status_code != 206:
            received = 0
        content_length = response.headers.get("Content-Length")
        total = received + int(content_length) if content_length and content_length.isdigit() else size
        with part.open("ab" if received else "wb") as stream:
            progress(received, total)
            for piece in response.iter_raw():
                stream.write(piece)
                received += len(piece)
                progress(received, total)
    return total is None or received >= total
