"""Render a version as one self-contained HTML page: no scripts, no external resources, all data escaped."""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec

from exporters.dataset.shards import read_index, read_table
from exporters.formats.decode import best_format
from exporters.model.accounting import Loss
from exporters.model.manifest import DROPPED, IMAGES, DatasetManifest
from exporters.model.records import Image
from exporters.report.charts import class_colour, heat_map, histogram, split_colour, stacked_bar_chart
from exporters.report.statistics import SIDE_STEPS, VersionStatistics
from exporters.report.tasks import listed_labels, task_statistics
from exporters.report.thumbnails import draw_thumbnails
from exporters.tasks.table import TASK_FORMATS
from labelloop.service.store import Store

if TYPE_CHECKING:
    from exporters.report.check import CheckSection
    from labelloop.service.media import Media

# Maximum number of listed losses, and of classes with a bar; the page states how many more there are.
LISTED_LOSSES = 200
MAX_BARS = 30
# Images read at a time.
_AT_ONCE = 256

_RATIO_LABELS = ("1:4", "1:2.8", "1:2", "1:1.4", "1:1", "1.4:1", "2:1", "2.8:1", "4:1")


def html_report(
    store: Store,
    manifest: DatasetManifest,
    *,
    media: "Media | None" = None,
    samples: int = 24,
    check: "CheckSection | None" = None,
    statistics: VersionStatistics | None = None,
) -> str:
    """Render the report of a version.

    Args:
        store: The data set's store.
        manifest: The version.
        media: Reads images that the version has no copy of; None: only copies are shown.
        samples: Number of sample images.
        check: The findings of `labelloop dataset check`; None: no such section.
        statistics: The statistics of all images of the version; None: they are collected from its records.

    Returns:
        The HTML page.

    Raises:
        DatasetDamaged: An object of the version is missing or differs from the manifest.
    """
    from exporters.report.templates import environment

    if statistics is None:
        statistics = VersionStatistics(samples)
        name = best_format(manifest.formats)
        pairs = _records(store, manifest, name)
        while part := list(islice(pairs, _AT_ONCE)):
            images, records = zip(*part, strict=True)
            statistics.add(name, images, records, manifest)
    statistics.measure()
    losses, unlisted_losses = _losses(store, manifest)
    return (
        environment()
        .get_template("report.html.jinja")
        .render(
            check=check,
            manifest=manifest,
            url=store.url,
            statistics=statistics,
            charts=_charts(statistics, manifest),
            class_rows=_class_rows(statistics, manifest),
            thumbnails=draw_thumbnails(store, manifest, statistics.samples(), media),
            losses=losses,
            unlisted_losses=unlisted_losses,
            split_colour=split_colour,
            class_colour=class_colour,
            objects=sum(statistics.objects.values()),
            max_bars=MAX_BARS,
            of_images=any(name not in TASK_FORMATS for name in manifest.formats),
            tasks=task_statistics(store, manifest),
            listed_labels=listed_labels,
        )
    )


def _records(store: Store, manifest: DatasetManifest, name: str) -> Iterator[tuple[Image, bytes]]:
    """Iterate over (image, record of the format); all tables have one record per image in the same order.

    If no format of the version contains objects, the records are the image records themselves.
    """
    index = read_index(store, manifest) if len(manifest.generations) > 1 else None
    decode = msgspec.json.Decoder(Image).decode
    images = read_table(store, manifest, IMAGES, index=index)
    records = read_table(store, manifest, name or IMAGES, index=index)
    for image, record in zip(images, records, strict=True):
        yield decode(image.body), bytes(record.body)


def _charts(statistics: VersionStatistics, manifest: DatasetManifest) -> Mapping[str, Any]:
    sizes = [(f"{100 * step // SIDE_STEPS}", statistics.relative_sizes[step]) for step in range(SIDE_STEPS)]
    last = max((number for number, images in statistics.objects_per_image.items() if images), default=0)
    counts = [
        (f"{number}+" if number == 50 else str(number), statistics.objects_per_image[number])
        for number in range(last + 1)
    ]
    ratios = [(label, statistics.aspect_ratios[index - 4]) for index, label in enumerate(_RATIO_LABELS)]
    return {
        "classes": stacked_bar_chart(_by_split(statistics.objects, manifest)),
        "sizes": histogram(sizes, name="side of the box in % of the image's (square root of the areas' ratio)"),
        "ratios": histogram(ratios, name="width : height"),
        "counts": histogram(_merge_bins(counts, 26), name="objects per image", of="images"),
        "centres": heat_map(statistics.centres),
    }


def _merge_bins(bins: list[tuple[str, int]], limit: int) -> list[tuple[str, int]]:
    """Merge neighbouring bins so that at most `limit` remain."""
    width = -(-len(bins) // limit)
    if width < 2:
        return bins
    groups = [bins[start : start + width] for start in range(0, len(bins), width)]
    return [(group[0][0], sum(number for _, number in group)) for group in groups]


def _by_split(numbers: Mapping[tuple[int, str], int], manifest: DatasetManifest) -> list[tuple[str, Mapping[str, int]]]:
    """(class, number by split) of the `MAX_BARS` classes with the most objects, in descending order."""
    rows: list[tuple[str, Mapping[str, int]]] = [
        (name, {split: numbers.get((number, split), 0) for split in manifest.splits})
        for name, number in manifest.classes.items()
    ]
    return sorted(rows, key=lambda row: -sum(row[1].values()))[:MAX_BARS]


def _class_rows(statistics: VersionStatistics, manifest: DatasetManifest) -> list[dict[str, Any]]:
    """A row per class: number of objects and images by split, and a note if a split has none."""
    total = sum(statistics.objects.values()) or 1
    rows = []
    for name, class_id in manifest.classes.items():
        objects = {split: statistics.objects[class_id, split] for split in manifest.splits}
        images = sum(statistics.images_with_class[class_id, split] for split in manifest.splits)
        count = sum(objects.values())
        missing = [split for split, number in objects.items() if not number and manifest.splits[split]]
        rows.append(
            {
                "class_id": class_id,
                "name": name,
                "objects": objects,
                "count": count,
                "share": count / total,
                "images": images,
                "note": "no object" if not count else f"none in {', '.join(missing)}" if missing else "",
            }
        )
    return sorted(rows, key=lambda row: -int(row["count"]))


def _losses(store: Store, manifest: DatasetManifest) -> tuple[list[Loss], int]:
    """The first `LISTED_LOSSES` losses, and the number of the others."""
    index = read_index(store, manifest) if len(manifest.generations) > 1 else None
    decode = msgspec.json.Decoder(Loss).decode
    listed: list[Loss] = []
    unlisted = 0
    for record in read_table(store, manifest, DROPPED, index=index):
        if len(listed) < LISTED_LOSSES:
            listed.append(decode(record.body))
        else:
            unlisted += 1
    return listed, unlisted
