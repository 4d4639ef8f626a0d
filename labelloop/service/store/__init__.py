"""Object stores: `open_store` opens a local folder or an S3 prefix with one interface, the `Store` protocol."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from labelloop.service.settings import Settings
from labelloop.service.store.base import Capabilities, Leftovers, ObjectInfo, Progress, Store
from labelloop.service.store.errors import (
    ObjectChanged,
    ObjectExists,
    ObjectNotFound,
    StoreError,
    StoreUnreachable,
)
from labelloop.service.store.local import FolderStore

__all__ = [
    "Capabilities",
    "Leftovers",
    "ObjectChanged",
    "ObjectExists",
    "ObjectInfo",
    "ObjectNotFound",
    "Progress",
    "Store",
    "StoreError",
    "StoreUnreachable",
    "open_store",
]

_FORMS = "Write file:///folder, a path, or s3://bucket/prefix."


def open_store(url: str, settings: Settings) -> Store:
    """Open a store without reading or writing anything yet.

    Args:
        url: `file:///folder`, a path, or `s3://bucket/prefix`.
        settings: S3 endpoint and credentials.

    Raises:
        StoreError: The address is malformed or has an unknown scheme.
    """
    scheme, _, rest = url.partition("://")
    if not rest and "://" not in url and url:
        folder = Path(url).expanduser().absolute()
        return FolderStore(folder.as_uri(), folder)
    if scheme == "file":
        parts = urlsplit(url)
        if parts.netloc not in {"", "localhost"} or not parts.path.startswith("/"):
            raise StoreError(url, "", "a file:// address has three slashes", fix=_FORMS)
        folder = Path(unquote(parts.path))
        return FolderStore(folder.as_uri(), folder)
    if scheme == "s3":
        bucket, _, prefix = rest.partition("/")
        prefix = prefix.strip("/")
        if not bucket or "@" in bucket or "?" in url:
            raise StoreError("s3://...", "", "not an S3 address", fix=_FORMS)
        from labelloop.service.store.s3 import BucketStore

        base_url = f"s3://{bucket}/{prefix}".rstrip("/")
        return BucketStore(base_url, bucket, f"{prefix}/" if prefix else "", settings)
    raise StoreError(f"{scheme}://..." if scheme else "(empty)", "", "unknown kind of store", fix=_FORMS)
