"""`open_store`: the store that an address names."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from labelloop.service.settings import Settings
from labelloop.service.store.base import Store
from labelloop.service.store.errors import StoreError
from labelloop.service.store.local import FolderStore

_FORMS = "Write file:///folder, a path, or s3://bucket/prefix."


def open_store(url: str, settings: Settings) -> Store:
    """Opens a store; nothing is read or written yet.

    Args:
        url: `file:///folder`, a bare path, or `s3://bucket/prefix`.
        settings: Where the S3 server is and how to log in.

    Raises:
        StoreError: The address names no kind of store that labelloop has.
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

        clean = f"s3://{bucket}/{prefix}".rstrip("/")
        return BucketStore(clean, bucket, f"{prefix}/" if prefix else "", settings)
    raise StoreError(f"{scheme}://..." if scheme else "(empty)", "", "no such kind of store", fix=_FORMS)
