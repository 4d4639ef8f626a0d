"""Read images and compute their fingerprints, in several processes; what is read is kept at once."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from exporters.dataset.shards import read_image_copy
from exporters.errors import DatasetDamaged, ExportError
from exporters.look.fingerprint import Fingerprint, fingerprint
from exporters.model.manifest import ImageCopy
from labelloop.service.media import DecodedImage, MediaError, load_image
from labelloop.service.processes import process_pool
from labelloop.service.settings import Settings
from labelloop.service.store import Store, StoreError, open_store
from labelloop.service.system import available_cores

if TYPE_CHECKING:
    from labelloop.service.media import Media

# Images per unit of work, units in flight per process, and images read at once from a network.
_UNIT, _AHEAD, _THREADS = 32, 3, 8
# With fewer images no other process is started.
_FEW = 200
_MAX_WORKERS = 8


class ImageLocation(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where an image is: one of a file, an object of a store, a copy in a data set, or an address of a task.

    Attributes:
        path: A local file.
        store: The address of a store.
        key: A key of the store.
        copy: The copy of the image in the data set of the store.
        url: The address in the data of a task.
        task: The task; Label Studio resolves some addresses for a task only.
    """

    path: str = ""
    store: str = ""
    key: str = ""
    copy: ImageCopy | None = None
    url: str = ""
    task: int | None = None

    @property
    def is_remote(self) -> bool:
        """Whether reading it waits for a network."""
        return not self.path and not self.store.startswith("file:")


_T = TypeVar("_T")
Job = tuple[int, ImageLocation]
# The position of a job, and the fingerprint or why the image cannot be read.
Outcome = tuple[int, Fingerprint | str]


def read_fingerprints(jobs: Iterable[Job], settings: Settings, *, count: int, workers: int = 0) -> Iterator[Outcome]:
    """Compute the fingerprints of images.

    Args:
        jobs: (position, location) of the images.
        settings: Limits and access to stores and Label Studio.
        count: The number of jobs.
        workers: Processes; 0: one per core, and none besides this one for few images.

    Raises:
        ExportError: A process ended, most often for lack of memory.
    """
    remaining = iter(jobs)
    units = iter(lambda: list(islice(remaining, _UNIT)), [])
    workers = workers or (1 if count < _FEW else min(available_cores(), _MAX_WORKERS))
    if workers == 1:
        opened = ImageOpener(settings)
        try:
            for unit in units:
                yield from _read_unit(opened, unit)
        finally:
            opened.close()
        return
    executor = process_pool(workers, "exporters.look.reader", _initialise, (settings,))
    waiting: deque[Future[list[Outcome]]] = deque()
    try:
        for unit in units:
            waiting.append(executor.submit(_work, unit))
            if len(waiting) >= workers * _AHEAD:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except BrokenProcessPool as error:
        raise ExportError(
            "A process that reads images ended in the middle.",
            fix="Run it again: what was read is kept. If memory is short, pass --workers 1.",
            code="worker_lost",
        ) from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


class ImageOpener:
    """Reads images; opens the stores and the media client on first use. Thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stores: dict[str, Store] = {}
        self._media: Media | None = None
        self._studio: Any = None
        self._lock = threading.Lock()

    def fingerprint(self, location: ImageLocation) -> Fingerprint | str:
        """Return the fingerprint of an image, or why it cannot be read."""
        return self._attempt(
            lambda: fingerprint(
                self._content(location), name=_name(location), max_pixels=self._settings.media_max_pixels
            )
        )

    def thumbnail(self, location: ImageLocation, max_side: int | None) -> DecodedImage | str:
        """Return an image scaled to a longest side in pixels, or why it cannot be read."""
        return self._attempt(
            lambda: load_image(
                self._content(location),
                max_side=max_side,
                name=_name(location),
                max_pixels=self._settings.media_max_pixels,
            )
        )

    def _attempt(self, read: Callable[[], _T]) -> _T | str:
        try:
            return read()
        except MediaError as error:
            return f"{error.reason}. {error.fix}".rstrip()
        except (StoreError, DatasetDamaged, OSError) as error:
            return str(error)

    def _content(self, location: ImageLocation) -> bytes | Path:
        if location.path:
            return Path(location.path)
        if location.copy is not None:
            return read_image_copy(self._store(location.store), location.copy)
        if location.key:
            return self._store(location.store).get(location.key)
        return self._fetch(location)

    def close(self) -> None:
        """Close connections."""
        if self._media is not None:
            self._media.close()
        if self._studio is not None:
            self._studio.close()

    def _store(self, url: str) -> Store:
        with self._lock:
            if url not in self._stores:
                self._stores[url] = open_store(url, self._settings)
            return self._stores[url]

    def _fetch(self, location: ImageLocation) -> bytes:
        with self._lock:
            if self._media is None:
                from labelloop.service.media import Media

                if self._settings.label_studio_api_key.get_secret_value():
                    from labelloop.service.studio import Studio

                    self._studio = Studio.from_settings(self._settings)
                self._media = Media(self._settings, self._studio)
        return self._media.path(location.url, task_id=location.task).read_bytes()


def _name(location: ImageLocation) -> str:
    return location.path or location.key or location.url


_opened: ImageOpener | None = None


def _initialise(settings: Settings) -> None:
    global _opened  # noqa: PLW0603 - one per process, as its arguments are pickled for each unit otherwise
    _opened = ImageOpener(settings)


def _work(unit: Sequence[Job]) -> list[Outcome]:
    assert _opened is not None
    return _read_unit(_opened, unit)


def _read_unit(opened: ImageOpener, unit: Sequence[Job]) -> list[Outcome]:
    if not any(location.is_remote for _, location in unit):
        return [(position, opened.fingerprint(location)) for position, location in unit]
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="images") as threads:
        return list(
            zip([job[0] for job in unit], threads.map(lambda job: opened.fingerprint(job[1]), unit), strict=True)
        )
