"""Collect the statistics of the report while images are encoded, so that no record is read again for it."""

from collections.abc import Mapping, Sequence

import msgspec

from exporters.formats.base import EncodedBlock
from exporters.formats.decode import best_format
from exporters.model.class_map import Categories, ClassMap
from exporters.model.records import Image
from exporters.pipeline.plain_version import SAMPLES
from exporters.report.statistics import VersionStatistics


class ReportCollector:
    """Statistics of the most informative format of an export in which every image passes by.

    Args:
        formats: The formats of the export.
        classes: Numbers the labels.
        categories: COCO's category ids.

    Attributes:
        statistics: The statistics so far; None after `stop`, or if no format has objects.
    """

    def __init__(self, formats: Sequence[str], classes: ClassMap, categories: Categories) -> None:
        self._format = best_format(formats)
        self._classes, self._categories = classes, categories
        self._numbers = _Classes({}, categories)
        self.statistics = VersionStatistics(SAMPLES) if self._format else None

    def __call__(self, name: str, images: Sequence[Image], encoded: EncodedBlock) -> None:
        """Add the records of a format."""
        if name == self._format and self.statistics is not None:
            if len(self._classes) != len(self._numbers.classes):
                numbers = {label: number for number, label in enumerate(self._classes.names, 1)}
                self._numbers = _Classes(numbers, self._categories)
            self.statistics.add(name, images, encoded.records, self._numbers, encoded.numbers)

    def stop(self) -> None:
        """Give up: other processes encode the other images."""
        self.statistics = None


class _Classes(msgspec.Struct, frozen=True):
    """See `exporters.formats.decode.ClassNumbers`."""

    classes: Mapping[str, int]
    categories: Categories
