"""A model's second opinion on the labels of a data set: heads that were not fitted on an image review its boxes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from labelloop.service.media import DecodedImage
from ml_backend.detection.detections import Floats
from ml_backend.detection.preprocess import prepare
from ml_backend.training.backbone import FrozenBackbone, open_backbone
from ml_backend.training.examples import Example
from ml_backend.training.label_errors import Kind, LabelIssue, cross_validated_issues, rate_issues

# Labelled images below which heads learn too little to judge.
MIN_IMAGES = 20


@dataclass(frozen=True, eq=False)
class ReviewedImage:
    """An image with its labels.

    Attributes:
        position: Names it in the result.
        image: Its pixels.
        boxes: (m, 4) float32 x_min, y_min, x_max, y_max in pixels of the original image.
        labels: Class name of each.
    """

    position: int
    image: DecodedImage
    boxes: Floats
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Opinion:
    """What the model says.

    Attributes:
        issues: (position of the image, issue) of plausible errors of annotators.
        withheld: Number of issues by (kind, class) that are more likely errors of the model.
        images: Number of images that were reviewed; 0 if there are fewer than `MIN_IMAGES`.
    """

    issues: tuple[tuple[int, LabelIssue], ...]
    withheld: Mapping[tuple[Kind, str], int]
    images: int


def open_reviewer(path: Path, *, folder: Path, threads: int = 0) -> FrozenBackbone:
    """Open a model file for `review_labels`. Raises `ModelError` if it gives no boxes."""
    backbone = open_backbone(path, folder=folder, threads=threads)
    if not backbone.levels:
        from ml_backend.errors import NotLearnable

        raise NotLearnable(path=path, reason=backbone.no_boxes)
    return backbone


def review_labels(backbone: FrozenBackbone, images: Iterable[ReviewedImage], *, least: float = 0.5) -> Opinion:
    """Review the labels of images; their pixels are held one at a time, their features all at once.

    Args:
        backbone: The model, of `open_reviewer`.
        images: The images.
        least: Minimum confidence of an issue.
    """
    examples: list[Example] = []
    positions: list[int] = []
    for reviewed in images:
        size = (reviewed.image.width, reviewed.image.height)
        [features] = backbone.extract_features([prepare(reviewed.image.pixels, backbone.spec, size=size)])
        examples.append(Example(features, reviewed.boxes, reviewed.labels))
        positions.append(reviewed.position)
    if sum(bool(example.labels) for example in examples) < MIN_IMAGES:
        return Opinion((), {}, 0)
    labels = {label for example in examples for label in example.labels}
    classes = [(name, index) for index, name in enumerate(backbone.names) if name in labels]
    checks = dict(cross_validated_issues(examples, levels=backbone.levels, backbone_classes=classes))
    rated, withheld = rate_issues(list(checks.values()), least=least)
    issues = [
        (positions[index], issue)
        for index, found in zip(checks, rated, strict=True)
        for issue in found
        if issue.confidence >= least
    ]
    return Opinion(tuple(issues), withheld, len(examples))
