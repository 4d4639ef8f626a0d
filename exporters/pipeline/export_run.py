"""Run an export whose options are parsed: tasks -> segments of records in the store -> a version.

Tasks that are unchanged since the published version are not converted again: see `incremental`.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, nullcontext
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from exporters.convert.options import ConversionOptions
from exporters.convert.task_images import ImageSizeReader, ImageSizes
from exporters.convert.task_registry import TaskRegistry
from exporters.dataset.folder import local_folder
from exporters.dataset.gc import epoch, is_complete
from exporters.dataset.latest import FileProgress, LatestUpdate, update_latest
from exporters.dataset.plain_files import PlainVersion
from exporters.dataset.shards import LocalFirst, ObjectUploader, read_table
from exporters.dataset.versions import VersionClaim, commit_version, publish_version, published_version, version_number
from exporters.errors import ClassMapChanged, DatasetDamaged, LatestTakenOver, ObjectsCollected
from exporters.formats.base import Format, FormatContext
from exporters.model.accounting import Accounts, ExportReport, TaskAccount, WriteStats, build_accounts
from exporters.model.class_map import Categories, ClassMap, ClassMapSync, StoredClassMap, config_labels, load_classes
from exporters.model.keypoints import Skeleton
from exporters.model.manifest import PHOTOS, DatasetManifest, ImageCopy
from exporters.model.splits import LOOK
from exporters.pipeline.converter import TaskConverter, TaskOutcomeKey
from exporters.pipeline.generation_writer import GenerationBuilder, SegmentWriter
from exporters.pipeline.incremental import PreviousVersionIndex, SourceOrderChanged
from exporters.pipeline.look_outcome import LookSplits
from exporters.pipeline.plain_version import publish_plain_version
from exporters.pipeline.publish_checks import EMPTY, refusal_reason
from exporters.pipeline.report_collector import ReportCollector
from exporters.pipeline.scheduler import ConversionScheduler, Pool, WorkerConfig, blocks_of, gc_relaxed
from exporters.pipeline.task_converter import choose_converter
from exporters.sources import TaskSource
from exporters.tasks.formats.base import TaskFormat
from exporters.tasks.table import format_class, task_formats
from labelloop import VERSION
from labelloop.service.settings import Settings
from labelloop.service.store import Store, StoreError
from labelloop.service.system import annotate_enospc

if TYPE_CHECKING:
    from exporters.pipeline.image_copier import ImageCopier
    from labelloop.service.media import Media

# Called with (tasks done, total or None if the source does not know it).
Progress = Callable[[int, int | None], None]

# Bytes of JSON, times formats, converted in this process before others are started.
POOL_AFTER = 1 << 30
# Times that a consensus takes longer.
_CONSENSUS_COST = 32
_log = logging.getLogger(__name__)


class ExportRun(msgspec.Struct, frozen=True, kw_only=True):
    """An export with parsed options and opened source and store."""

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
    archives: bool = True
    latest: bool = True
    file_progress: FileProgress | None = None
    settings: Settings
    workers: int = 0
    pool: Callable[[WorkerConfig], Pool] | None = None
    look_progress: Progress | None = None
    look: LookSplits = LookSplits()

    def run_with_retries(self) -> ExportReport:
        """Run the export; retry up to four times after concurrent class map changes or removals by `dataset gc`."""
        with gc_relaxed():
            for _ in range(4):
                try:
                    return self.run_attempt()
                except (ClassMapChanged, ObjectsCollected):
                    continue
            return self.run_attempt()

    def run_attempt(self) -> ExportReport:
        """Convert all tasks and write a version; nothing of it is visible before it is complete."""
        # in parallel, as each request to a remote store takes a round trip
        with ThreadPoolExecutor(2, thread_name_prefix="begin") as executor:
            epoch_read, loading = executor.submit(epoch, self.store), executor.submit(load_classes, self.store)
            parent = published_version(self.store)
            start_epoch, stored = epoch_read.result(), loading.result()
        run = self._grouped_by_look(parent) if self.rules.split.group_by == LOOK else self
        return run.run_on(parent, start_epoch, stored)

    def _grouped_by_look(self, parent: DatasetManifest | None) -> "ExportRun":
        """Return this export with the splits of the groups of near-duplicates."""
        from exporters.pipeline.look_splits import split_by_look

        policy = self.rules.split
        look = split_by_look(
            self.source, policy, store=self.store, parent=parent, settings=self.settings, progress=self.look_progress
        )
        replace = msgspec.structs.replace
        return replace(self, look=look, rules=replace(self.rules, split=replace(policy, twins=look.twins)))

    def run_on(self, parent: DatasetManifest | None, start_epoch: str, stored: StoredClassMap) -> ExportReport:
        """Write a version that follows ``parent``, with the class map and the epoch that were read with it."""
        try:
            previous = (
                None
                if self.afresh or parent is None
                else PreviousVersionIndex.load(self.store, parent, self._digest(), self.look.moved_tasks)
            )
        except DatasetDamaged as damaged:
            _log.warning("everything_is_written_again", extra={"reason": damaged.message})
            return msgspec.structs.replace(self, afresh=True).run_attempt()
        with VersionClaim(self.store, version_number(parent.version) if parent else 0) as claim:
            if previous is not None:
                try:
                    return self._write_version(parent, previous, claim, start_epoch, stored)
                except SourceOrderChanged:
                    stored = load_classes(self.store)  # some of our new classes may be saved by now
            return self._write_version(parent, None, claim, start_epoch, stored)

    def _write_version(
        self,
        parent: DatasetManifest | None,
        previous: PreviousVersionIndex | None,
        claim: VersionClaim,
        start_epoch: str,
        stored: StoredClassMap,
    ) -> ExportReport:
        (numbered, etag), renamed = stored, self.rules.renamed
        classes = ClassMap(numbered.names, renamed)
        numbering = ClassMapSync(self.store, classes, etag)
        lost_classes = parent.classes if parent and not len(classes) else ()  # the map was lost; keep its numbers
        for label in (*lost_classes, *(config_labels(self.rules.config) if self.rules.config else ())):
            classes.id(label)
        context = FormatContext(self.splits, (), self.skeleton, self.categories, self.rules.config)
        formats = tuple(format_class(name)(context) for name in self.formats)  # fails early for an impossible format
        with (
            numbering,
            self.store.scratch() as scratch,
            ObjectUploader(
                self.store,
                parent.shards() if parent and not self.afresh else (),
                keep=self._shard_folder(scratch),
            ) as objects,
        ):
            registry = TaskRegistry(reads_data=self.rules.split.reads_data)
            copier = self._copier(parent if previous else None, objects, scratch) if self.photos else None
            builder = GenerationBuilder(scratch, objects)
            with closing(copier) if copier else nullcontext():
                sizes = ImageSizes(self.headers)
                converter = choose_converter(self.rules, classes, registry=registry, sizes=sizes, copier=copier)
                report = (
                    None if previous or not self.archives else ReportCollector(self.formats, classes, self.categories)
                )
                state = _AttemptState(context, formats, classes, numbering, objects, scratch, report)
                self._convert(converter, registry, builder, previous, state)
            generation = builder.finish(previous.removed() if previous else ())
            total = builder.accounts.total()
            accounts = build_accounts(total, self.formats, task_formats(self.formats))
            splits = {split: total["images", split] for split in self.splits}
            lines = {split: total["lines", split] for split in self.splits} if self.rules.tasks else {}
            refused = refusal_reason(
                accounts,
                _sum(splits, lines),
                classes.names,
                before=(parent.accounts, _sum(parent.splits, parent.lines)) if parent else None,
                max_errors=self.max_errors,
                allow_shrink=self.allow_shrink,
            )
            if refused in EMPTY:
                return self._empty_report(refused, accounts, splits, builder.converted, sizes.warnings)
            numbering.finish()
            manifest = DatasetManifest(
                parent=parent.version if parent else None,
                created_at=datetime.now(UTC).isoformat(timespec="seconds"),
                published=not refused,
                refused=refused,
                code=_code_version(),
                source=self.source.origin,
                policy={**self.policy, "max_errors": self.max_errors},
                rules=self._digest(),
                formats=self.formats,
                classes={name: number for number, name in enumerate(classes.names, start=1)},
                keypoints=self.skeleton.names if self.skeleton else (),
                skeleton=self.skeleton.edges if self.skeleton else (),
                categories=self.categories,
                splits=splits,
                lines=lines,
                accounts=accounts,
                generations=(*(previous.generations if previous else ()), *([generation] if generation else ())),
            )
            objects.flush()
            notes = [*self.look.notes, *self._without_effect()]
            with ExitStack() as stack:
                plain = self._lay_out(manifest, scratch, notes, stack)
                manifest = msgspec.structs.replace(manifest, version=claim.version)
                if plain is not None:
                    plain.manifest = manifest
                if self.archives and plain is not None:
                    manifest = publish_plain_version(
                        self.store,
                        plain,
                        scratch,
                        root=local_folder(self.store),
                        statistics=report.statistics if report else None,
                        parent=None if self.afresh else parent,
                    )
                claim.begin_check()
                if epoch(self.store) != start_epoch and not is_complete(self.store, manifest):
                    raise ObjectsCollected(url=self.store.url)
                checksum = commit_version(self.store, manifest)
                if manifest.published:
                    exclusive_until = claim.exclusive_until()
                    publish_version(
                        self.store,
                        manifest.version,
                        checksum,
                        exclusive_until=exclusive_until,
                        expected=claim.head if exclusive_until else None,
                    )
                claim.release()
                update = self._update_latest(plain, scratch, notes) if manifest.published and self.latest else None
        written = WriteStats(objects.written, objects.written_bytes, builder.converted)
        return self._report(manifest, checksum, written, update, notes)

    def _shard_folder(self, scratch: Path) -> Path | None:
        """Return a folder for the shards of a bucket, as the plain files are made of them; None if it is not needed."""
        if local_folder(self.store) is not None or not (self.archives or self.latest):
            return None
        folder = scratch / "shards"
        folder.mkdir(exist_ok=True)
        return folder

    def _lay_out(
        self, manifest: DatasetManifest, scratch: Path, notes: list[str], stack: ExitStack
    ) -> PlainVersion | None:
        """Lay out the plain files of the version on the disk; None if they are not wanted."""
        if not self.archives and not (self.latest and manifest.published):
            return None
        folder, shards = scratch / "plain", self._shard_folder(scratch)
        folder.mkdir()
        store: Any = LocalFirst(self.store, shards) if shards else self.store
        with annotate_enospc(scratch):
            plain = stack.enter_context(PlainVersion(store, manifest, folder))
            if note := plain.pack_images(archives=self.archives):
                notes.append(note)
        return plain

    def _update_latest(self, plain: PlainVersion | None, scratch: Path, notes: list[str]) -> LatestUpdate | None:
        """Update ``latest/``. The version is published by now: a failure does not change that."""
        try:
            return update_latest(self.store, scratch=scratch, plain=plain, progress=self.file_progress)
        except (StoreError, LatestTakenOver, DatasetDamaged, OSError) as error:
            notes.append(f"latest/ is not up to date: {error} Run `labelloop dataset latest {self.store.url}`")
            return LatestUpdate("")

    def _convert(
        self,
        converter: TaskConverter,
        registry: TaskRegistry,
        builder: GenerationBuilder,
        previous: PreviousVersionIndex | None,
        state: "_AttemptState",
    ) -> None:
        context, classes, objects = state.context, state.classes, state.objects
        done = all_images = 0

        def report_progress(tasks: int, images: int) -> None:
            nonlocal done, all_images
            all_images += images
            if all_images or objects.written:  # an empty version writes nothing to the store
                state.numbering.sync()
            for _ in range(tasks if self.progress else 0):
                done += 1
                self.progress and self.progress(done, self.source.total)

        patterns: dict[TaskOutcomeKey, TaskAccount] = {}
        conversion = ConversionScheduler(
            converter=converter,
            registry=registry,
            writer=lambda: SegmentWriter(
                state.formats,
                state.scratch,
                objects,
                first=builder.converted,
                account_cache=patterns,
                on_records=state.report,
            ),
            builder=builder,
            previous=previous,
            report_progress=report_progress,
        )
        blocks = blocks_of(self.source.raw())
        if previous or self.photos or self.workers == 1:
            conversion.convert_serial(blocks)
            return
        # a small export finishes before other processes would start; the first tasks also contain most labels
        cost = len(self.formats) * (_CONSENSUS_COST if self.rules.crowd else 1)
        conversion.convert_serial(blocks, until=0 if self.pool or self.workers else POOL_AFTER // cost)
        if (following := next(blocks, None)) is None:
            return
        if state.report:
            state.report.stop()
        config = WorkerConfig(
            store=self.store.url,
            settings=self.settings,
            rules=self.rules,
            formats=self.formats,
            context=context,
            fetch=self.headers is not None,
            classes=classes.names,
        )
        with closing(self._pool(config)) as pool:
            conversion.convert_parallel(chain([following], blocks), pool, classes.names, objects)

    def _copier(self, parent: DatasetManifest | None, objects: ObjectUploader, scratch: Path) -> "ImageCopier":
        from exporters.pipeline.image_copier import ImageCopier

        records = read_table(self.store, parent, PHOTOS) if parent else ()
        decoded = ((record.split, msgspec.json.decode(record.body, type=ImageCopy)) for record in records)
        copies = ((split, copy) for split, copy in decoded if copy.file_name not in self.look.moved_images)
        assert self.photos is not None
        return ImageCopier(self.photos, self.store, objects, scratch, copies)

    def _pool(self, config: WorkerConfig) -> Pool:
        if self.pool:
            return self.pool(config)
        from exporters.pipeline.pools import ProcessPool, default_workers

        return ProcessPool(config, self.workers or default_workers())

    def _without_effect(self) -> Iterator[str]:
        """Yield a note on each option that the formats of tasks do not follow."""
        if not self.rules.tasks:
            return
        if self.rules.renamed:
            names = ", ".join(task_formats(self.formats))
            yield f"--rename is of the formats of images: {names} have the labels of Label Studio"
        if self.photos and not self.rules.images:
            yield "--copy-images copied nothing: formats of tasks keep the addresses of images"

    def _digest(self) -> str:
        """Return a digest of everything that determines the result of a task besides its text and the class numbers."""
        config = self.rules.config
        inputs = {
            "code": _code_version(),
            "policy": self.policy,
            "formats": self.formats,
            "config": config,
            "skeleton": self.skeleton,
            "splits": self.splits,
            "headers": self.headers is not None,
            "stems": "xxh3",  # the hash of names in the index
            "records": 3,  # the version of the record encoding
            "unsized": self.rules.sizeless,
            **({"flat form": 2} if self.rules.tasks else {}),
            **({"one split": True} if self.photos or self.rules.split.reads_data else {}),
        }
        return hashlib.sha256(msgspec.json.encode(inputs, order="deterministic")).hexdigest()

    def _empty_report(
        self, refused: str, accounts: Accounts, images: Mapping[str, int], converted: int, warnings: tuple[str, ...]
    ) -> ExportReport:
        """Return the report of an export that makes no version."""
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
            warnings=warnings,
        )

    def _report(
        self,
        manifest: DatasetManifest,
        checksum: str,
        written: WriteStats,
        update: LatestUpdate | None,
        notes: Sequence[str],
    ) -> ExportReport:
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
            latest=update.version if update else None,
            latest_files=msgspec.structs.asdict(update.counts) if update and update.counts else {},
            archives=[file.path for file in manifest.files],
            lines=manifest.lines,
            warnings=tuple(notes),
        )


class _AttemptState(msgspec.Struct, frozen=True):
    """The objects that one attempt works with."""

    context: FormatContext
    formats: tuple[Format | TaskFormat, ...]
    classes: ClassMap
    numbering: ClassMapSync
    objects: ObjectUploader
    scratch: Path
    report: ReportCollector | None


def _sum(images: Mapping[str, int], lines: Mapping[str, int]) -> dict[str, int]:
    """Return the number of images and lines of tasks by split."""
    return {split: images.get(split, 0) + lines.get(split, 0) for split in {**images, **lines}}


def _code_version() -> str:
    return f"labelloop {VERSION}"
