"""Tell a data set of `labelloop export` from a folder or bucket of any other."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from exporters.dataset.versions import HEAD
from labelloop.service.settings import Settings
from labelloop.service.store import Store, is_bucket_url, open_store


def version_store(place: str, settings: Settings) -> Store | None:
    """Return the store of a data set made by `labelloop export`; None for any other, or a pulled one."""
    if is_bucket_url(place):
        if place.lower().endswith((".json", ".ndjson", ".jsonl", ".zip")):
            return None
        store = open_store(place, settings)
        return store if any(next(iter(store.list(name)), "") for name in (HEAD, "versions/")) else None
    path = Path(unquote(urlsplit(place).path)) if place.startswith("file://") else Path(place).expanduser().absolute()
    is_ours = (path / HEAD).is_file() or any(path.glob("versions/v*/manifest.json"))
    return open_store(path.as_uri(), settings) if is_ours else None
