"""Samples as pictures inside the page: the photo small, as JPEG in a data address, its objects drawn over it."""

import base64
import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
from markupsafe import Markup

from exporters.dataset.shards import read_photo, read_table
from exporters.errors import DatasetDamaged
from exporters.formats.decode import DecodedObject
from exporters.model.manifest import PHOTOS, Manifest, Photo
from exporters.model.records import Image
from exporters.report.charts import colour, outline
from labelloop.service.media import Media, MediaError, load_photo
from labelloop.service.store import Store

SIDE = 420
"""The longer side of a picture, in pixels."""

_THREADS = 4


class Drawing(msgspec.Struct, frozen=True):
    """An object drawn: its path in pixels of the photo, its class's name and colour, where its name stands."""

    path: Markup
    label: str
    colour: str
    x: float
    y: float


class Picture(msgspec.Struct, frozen=True):
    """A sample: ``photo`` is a data address, empty where the photo cannot be had for ``reason``."""

    image: Image
    photo: str
    reason: str
    drawings: tuple[Drawing, ...]

    @property
    def stroke(self) -> float:
        """How wide lines are drawn, in pixels of the photo: the same on the page for every photo."""
        return max(self.image.width, self.image.height) / SIDE * 1.6


def pictures(
    store: Store,
    manifest: Manifest,
    samples: Sequence[tuple[Image, Sequence[DecodedObject]]],
    media: Media | None,
) -> list[Picture]:
    """Draw the samples. A photo comes from the version's copies, else from its source."""
    wanted = {image.file_name for image, _ in samples}
    copies = {photo.file_name: photo for photo in _copies(store, manifest) if photo.file_name in wanted}
    names = {number: name for name, number in manifest.classes.items()}

    def draw(sample: tuple[Image, Sequence[DecodedObject]]) -> Picture:
        image, objects = sample
        photo, reason = _photo(store, copies, image, media)
        return Picture(image, photo, reason, tuple(_drawing(each, names) for each in objects))

    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(draw, samples))


def _photo(store: Store, copies: Mapping[str, Photo], image: Image, media: Media | None) -> tuple[str, str]:
    try:
        if image.file_name in copies:
            found = load_photo(read_photo(store, copies[image.file_name]), max_side=SIDE, name=image.file_name)
        elif media is not None:
            found = media.photo(image.url, task_id=image.task, max_side=SIDE)
        else:
            return "", "photos were not asked for"
    except (MediaError, DatasetDamaged, OSError) as error:
        return "", str(error)
    return _data_address(found.image), ""


def _data_address(pixels: Any) -> str:
    from PIL import Image as Pillow

    out = io.BytesIO()
    Pillow.fromarray(pixels).save(out, "JPEG", quality=72)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


def _drawing(each: DecodedObject, names: Mapping[int, str]) -> Drawing:
    label = names.get(each.class_id, f"class {each.class_id}")
    return Drawing(outline(each.rings()), label, colour(each.class_id), each.box[0], each.box[1])


def _copies(store: Store, manifest: Manifest) -> list[Photo]:
    decode = msgspec.json.Decoder(Photo).decode
    return [decode(record.body) for record in read_table(store, manifest, PHOTOS)]
