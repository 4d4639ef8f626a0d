"""Parse the image address in a task's data: its kind, its source and its cache key.

| written in the task                             | kind         | bytes come from                                     |
|-------------------------------------------------|--------------|-----------------------------------------------------|
| `data:image/png;base64,...`                     | `inline`     | the address itself                                  |
| `/data/local-files/?d=...`, a local root is set | `file`       | the disk                                            |
| `/data/upload/...` and other paths              | `studio`     | Label Studio                                        |
| `s3://...` with S3 settings, or no Label Studio | `s3`         | the bucket                                          |
| `gs://`, `azure-blob://`, `az://`, likewise     | `cloud`      | the bucket                                          |
| `s3://`, `gs://`, `azure-blob://`, ...          | `resolve`    | the bucket, through Label Studio and the task's id  |
| `http://...`, `https://...`                     | `web`        | the host; Label Studio's own media with our token   |
"""

import base64
import posixpath
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, urlsplit

from labelloop.service.media.cloud import named_credentials
from labelloop.service.media.errors import MediaHostRefused, MediaMissing
from labelloop.service.settings import Settings
from labelloop.service.store.addresses import bucket_scheme, from_studio_url, to_studio_url
from labelloop.service.studio import Studio

Kind = Literal["inline", "file", "studio", "s3", "cloud", "resolve", "web"]
_BUCKETS = frozenset({"s3", "s3s", "gs", "azure-blob", "az", "redis"})
_NEEDS_STUDIO = "Set LABELLOOP_LABEL_STUDIO_URL and LABELLOOP_LABEL_STUDIO_API_KEY."


@dataclass(frozen=True, slots=True)
class ImageAddress:
    """A parsed image address.

    Attributes:
        kind: See the table above.
        url: The address in the task.
        target: The location to read: an absolute http address, a path on disk, or the address in a bucket.
        identity: The cache key. It includes the query, so that a caller with an invalid signature does not get what a
            valid one fetched. For downloads with the token it includes Label Studio and the token.
    """

    kind: Kind
    url: str
    target: str
    identity: str


def parse_address(url: str, settings: Settings, studio: Studio | None, task_id: int | None) -> ImageAddress:
    """Parse an address.

    Raises:
        MediaHostRefused: The scheme is not supported, or the path leaves its folder.
        MediaMissing: The address needs Label Studio or a task id, which is not set.
    """
    url = url.strip()
    scheme = url.partition(":")[0].lower() if ":" in url.partition("/")[0] else ""
    if scheme == "data":
        return ImageAddress("inline", url, url, f"inline {url}")
    if scheme in {"http", "https"}:
        return _web(url, settings, studio)
    if scheme in _BUCKETS:
        direct = _direct(scheme, url, settings, studio, task_id)
        return via_label_studio(to_studio_url(url), studio, task_id) if direct is None else direct
    if scheme:
        raise MediaHostRefused(url, f"{scheme}: addresses are not supported")
    if not url.startswith("/"):
        raise MediaHostRefused(
            url, "not an address", fix="An image is http(s)://, s3://, gs://, azure-blob://, /data/..., or a data: URI."
        )
    return _path(url, settings, studio)


def _direct(
    scheme: str, url: str, settings: Settings, studio: Studio | None, task_id: int | None
) -> ImageAddress | None:
    """The address of an object that this machine reads by itself; None: Label Studio reads it.

    Without Label Studio only the machine's own credentials remain, such as the role of a training instance.
    """
    # direct access may fall back to Label Studio
    fallback = f"{studio.cache_key} {task_id}" if studio is not None else ""
    if scheme == "s3" and (settings.s3_endpoint_url or settings.s3_access_key_id or studio is None):
        credentials = f"{settings.s3_endpoint_url} {settings.s3_access_key_id}"
        return ImageAddress("s3", url, url, f"s3 {credentials} {fallback} {url}")
    ours = from_studio_url(url)
    cloud = bucket_scheme(ours)
    if cloud not in {"gs", "az"}:
        return None
    credentials = named_credentials(cloud)
    if credentials or studio is None or settings.store_url.startswith(f"{cloud}://"):
        return ImageAddress("cloud", url, ours, f"{cloud} {credentials} {fallback} {ours}")
    return None


def via_label_studio(url: str, studio: Studio | None, task_id: int | None) -> ImageAddress:
    """The address of a bucket object, resolved by Label Studio for a task."""
    if studio is None:
        raise MediaMissing(url, "only Label Studio can read it, and no Label Studio is configured", fix=_NEEDS_STUDIO)
    if task_id is None:
        raise MediaMissing(url, "Label Studio reads it only for a task, and the task id is unknown")
    encoded = base64.urlsafe_b64encode(url.encode()).decode()
    target = f"{studio.url}/tasks/{task_id}/resolve/?fileuri={encoded}"
    return ImageAddress("resolve", url, target, _studio_identity(target, studio))


def _web(url: str, settings: Settings, studio: Studio | None) -> ImageAddress:
    if studio is not None and studio.owns(url):
        parts = urlsplit(url)
        return _path(parts.path + (f"?{parts.query}" if parts.query else ""), settings, studio)
    return ImageAddress("web", url, url.partition("#")[0], f"web {url}")


def _path(url: str, settings: Settings, studio: Studio | None) -> ImageAddress:
    parts = urlsplit(url)
    prefix = urlsplit(studio.url).path if studio is not None else ""
    path = parts.path.removeprefix(prefix) if parts.path.startswith(f"{prefix}/") else parts.path
    if path.rstrip("/") == "/data/local-files" and settings.local_files_root is not None:
        return _local(url, parts.query, settings.local_files_root)
    if studio is None:
        raise MediaMissing(url, "it is stored in Label Studio, and no Label Studio is configured", fix=_NEEDS_STUDIO)
    if "/../" in f"{path}/":
        raise MediaHostRefused(url, "the path leaves its folder")
    target = f"{studio.url}{path}" + (f"?{parts.query}" if parts.query else "")
    return ImageAddress("studio", url, target, _studio_identity(target, studio))


def _local(url: str, query: str, root: Path) -> ImageAddress:
    requested = parse_qs(query).get("d", [""])[0]
    relative = posixpath.normpath(requested).lstrip("/")
    file = (root / relative).resolve()
    if not requested or relative.startswith("..") or not file.is_relative_to(root.resolve()):
        raise MediaHostRefused(url, "the path leaves the folder LABELLOOP_LOCAL_FILES_ROOT")
    if not file.is_file():
        raise MediaMissing(url, f"no such file in {root}")
    return ImageAddress("file", url, str(file), "")


def _studio_identity(target: str, studio: Studio) -> str:
    return f"studio {studio.cache_key} {target}"
