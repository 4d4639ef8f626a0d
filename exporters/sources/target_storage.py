"""Label Studio's target storage: what it writes by itself at every submit, one JSON an annotation, without extension.

Label Studio 1.23 writes `PREFIX/ANNOTATION_ID`, an annotation with its task inside; with
`FUTURE_SAVE_TASK_TO_STORAGE` it writes `PREFIX/TASK_ID.json`, a task with its annotations. Both are read, skipped
annotations too. An annotation that was deleted stays in the storage unless it may delete objects.
"""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import Any

import msgspec

from exporters.errors import InputBroken, SourceNotFound
from exporters.sources.base import Progress, read
from labelloop.labeling.errors import MalformedTask
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.task import Task
from labelloop.service.settings import Settings
from labelloop.service.store import NotThere, Store
from labelloop.service.studio.mirror import Mirror, Part

_THREADS = 16
_BATCH = 256
_NAMED = 3
_RESYNC = "Let Label Studio write these again: Settings > Cloud Storage > Sync the target storage."
_NAME = re.compile(r"\d{1,18}(\.json)?")


class TargetStorage:
    """A folder or a prefix that Label Studio keeps its annotations in.

    Objects that did not change since the last export are not read again. Those with other names than Label Studio's
    are not looked at.

    Args:
        url: Its address, for the manifest.
        store: The place.
        config: The label config; the storage has none.
        settings: Where the home folder is.
        fresh: Forget what was read before.
        progress: Told while objects are read.

    Raises:
        SourceNotFound: It holds no annotation.
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
        if not any(_NAME.fullmatch(key) for key in store.list()):
            raise SourceNotFound(url, "it is neither a JSON export nor a target storage with annotations in it")
        self.title = url.rstrip("/").rpartition("/")[2] or "target"
        self.origin: dict[str, Any] = {"kind": "target storage", "location": url}
        self.config = config
        self.total: int | None = None
        self._store = store
        self._progress = progress
        self._mirror = Mirror(settings.home / "mirror", f"{settings.s3_endpoint_url} {store.url}")
        if fresh:
            self._mirror.clear()
        self._url = url
        self._unread: list[MalformedTask] = []
        self._cut: list[str] = []
        self._ready = False

    def raw(self) -> Iterator[bytes | MalformedTask]:
        """The JSON of each task with its annotations, by id; the first call brings them here.

        Raises:
            InputBroken: An object is cut short.
        """
        if not self._ready:
            with self._mirror.locked():
                self.refresh()
                self._mirror.hold()
            self._ready = True
        yield from self._unread
        for _, parts in groupby(self._mirror.parts(), key=lambda part: part.task):
            yield _joined(list(parts))

    def tasks(self) -> Iterator[Task | MalformedTask]:
        """Each task with its annotations, by id."""
        yield from read(self.raw())

    def close(self) -> None:
        """Close the copy."""
        self._mirror.close()

    def refresh(self) -> int:
        """Bring the copy up to date; gives how many objects were read."""
        there = {entry.key: entry.tag for entry in self._store.entries() if _NAME.fullmatch(entry.key)}
        known = self._mirror.tags()
        self._mirror.remove_parts(set(known) - set(there))
        changed = sorted(key for key, tag in there.items() if known.get(key) != tag)
        done = 0
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="target") as threads:
            for start in range(0, len(changed), _BATCH):
                batch = changed[start : start + _BATCH]
                found = [each for each in threads.map(lambda key: self._part(key, there[key]), batch) if each]
                self._mirror.put_parts(each for each in found if isinstance(each, Part))
                self._unread += [each for each in found if isinstance(each, MalformedTask)]
                self._mirror.remove_parts(each.field for each in found if isinstance(each, MalformedTask))
                done += len(batch)
                if self._progress:
                    self._progress(done, len(changed))
        self.origin["read"] = done
        if self._cut:
            more = f" (and {len(self._cut) - _NAMED} more)" if len(self._cut) > _NAMED else ""
            raise InputBroken(self._url, f"cut short: {'; '.join(sorted(self._cut)[:_NAMED])}{more}", _RESYNC)
        return done

    def _part(self, key: str, tag: str) -> Part | MalformedTask | None:
        try:
            data = self._store.get(key)
        except NotThere:  # deleted since it was listed
            return None
        try:
            return _read_part(key, tag, data)
        except (msgspec.DecodeError, ValueError) as error:
            if "truncated" in str(error):  # msgspec's word for JSON that lacks its end
                self._cut.append(f"{key} ends at byte {len(data)}, in the middle")
            return MalformedTask(None, key, f"is no annotation as Label Studio writes it ({error})")


class _Head(msgspec.Struct):
    id: int
    updated_at: str = ""


def _read_part(key: str, tag: str, data: bytes) -> Part:
    whole = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    if "annotations" in whole and "data" in whole:
        head = msgspec.json.decode(data, type=_Head)
        return Part(key, tag, head.id, head.updated_at, data, b"")
    task = whole.pop("task", None)
    if task is None or "result" not in whole:
        raise ValueError("neither a task with annotations nor an annotation with its task")
    head = msgspec.json.decode(task, type=_Head)
    return Part(key, tag, head.id, head.updated_at, bytes(task), msgspec.json.encode(whole))


def _joined(parts: list[Part]) -> bytes:
    """A task's JSON from its parts: its data as the newest of them has it, each annotation once."""
    newest = max(parts, key=lambda part: part.changed)
    bodies = [part.body for part in parts if part.body]
    if not bodies:
        return newest.head
    task = msgspec.json.decode(newest.head, type=dict[str, msgspec.Raw])
    kept = [msgspec.Raw(body) for body in bodies]
    for part in parts:
        if not part.body:  # the storage was switched to whole tasks: those annotations count that have no own object
            own = {msgspec.json.decode(body, type=_Head).id for body in bodies}
            inside = msgspec.json.decode(part.head, type=_Annotations).annotations
            kept += [raw for raw in inside if msgspec.json.decode(raw, type=_Head).id not in own]
    task["annotations"] = msgspec.Raw(msgspec.json.encode(kept))
    return msgspec.json.encode(task)


class _Annotations(msgspec.Struct):
    annotations: list[msgspec.Raw] = []
