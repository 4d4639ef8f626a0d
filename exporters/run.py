"""An export under way: tasks in blocks -> items -> records of each format -> shards in the store -> a version.

Tasks that the published version holds just as they are now are not converted again: see `exporters.known`.
"""

import gc
import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from exporters.accounting import Ledger, Report, Written, accounts_of
from exporters.assemble import Assembler, Rules
from exporters.classes import config_labels, load_classes, save_classes
from exporters.convert import Converter
from exporters.errors import ClassMapMoved, ObjectsCollected
from exporters.formats import FORMATS
from exporters.formats.format import Job
from exporters.garbage import epoch, is_whole
from exporters.generation import NewGeneration
from exporters.images import Headers, Sizes
from exporters.index import DIGEST_BYTES, NO_DIGEST
from exporters.keypoints import Skeleton
from exporters.known import Known, OutOfOrder
from exporters.manifest import Manifest
from exporters.sources import Source
from exporters.tables import Objects
from exporters.versions import commit, publish, read_head, read_version
from exporters.whole import put_whole
from labelloop.labeling.errors import MalformedTask
from labelloop.service.store import Store

if TYPE_CHECKING:
    from exporters.photos import Photos
    from labelloop.service.media import Media

Progress = Callable[[int, int | None], None]
"""Called with (tasks done, tasks in all or None where the source does not say)."""

BLOCK_TASKS = 256
BLOCK_BYTES = 2 << 20


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One export with its options read and its parts opened."""

    source: Source
    store: Store
    formats: tuple[str, ...]
    rules: Rules
    skeleton: Skeleton | None
    splits: tuple[str, ...]
    max_errors: float
    policy: Mapping[str, Any]
    headers: Headers | None = None
    photos: "Media | None" = None
    progress: Progress | None = None
    afresh: bool = False

    def settled(self) -> Report:
        """A version, also where another exporter numbered a new label first: then again, with its numbers.

        So it is where `dataset gc` took an object away that we were about to name.
        """
        with _rare_collections():
            for _ in range(4):
                try:
                    return self.once()
                except (ClassMapMoved, ObjectsCollected):
                    continue
            return self.once()

    def once(self) -> Report:
        """Read every task and write a version; nothing of it is seen before it is whole."""
        head, _ = read_head(self.store)
        parent = read_version(self.store) if head else None
        known = None if self.afresh or parent is None else Known.of(self.store, parent, self._digest())
        if known is not None:
            try:
                return self._version(parent, known)
            except OutOfOrder:
                pass
        return self._version(parent, None)

    def _version(self, parent: Manifest | None, known: Known | None) -> Report:
        began = epoch(self.store)
        classes, _ = load_classes(self.store)
        for label in config_labels(self.rules.config) if self.rules.config else ():
            classes.id(label)
        job = Job(self.splits, (), self.skeleton)
        formats = [FORMATS[name](job) for name in self.formats]
        if classes.names:
            save_classes(self.store, classes)  # at the start, so that an exporter beside us sees our numbers
        with tempfile.TemporaryDirectory(prefix="labelloop-export-") as folder:
            scratch = Path(folder)
            objects = Objects(self.store, parent.shards() if parent else ())
            ledger = Ledger()
            assembler = Assembler(self.rules, classes=classes, sizes=Sizes(self.headers), ledger=ledger)
            photos = _copier(self.photos, self.store, objects, scratch) if self.photos else None
            with NewGeneration(formats, scratch, objects) as making, closing(photos) if photos else nullcontext():
                self._convert(Converter(assembler, self.rules, classes, ledger, photos), assembler, making, known)
                made = making.finish(known.removed() if known else ())
            save_classes(self.store, classes)
            total = making.bills.total()
            accounts = accounts_of(total, self.formats)
            manifest = Manifest(
                parent=parent.version if parent else None,
                created_at=datetime.now(UTC).isoformat(timespec="seconds"),
                published=accounts.failed_share <= self.max_errors,
                code=_code(),
                source=self.source.origin,
                policy={**self.policy, "max_errors": self.max_errors},
                rules=self._digest(),
                formats=self.formats,
                classes={name: number for number, name in enumerate(classes.names, start=1)},
                keypoints=self.skeleton.names if self.skeleton else (),
                splits={split: total["images", split] for split in self.splits},
                accounts=accounts,
                generations=(*(known.generations if known else ()), *([made] if made else ())),
            )
            objects.flush()
            manifest = put_whole(self.store, manifest, scratch)
            if epoch(self.store) != began and not is_whole(self.store, manifest):
                raise ObjectsCollected(self.store.url)
            manifest, checksum = commit(self.store, manifest)
        if manifest.published:
            publish(self.store, manifest.version, checksum)
        return self._report(manifest, checksum, Written(objects.written, objects.written_bytes, making.converted))

    def _convert(self, converter: Converter, assembler: Assembler, making: NewGeneration, known: Known | None) -> None:
        done = 0
        for entries in _blocks(self.source.raw()):
            digests = [
                hashlib.sha256(each).digest()[:DIGEST_BYTES] if type(each) is bytes else NO_DIGEST for each in entries
            ]
            places = known.find(digests) if known else [-1] * len(entries)
            converter.look(
                [
                    entry if place < 0 and type(entry) is bytes else None
                    for entry, place in zip(entries, places, strict=True)
                ]
            )
            for number, (entry, digest, place) in enumerate(zip(entries, digests, places, strict=True)):
                if known and place >= 0 and (bill := known.keep(place, assembler)) is not None:
                    making.bills.add(making.bills.number(bill))
                    continue
                key = converter.add(number, entry, digest)
                if known:
                    known.replace(key)
            making.add(*converter.flush())
            if self.progress:
                for _ in entries:
                    done += 1
                    self.progress(done, self.source.total)

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
        }
        return hashlib.sha256(msgspec.json.encode(told, order="deterministic")).hexdigest()

    def _report(self, manifest: Manifest, checksum: str, written: Written) -> Report:
        sizes = [shard.size for shard in manifest.shards().values()] + [file.size for file in manifest.files]
        return Report(
            url=self.store.url,
            version=manifest.version,
            published=manifest.published,
            images=manifest.splits,
            classes=manifest.classes,
            accounts=manifest.accounts,
            objects=len(sizes),
            bytes=sum(sizes),
            written=written,
            manifest_sha256=checksum,
        )


def _copier(media: "Media", store: Store, objects: Objects, scratch: Path) -> "Photos":
    from exporters.photos import Photos

    return Photos(media, store, objects, scratch)


def _code() -> str:
    return f"labelloop {installed_version('labelloop')}"


def _blocks(entries: Iterable[bytes | MalformedTask]) -> Iterator[list[bytes | MalformedTask]]:
    block: list[bytes | MalformedTask] = []
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
def _rare_collections() -> Iterator[None]:
    """Let Python look for circular garbage seldom: tasks come and go without any, and looking costs a tenth."""
    before = gc.get_threshold()
    gc.set_threshold(200_000, 20, 20)
    try:
        yield
    finally:
        gc.set_threshold(*before)
