"""`open_store`: the store that an address names."""

from labelloop.service.settings import Settings
from labelloop.service.store.protocol import Store


def open_store(url: str, settings: Settings) -> Store:
    """Opens a store; nothing is read or written yet.

    Args:
        url: `file:///folder`, a bare path, or `s3://bucket/prefix`.
        settings: Where the S3 server is and how to log in.

    Raises:
        StoreError: The address names no kind of store that labelloop has.
    """
    raise NotImplementedError(url, settings)
