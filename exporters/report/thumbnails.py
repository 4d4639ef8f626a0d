"""Thumbnails of the sample images for the report: small JPEGs as data URLs, with the objects as SVG overlays."""

import base64
import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from markupsafe import Markup

from exporters.dataset.shards import read_image_copy, read_table
from exporters.errors import DatasetDamaged
from exporters.formats.decode import DecodedObject
from exporters.model.manifest import PHOTOS, DatasetManifest, ImageCopy
from exporters.model.records import Image
from exporters.report.charts import class_colour, svg_path
from labelloop.service.media import MediaError, load_image
from labelloop.service.store import Store

if TYPE_CHECKING:
    from labelloop.service.media import Media

# Maximum length of the longer side of a thumbnail, in pixels.
MAX_SIDE = 420
_THREADS = 4


@dataclass(frozen=True)
class ObjectOverlay:
    """An object to draw over its image.

    Attributes:
        path: SVG path data in pixels of the image.
        label: Name of the class.
        colour: Hex colour of the class.
        x: Left edge of the label, in pixels of the image.
        y: Top edge of the object, in pixels of the image.
    """

    path: Markup
    label: str
    colour: str
    x: float
    y: float


@dataclass(frozen=True)
class Thumbnail:
    """A sample image.

    Attributes:
        image: The image record.
        data_url: The JPEG as a data URL; empty if the image is not available.
        reason: Why the image is not available.
        overlays: The objects.
    """

    image: Image
    data_url: str
    reason: str
    overlays: tuple[ObjectOverlay, ...]

    @property
    def stroke(self) -> float:
        """Line width in pixels of the image, such that it is the same on the page for all thumbnails."""
        return max(self.image.width, self.image.height) / MAX_SIDE * 1.6


def draw_thumbnails(
    store: Store,
    manifest: DatasetManifest,
    samples: Sequence[tuple[Image, Sequence[DecodedObject]]],
    media: "Media | None",
) -> list[Thumbnail]:
    """Create the thumbnails; an image comes from the version's copies, else from its source."""
    file_names = {image.file_name for image, _ in samples}
    copies = {copy.file_name: copy for copy in _copies(store, manifest) if copy.file_name in file_names}
    class_names = {class_id: name for name, class_id in manifest.classes.items()}

    with ThreadPoolExecutor(_THREADS) as threads:
        pictures = list(threads.map(lambda sample: _data_url(store, copies, sample[0], media), samples))
    # outlines in this thread: each thread has memory of its own, and tracing masks takes some
    return [
        Thumbnail(image, data_url, reason, tuple(_overlay(item, class_names) for item in objects))
        for (image, objects), (data_url, reason) in zip(samples, pictures, strict=True)
    ]


def _data_url(store: Store, copies: Mapping[str, ImageCopy], image: Image, media: "Media | None") -> tuple[str, str]:
    try:
        if image.file_name in copies:
            loaded = load_image(
                read_image_copy(store, copies[image.file_name]), max_side=MAX_SIDE, name=image.file_name
            )
        elif media is not None:
            loaded = media.photo(image.url, task_id=image.task, max_side=MAX_SIDE)
        else:
            return "", "images were not requested"
    except (MediaError, DatasetDamaged, OSError) as error:
        return "", str(error)
    return encode_jpeg(loaded.pixels), ""


def encode_jpeg(pixels: Any) -> str:
    """Return RGB pixels (h, w, 3) uint8 as the data URL of a JPEG."""
    from PIL import Image as Pillow

    out = io.BytesIO()
    Pillow.fromarray(pixels).save(out, "JPEG", quality=72)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


def _overlay(item: DecodedObject, class_names: Mapping[int, str]) -> ObjectOverlay:
    label = class_names.get(item.class_id, f"class {item.class_id}")
    return ObjectOverlay(svg_path(item.rings()), label, class_colour(item.class_id), item.box[0], item.box[1])


def _copies(store: Store, manifest: DatasetManifest) -> list[ImageCopy]:
    decode = msgspec.json.Decoder(ImageCopy).decode
    return [decode(record.body) for record in read_table(store, manifest, PHOTOS)]
