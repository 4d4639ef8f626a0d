"""CATALOGUE: models that can be downloaded instead of the embedded ones, with licence and checksum.

Only releases of known content are listed, since a URL without a checksum could return anything. The checksums of the
segmenters are those pinned by their publisher's packages `osam-efficientsam` 0.1.0 and `osam-sam` 0.1.0.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Release:
    """One file of a release.

    Attributes:
        url: Download URL of its publisher.
        sha256: SHA-256 of its content, in hex.
        size: Bytes, where known; for the progress bar.
    """

    url: str
    sha256: str
    size: int | None = None

    @property
    def name(self) -> str:
        """The file name."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class CatalogueEntry:
    """One model of the catalogue.

    Attributes:
        purpose: What it is suited for, one line.
        kind: A detector, or the encoder and decoder of a segmenter for smart tools.
        licence: Licence of the weights according to the publisher.
        terms: URL of the licence.
        files: Its files; encoder, then decoder for a segmenter.
        names: Class names in order, where the file has none.
    """

    purpose: str
    kind: Literal["detector", "segmenter"]
    licence: str
    terms: str
    files: tuple[Release, ...]
    names: tuple[str, ...] = ()


# The 80 classes of COCO, in the order of the usual exports.
COCO = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis",
    "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich",
    "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed",
    "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven",
    "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier",
    "toothbrush",
)  # fmt: skip

_LABELME = "https://github.com/labelmeai/efficient-sam/releases/download/onnx-models-20231225"
_SAM = "https://github.com/wkentaro/labelme/releases/download/sam-20230416"

# Model by name, as in `labelloop models pull NAME`.
CATALOGUE: Mapping[str, CatalogueEntry] = {
    "yolox-nano": CatalogueEntry(
        "detector of COCO's 80 classes, 416 x 416, the fastest of its family",
        "detector",
        "Apache-2.0",
        "https://github.com/Megvii-BaseDetection/YOLOX/blob/main/LICENSE",
        (
            Release(
                "https://github.com/Megvii-BaseDetection/YOLOX/releases/download/0.1.1rc0/yolox_nano.onnx",
                "695e750a5d5754bb5a8d5325643b59282191a7e7a564e435a415fd3c578eab14",
                3_660_092,
            ),
        ),
        COCO,
    ),
    "efficientsam-ti": CatalogueEntry(
        "segmenter for smart tools, 10 million weights",
        "segmenter",
        "Apache-2.0",
        "https://github.com/yformer/EfficientSAM/blob/main/LICENSE",
        (
            Release(
                f"{_LABELME}/efficient_sam_vitt_encoder.onnx",
                "7a73ee65aa2c37237c89b4b18e73082f757ffb173899609c5d97a2bbd4ebb02d",
            ),
            Release(
                f"{_LABELME}/efficient_sam_vitt_decoder.onnx",
                "e1afe46232c3bfa3470a6a81c7d3181836a94ea89528aff4e0f2d2c611989efd",
            ),
        ),
    ),
    "efficientsam-s": CatalogueEntry(
        "segmenter for smart tools, 30 million weights: slower, better",
        "segmenter",
        "Apache-2.0",
        "https://github.com/yformer/EfficientSAM/blob/main/LICENSE",
        (
            Release(
                f"{_LABELME}/efficient_sam_vits_encoder.onnx",
                "4cacbb23c6903b1acf87f1d77ed806b840800c5fcd4ac8f650cbffed474b8896",
            ),
            Release(
                f"{_LABELME}/efficient_sam_vits_decoder.onnx",
                "4727baf23dacfb51d4c16795b2ac382c403505556d0284e84c6ff3d4e8e36f22",
            ),
        ),
    ),
    "sam-b": CatalogueEntry(
        "segmenter for smart tools: Segment Anything ViT-B, int8",
        "segmenter",
        "Apache-2.0",
        "https://github.com/facebookresearch/segment-anything/blob/main/LICENSE",
        (
            Release(
                f"{_SAM}/sam_vit_b_01ec64.quantized.encoder.onnx",
                "3346b9cc551c9902fbf3b203935e933592b22e042365f58321c17fc12641fd6a",
            ),
            Release(
                f"{_SAM}/sam_vit_b_01ec64.quantized.decoder.onnx",
                "edbcf1a0afaa55621fb0abe6b3db1516818b609ea9368f309746a3afc68f7613",
            ),
        ),
    ),
}
