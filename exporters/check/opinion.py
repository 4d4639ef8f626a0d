"""Ask a model for a second opinion on the labels: read the images for it, and report what it contradicts."""

import heapq
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from exporters.check.findings import CheckReport, DatasetFinding, ShownImage
from exporters.check.images import CheckedDataset, CheckedImage
from exporters.look.reader import ImageOpener
from labelloop.labeling.geometry.label_placement import LabelsMisplaced, place_boxes
from labelloop.service.media import DecodedImage
from labelloop.service.settings import Settings

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True, eq=False)
class OpinionImage:
    """An image that a model reviews.

    Attributes:
        position: Its position in the data set.
        image: Its pixels.
        boxes: (m, 4) float32 in pixels of the original image.
        labels: The class of each box.
    """

    position: int
    image: DecodedImage
    boxes: NDArray[np.float32]
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Objection:
    """A label that a model contradicts.

    Attributes:
        position: The image.
        detail: What it says.
        confidence: 0 to 1.
        box: x_min, y_min, x_max, y_max in pixels of the image.
    """

    position: int
    detail: str
    confidence: float
    box: tuple[float, float, float, float]


class SecondOpinion(Protocol):
    """A model that reviews labels."""

    @property
    def max_side(self) -> int | None:
        """Longest side in pixels that it needs images in; None: the original size."""

    @property
    def max_images(self) -> int:
        """Number of images that it reviews at most."""

    def review(self, images: Iterator[OpinionImage]) -> tuple[Sequence[Objection], Sequence[str]]:
        """Return the objections, and notes such as what is withheld."""


def ask_for_opinion(
    opinion: SecondOpinion,
    dataset: CheckedDataset,
    settings: Settings,
    report: CheckReport,
    progress: Progress | None = None,
) -> None:
    """Let a model review the labels of at most `SecondOpinion.max_images` images, chosen by a hash.

    Args:
        opinion: The model.
        dataset: The data set.
        settings: Access to the images.
        report: Receives the findings.
        progress: Called with (images read, all images to read).
    """
    chosen = _choose(dataset, opinion.max_images)
    with closing(ImageOpener(settings)) as opener:
        objections, notes = opinion.review(_read(chosen, dataset, opener, opinion.max_side, progress))
    report.looked_at["images reviewed by the model"] = len(chosen)
    report.notes += notes
    if len(chosen) == opinion.max_images:
        report.notes.append(f"The model reviewed a sample of {len(chosen):,} images.")
    for objection in objections:
        shown = ShownImage(objection.position, boxes=(objection.box,))
        report.add(DatasetFinding("label-issue", objection.detail, objection.confidence, (shown,)))


def _choose(dataset: CheckedDataset, limit: int) -> set[int]:
    """The positions of the labelled images with the lowest identities: the same ones at each check."""
    labelled = (
        (image.identity, position)
        for position, image in enumerate(item for item in dataset.images() if isinstance(item, CheckedImage))
        if image.labelled and not image.classes
    )
    return {position for _, position in heapq.nsmallest(limit, labelled)}


def _read(
    chosen: set[int], dataset: CheckedDataset, opener: ImageOpener, max_side: int | None, progress: Progress | None
) -> Iterator[OpinionImage]:
    done = 0
    for position, image in enumerate(item for item in dataset.images() if isinstance(item, CheckedImage)):
        if position not in chosen or image.location is None:
            continue
        done += 1
        if progress:
            progress(done, len(chosen))
        decoded = opener.thumbnail(image.location, max_side)
        if isinstance(decoded, str):  # reported as unreadable
            continue
        boxes = np.array([item.box for item in image.objects], np.float32).reshape(-1, 4)
        try:
            placed = place_boxes(boxes, (image.width, image.height), (decoded.width, decoded.height))
        except LabelsMisplaced:  # reported as image-size
            continue
        labels = tuple(item.label for item, kept in zip(image.objects, placed.kept.tolist(), strict=True) if kept)
        yield OpinionImage(position, decoded, placed.boxes[placed.kept], labels)
