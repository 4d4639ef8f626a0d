"""Converting the tasks of a source: block after block into stretches, here or in other processes.

Which tasks make a stretch hangs on the source alone, and a stretch that another process converted is taken only where
it is what would have come out here: so the data set is the same to the byte, however many processes there are.
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
from exporters.convert.task_assembler import TaskAssembler, UsedKeys
from exporters.convert.task_images import ImageSizeReader, ImageSizes, LazyImageSizeReader
from exporters.dataset.shards import ObjectUploader
from exporters.dataset.task_index import NO_DIGEST
from exporters.formats import FORMATS
from exporters.formats.base import FormatContext
from exporters.model.accounting import Ledger, TaskAccountTable
from exporters.model.class_map import ClassMap
from exporters.pipeline.converter import Converter
from exporters.pipeline.generation_writer import GenerationBuilder, SegmentResult, SegmentWriter
from exporters.pipeline.incremental import PreviousVersionIndex
from labelloop.labeling.errors import MalformedTask
from labelloop.service.scratch import scratch_folder
from labelloop.service.settings import Settings
from labelloop.service.store import open_store

Entry = bytes | MalformedTask
Block = list[Entry]
BLOCK_TASKS = 128
BLOCK_BYTES = 1 << 20
SEGMENT_BYTES = 16 << 20
"""Of JSON: shards end with a stretch, so a smaller one means more objects, a larger one more memory a process."""


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How tasks are converted, and to where: what another process has to know."""

    store: str
    settings: Settings
    rules: ConversionOptions
    formats: tuple[str, ...]
    job: FormatContext
    fetch: bool
    classes: tuple[str, ...] = ()


class SpooledBlocks(msgspec.Struct, frozen=True):
    """Blocks in a file of this machine, whose other processes read them one at a time: none holds a whole piece."""

    path: Path

    def fill(self, blocks: Iterable[Block]) -> int:
        """Write the blocks; gives how many tasks they have."""
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
    """A stretch of tasks to be converted; ``first``: how many stand before it."""

    first: int
    tasks: int
    blocks: Iterable[Block]

    def materialized(self) -> "WorkUnit":
        """The piece with its tasks in it, for another machine."""
        return WorkUnit(self.first, self.tasks, list(self.blocks))


class ConvertedUnit(msgspec.Struct, frozen=True):
    """A piece that was converted as if nothing stood before it: what it took, the classes after it, what it wrote."""

    stretch: SegmentResult
    taken: UsedKeys
    classes: tuple[str, ...]
    written: int
    written_bytes: int


class Pool(Protocol):
    """Other processes that convert pieces."""

    workers: int

    def submit(self, piece: WorkUnit) -> Any:
        """Have a piece converted; gives what `result` takes."""

    def result(self, submitted: Any) -> ConvertedUnit:
        """A piece that was submitted, once it is there."""

    def close(self) -> None:
        """End the processes."""


PendingUnit = tuple[WorkUnit, SpooledBlocks, Any]
"""A piece that was submitted: with its blocks, and what `Pool.result` takes."""


class ConversionScheduler:
    """Takes the blocks of a source in their order.

    Args:
        converter: what converts tasks here.
        assembler: the converter's own.
        writer: begins a stretch.
        making: takes the stretches.
        known: what need not be converted.
        tell: told how many tasks are done.
    """

    def __init__(
        self,
        *,
        converter: Converter,
        assembler: TaskAssembler,
        writer: Callable[[], SegmentWriter],
        making: GenerationBuilder,
        known: PreviousVersionIndex | None,
        tell: Callable[[int], None],
    ) -> None:
        self._converter = converter
        self._assembler = assembler
        self._writer = writer
        self._making = making
        self._keeping = UnchangedTasks(known, assembler, making.accounts) if known else None
        self._tell = tell

    def convert_serial(self, blocks: Iterable[Block], *, until: int | None = None) -> None:
        """Convert here, whole stretches, until there are no more blocks or so many bytes of JSON are done.

        Where most tasks are kept the others are one stretch: many would be as many shards of next to nothing.
        """
        done = 0
        for piece in [blocks] if self._keeping else _pieces(iter(blocks)):
            with self._writer() as writer:
                for block in piece:
                    convert_block(block, self._converter, writer, self._keeping)
                    self._tell(len(block))
                    done += _size(block)
                self._making.add(writer.finish())
            if until is not None and done >= until:
                return

    def convert_parallel(
        self, blocks: Iterable[Block], pool: Pool, classes: Sequence[str], objects: ObjectUploader
    ) -> None:
        """Convert by a pool whose processes know these classes, a few pieces ahead of what is taken."""
        waiting: deque[PendingUnit] = deque()
        first = self._making.converted
        with scratch_folder() as folder:
            for stretch in _pieces(iter(blocks)):
                stored = SpooledBlocks(folder / str(first))
                piece = WorkUnit(first, stored.fill(stretch), stored)
                first += piece.tasks
                waiting.append((piece, stored, pool.submit(piece)))
                if len(waiting) > pool.workers:
                    self._take(waiting.popleft(), pool, tuple(classes), objects)
            while waiting:
                self._take(waiting.popleft(), pool, tuple(classes), objects)

    def _take(self, given: PendingUnit, pool: Pool, classes: tuple[str, ...], objects: ObjectUploader) -> None:
        piece, stored, submitted = given
        found = pool.result(submitted)
        if found.classes == classes and self._assembler.try_skip_tasks(piece.tasks, found.taken):
            self._making.add(found.stretch)
            objects.count_remote(found.written, found.written_bytes)
            self._tell(piece.tasks)
        else:  # it has a class, a number or a name that hangs on what came before
            self.convert_serial(stored)
        stored.path.unlink()


class UnchangedTasks:
    """Tasks that the published version holds as they are."""

    def __init__(self, known: PreviousVersionIndex, assembler: TaskAssembler, bills: TaskAccountTable) -> None:
        self._known, self._assembler, self._bills = known, assembler, bills
        self.find, self.replace = known.find_unchanged, known.mark_converted

    def keep(self, place: int) -> bool:
        """Keep the task at a place of that version; False where another has its number or names by now."""
        bill = self._known.keep(place, self._assembler)
        if bill is not None:
            self._bills.add([self._bills.number(bill)])
        return bill is not None


def convert_block(
    block: Block, converter: Converter, writer: SegmentWriter, keeping: UnchangedTasks | None = None
) -> None:
    """Convert the tasks of a block but for those that are kept, and write them."""
    # It need not withstand anybody: who made a change with the digest of what was there would hide his own change.
    digests = [xxh3_128_digest(each) if type(each) is bytes else NO_DIGEST for each in block]
    texts = [each if type(each) is bytes else None for each in block]
    if keeping is None:
        converter.prefetch_block(texts)
        for number, (entry, digest) in enumerate(zip(block, digests, strict=True)):
            converter.add(number, entry, digest)
    else:
        places = keeping.find(digests)
        converter.prefetch_block([text if place < 0 else None for text, place in zip(texts, places, strict=True)])
        for number, (entry, digest, place) in enumerate(zip(block, digests, places, strict=True)):
            if place < 0 or not keeping.keep(place):
                keeping.replace(converter.add(number, entry, digest))
    writer.add(*converter.flush())


def convert_unit(order: WorkerConfig, piece: WorkUnit) -> ConvertedUnit:
    """Convert a piece in a process of its own, into the store."""
    store = open_store(order.store, order.settings)
    classes, ledger = ClassMap(order.classes, order.rules.renamed), Ledger()
    with (
        gc_relaxed(),
        store.scratch() as folder,
        ObjectUploader(store) as objects,
        _headers(order) as headers,
    ):
        assembler = TaskAssembler(
            order.rules, classes=classes, sizes=ImageSizes(headers), ledger=ledger, before=piece.first
        )
        converter = Converter(assembler, order.rules, classes, ledger)
        formats = [FORMATS[name](order.job) for name in order.formats]
        with SegmentWriter(formats, folder, objects, first=piece.first) as writer:
            for block in piece.blocks:
                convert_block(block, converter, writer)
            stretch = writer.finish()
        objects.flush()
        return ConvertedUnit(stretch, assembler.used_keys, classes.names, objects.written, objects.written_bytes)


def blocks_of(entries: Iterable[Entry]) -> Iterator[Block]:
    """Tasks a block at a time."""
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
    """Let Python look for circular garbage seldom: tasks come and go without any, and looking costs a tenth."""
    before = gc.get_threshold()
    gc.set_threshold(200_000, 20, 20)
    gc.freeze()  # what was loaded stays: it need not be looked at
    try:
        yield
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)


def _pieces(blocks: Iterator[Block]) -> Iterator[Iterator[Block]]:
    """The blocks of each stretch. One has to be used up before the next is asked for."""

    def stretch(block: Block) -> Iterator[Block]:
        yield block
        size = _size(block)
        while size < SEGMENT_BYTES and (following := next(blocks, None)) is not None:
            yield following
            size += _size(following)

    for block in blocks:
        yield stretch(block)


def _size(block: Block) -> int:
    return sum([len(entry) for entry in block if type(entry) is bytes])


@contextmanager
def _headers(order: WorkerConfig) -> Iterator[ImageSizeReader | None]:
    """What reads image headers in this process, opened when the first is needed."""
    if not order.fetch:
        yield None
        return

    opened: list[Any] = []

    @cache
    def reader() -> ImageSizeReader:
        from labelloop.service.media import Media
        from labelloop.service.studio import Studio

        key = order.settings.label_studio_api_key
        studio = Studio.from_settings(order.settings) if key else None
        media = Media(order.settings, studio)
        opened.extend((studio, media) if studio else (media,))
        return media

    try:
        yield LazyImageSizeReader(reader)
    finally:
        for each in reversed(opened):
            each.close()
