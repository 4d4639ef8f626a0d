"""An export from beginning to end: tasks one at a time -> data set items -> writers -> store, the manifest last."""

import gc
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from exporters.accounting import FormatCount, Ledger, Loss, Report
from exporters.assemble import Assembler, Rules
from exporters.choose import DISPUTED, consensus, policy
from exporters.classes import ClassMap, config_labels, load_classes, save_classes
from exporters.dataset import Item
from exporters.errors import BadOption, ClassMapMoved
from exporters.formats import DEFAULT_FORMATS, FORMATS, format_names
from exporters.formats.writer import Job, Writer
from exporters.images import Sizes
from exporters.keypoints import Skeleton
from exporters.manifest import Manifest
from exporters.names import safe_name
from exporters.sources import Source, open_source
from exporters.splits import APART, DEFAULT_SPLIT, Split
from exporters.together import reliability, survey
from exporters.versions import NewVersion, publish
from labelloop.service.media import Media, MediaError
from labelloop.service.settings import Settings
from labelloop.service.store import Store, open_store
from labelloop.service.studio import Studio

Progress = Callable[[int, int | None], None]
"""Called with (tasks done, tasks in all or None where the source does not say)."""

MAX_ERRORS = 0.01
NOT_COPIED = "photos that could not be copied (see dropped.jsonl)"
_encode = msgspec.json.Encoder().encode


def export(
    source: str | int | Path,
    *,
    settings: Settings,
    formats: Sequence[str] = DEFAULT_FORMATS,
    to: str | None = None,
    label_config: str | None = None,
    annotation: str = "latest",
    split: str = DEFAULT_SPLIT,
    disputed: str = "out",
    max_errors: float = MAX_ERRORS,
    fetch: bool = True,
    copy_images: bool = False,
    studio: Studio | None = None,
    progress: Progress | None = None,
) -> Report:
    """Make one new version of a data set in the store from annotated tasks.

    Args:
        source: a project's number, a Label Studio JSON export (or JSON lines), or ``s3://BUCKET/KEY.json``.
        settings: how to reach Label Studio, S3 and the default store.
        formats: names in ``FORMATS``.
        to: the data set's address; by default a folder of the store named after the source.
        label_config: the label config's XML, for a source that has none.
        annotation: whose annotation counts: a name in ``POLICIES`` or ``user:ID``.
        split: shares of train, val and test.
        disputed: what becomes of the tasks that quality control holds for disputed: ``in``, ``out``, or ``apart``, in
            a split of their own.
        max_errors: the largest share of failed regions at which the version is still published.
        fetch: whether the header of an image is read where nothing else tells its size.
        copy_images: whether the photos are copied into the version.
        studio: a client to use instead of the settings' own.
        progress: told after each task.

    Returns:
        The bill; ``published`` says whether the head points at the new version.

    Raises:
        ExportError: an option is wrong, there is no source, or other exporters kept the store busy.
        StoreError: the store cannot be read or written. Nothing of the unfinished version can be seen.
    """
    names = format_names(",".join(formats))
    if disputed not in DISPUTED:
        raise BadOption("--disputed", disputed, ", ".join(DISPUTED))
    if not 0 <= max_errors <= 1:
        raise BadOption("--max-errors", str(max_errors), "a share from 0 to 1")
    shares, chosen = Split.parse(split), policy(annotation)
    with ExitStack() as opened:
        if studio is None and settings.label_studio_api_key.get_secret_value():
            studio = opened.enter_context(closing(Studio.from_settings(settings)))
        tasks = open_source(source, settings=settings, label_config=label_config, studio=studio)
        opened.callback(tasks.close)
        skeleton = Skeleton.of(tasks.config)
        crowd = survey(tasks.tasks(), tasks.config) if chosen is consensus else None
        media = Media(settings, studio) if fetch or copy_images else None
        if media is not None:
            opened.callback(media.close)
        run = Run(
            source=tasks,
            store=open_store(to or _default_place(settings, tasks), settings),
            formats=names,
            rules=Rules(
                policy=chosen,
                split=shares,
                disputed=disputed,
                config=tasks.config,
                config_labels=frozenset(
                    (*config_labels(tasks.config), *(skeleton.names if skeleton else ())) if tasks.config else ()
                ),
                crowd=crowd,
            ),
            skeleton=skeleton,
            max_errors=max_errors,
            policy={
                "annotation": annotation,
                "disputed": disputed,
                "split": shares.shares,
                "several_labels": "an object for each label",
                "images": "copied" if copy_images else "in place",
                **({"annotators": reliability(crowd)} if crowd else {}),
            },
            headers=media if fetch else None,
            photos=media if copy_images else None,
            progress=progress,
        )
        with _rare_collections():
            return run.settled()


def _default_place(settings: Settings, source: Source) -> str:
    stem, _ = safe_name(f"{source.title}.jpg")
    return f"{settings.store_url.rstrip('/')}/{quote(stem) if settings.store_url.startswith('file:') else stem}"


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Let Python look for circular garbage seldom: tasks come and go without any, and looking costs a tenth."""
    before = gc.get_threshold()
    gc.set_threshold(200_000, 20, 20)
    try:
        yield
    finally:
        gc.set_threshold(*before)


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One export with its options read and its parts opened."""

    source: Source
    store: Store
    formats: tuple[str, ...]
    rules: Rules
    skeleton: Skeleton | None
    max_errors: float
    policy: Mapping[str, Any]
    headers: Media | None
    photos: Media | None
    progress: Progress | None

    def settled(self) -> Report:
        """A version, also where another exporter numbered a new label first: then again, with its numbers."""
        for _ in range(4):
            try:
                return self.once()
            except ClassMapMoved:
                continue
        return self.once()

    def once(self) -> Report:
        """Read every task and write a version; nothing of it is seen before it is whole."""
        classes, _ = load_classes(self.store)
        for label in config_labels(self.rules.config) if self.rules.config else ():
            classes.id(label)
        with tempfile.TemporaryDirectory(prefix="labelloop-export-") as folder:
            version = NewVersion(self.store, Path(folder))
            try:
                return self._write(version, classes, Path(folder))
            except BaseException:
                version.abandon()
                raise

    def _write(self, version: NewVersion, classes: ClassMap, scratch: Path) -> Report:
        ledger = Ledger()
        splits = (*self.rules.split.shares, *([APART] if self.rules.disputed == "apart" else []))
        writers = [
            _Counting(name, FORMATS[name](Job(version.folder(name), scratch, splits, classes, self.skeleton)))
            for name in self.formats
        ]
        if classes.names:
            save_classes(self.store, classes)  # at the start, so that an exporter beside us sees our numbers
        images: Counter[str] = Counter(dict.fromkeys(splits, 0))
        with (scratch / "images.jsonl").open("wb") as catalogue, (scratch / "dropped.jsonl").open("wb") as losses:

            def lose(loss: Loss) -> None:
                losses.write(_encode(loss) + b"\n")

            assembler = Assembler(self.rules, classes=classes, sizes=Sizes(self.headers), ledger=ledger, lose=lose)
            for done, task in enumerate(self.source.tasks(), start=1):
                for item in assembler.items(task):
                    images[item.image.split] += 1
                    catalogue.write(_encode(item.image) + b"\n")
                    for writer in writers:
                        writer.write(item, lose)
                    if self.photos:
                        _copy(self.photos, item, version, ledger, lose)
                if self.progress:
                    self.progress(done, self.source.total)
        for writer in writers:
            writer.close()
        for name in ("images.jsonl", "dropped.jsonl"):
            version.write_file(name, scratch / name)
        save_classes(self.store, classes)
        return self._commit(version, classes, images, ledger, {each.name: each.count() for each in writers})

    def _commit(
        self,
        version: NewVersion,
        classes: ClassMap,
        images: Mapping[str, int],
        ledger: Ledger,
        formats: Mapping[str, FormatCount],
    ) -> Report:
        accounts = ledger.accounts(formats)
        published = accounts.failed_share <= self.max_errors
        numbers = {name: number for number, name in enumerate(classes.names, start=1)}
        manifest = Manifest(
            version=version.name,
            parent=version.parent,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            published=published,
            code=f"labelloop {installed_version('labelloop')}",
            source=self.source.origin,
            policy={**self.policy, "max_errors": self.max_errors},
            formats=self.formats,
            classes=numbers,
            splits=dict(images),
            accounts=accounts,
        )
        checksum = version.commit(manifest)
        if published:
            publish(self.store, version.name, checksum)
        return Report(
            url=self.store.url,
            version=version.name,
            published=published,
            images=dict(images),
            classes=numbers,
            accounts=accounts,
            files=version.files,
            bytes=version.bytes,
            manifest_sha256=checksum,
        )


class _Counting:
    """A writer with its part of the bill."""

    def __init__(self, name: str, writer: Writer) -> None:
        self.name = name
        self.close = writer.close
        self._writer = writer
        self._regions = self._objects = 0
        self._dropped: Counter[str] = Counter()

    def write(self, item: Item, lose: Callable[[Loss], None]) -> None:
        refused = {each.number: (each, reason) for each, reason in self._writer.write(item)}
        for each, reason in refused.values():
            self._dropped[reason] += 1
            lose(Loss("region", reason, item.image.task, each.annotation, each.region, format=self.name))
        written = [each for each in item.objects if each.number not in refused]
        self._objects += sum(each.box is not None for each in written)  # a key point is part of an object
        self._regions += len({each.number for each in written})

    def count(self) -> FormatCount:
        return FormatCount(
            regions=self._regions,
            objects=self._objects,
            dropped=dict(sorted(self._dropped.items())),
            converted={change: number for change, number in sorted(self._writer.converted.items()) if number},
        )


def _copy(photos: Media, item: Item, version: NewVersion, ledger: Ledger, lose: Callable[[Loss], None]) -> None:
    image = item.image
    try:
        data = photos.path(item.source, task_id=image.task).read_bytes()  # at once: the cache may drop it
    except (MediaError, OSError) as error:
        ledger.notes[NOT_COPIED] += 1
        lose(Loss("photo", "could not be copied", task=image.task, detail=f"{image.url}: {error}"))
        return
    version.write(f"images/{image.split}/{image.file_name}", data)
