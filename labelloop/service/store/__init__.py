"""Objects by key, in a folder or in a bucket: `open_store`, the `Store` protocol and its errors."""

from labelloop.service.store.base import Capabilities, Entry, Leftovers, Progress, Store
from labelloop.service.store.errors import AlreadyThere, BadKey, Changed, NotThere, StoreError, StoreUnreachable
from labelloop.service.store.open import open_store

__all__ = [
    "AlreadyThere",
    "BadKey",
    "Capabilities",
    "Changed",
    "Entry",
    "Leftovers",
    "NotThere",
    "Progress",
    "Store",
    "StoreError",
    "StoreUnreachable",
    "open_store",
]
