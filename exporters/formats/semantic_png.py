"""Semantic masks: a PNG for each image whose pixels are class numbers, with a colour map.

``masks/{split}/NAME.png`` and ``images/{split}/NAME.jpg``: a pixel is 0 for background, 1 to n for the classes of
the class map, and the ignore index for regions labelled ``void``, ``ignore`` or ``unlabelled``, which losses pass over.
Up to 254 classes are 8 bits with Pascal VOC's colours as palette and 255 to ignore; more are 16 bits and 65,535.
``classes.json`` has ids, names and colours. See `exporters.formats.label_maps` for overlaps.
"""

import base64
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import msgspec
import numpy as np

from exporters.formats.base import LEFT_OUT, NO_AREA, ItemFormat, OutputTree, Record
from exporters.formats.label_maps import LEFT_OUT_LARGE, OVERLAP, TOO_LARGE, decode_png, encode_png, paint
from exporters.formats.voc import colormap, label_map
from exporters.model.records import Item, Object
from labelloop.labeling.geometry.raster import MAX_PIXELS

CLASSES = "classes.json"
IGNORE_8, IGNORE_16 = 255, 65_535
# Labels of pixels that training ignores, compared case-insensitively.
IGNORED_LABELS = frozenset({"void", "ignore", "ignored", "__ignore__", "unlabeled", "unlabelled", "dontcare"})
_TO_IGNORE = "region labelled void -> ignore index"
_MAX_CLASS = 65_534
_TOO_MANY = f"a mask image holds {_MAX_CLASS:,} classes"


class _Page(msgspec.Struct, frozen=True, gc=False):
    """A record: the name of an image's mask, and the mask as a PNG in base64."""

    stem: str
    png: str
    is_wide: bool = False


class SemanticPng(ItemFormat):
    """Writes a mask for each image; an image without objects is background."""

    name: ClassVar[str] = "semantic-png"
    file_per_image: ClassVar[bool] = True

    def item(self, item: Item, converted: Counter[str]) -> tuple[bytes, Sequence[tuple[Object, str]]]:
        """Encode the mask of an image; shapes without an area are rejected."""
        width, height = item.image.canvas
        dropped = [(obj, NO_AREA) for obj in item.objects if obj.box is None]
        objects = [obj for obj in item.objects if obj.box is not None]
        if width * height > MAX_PIXELS:
            converted[LEFT_OUT_LARGE] += 1
            return LEFT_OUT, [*dropped, *((obj, TOO_LARGE) for obj in objects)]
        dropped += [(obj, _TOO_MANY) for obj in objects if obj.class_id > _MAX_CLASS]
        objects = [obj for obj in objects if obj.class_id <= _MAX_CLASS]
        painted = paint(item, objects)
        ignored = [is_ignored(obj.label) for obj in objects]
        numbers = [obj.class_id for obj in objects]
        is_wide = max(numbers, default=0) >= IGNORE_8
        ignore = IGNORE_16 if is_wide else IGNORE_8
        values = np.array([0, *(ignore if void else n for n, void in zip(numbers, ignored, strict=True))])
        pixels = values.astype(np.uint16 if is_wide else np.uint8)[painted.pixels]
        converted["object -> mask"] += len(objects) - len(painted.refused) - sum(ignored)
        converted[_TO_IGNORE] += sum(ignored)
        png = encode_png(pixels, b"" if is_wide else palette())
        return (
            msgspec.json.encode(_Page(item.image.stem, base64.b64encode(png).decode(), is_wide)),
            [*dropped, *painted.refused],
        )

    def write_files(self, records: Iterable[Record], output: OutputTree) -> None:
        """Write the masks and the classes; all masks of a data set have the same depth."""
        classes = self.context.classes
        is_wide = len(classes) >= IGNORE_8
        decode = msgspec.json.Decoder(_Page).decode
        for record in records:
            page = decode(record.body)
            png = base64.b64decode(page.png)
            if is_wide and not page.is_wide:
                pixels = decode_png(png).astype(np.uint16)
                png = encode_png(np.where(pixels == IGNORE_8, np.uint16(IGNORE_16), pixels))
            output.write(f"masks/{record.split}/{page.stem}.png", png)
        output.write(CLASSES, msgspec.json.format(msgspec.json.encode(_class_list(classes, is_wide=is_wide))) + b"\n")
        output.write("labelmap.txt", label_map(classes))


def palette() -> bytes:
    """Return the colours of the masks: Pascal VOC's."""
    return colormap(256).tobytes()


def is_ignored(label: str) -> bool:
    """Whether training ignores pixels of a label."""
    return label.strip().casefold() in IGNORED_LABELS


def _class_list(classes: Sequence[str], *, is_wide: bool) -> dict[str, Any]:
    colours = colormap(len(classes) + 1).tolist()
    ignore = IGNORE_16 if is_wide else IGNORE_8
    listed = [
        {"id": number, "name": name, "color": colours[number]} for number, name in enumerate(("background", *classes))
    ]
    return {
        "classes": [entry for entry in listed if not is_ignored(str(entry["name"]))],
        "ignore_index": ignore,
        "ignored_labels": [name for name in classes if is_ignored(name)],
        "background": 0,
        "bits": 16 if is_wide else 8,
        "overlap": OVERLAP,
    }
