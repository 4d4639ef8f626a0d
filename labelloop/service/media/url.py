"""What an address in a task's data means: its kind, where its bytes are, and what tells it from every other.

| written in the task                             | kind         | bytes come from                                     |
|-------------------------------------------------|--------------|-----------------------------------------------------|
| `data:image/png;base64,...`                     | `inline`     | the address itself                                  |
| `/data/local-files/?d=...`, a local root is set | `file`       | the disk                                            |
| `/data/upload/...` and other paths              | `studio`     | Label Studio                                        |
| `s3://...` with S3 settings, or no Label Studio | `s3`         | the bucket                                          |
| `s3://`, `gs://`, `azure-blob://`, ...          | `resolve`    | the bucket, through Label Studio and the task's id  |
| `http://...`, `https://...`                     | `web`        | the host; Label Studio's own media with our token   |
"""

import base64
import posixpath
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, urlsplit

from labelloop.service.media.errors import HostRefused, MediaMissing
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio

Kind = Literal["inline", "file", "studio", "s3", "resolve", "web"]
_BUCKETS = frozenset({"s3", "s3s", "gs", "azure-blob", "redis"})
_NEEDS_STUDIO = "Set LABELLOOP_LABEL_STUDIO_URL and LABELLOOP_LABEL_STUDIO_API_KEY."


@dataclass(frozen=True, slots=True)
class Address:
    """Where an image is.

    Attributes:
        kind: See the table above.
        url: As it stands in the task.
        at: What to ask for: an absolute http address, a path on disk, or the `s3://` address.
        identity: Tells it from every other image, for the cache. It holds the whole query: an address whose signature
            differs is another one, or a caller with a void signature would be served what a valid one had fetched. What
            was fetched with our token is kept apart by Label Studio and by token.
    """

    kind: Kind
    url: str
    at: str
    identity: str


def locate(url: str, settings: Settings, studio: Studio | None, task_id: int | None) -> Address:
    """Reads an address.

    Raises:
        HostRefused: No address that labelloop reads, or a path that leaves its folder.
        MediaMissing: It needs Label Studio, or the task's id, and there is none.
    """
    url = url.strip()
    scheme = url.partition(":")[0].lower() if ":" in url.partition("/")[0] else ""
    if scheme == "data":
        return Address("inline", url, url, f"inline {url}")
    if scheme in {"http", "https"}:
        return _web(url, settings, studio)
    if scheme in _BUCKETS:
        # Without Label Studio there is no other way than the machine's own credentials, such as a trainer's role.
        if scheme == "s3" and (settings.s3_endpoint_url or settings.s3_access_key_id or studio is None):
            login = f"{settings.s3_endpoint_url} {settings.s3_access_key_id}"
            second = f"{studio.fingerprint} {task_id}" if studio is not None else ""  # where the bucket is not ours
            return Address("s3", url, url, f"s3 {login} {second} {url}")
        return resolved(url, studio, task_id)
    if scheme:
        raise HostRefused(url, f"labelloop reads no {scheme}: addresses")
    if not url.startswith("/"):
        raise HostRefused(url, "not an address", fix="An image is http(s)://, s3://, /data/..., or a data: URI.")
    return _path(url, settings, studio)


def resolved(url: str, studio: Studio | None, task_id: int | None) -> Address:
    """A bucket's object, as Label Studio resolves it for a task."""
    if studio is None:
        raise MediaMissing(url, "only Label Studio can read it, and none is set", fix=_NEEDS_STUDIO)
    if task_id is None:
        raise MediaMissing(url, "Label Studio reads it only for a task, and the task's id is not known")
    coded = base64.urlsafe_b64encode(url.encode()).decode()
    at = f"{studio.url}/tasks/{task_id}/resolve/?fileuri={coded}"
    return Address("resolve", url, at, _ours(at, studio))


def _web(url: str, settings: Settings, studio: Studio | None) -> Address:
    if studio is not None and studio.owns(url):
        parts = urlsplit(url)
        return _path(parts.path + (f"?{parts.query}" if parts.query else ""), settings, studio)
    return Address("web", url, url.partition("#")[0], f"web {url}")


def _path(url: str, settings: Settings, studio: Studio | None) -> Address:
    parts = urlsplit(url)
    prefix = urlsplit(studio.url).path if studio is not None else ""
    path = parts.path.removeprefix(prefix) if parts.path.startswith(f"{prefix}/") else parts.path
    if path.rstrip("/") == "/data/local-files" and settings.local_files_root is not None:
        return _local(url, parts.query, settings.local_files_root)
    if studio is None:
        raise MediaMissing(url, "it lies in Label Studio, and none is set", fix=_NEEDS_STUDIO)
    if "/../" in f"{path}/":
        raise HostRefused(url, "the path leaves its folder")
    at = f"{studio.url}{path}" + (f"?{parts.query}" if parts.query else "")
    return Address("studio", url, at, _ours(at, studio))


def _local(url: str, query: str, root: Path) -> Address:
    asked = parse_qs(query).get("d", [""])[0]
    relative = posixpath.normpath(asked).lstrip("/")
    file = (root / relative).resolve()
    if not asked or relative.startswith("..") or not file.is_relative_to(root.resolve()):
        raise HostRefused(url, "the path leaves the folder LABELLOOP_LOCAL_FILES_ROOT")
    if not file.is_file():
        raise MediaMissing(url, f"no such file in {root}")
    return Address("file", url, str(file), "")


def _ours(at: str, studio: Studio) -> str:
    return f"studio {studio.fingerprint} {at}"
