"""An export under way: tasks -> stretches of records in the store -> a version.

Tasks that the published version holds just as they are now are not converted again: see `incremental`.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from exporters.convert.options import ConversionOptions
from exporters.convert.task_assembler import TaskAssembler
from exporters.convert.task_images import ImageSizeReader, ImageSizes
from exporters.dataset.gc import epoch, is_complete
from exporters.dataset.published_files import publish_plain_files
from exporters.dataset.shards import ObjectUploader, read_table
from exporters.dataset.versions import VersionClaim, commit_version, publish_version, published_version, version_number
from exporters.errors import ClassMapChanged, DatasetDamaged, ObjectsCollected
from exporters.formats import FORMATS
from exporters.formats.base import Format, FormatContext
from exporters.model.accounting import Accounts, ExportReport, Ledger, TaskAccount, WriteStats, build_accounts
from exporters.model.class_map import Categories, ClassMap, ClassMapSync, StoredClassMap, config_labels, load_classes
from exporters.model.keypoints import Skeleton
from exporters.model.manifest import PHOTOS, ImageCopy, VersionManifest
from exporters.pipeline.converter import Converter, TaskOutcomeKey
from exporters.pipeline.generation_writer import GenerationBuilder, SegmentWriter
from exporters.pipeline.incremental import PreviousVersionIndex, SourceOrderChanged
from exporters.pipeline.publish_checks import EMPTY, refusal_reason
from exporters.pipeline.scheduler import ConversionScheduler, Pool, WorkerConfig, blocks_of, gc_relaxed
from exporters.sources import TaskSource
from labelloop import VERSION
from labelloop.service.settings import Settings
from labelloop.service.store import Store

if TYPE_CHECKING:
    from exporters.pipeline.image_copier import ImageCopier
    from labelloop.service.media import Media

Progress = Callable[[int, int | None], None]
"""Called with (tasks done, tasks in all or None where the source does not say)."""

POOL_AFTER = 1 << 30
"""Bytes of JSON, times formats, that are converted here before other processes are started."""
_log = logging.getLogger(__name__)


class ExportRun(msgspec.Struct, frozen=True, kw_only=True):
    """One export with its options read and its parts opened."""

    source: TaskSource
    store: Store
    formats: tuple[str, ...]
    rules: ConversionOptions
    skeleton: Skeleton | None
    categories: Categories = Categories()
    splits: tuple[str, ...]
    max_errors: float
    policy: Mapping[str, Any]
    left_out: Mapping[str, str] = {}
    headers: ImageSizeReader | None = None
    photos: "Media | None" = None
    progress: Progress | None = None
    afresh: bool = False
    allow_shrink: bool = False
    settings: Settings
    workers: int = 0
    pool: Callable[[WorkerConfig], Pool] | None = None

    def run_with_retries(self) -> ExportReport:
        """A version, also where another exporter numbered a new label first: then again, with its numbers.

        So it is where `dataset gc` took an object away that we were about to name.
        """
        with gc_relaxed():
            for _ in range(4):
                try:
                    return self.run_attempt()
                except (ClassMapChanged, ObjectsCollected):
                    continue
            return self.run_attempt()

    def run_attempt(self) -> ExportReport:
        """Read every task and write a version; nothing of it is seen before it is whole."""
        with ThreadPoolExecutor(2, thread_name_prefix="begin") as beside:  # a store far away answers all at once
            asked, loading = beside.submit(epoch, self.store), beside.submit(load_classes, self.store)
            parent = published_version(self.store)
            began, stored = asked.result(), loading.result()
        try:
            known = (
                None if self.afresh or parent is None else PreviousVersionIndex.load(self.store, parent, self._digest())
            )
        except DatasetDamaged as damaged:
            _log.warning("everything_is_written_again", extra={"reason": damaged.message})
            return msgspec.structs.replace(self, afresh=True).run_attempt()
        with VersionClaim(self.store, version_number(parent.version) if parent else 0) as turn:
            if known is not None:
                try:
                    return self._version(parent, known, turn, began, stored)
                except SourceOrderChanged:
                    stored = load_classes(self.store)  # some of ours may be there by now
            return self._version(parent, None, turn, began, stored)

    def _version(
        self,
        parent: VersionManifest | None,
        known: PreviousVersionIndex | None,
        turn: VersionClaim,
        began: str,
        stored: StoredClassMap,
    ) -> ExportReport:
        (numbered, etag), renamed = stored, self.rules.renamed
        classes = ClassMap(numbered.names, renamed)
        numbering = ClassMapSync(self.store, classes, etag)
        lost = parent.classes if parent and not len(classes) else ()  # the map is gone, its numbers must not be
        for label in (*lost, *(config_labels(self.rules.config) if self.rules.config else ())):
            classes.id(label)
        job = FormatContext(self.splits, (), self.skeleton, self.categories)
        formats = tuple(FORMATS[name](job) for name in self.formats)  # it says first what it cannot
        with (
            numbering,
            self.store.scratch() as scratch,
            ObjectUploader(self.store, parent.shards() if parent and not self.afresh else ()) as objects,
        ):
            ledger = Ledger()
            assembler = TaskAssembler(self.rules, classes=classes, sizes=ImageSizes(self.headers), ledger=ledger)
            photos = self._copier(parent if known else None, objects, scratch) if self.photos else None
            making = GenerationBuilder(scratch, objects)
            with closing(photos) if photos else nullcontext():
                converter = Converter(assembler, self.rules, classes, ledger, photos)
                inside = _AttemptState(job, formats, classes, numbering, objects, scratch)
                self._convert(converter, assembler, making, known, inside)
            made = making.finish(known.removed() if known else ())
            total = making.accounts.total()
            accounts = build_accounts(total, self.formats)
            splits = {split: total["images", split] for split in self.splits}
            refused = refusal_reason(
                accounts,
                splits,
                classes.names,
                before=(parent.accounts, parent.splits) if parent else None,
                max_errors=self.max_errors,
                allow_shrink=self.allow_shrink,
            )
            if refused in EMPTY:
                return self._nothing(refused, accounts, splits, making.converted)
            numbering.finish()
            manifest = VersionManifest(
                parent=parent.version if parent else None,
                created_at=datetime.now(UTC).isoformat(timespec="seconds"),
                published=not refused,
                refused=refused,
                code=_code(),
                source=self.source.origin,
                policy={**self.policy, "max_errors": self.max_errors},
                rules=self._digest(),
                formats=self.formats,
                classes={name: number for number, name in enumerate(classes.names, start=1)},
                keypoints=self.skeleton.names if self.skeleton else (),
                skeleton=self.skeleton.edges if self.skeleton else (),
                categories=self.categories,
                splits=splits,
                accounts=accounts,
                generations=(*(known.generations if known else ()), *([made] if made else ())),
            )
            objects.flush()
            manifest = publish_plain_files(self.store, manifest, scratch)
            turn.begin_check()
            if epoch(self.store) != began and not is_complete(self.store, manifest):
                raise ObjectsCollected(self.store.url)
            manifest, checksum, exclusive_until = commit_version(self.store, manifest, turn)
        if manifest.published:
            publish_version(
                self.store, manifest.version, checksum, exclusive_until=exclusive_until, expected=turn.head if exclusive_until else None
            )
        return self._report(manifest, checksum, WriteStats(objects.written, objects.written_bytes, making.converted))

    def _convert(
        self,
        converter: Converter,
        assembler: TaskAssembler,
        making: GenerationBuilder,
        known: PreviousVersionIndex | None,
        inside: "_AttemptState",
    ) -> None:
        job, classes, objects = inside.job, inside.classes, inside.objects
        done = 0

        def tell(tasks: int) -> None:
            nonlocal done
            if converter.images or objects.written:  # a version of nothing leaves nothing in the store
                inside.numbering.sync()
            for _ in range(tasks if self.progress else 0):
                done += 1
                self.progress and self.progress(done, self.source.total)

        patterns: dict[TaskOutcomeKey, TaskAccount] = {}
        conversion = ConversionScheduler(
            converter=converter,
            assembler=assembler,
            writer=lambda: SegmentWriter(
                inside.formats, inside.scratch, objects, first=making.converted, known=patterns
            ),
            making=making,
            known=known,
            tell=tell,
        )
        blocks = blocks_of(self.source.raw())
        if known or self.photos or self.workers == 1:
            conversion.convert_serial(blocks)
            return
        # what a small export needs is less than what it takes to start other processes; it also meets most labels
        conversion.convert_serial(blocks, until=0 if self.pool or self.workers else POOL_AFTER // len(self.formats))
        if (following := next(blocks, None)) is None:
            return
        order = WorkerConfig(
            store=self.store.url,
            settings=self.settings,
            rules=self.rules,
            formats=self.formats,
            job=job,
            fetch=self.headers is not None,
            classes=classes.names,
        )
        with closing(self._pool(order)) as pool:
            conversion.convert_parallel(chain([following], blocks), pool, classes.names, objects)

    def _copier(self, parent: VersionManifest | None, objects: ObjectUploader, scratch: Path) -> "ImageCopier":
        from exporters.pipeline.image_copier import ImageCopier

        before = read_table(self.store, parent, PHOTOS) if parent else ()
        copies = ((each.split, msgspec.json.decode(each.body, type=ImageCopy)) for each in before)
        assert self.photos is not None
        return ImageCopier(self.photos, self.store, objects, scratch, copies)

    def _pool(self, order: WorkerConfig) -> Pool:
        if self.pool:
            return self.pool(order)
        from exporters.pipeline.process_pool import ProcessPool, default_workers

        return ProcessPool(order, self.workers or default_workers())

    def _digest(self) -> str:
        """Of everything that decides what becomes of a task, beside its text and the numbers of the classes."""
        config = self.rules.config
        told = {
            "code": _code(),
            "policy": self.policy,
            "formats": self.formats,
            "config": config,
            "skeleton": self.skeleton,
            "splits": self.splits,
            "headers": self.headers is not None,
            "stems": "xxh3",  # what names are known by in the index
            "records": 2,  # the way in which formats write them
            "unsized": self.rules.sizeless,
            **({"one split": True} if self.photos or self.rules.split.reads_data else {}),
        }
        return hashlib.sha256(msgspec.json.encode(told, order="deterministic")).hexdigest()

    def _nothing(self, refused: str, accounts: Accounts, images: Mapping[str, int], converted: int) -> ExportReport:
        """The report where no version is made."""
        return ExportReport(
            url=self.store.url,
            version="",
            published=False,
            refused=refused,
            images=images,
            classes={},
            accounts=accounts,
            objects=0,
            bytes=0,
            written=WriteStats(0, 0, converted),
            manifest_sha256="",
            left_out=self.left_out,
        )

    def _report(self, manifest: VersionManifest, checksum: str, written: WriteStats) -> ExportReport:
        sizes = [shard.size for shard in manifest.shards().values()] + [file.size for file in manifest.files]
        return ExportReport(
            url=self.store.url,
            version=manifest.version,
            published=manifest.published,
            refused=manifest.refused,
            images=manifest.splits,
            classes=manifest.classes,
            accounts=manifest.accounts,
            objects=len(sizes),
            bytes=sum(sizes),
            written=written,
            manifest_sha256=checksum,
            left_out=self.left_out,
        )


class _AttemptState(msgspec.Struct, frozen=True):
    """What a version under way is made with."""

    job: FormatContext
    formats: tuple[Format, ...]
    classes: ClassMap
    numbering: ClassMapSync
    objects: ObjectUploader
    scratch: Path


def _code() -> str:
    return f"labelloop {VERSION}"
