"""What every head has in common: its examples, its result, its entry in `HEADS`, and the predictions it changes."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from labelloop.labeling.studio.config import LabelConfig
from ml_backend.detection.detections import Detections, Floats

Pixels = npt.NDArray[np.uint8]
# Returns the pixels of an image, (h, w, 3) uint8 RGB; they may be reduced.
PixelSource = Callable[[], Pixels]


class Head(Protocol):
    """A learned part of a version other than its boxes. A frozen value; its module has the function that applies it."""

    def to_bytes(self) -> bytes:
        """Serialize it; `HeadKind.from_bytes` is the inverse."""


@dataclass(frozen=True, eq=False)
class HeadExample:
    """One labelled image, as heads are fitted on it. Coordinates are in pixels of the image.

    Attributes:
        task: Its task.
        url: Its address.
        width: Of the image, pixels.
        height: Of the image, pixels.
        boxes: (m, 4) float32 x_min, y_min, x_max, y_max of each labelled object.
        labels: Class of each.
        embeddings: (m, d) float32 frozen features of each, as `Detections.embeddings`.
        image_features: (g,) float32 frozen features of the image, as `Detections.image_features`; None without.
        pixels: Decodes the image, at most 1024 px on the longer side.
        complete: Whether every region of the annotation could be read.
        masks: Mask of each object, see `training.mask_codec`, "" without one; empty: no object has one.
        rotated: (cx, cy, w, h, degrees clockwise) of each object, () where it is upright; empty: all are upright.
        keypoints: (label, x, y, index of the object it belongs to or -1) of each labelled point.
        choices: Answers about the image by control.
        region_choices: Answers about each object by control; empty: there are none.
        predicted: What the served version had predicted; None: unknown.
    """

    task: int
    url: str
    width: int
    height: int
    boxes: Floats
    labels: tuple[str, ...]
    embeddings: Floats
    image_features: Floats | None
    pixels: PixelSource
    complete: bool = True
    masks: tuple[str, ...] = ()
    rotated: tuple[tuple[float, ...], ...] = ()
    keypoints: tuple[tuple[str, float, float, int], ...] = ()
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    region_choices: tuple[Mapping[str, tuple[str, ...]], ...] = ()
    predicted: Detections | None = None

    @cached_property
    def key(self) -> str:
        """Checksum of the image's address and of everything drawn on it; see `ExampleCache`."""
        drawn = (self.url, self.width, self.height, self.labels, self.masks, self.rotated, self.keypoints)
        return hashlib.sha256(repr(drawn).encode() + self.boxes.tobytes()).hexdigest()[:32]


@dataclass(frozen=True, eq=False)
class FitInput:
    """What a head is fitted on.

    Attributes:
        config: The project's label config.
        examples: Labelled images to fit on, oldest first.
        held_out: Labelled images that no head is ever fitted on, for the metric.
        names: Class names of the version, in its order.
        parent: The head of this kind that is served now; None: there is none.
        tolerance: Accepted drop of the metric, in addition to chance.
    """

    config: LabelConfig
    examples: Sequence[HeadExample]
    held_out: Sequence[HeadExample] = ()
    names: tuple[str, ...] = ()
    parent: Any = None
    tolerance: float = 0.02


@dataclass(frozen=True)
class HeadResult:
    """A fitted head and whether it may be served.

    Attributes:
        head: The candidate; None: none could be fitted.
        metric: Name of the metric, such as "accuracy" or "mask IoU".
        value: Metric of the candidate on images that it was not fitted on; None: not measured.
        parent: Metric on the same images of what is served now; None: not measured.
        passed: Whether the candidate may be served.
        reason: The reason of the verdict, in words.
        judged_by: "held-out", "cross-validation" or "nothing".
    """

    head: Head | None
    metric: str
    value: float | None
    parent: float | None
    passed: bool
    reason: str
    judged_by: str = "cross-validation"


@dataclass(frozen=True)
class Answer:
    """A predicted answer of one control about an image or an object.

    Attributes:
        values: The values to fill in; empty where none is certain enough.
        score: Calibrated probability of them, of the best value where none is filled in.
        uncertainty: In [0, 1]: how much is learned from the annotator's answer; 1 - margin.
        threshold: Probability from which values are filled in.
    """

    values: tuple[str, ...]
    score: float
    uncertainty: float
    threshold: float = 0.5


@dataclass(frozen=True, eq=False)
class ImagePrediction:
    """Everything predicted on one image, in its pixels. Heads and the segmenter return changed copies.

    Attributes:
        detections: Boxes with scores, classes and frozen features; also masks, rotated boxes and keypoints.
        names: Class names of the version, in its order.
        width: Of the image, pixels.
        height: Of the image, pixels.
        pixels: Returns the decoded image; it may be reduced.
        choices: Answers about the image by control.
        region_choices: Answers by control of each detection; empty: there are none.
        points: Labelled points (label, x, y, confidence, index of the detection or -1).
    """

    detections: Detections
    names: tuple[str, ...]
    width: int
    height: int
    pixels: PixelSource
    choices: Mapping[str, Answer] = field(default_factory=dict)
    region_choices: tuple[Mapping[str, Answer], ...] = ()
    points: tuple[tuple[str, float, float, float, int], ...] = ()


@dataclass(frozen=True)
class HeadKind:
    """One kind of head; an entry of `HEADS`.

    Attributes:
        name: Its key in `HEADS`.
        from_bytes: Restores a head; raises ValueError where the bytes are damaged or of an unknown format.
        fit: Fits a candidate and decides whether it may be served; None: the project has nothing of this kind.
        apply: (head, prediction) -> the prediction with the head's part. Pure.
        needs_pixels: Whether `apply` calls `prediction.pixels`.
    """

    name: str
    from_bytes: Callable[[bytes], Head]
    fit: Callable[[FitInput], HeadResult | None]
    apply: Callable[[Any, ImagePrediction], ImagePrediction]
    needs_pixels: bool = False
