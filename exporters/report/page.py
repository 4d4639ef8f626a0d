"""A version as one HTML page: nothing outside it is loaded, no script runs, and every text of the data is escaped."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from exporters.dataset.shards import read_index, read_table
from exporters.formats.base import LEFT_OUT
from exporters.formats.decode import best_format, objects_of
from exporters.model.accounting import Loss
from exporters.model.manifest import DROPPED, IMAGES, Manifest
from exporters.model.records import Image
from exporters.report.charts import bars, colour, heat, histogram, split_colour
from exporters.report.statistics import SIDE_STEPS, Figures
from exporters.report.thumbnails import pictures
from labelloop.service.media import Media
from labelloop.service.store import Store

LOSSES = 200
CLASSES = 30
"""Of losses that are listed and of classes that have a bar; of more, the number is said."""

_RATIOS = ("1:4", "1:2.8", "1:2", "1:1.4", "1:1", "1.4:1", "2:1", "2.8:1", "4:1")


def html_report(store: Store, manifest: Manifest, *, media: Media | None = None, samples: int = 24) -> str:
    """The page of a version.

    Args:
        store: where the data set lives.
        manifest: the version.
        media: reads photos that the version has no copy of; without it only copies are shown.
        samples: how many images are shown.

    Raises:
        DatasetDamaged: an object of the version is missing or not what the manifest says.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    figures = Figures(samples)
    name = best_format(manifest)
    for image, record in _records(store, manifest, name):
        told = name and record != LEFT_OUT
        figures.add(image, objects_of(name, record, image, manifest) if told else ())
    losses, more = _losses(store, manifest)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["told"] = _told
    environment.filters["thousands"] = lambda number: f"{number:,}"
    return environment.get_template("report.html.jinja").render(
        manifest=manifest,
        url=store.url,
        figures=figures,
        charts=_charts(figures, manifest),
        balance=_balance(figures, manifest),
        pictures=pictures(store, manifest, figures.samples(), media),
        losses=losses,
        more=more,
        split_colour=split_colour,
        class_colour=colour,
        objects=sum(figures.objects.values()),
        barred=CLASSES,
    )


def _records(store: Store, manifest: Manifest, name: str) -> Iterator[tuple[Image, bytes]]:
    """The images with their records, side by side: each format has a record for each image, in the same order.

    Without a format that tells objects the records are the images' own.
    """
    index = read_index(store, manifest) if len(manifest.generations) > 1 else None
    decode = msgspec.json.Decoder(Image).decode
    images = read_table(store, manifest, IMAGES, index=index)
    records = read_table(store, manifest, name or IMAGES, index=index)
    for image, record in zip(images, records, strict=True):
        yield decode(image.body), bytes(record.body)


def _charts(figures: Figures, manifest: Manifest) -> Mapping[str, Any]:
    sides = [(f"{100 * step // SIDE_STEPS}", figures.sides[step]) for step in range(SIDE_STEPS)]
    last = max((number for number, images in figures.many.items() if images), default=0)
    many = [(f"{number}+" if number == 50 else str(number), figures.many[number]) for number in range(last + 1)]
    return {
        "classes": bars(_by_split(figures.objects, manifest)),
        "sides": histogram(sides, name="side of the box in % of the image's (square root of its share)"),
        "ratios": histogram(
            [(text, figures.ratios[place - 4]) for place, text in enumerate(_RATIOS)], name="width : height"
        ),
        "many": histogram(_joined(many, 26), name="objects in an image"),
        "places": heat(figures.places),
    }


def _joined(steps: list[tuple[str, int]], most: int) -> list[tuple[str, int]]:
    """At most so many columns: neighbours share one where there are more."""
    width = -(-len(steps) // most)
    if width < 2:
        return steps
    groups = [steps[start : start + width] for start in range(0, len(steps), width)]
    return [(group[0][0], sum(number for _, number in group)) for group in groups]


def _by_split(numbers: Mapping[tuple[int, str], int], manifest: Manifest) -> list[tuple[str, Mapping[str, int]]]:
    """Classes with the most objects first, those without any last."""
    rows: list[tuple[str, Mapping[str, int]]] = [
        (name, {split: numbers.get((number, split), 0) for split in manifest.splits})
        for name, number in manifest.classes.items()
    ]
    return sorted(rows, key=lambda row: -sum(row[1].values()))[:CLASSES]


def _balance(figures: Figures, manifest: Manifest) -> list[dict[str, Any]]:
    """A row a class: objects and images in each split, and what is odd about it."""
    total = sum(figures.objects.values()) or 1
    rows = []
    for name, number in manifest.classes.items():
        objects = {split: figures.objects[number, split] for split in manifest.splits}
        images = sum(figures.images_of[number, split] for split in manifest.splits)
        count = sum(objects.values())
        without = [split for split, found in objects.items() if not found and manifest.splits[split]]
        rows.append(
            {
                "number": number,
                "name": name,
                "objects": objects,
                "count": count,
                "share": count / total,
                "images": images,
                "note": "no object" if not count else f"none in {', '.join(without)}" if without else "",
            }
        )
    return sorted(rows, key=lambda row: -int(row["count"]))


def _told(value: Any) -> str:
    """A rule's value as a person reads it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_told(each)}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_told(each) for each in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _losses(store: Store, manifest: Manifest) -> tuple[list[Loss], int]:
    index = read_index(store, manifest) if len(manifest.generations) > 1 else None
    decode = msgspec.json.Decoder(Loss).decode
    listed: list[Loss] = []
    more = 0
    for record in read_table(store, manifest, DROPPED, index=index):
        if len(listed) < LOSSES:
            listed.append(decode(record.body))
        else:
            more += 1
    return listed, more
