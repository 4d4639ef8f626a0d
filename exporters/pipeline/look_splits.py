"""`--group-by look`: assign the images of a source to splits so that near-duplicates share one.

An image that the published version has stays in its split. A new twin follows its group. Where a new image joins groups
in different splits, the smaller part moves to the split that most known images of the group are in; that is reported.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from exporters.convert.task_images import task_images
from exporters.dataset.shards import read_table
from exporters.errors import DatasetDamaged
from exporters.look.cache import FingerprintCache, cache_file, identity_of
from exporters.look.reader import ImageLocation, read_fingerprints
from exporters.look.twins import find_twins
from exporters.model.file_names import hash_key, public_url
from exporters.model.manifest import IMAGES, DatasetManifest
from exporters.model.records import Image
from exporters.model.splits import SplitPolicy
from exporters.pipeline.look_outcome import LookSplits
from exporters.sources import TaskSource
from labelloop.labeling.splits import SPLITS
from labelloop.labeling.studio.task import Task
from labelloop.service.scratch import scratch_folder
from labelloop.service.settings import Settings
from labelloop.service.store import Store

# Share of the images in one group of twins from which the splits mean little.
_TOO_LARGE = 0.2

Progress = Callable[[int, int | None], None]


class _Known(msgspec.Struct, frozen=True, gc=False):
    """An image of the published version."""

    split: str
    task: int
    file_name: str


def split_by_look(
    source: TaskSource,
    policy: SplitPolicy,
    *,
    store: Store,
    parent: DatasetManifest | None,
    settings: Settings,
    progress: Progress | None = None,
) -> LookSplits:
    """Group the images of a source by look, and choose the split of each group.

    Args:
        source: The tasks; those without annotation are not exported and not looked at.
        policy: The shares of the splits.
        store: The data set's store, where fingerprints are kept.
        parent: The published version.
        settings: Access to the images.
        progress: Called with (images read, all images to read).

    Raises:
        DatasetDamaged: The published version cannot be read.
    """
    notes: list[str] = []
    try:
        published = _known_images(store, parent, policy)
    except DatasetDamaged as damaged:
        published = {}
        notes.append(f"images are split as in a first export, as the published version cannot be read: {damaged}")
    images = _SourceImages(source, policy)
    if not images.keys:
        return LookSplits(notes=(*notes, "--group-by look: no annotated task has an image, so nothing is grouped"))
    with FingerprintCache(cache_file(store.url, settings.home)) as cache, scratch_folder() as scratch:
        cache.fetch(store)
        new, failures = _read(cache, images, settings, progress)
        if new and (reason := cache.publish(store, new)):
            notes.append(f"fingerprints of images are kept on this machine only: {reason}")
        thumbnails, sizes = cache.load(images.identities, scratch / "thumbnails")
        readable = np.flatnonzero(sizes.all(axis=1))
        groups = find_twins(thumbnails, among=readable).groups(len(sizes))
    if failures:
        first = failures[0].rstrip(".")
        notes.append(f"{len(failures):,} images could not be read and are split by their own address: {first}")
    return _assign(images, groups, policy, published, notes)


def _known_images(store: Store, parent: DatasetManifest | None, policy: SplitPolicy) -> dict[int, _Known]:
    """The images of the published version by `hash_key` of their address; none if the shares were others."""
    if parent is None or dict(parent.policy.get("split", {})) != dict(policy.shares):
        return {}
    decode = msgspec.json.Decoder(Image).decode
    records = (decode(record.body) for record in read_table(store, parent, IMAGES))
    return {
        hash_key(image.url): _Known(image.split, image.task, image.file_name)
        for image in records
        if image.split in SPLITS
    }


class _SourceImages:
    """The images of a source, each address once, in order.

    Attributes:
        keys: `hash_key` of the public address of each.
        identities: See `exporters.look.cache`.
        explicit: The split that a task states, by key.
    """

    def __init__(self, source: TaskSource, policy: SplitPolicy) -> None:
        self._source = source
        self.explicit: dict[int, str] = {}
        keys: dict[int, bytes] = {}
        for task, url in self._addresses():
            public = public_url(url)
            if (key := hash_key(public)) not in keys:
                keys[key] = identity_of(f"url {public}")
                if stated := policy.explicit_split(task.data):
                    self.explicit[key] = stated
        self.keys, self.identities = list(keys), list(keys.values())

    def locations(self, positions: set[int]) -> Iterator[tuple[int, ImageLocation]]:
        """Yield the locations of some images, in order."""
        wanted = {self.keys[position]: position for position in positions}
        for task, url in self._addresses():
            position = wanted.pop(hash_key(public_url(url)), None)
            if position is not None:
                yield position, ImageLocation(url=url, task=task.id)

    def _addresses(self) -> Iterator[tuple[Task, str]]:
        for task in self._source.tasks():
            if isinstance(task, Task) and task.annotations:
                for image in task_images(task, self._source.config):
                    yield task, image.url


def _read(
    cache: FingerprintCache, images: _SourceImages, settings: Settings, progress: Progress | None
) -> tuple[list[bytes], list[str]]:
    """Read the images that have no fingerprint: the identities that got one, and why others cannot be read."""
    missing = cache.missing(images.identities)
    failures: list[str] = []
    new = cache.add_read(
        read_fingerprints(images.locations(set(missing)), settings, count=len(missing)),
        images.identities,
        failed=lambda _, reason: failures.append(reason),
        progress=lambda done: progress(done, len(missing)) if progress else None,
    )
    return new, failures


def _assign(
    images: _SourceImages,
    groups: NDArray[np.int64],
    policy: SplitPolicy,
    known: Mapping[int, _Known],
    notes: list[str],
) -> LookSplits:
    """Choose the split of each group."""
    members: dict[int, list[int]] = {}
    for key, group in zip(images.keys, groups.tolist(), strict=True):
        members.setdefault(group, []).append(key)
    twins: dict[int, str] = {}
    moved: Counter[tuple[str, str]] = Counter()
    moved_tasks: set[int] = set()
    moved_images: set[str] = set()
    for keys in members.values():
        split = _split_of_group(keys, policy, known, images.explicit)
        for key in keys:
            before = known.get(key)
            if key not in images.explicit and split != policy.assign_key(key):
                twins[key] = split
            if before is not None and before.split != split:
                moved[before.split, split] += 1
                moved_tasks.add(before.task)
                moved_images.add(before.file_name)
    if moved:
        moves = ", ".join(f"{number:,} from {old} to {new}" for (old, new), number in sorted(moved.items()))
        notes.append(f"images that moved to the split of their near-duplicates: {moves}")
    largest = max(map(len, members.values()), default=0)
    if largest > max(20, _TOO_LARGE * len(images.keys)):
        notes.append(
            f"the largest group of near-duplicates has {largest:,} of {len(images.keys):,} images, all in one split:"
            " frames of a fixed camera are better split with --group-by KEY"
        )
    return LookSplits(twins, frozenset(moved_tasks), frozenset(moved_images), tuple(notes))


def _split_of_group(
    keys: list[int], policy: SplitPolicy, known: Mapping[int, _Known], explicit: Mapping[int, str]
) -> str:
    """Return the split that most members are fixed in, then that most are known in, then that of the lowest key."""
    for fixed in (explicit, {key: known[key].split for key in keys if key in known}):
        votes = Counter(fixed[key] for key in keys if key in fixed)
        if votes:
            return max(votes, key=lambda split: (votes[split], -SPLITS.index(split)))
    return policy.assign_key(min(keys))
