"""Object stores: `open_store` opens a local folder or a prefix of a bucket with one interface, the `Store` protocol."""

from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from labelloop.service.settings import Settings
from labelloop.service.store.addresses import FORMS, bucket_scheme, corrected, is_bucket_url, split_bucket_url
from labelloop.service.store.base import Capabilities, Leftovers, ObjectInfo, Progress, Store
from labelloop.service.store.bucket import Bucket
from labelloop.service.store.errors import (
    AccessDenied,
    ObjectChanged,
    ObjectExists,
    ObjectNotFound,
    StoreError,
    StoreUnreachable,
)
from labelloop.service.store.local import FolderStore

__all__ = [
    "AccessDenied",
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
    "is_bucket_url",
    "open_bucket",
    "open_store",
    "split_bucket_url",
]


def open_store(url: str, settings: Settings) -> Store:
    """Open a store without reading or writing anything yet.

    Args:
        url: `file:///folder`, a path, `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`.
        settings: S3 endpoint and credentials. The other clouds read their own environment variables.

    Raises:
        StoreError: The address is malformed, has an unknown scheme, or its client library is not installed.
    """
    if meant := corrected(url):
        has_secret = "@" in url or "?" in url
        fix = f"Write {FORMS}." if has_secret else f"Write {meant} (or ./{url} for a folder of this name)."
        raise StoreError(meant.partition("://")[0] + ":..." if has_secret else url, "", "a typing error", fix=fix)
    if url.startswith("file:/") and not url.startswith("file://"):  # the short form of the same address
        url = f"file://{url.removeprefix('file:')}"
    scheme, separator, _ = url.partition("://")
    if not separator and url:
        folder = Path(url).expanduser().absolute()
        return FolderStore(folder.as_uri(), folder)
    if scheme == "file":
        parts = urlsplit(url)
        if parts.netloc not in {"", "localhost"} or not parts.path.startswith("/"):
            raise StoreError(url, "", "a file:// address has three slashes", fix=f"Write {FORMS}.")
        folder = Path(unquote(parts.path))
        return FolderStore(folder.as_uri(), folder)
    if bucket_scheme(url):
        address, prefix = split_bucket_url(url)
        name, prefix = address.partition("://")[2], prefix.strip("/")
        if not name or "@" in name or "?" in url:
            raise StoreError(f"{scheme}://...", "", "not an address of a bucket", fix=f"Write {FORMS}.")
        return _OPENERS[scheme](name, f"{prefix}/" if prefix else "", settings)
    raise StoreError(f"{scheme}://..." if scheme else "(empty)", "", "unknown kind of store", fix=f"Write {FORMS}.")


def open_bucket(url: str, *, timeout_s: float = 25.0) -> Bucket:
    """Open a bucket of Google or Azure by its address, without a request. Raises `StoreError`."""
    scheme, _, name = url.partition("://")
    if scheme == "gs":
        from labelloop.service.store import gcs

        return gcs.open_bucket(name, timeout_s=timeout_s)
    from labelloop.service.store import azure

    return azure.open_container(name, timeout_s=timeout_s)


def _open_s3(bucket: str, prefix: str, settings: Settings) -> Store:
    from labelloop.service.store.s3 import BucketStore

    return BucketStore(f"s3://{bucket}/{prefix}".rstrip("/"), bucket, prefix, settings)


def _cloud_opener(scheme: str) -> Callable[[str, str, Settings], Store]:
    def open_(bucket: str, prefix: str, settings: Settings) -> Store:
        from labelloop.service.store.cloud import CloudStore

        del settings
        return CloudStore(open_bucket(f"{scheme}://{bucket}"), prefix)

    return open_


_OPENERS: Mapping[str, Callable[[str, str, Settings], Store]] = {
    "s3": _open_s3,
    "gs": _cloud_opener("gs"),
    "az": _cloud_opener("az"),
}
