"""Photos that lie on their side and say so in their EXIF, and the same photos with their pixels turned.

Annotators see a photo upright, and labels are of what they saw. OpenCV (Ultralytics, detectron2, mmdetection) turns a
photo when it opens it; Pillow alone (torchvision, so RF-DETR, DETR, RT-DETR) does not, and no label fits any more.
"""

from io import BytesIO
from typing import Any

_ORIENTATION = 0x0112
_KINDS = {"JPEG", "PNG", "WEBP"}
_HEAD = 1 << 18
"""Bytes in which the EXIF of a JPEG lies: it may only stand at the beginning."""


def lies(data: bytes) -> bool:
    """Whether a photo is to be turned, by its EXIF."""
    if data[:2] == b"\xff\xd8" and b"Exif\0\0" not in data[:_HEAD]:
        return False
    from PIL import Image

    try:
        with Image.open(BytesIO(data)) as image:
            return image.format in _KINDS and image.getexif().get(_ORIENTATION, 1) in range(2, 9)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False  # whoever reads it will say so


def turned(data: bytes) -> bytes:
    """A photo that `lies` with its pixels turned and its EXIF without the note; a JPEG keeps its quality.

    Raises:
        OSError: It cannot be read to its end.
    """
    from PIL import Image, ImageOps

    with Image.open(BytesIO(data)) as image:
        kind = str(image.format)
        upright = ImageOps.exif_transpose(image)
        options: dict[str, Any] = {"WEBP": {"quality": 95}, "JPEG": _as_it_was(image)}.get(kind, {})
        out = BytesIO()
        upright.save(out, kind, exif=upright.getexif(), icc_profile=image.info.get("icc_profile"), **options)
    return out.getvalue()


def _as_it_was(image: Any) -> dict[str, Any]:
    """How the JPEG was compressed."""
    from PIL.JpegImagePlugin import get_sampling

    tables = getattr(image, "quantization", None)
    return {"qtables": tables, "subsampling": get_sampling(image)} if tables else {}
