"""Draw the findings of `labelloop dataset check`: a section of the report of a version, or a page of its own."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from exporters.check.findings import FINDING_KINDS, CheckReport, DatasetFinding, FindingKind
from exporters.check.images import CheckedDataset, CheckedImage
from exporters.look.reader import ImageOpener
from exporters.report.charts import class_colour, split_colour, stacked_bar_chart, svg_path
from exporters.report.templates import environment
from exporters.report.thumbnails import encode_jpeg
from labelloop.service.settings import Settings

# Findings drawn of each kind: pairs of images, and others. The page says how many there are.
_PAIRS, _SINGLE = 24, 8
# Findings listed of a kind that is about no image.
_LISTED = 50
_MAX_SIDE = 260
_MAX_BARS = 30
_THREADS = 4


@dataclass(frozen=True)
class DrawnImage:
    """An image of a finding.

    Attributes:
        name: Its name.
        split: Its split.
        task: Its task in Label Studio; 0 if unknown.
        width: Of the image that the boxes are for, in pixels.
        height: Like the width.
        data_url: The picture as a data URL; empty if it is not available.
        reason: Why it is not available.
        boxes: (SVG path, hex colour, label) of its objects, in pixels; those that the finding is about are red.
    """

    name: str
    split: str
    task: int
    width: int
    height: int
    data_url: str
    reason: str
    boxes: tuple[tuple[Markup, str, str], ...]

    @property
    def stroke(self) -> float:
        """Line width in pixels of the image, such that it is the same on the page for all images."""
        return max(self.width, self.height) / _MAX_SIDE * 1.4


@dataclass(frozen=True)
class DrawnFinding:
    """A finding with its images."""

    detail: str
    images: tuple[DrawnImage, ...]


@dataclass(frozen=True)
class DrawnKind:
    """The findings of one kind: what it means, how many there are, and the worst."""

    name: str
    about: FindingKind
    count: int
    findings: tuple[DrawnFinding, ...]


@dataclass(frozen=True)
class CheckSection:
    """What the section shows."""

    report: CheckReport
    kinds: tuple[DrawnKind, ...]
    chart: Markup
    rest_of_classes: int

    @classmethod
    def draw(
        cls, dataset: CheckedDataset, report: CheckReport, settings: Settings, *, images: bool = True
    ) -> "CheckSection":
        """Draw the worst findings of each kind.

        Args:
            dataset: The data set.
            report: The findings.
            settings: Access to the images.
            images: Whether images are read.
        """
        chosen = {kind: _choose(report.examples(kind)) for kind in report.kinds()}
        wanted = {image.position for findings in chosen.values() for finding in findings for image in finding.images}
        records = {
            position: item
            for position, item in enumerate(item for item in dataset.images() if isinstance(item, CheckedImage))
            if position in wanted
        }
        pictures = _pictures(records, settings) if images else {}
        colours = {label: class_colour(number) for number, label in enumerate(dataset.classes, start=1)}
        kinds = tuple(
            DrawnKind(
                kind,
                FINDING_KINDS[kind],
                report.counts[kind],
                tuple(_drawn(finding, records, pictures, colours) for finding in findings),
            )
            for kind, findings in chosen.items()
        )
        rows = sorted(report.classes, key=lambda row: -sum(row.objects.values()))
        chart = stacked_bar_chart([(row.label, row.objects) for row in rows[:_MAX_BARS]])
        return cls(report, kinds, chart, max(0, len(rows) - _MAX_BARS))


def check_page(dataset: CheckedDataset, section: CheckSection) -> str:
    """Render the findings about a data set that is not a version of ours as a page of its own."""
    template = environment().get_template("check_page.html.jinja")
    return template.render(dataset=dataset, check=section, split_colour=split_colour)


def _choose(findings: Sequence[DatasetFinding]) -> list[DatasetFinding]:
    if not findings or not findings[0].images:
        return list(findings[:_LISTED])
    return list(findings[: _PAIRS if len(findings[0].images) > 1 else _SINGLE])


def _pictures(records: Mapping[int, CheckedImage], settings: Settings) -> dict[int, tuple[str, str]]:
    """Position -> (data URL, why there is none)."""
    with closing(ImageOpener(settings)) as opener, ThreadPoolExecutor(_THREADS) as threads:

        def read(image: CheckedImage) -> tuple[str, str]:
            if image.location is None:
                return "", "the file is not there"
            decoded = opener.thumbnail(image.location, _MAX_SIDE)
            return ("", decoded) if isinstance(decoded, str) else (encode_jpeg(decoded.pixels), "")

        return dict(zip(records, threads.map(read, records.values()), strict=True))


def _drawn(
    finding: DatasetFinding,
    records: Mapping[int, CheckedImage],
    pictures: Mapping[int, tuple[str, str]],
    colours: Mapping[str, str],
) -> DrawnFinding:
    images = []
    for shown in finding.images:
        record = records[shown.position]
        data_url, reason = pictures.get(shown.position, ("", "images were not requested"))
        boxes: list[tuple[Markup, str, str]] = [
            (_path(item.box), colours.get(item.label, "#888888"), item.label) for item in record.objects[:100]
        ]
        boxes += [(_path(box), "#d81b1b", "") for box in shown.boxes]
        width, height = (record.width, record.height) if record.width and record.height else (4, 3)
        images.append(
            DrawnImage(
                record.name,
                record.split,
                record.task,
                width,
                height,
                data_url,
                reason,
                tuple(boxes) if record.width else (),
            )
        )
    return DrawnFinding(finding.detail, tuple(images))


def _path(box: Any) -> Markup:
    left, top, right, bottom = box
    return svg_path([[(left, top), (right, top), (right, bottom), (left, bottom)]])
