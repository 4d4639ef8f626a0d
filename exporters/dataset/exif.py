"""Detect images whose EXIF orientation is not upright, and rotate their pixels.

Annotators see the upright image, and labels refer to it. OpenCV (Ultralytics, detectron2, mmdetection) applies the
orientation when it opens a file; Pillow alone (torchvision, so RF-DETR, DETR, RT-DETR) does not, and no label matches.
"""

from io import BytesIO
from typing import Any

_ORIENTATION = 0x0112
_FORMATS = {"JPEG", "PNG", "WEBP"}
# Leading bytes of a JPEG that contain its EXIF.
_EXIF_BYTES = 1 << 18


def needs_rotation(data: bytes) -> bool:
    """Whether the EXIF orientation of an image is not upright."""
    if data[:2] == b"\xff\xd8" and b"Exif\0\0" not in data[:_EXIF_BYTES]:
        return False
    from PIL import Image

    try:
        with Image.open(BytesIO(data)) as image:
            return image.format in _FORMATS and image.getexif().get(_ORIENTATION, 1) in range(2, 9)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False  # reported by its reader


def rotate_upright(data: bytes) -> bytes:
    """Rotate the pixels of an image that `needs_rotation` and reset its EXIF orientation; a JPEG keeps its quality.

    Raises:
        OSError: the image is truncated or damaged.
    """
    from PIL import Image, ImageOps

    with Image.open(BytesIO(data)) as image:
        kind = str(image.format)
        upright = ImageOps.exif_transpose(image)
        options: dict[str, Any] = {"WEBP": {"quality": 95}, "JPEG": _jpeg_settings(image)}.get(kind, {})
        out = BytesIO()
        upright.save(out, kind, exif=upright.getexif(), icc_profile=image.info.get("icc_profile"), **options)
    return out.getvalue()


def _jpeg_settings(image: Any) -> dict[str, Any]:
    """Return the compression settings of a JPEG."""
    from PIL.JpegImagePlugin import get_sampling

    tables = getattr(image, "quantization", None)
    return {"qtables": tables, "subsampling": get_sampling(image)} if tables else {}
