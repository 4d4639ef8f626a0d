"""Convert the tasks of a source: block by block into segments, in this process or in others.

The tasks of a segment depend on the source alone, and a segment converted by another process is used only if it equals
the result of this process. The data set is therefore the same, to the byte, for any number of processes.
"""

import gc
import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import msgspec
from xxhash import xxh3_128_digest

from exporters.convert.options import ConversionOptions
from exporters.convert.task_images import ImageSizeReader, ImageSizes, LazyImageSizeReader
from exporters.convert.task_registry import TaskRegistry, UsedKeys
from exporters.dataset.shards import ObjectUploader
from exporters.dataset.task_index import NO_DIGEST
from exporters.formats.base import FormatContext
from exporters.model.class_map import ClassMap
from exporters.pipeline.converter import SourceBlock, TaskConverter
from exporters.pipeline.generation_writer import GenerationBuilder, SegmentResult, SegmentWriter
from exporters.pipeline.incremental import PreviousVersionIndex, UnchangedTasks
from exporters.pipeline.task_converter import choose_converter
from exporters.tasks.table import format_class
from labelloop.labeling.errors import MalformedTask
from labelloop.service.scratch import scratch_folder
from labelloop.service.settings import Settings
from labelloop.service.store import open_store

Entry = bytes | MalformedTask
Block = list[Entry]
BLOCK_TASKS = 128
BLOCK_BYTES = 1 << 20
# Bytes of JSON. A shard ends with its segment: smaller ones mean more objects, larger ones more memory per process.
SEGMENT_BYTES = 16 << 20


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What another process needs to convert tasks."""

    store: str
    settings: Settings
    rules: ConversionOptions
    formats: tuple[str, ...]
    context: FormatContext
    fetch: bool
    classes: tuple[str, ...] = ()


class SpooledBlocks(msgspec.Struct, frozen=True):
    """Blocks in a local file, which other processes read one at a time, so that none holds a whole unit."""

    path: Path

    def fill(self, blocks: Iterable[Block]) -> int:
        """Write the blocks. Return the number of tasks."""
        tasks = 0
        with self.path.open("wb") as file:
            for block in blocks:
                pickle.dump(block, file, pickle.HIGHEST_PROTOCOL)
                tasks += len(block)
        return tasks

    def __iter__(self) -> Iterator[Block]:
        with self.path.open("rb") as file:
            while file.peek(1):
                yield pickle.load(file)  # noqa: S301 - our own, in a folder that only this user can write to


class WorkUnit(msgspec.Struct, frozen=True):
    """A segment of tasks to convert; ``first`` is the number of tasks before it."""

    first: int
    tasks: int
    blocks: Iterable[Block]

    def materialized(self) -> "WorkUnit":
        """Return the unit with its tasks in memory, for another machine."""
        return WorkUnit(self.first, self.tasks, list(self.blocks))


class ConvertedUnit(msgspec.Struct, frozen=True):
    """A unit converted as if no tasks preceded it.

    Attributes:
        segment: What was written.
        used_keys: The ids and names that it uses.
        classes: The class names after it.
        written: The number of objects written.
        written_bytes: Their size.
    """

    segment: SegmentResult
    used_keys: UsedKeys
    classes: tuple[str, ...]
    written: int
    written_bytes: int


class Pool(Protocol):
    """Other processes that convert units."""

    workers: int

    def submit(self, unit: WorkUnit) -> Any:
        """Submit a unit. Return a handle for `result`."""

    def result(self, submitted: Any) -> ConvertedUnit:
        """Wait for a submitted unit."""

    def close(self) -> None:
        """End the processes."""


# A submitted unit with its spooled blocks and the handle for `Pool.result`.
PendingUnit = tuple[WorkUnit, SpooledBlocks, Any]


class ConversionScheduler:
    """Converts the blocks of a source in order.

    Args:
        converter: converts tasks in this process.
        registry: the ids and names in use.
        writer: starts a segment.
        builder: collects the segments.
        previous: the tasks that need no conversion.
        report_progress: called with the number of tasks done, and of images converted in this process.
    """

    def __init__(
        self,
        *,
        converter: TaskConverter,
        registry: TaskRegistry,
        writer: Callable[[], SegmentWriter],
        builder: GenerationBuilder,
        previous: PreviousVersionIndex | None,
        report_progress: Callable[[int, int], None],
    ) -> None:
        self._converter = converter
        self._registry = registry
        self._writer = writer
        self._builder = builder
        self._unchanged = UnchangedTasks(previous, registry, builder.accounts) if previous else None
        self._report_progress = report_progress

    def convert_serial(self, blocks: Iterable[Block], *, until: int | None = None) -> None:
        """Convert whole segments in this process, until there are no more blocks or ``until`` bytes of JSON are done.

        If most tasks are unchanged, the others are one segment: many segments would make many tiny shards.
        """
        done = 0
        for segment in [blocks] if self._unchanged else _segments(iter(blocks)):
            with self._writer() as writer:
                for block in segment:
                    images = convert_block(block, self._converter, writer, self._unchanged)
                    self._report_progress(len(block), images)
                    done += _size(block)
                self._builder.add(writer.finish())
            if until is not None and done >= until:
                return

    def convert_parallel(
        self, blocks: Iterable[Block], pool: Pool, classes: Sequence[str], objects: ObjectUploader
    ) -> None:
        """Convert by a pool whose processes know these classes, a few units ahead."""
        pending: deque[PendingUnit] = deque()
        first = self._builder.converted
        with scratch_folder() as folder:
            for segment in _segments(iter(blocks)):
                spooled = SpooledBlocks(folder / str(first))
                unit = WorkUnit(first, spooled.fill(segment), spooled)
                first += unit.tasks
                pending.append((unit, spooled, pool.submit(unit)))
                if len(pending) > pool.workers:
                    self._take(pending.popleft(), pool, tuple(classes), objects)
            while pending:
                self._take(pending.popleft(), pool, tuple(classes), objects)

    def _take(self, pending: PendingUnit, pool: Pool, classes: tuple[str, ...], objects: ObjectUploader) -> None:
        unit, spooled, submitted = pending
        converted = pool.result(submitted)
        if converted.classes == classes and self._registry.try_skip_tasks(unit.tasks, converted.used_keys):
            self._builder.add(converted.segment)
            objects.count_remote(converted.written, converted.written_bytes)
            self._report_progress(unit.tasks, 0)
        else:  # a class, id or name depends on earlier tasks
            self.convert_serial(spooled)
        spooled.path.unlink()


def convert_block(
    block: Block, converter: TaskConverter, writer: SegmentWriter, unchanged: UnchangedTasks | None = None
) -> int:
    """Convert and write the tasks of a block, except unchanged ones. Return the number of images."""
    # Not cryptographic: a forged collision would only hide its author's own change.
    digests = [xxh3_128_digest(entry) if type(entry) is bytes else NO_DIGEST for entry in block]
    previous = unchanged.find(digests) if unchanged else ()
    converted = converter.convert(SourceBlock(block, digests, previous), unchanged)
    writer.add(converted)
    return len(converted.block)


def convert_unit(config: WorkerConfig, unit: WorkUnit) -> ConvertedUnit:
    """Convert a unit in another process, into the store."""
    store = open_store(config.store, config.settings)
    classes = ClassMap(config.classes, config.rules.renamed)
    registry = TaskRegistry(reads_data=config.rules.split.reads_data, before=unit.first)
    with (
        gc_relaxed(),
        store.scratch() as folder,
        ObjectUploader(store) as objects,
        _headers(config) as headers,
    ):
        converter = choose_converter(config.rules, classes, registry=registry, sizes=ImageSizes(headers))
        formats = [format_class(name)(config.context) for name in config.formats]
        with SegmentWriter(formats, folder, objects, first=unit.first) as writer:
            for block in unit.blocks:
                convert_block(block, converter, writer)
            segment = writer.finish()
        objects.flush()
        return ConvertedUnit(segment, registry.used_keys, classes.names, objects.written, objects.written_bytes)


def blocks_of(entries: Iterable[Entry]) -> Iterator[Block]:
    """Group tasks into blocks."""
    block: Block = []
    size = 0
    for entry in entries:
        block.append(entry)
        size += len(entry) if isinstance(entry, bytes) else 0
        if len(block) >= BLOCK_TASKS or size >= BLOCK_BYTES:
            yield block
            block, size = [], 0
    if block:
        yield block


@contextmanager
def gc_relaxed() -> Iterator[None]:
    """Run Python's garbage collection rarely: converted tasks have no cycles, and it takes a tenth of the time."""
    before = gc.get_threshold()
    gc.set_threshold(200_000, 20, 20)
    gc.freeze()  # loaded objects stay: exclude them from collections
    try:
        yield
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)


def _segments(blocks: Iterator[Block]) -> Iterator[Iterator[Block]]:
    """Yield the blocks of each segment. Each must be consumed before the next."""

    def segment(block: Block) -> Iterator[Block]:
        yield block
        size = _size(block)
        while size < SEGMENT_BYTES and (following := next(blocks, None)) is not None:
            yield following
            size += _size(following)

    for block in blocks:
        yield segment(block)


def _size(block: Block) -> int:
    return sum([len(entry) for entry in block if type(entry) is bytes])


@contextmanager
def _headers(config: WorkerConfig) -> Iterator[ImageSizeReader | None]:
    """Yield a reader of image headers for this process, opened on first use."""
    if not config.fetch:
        yield None
        return

    resources: list[Any] = []

    @cache
    def reader() -> ImageSizeReader:
        from labelloop.service.media import Media
        from labelloop.service.studio import Studio

        key = config.settings.label_studio_api_key
        studio = Studio.from_settings(config.settings) if key else None
        media = Media(config.settings, studio)
        resources.extend((studio, media) if studio else (media,))
        return media

    try:
        yield LazyImageSizeReader(reader)
    finally:
        for resource in reversed(resources):
            resource.close()
