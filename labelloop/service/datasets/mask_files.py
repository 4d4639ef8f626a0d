"""Read PNG files whose pixels are class numbers or segment ids, and tell them from the images of a data set."""

import io
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelloop.service.datasets.errors import MalformedData

# Name of the list of classes next to the folder of semantic masks.
SEMANTIC_CLASSES = "classes.json"
SEMANTIC_FOLDER = "masks"
PANOPTIC_PREFIX = "panoptic"
# Pixels of a PNG; larger ones are errors.
MAX_PIXELS = 1 << 28


def mask_folders(names: Iterable[str]) -> tuple[str, ...]:
    """The folders of masks, which are no images: ``panoptic_val/`` with its JSON, ``masks/`` with its classes."""
    folders = []
    for name in names:
        path = PurePosixPath(name)
        if path.name == SEMANTIC_CLASSES:
            folders.append(f"{path.parent / SEMANTIC_FOLDER}/")
        elif path.suffix == ".json" and path.name.startswith(PANOPTIC_PREFIX):
            folders.append(f"{path.with_suffix('')}/")
    return tuple(folders)


def read_png(data: bytes, size: tuple[int, int], *, max_pixels: int = MAX_PIXELS) -> NDArray[Any]:
    """The pixels of a PNG: (height, width) of numbers, or (height, width, 3) of colours.

    Args:
        data: The content of the file.
        size: The (width, height) that it must have; zeros: any.
        max_pixels: Most pixels by its header; a larger one is not decoded.

    Raises:
        MalformedData: It is not a readable PNG, of another size, or too large.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngImageFile

    try:
        with PngImageFile(io.BytesIO(data)) as image:
            if image.width * image.height > max_pixels:
                raise MalformedData(f"a PNG of {image.width} x {image.height} pixels; at most {max_pixels:,} are read")
            if size[0] and image.size != size:
                raise MalformedData(
                    f"a mask of {image.width} x {image.height} on an image of {size[0]} x {size[1]} pixels"
                )
            return np.asarray(image if image.mode in {"L", "P", "I", "I;16", "RGB"} else image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        if isinstance(error, MalformedData):
            raise
        raise MalformedData(f"it is not a readable PNG ({error!s:.80})") from None
