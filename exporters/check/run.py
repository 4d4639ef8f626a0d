"""Run a check: labels first, then looks; each passes over the images again, so that none are held in memory."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exporters.check.boxes import INPUT_SIZE, BoxChecker, ClassStatistics
from exporters.check.findings import CheckReport, DatasetFinding, ShownImage
from exporters.check.images import CheckedDataset, CheckedImage
from exporters.check.opinion import SecondOpinion, ask_for_opinion
from exporters.look.cache import FingerprintCache, cache_file
from exporters.look.reader import ImageLocation, read_fingerprints
from exporters.look.twins import Twins, find_twins
from labelloop.labeling.splits import SPLITS
from labelloop.service.datasets import DatasetProblem
from labelloop.service.datasets.files import is_image_name
from labelloop.service.scratch import scratch_folder
from labelloop.service.settings import Settings

# Share of the images with a look-alike in the same scene from which the data set counts as frames of fixed cameras.
_FRAMES = 0.3

_SPLITS = frozenset(SPLITS)

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class CheckOptions:
    """What is checked.

    Attributes:
        images: Whether images are read: sizes, unreadable files, twins.
        mirror: Whether mirror images count as twins.
        input_size: Longest side of the image at the model's input in pixels.
        workers: Processes that read images; 0: one per core.
    """

    images: bool = True
    mirror: bool = False
    input_size: int = INPUT_SIZE
    workers: int = 0


def check(
    dataset: CheckedDataset,
    settings: Settings,
    options: CheckOptions = CheckOptions(),
    *,
    second_opinion: SecondOpinion | None = None,
    reading: Progress | None = None,
    comparing: Progress | None = None,
    reviewing: Progress | None = None,
) -> CheckReport:
    """Check a data set.

    Args:
        dataset: The data set.
        settings: Access to images, and the home folder for fingerprints.
        options: What is checked.
        second_opinion: A model that reviews the labels.
        reading: Called with (images read, all images to read).
        comparing: Called with (pairs compared, all pairs to compare).
        reviewing: Called with (images read for the model, all images to read for it).

    Returns:
        The report; its images have names.
    """
    report = CheckReport()
    statistics, names = ClassStatistics(), _Positions()
    for item in dataset.images():
        if isinstance(item, DatasetProblem):
            kind = "image-unreadable" if is_image_name(item.item) else "label-unread"
            report.add(DatasetFinding(kind, f"{item.item}: {item.reason}", 0.0))
            continue
        names.add(item)
        statistics.add(item)
        report.looked_at["images"] += 1
        if not item.labelled:
            report.add(DatasetFinding("image-unlabelled", "", 0.0, (ShownImage(names.count - 1),)))
    report.splits.update(statistics.splits)
    statistics.report(dataset.classes, report)
    with ExitStack() as stack:
        sizes: NDArray[np.int64] | None = None
        if options.images and names.count:
            scratch = stack.enter_context(scratch_folder())
            looks = _Looks(dataset, settings, options, names, report)
            thumbnails, sizes = looks.read(scratch / "thumbnails", reading)
            readable = np.flatnonzero(sizes.all(axis=1))
            _report_twins(
                find_twins(thumbnails, among=readable, mirror=options.mirror, progress=comparing), looks, report
            )
        elif not names.count:
            report.notes.append("It has no images.")
        else:
            report.notes.append("Images were not read: near-duplicates, sizes and unreadable files were not checked.")
        checker = BoxChecker(statistics.usual(), report, input_size=options.input_size)
        for position, image in enumerate(_images(dataset)):
            size = tuple(sizes[position].tolist()) if sizes is not None and sizes[position].all() else None
            checker.check(position, image, size)
        checker.finish()
    if second_opinion is not None:
        ask_for_opinion(second_opinion, dataset, settings, report, reviewing)
    wanted = report.positions()
    report.rename(
        {
            position: ShownImage(position, image.name, image.split, task=image.task)
            for position, image in enumerate(_images(dataset))
            if position in wanted
        }
    )
    return report


class _Positions:
    """The split and identity of each image by position."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._codes = bytearray()
        self._identities = bytearray()

    @property
    def count(self) -> int:
        return len(self._codes)

    def add(self, image: CheckedImage) -> None:
        if image.split not in self._names:
            self._names.append(image.split)
        self._codes.append(min(255, self._names.index(image.split)))
        self._identities += image.identity

    def split(self, position: int) -> str:
        return self._names[self._codes[position]]

    def identities(self) -> list[bytes]:
        return [bytes(self._identities[16 * row : 16 * row + 16]) for row in range(self.count)]


class _Looks:
    """Reads the fingerprints of all images."""

    def __init__(
        self,
        dataset: CheckedDataset,
        settings: Settings,
        options: CheckOptions,
        positions: _Positions,
        report: CheckReport,
    ) -> None:
        self._dataset, self._settings, self._options, self._report = dataset, settings, options, report
        self.positions = positions

    def read(self, thumbnails: Path, progress: Progress | None) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return the thumbnails (n, side, side) and sizes (n, 2) of all images; zeros for those not read."""
        identities = self.positions.identities()
        location = self._dataset.store.url if self._dataset.store is not None else self._dataset.title
        with FingerprintCache(cache_file(location, self._settings.home)) as cache:
            if self._dataset.store is not None:
                cache.fetch(self._dataset.store)
            missing = cache.missing(identities)
            self._report.looked_at["images read"] = len(missing)
            if kept := len(identities) - len(missing):
                self._report.looked_at["images read by earlier checks"] = kept
            new = self._read_missing(cache, missing, identities, progress)
            if self._dataset.store is not None and new:
                reason = cache.publish(self._dataset.store, new)
                if reason:
                    self._report.notes.append(
                        f"Fingerprints are kept on this machine only, as the data set's store cannot be written:"
                        f" {reason}"
                    )
            return cache.load(identities, thumbnails)

    def _read_missing(
        self, cache: FingerprintCache, missing: list[int], identities: list[bytes], progress: Progress | None
    ) -> list[bytes]:
        outcomes = read_fingerprints(
            self._jobs(set(missing)), self._settings, count=len(missing), workers=self._options.workers
        )
        return cache.add_read(
            outcomes,
            identities,
            failed=lambda position, reason: self._report.add(
                DatasetFinding("image-unreadable", reason, 0.0, (ShownImage(position),))
            ),
            progress=lambda done: progress(done, len(missing)) if progress else None,
        )

    def _jobs(self, missing: set[int]) -> Iterator[tuple[int, ImageLocation]]:
        for position, image in enumerate(_images(self._dataset)):
            if position not in missing:
                continue
            if image.location is None:
                self._report.add(DatasetFinding("image-missing", "", 0.0, (ShownImage(position),)))
            else:
                yield position, image.location


def _images(dataset: CheckedDataset) -> Iterator[CheckedImage]:
    return (item for item in dataset.images() if isinstance(item, CheckedImage))


def _report_twins(twins: Twins, looks: _Looks, report: CheckReport) -> None:
    split = looks.positions.split
    report.looked_at["pairs of near-duplicates"] = int(twins.twin.sum())
    with_scene = np.unique(twins.pairs[~twins.twin]).size
    for row, (first, second) in enumerate(twins.pairs.tolist()):
        splits = split(first), split(second)
        across = splits[0] != splits[1] and _SPLITS.issuperset(splits)  # others, such as disputed, are not trained on
        if twins.twin[row]:
            kind = "twins-across-splits" if across else "twins"
        elif across:
            kind = "scenes-across-splits"
        else:
            continue
        how = ", mirrored" if twins.mirrored[row] else ""
        likeness = float(twins.likeness[row])
        shown = (ShownImage(first), ShownImage(second))
        report.add(DatasetFinding(kind, f"likeness {likeness:.2f}{how}", likeness, shown))
    groups = twins.groups(looks.positions.count)
    _, members = np.unique(groups, return_counts=True)
    report.looked_at["groups of near-duplicates"] = int((members > 1).sum())
    if members.size and members.max() > 0.2 * len(groups) and members.max() > 20:
        report.notes.append(
            f"The largest group of near-duplicates has {members.max():,} of {len(groups):,} images: `--group-by look`"
            " would put all of them in one split. Group by a key of the tasks' data instead."
        )
    if with_scene > _FRAMES * len(groups):
        report.notes.append(
            f"{with_scene:,} of {len(groups):,} images share their background with another one: frames of fixed"
            " cameras. Split by video or camera: `labelloop export --group-by KEY`."
        )
    for position in twins.blank.tolist():
        report.add(DatasetFinding("image-blank", "", 0.0, (ShownImage(position),)))
    if twins.limited:
        report.notes.append(f"{twins.limited:,} images have more look-alikes than are compared; pairs are counted low.")
