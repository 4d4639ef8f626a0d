"""Read Label Studio's target storage, into which it writes one JSON object per submitted annotation.

Label Studio 1.23 writes `PREFIX/ANNOTATION_ID`, an annotation with its task; with `FUTURE_SAVE_TASK_TO_STORAGE` it
writes `PREFIX/TASK_ID.json`, a task with its annotations. Both are read, including skipped annotations. A deleted
annotation stays in the storage unless Label Studio may delete objects.
"""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import Any

import msgspec

from exporters.errors import IncompleteInput, SourceNotFound
from exporters.sources.base import Progress, read_tasks
from labelloop.labeling.errors import MalformedTask
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.task import Task
from labelloop.service.settings import Settings
from labelloop.service.store import ObjectNotFound, Store
from labelloop.service.studio.task_cache import CachedObject, LocalTaskCache

_THREADS = 16
_BATCH = 256
_LISTED_ERRORS = 3
_RESYNC = "Let Label Studio write these again: Settings > Cloud Storage > Sync the target storage."
_OBJECT_KEY = re.compile(r"\d{1,18}(\.json)?")


class TargetStorage:
    """A folder or an S3 prefix with annotations written by Label Studio.

    Objects that did not change since the last export are not read again. Objects with other names are ignored.

    Args:
        url: URL of the storage, for the manifest.
        store: The object store.
        config: The label config; the storage contains none.
        settings: The home folder, for the local copy.
        fresh: Read everything again, ignoring the local copy.
        progress: Called while objects are read.

    Raises:
        SourceNotFound: It contains no annotations.
    """

    def __init__(
        self,
        url: str,
        store: Store,
        config: LabelConfig | None,
        settings: Settings,
        *,
        fresh: bool = False,
        progress: Progress | None = None,
    ) -> None:
        if not any(_OBJECT_KEY.fullmatch(key) for key in store.list()):
            raise SourceNotFound(source=url, reason="it is neither a JSON export nor a target storage with annotations")
        self.title = url.rstrip("/").rpartition("/")[2] or "target"
        self.origin: dict[str, Any] = {"kind": "target storage", "location": url}
        self.config = config
        self.total: int | None = None
        self._store = store
        self._progress = progress
        self._cache = LocalTaskCache(settings.home / "mirror", f"{settings.s3_endpoint_url} {store.url}")
        if fresh:
            self._cache.clear()
        self._url = url
        self._malformed: list[MalformedTask] = []
        self._truncated: list[str] = []
        self._ready = False

    def raw(self) -> Iterator[bytes | MalformedTask]:
        """The JSON of each task with its annotations, by id; the first call updates the local copy.

        Raises:
            IncompleteInput: An object is truncated.
        """
        if not self._ready:
            with self._cache.locked():
                self.refresh()
                self._cache.begin_snapshot()
            self._ready = True
        yield from self._malformed
        for _, objects in groupby(self._cache.objects(), key=lambda item: item.task):
            yield _merge_objects(list(objects))

    def tasks(self) -> Iterator[Task | MalformedTask]:
        """Each task with its annotations, by id."""
        yield from read_tasks(self.raw())

    def close(self) -> None:
        """Close the local copy."""
        self._cache.close()

    def refresh(self) -> int:
        """Update the local copy; returns the number of objects read."""
        listed = {entry.key: entry.tag for entry in self._store.entries() if _OBJECT_KEY.fullmatch(entry.key)}
        cached = self._cache.tags()
        self._cache.remove_objects(set(cached) - set(listed))
        changed = sorted(key for key, tag in listed.items() if cached.get(key) != tag)
        done = 0
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="target") as threads:
            for start in range(0, len(changed), _BATCH):
                batch = changed[start : start + _BATCH]
                results = list(threads.map(lambda key: self._fetch(key, listed[key]), batch))
                self._cache.put_objects(item for item in results if isinstance(item, CachedObject))
                malformed = [item for item in results if isinstance(item, MalformedTask)]
                self._malformed += malformed
                self._cache.remove_objects(error.field for error in malformed)
                done += len(batch)
                if self._progress:
                    self._progress(done, len(changed))
        self.origin["read"] = done
        if self._truncated:
            listed_errors, unlisted = sorted(self._truncated)[:_LISTED_ERRORS], len(self._truncated) - _LISTED_ERRORS
            more = f" (and {unlisted} more)" if unlisted > 0 else ""
            raise IncompleteInput(source=self._url, reason=f"cut short: {'; '.join(listed_errors)}{more}", fix=_RESYNC)
        return done

    def _fetch(self, key: str, tag: str) -> CachedObject | MalformedTask | None:
        try:
            data = self._store.get(key)
        except ObjectNotFound:  # deleted since it was listed
            return None
        try:
            return _parse_object(key, tag, data)
        except (msgspec.DecodeError, ValueError) as error:
            if "truncated" in str(error):  # msgspec's message for incomplete JSON
                self._truncated.append(f"{key} ends at byte {len(data)}")
            return MalformedTask(None, key, f"is not an annotation written by Label Studio ({error})")


class _TaskHead(msgspec.Struct):
    id: int
    updated_at: str = ""


def _parse_object(key: str, tag: str, data: bytes) -> CachedObject:
    fields = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    if "annotations" in fields and "data" in fields:
        head = msgspec.json.decode(data, type=_TaskHead)
        return CachedObject(key, tag, head.id, head.updated_at, data, b"")
    task = fields.pop("task", None)
    if task is None or "result" not in fields:
        raise ValueError("neither a task with annotations nor an annotation with its task")
    head = msgspec.json.decode(task, type=_TaskHead)
    return CachedObject(key, tag, head.id, head.updated_at, bytes(task), msgspec.json.encode(fields))


def _merge_objects(objects: list[CachedObject]) -> bytes:
    """A task's JSON from its objects: the data of the newest object, and each annotation once."""
    newest = max(objects, key=lambda item: item.updated_at)
    bodies = [item.annotation_json for item in objects if item.annotation_json]
    if not bodies:
        return newest.task_json
    task = msgspec.json.decode(newest.task_json, type=dict[str, msgspec.Raw])
    annotations = [msgspec.Raw(body) for body in bodies]
    for item in objects:
        if not item.annotation_json:  # a complete task: add the annotations that have no object of their own
            ids = {msgspec.json.decode(body, type=_TaskHead).id for body in bodies}
            inside = msgspec.json.decode(item.task_json, type=_Annotations).annotations
            annotations += [raw for raw in inside if msgspec.json.decode(raw, type=_TaskHead).id not in ids]
    task["annotations"] = msgspec.Raw(msgspec.json.encode(annotations))
    return msgspec.json.encode(task)


class _Annotations(msgspec.Struct):
    annotations: list[msgspec.Raw] = []
