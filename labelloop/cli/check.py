"""The command `labelloop dataset check`: the check of `exporters`, with a model of `ml_backend` as second opinion."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from exporters.check.boxes import INPUT_SIZE
from exporters.check.opinion import Objection, OpinionImage, SecondOpinion
from exporters.check.run import CheckOptions
from exporters.cli.check import check_place
from exporters.console import JsonPath
from exporters.errors import BadOption
from labelloop.service.logging import setup_logging
from labelloop.service.settings import Settings

# Labelled images that a model reviews; the heads that review are fitted eight times on their features.
MODEL_IMAGES = 500
_WORDS = {
    "missing": "an object without a box",
    "spurious": "a box without an object",
    "class": "another class",
    "loose": "a box that fits badly",
}


def dataset_check(
    place: str,
    *,
    version: str = "latest",
    images: bool = True,
    mirror: Annotated[bool, Parameter(negative=())] = False,
    input_size: int = INPUT_SIZE,
    model: str = "",
    out: Path | None = None,
    workers: int = 0,
    strict: Annotated[bool, Parameter(negative=())] = False,
    json: JsonPath = None,
) -> int:
    """Find near-duplicate images, splits that leak by look, unbalanced classes, tiny and odd boxes, damaged images.

    Reads a data set of `labelloop export`, and every layout of `labelloop import` in a folder, a zip or a bucket.
    Images are read once: later checks of the data set read new images only.

    ```
    labelloop dataset check s3://bucket/cars --out report.html
    labelloop dataset check ./yolo --strict
    labelloop dataset check ./yolo --model default
    ```

    Args:
        place: A data set of `labelloop export`, or a folder, a zip, a COCO or NDJSON file, or s3://BUCKET/PREFIX.
        version: The version, for a data set of `labelloop export`: "latest", or a number: 3 or v000003.
        images: Read the images. Without them, labels alone are checked.
        mirror: Count mirror images as near-duplicates. Left and right may matter in your data.
        input_size: The longest side of an image at the model's input in pixels, which tiny boxes are measured at.
        model: Let a model review up to 500 labelled images, and report the labels that it contradicts: an ONNX
            detector, or `default` for the embedded one. Heads that were not fitted on an image review it.
        out: An HTML page with the findings, near-duplicates drawn side by side.
        workers: The number of processes that read images. Default: one per core.
        strict: Exit with 1 for warnings too.
        json: Where to write the findings as JSON ("-": to the standard output).

    Returns:
        0; 1 for errors: near-duplicates in different splits, images that are missing or unreadable, or labels of
        another image size; with --strict also for warnings.
    """
    if input_size < 1:
        raise BadOption("--input-size", str(input_size), "pixels, such as 640")
    if workers < 0:
        raise BadOption("--workers", str(workers), "1 or more; 0 decides by itself")
    if model and not images:
        raise BadOption("--model", model, "it without --no-images")
    settings = Settings()
    setup_logging(settings.replace(log_level="ERROR"))
    options = CheckOptions(images=images, mirror=mirror, input_size=input_size, workers=workers)
    opinion = _ModelOpinion(model, settings) if model else None
    return check_place(
        place, settings, options, version=version, out=out, strict=strict, json=json, second_opinion=opinion
    )


class _ModelOpinion(SecondOpinion):
    """A detector whose heads, not fitted on an image, review its labels. Raises `ModelError`."""

    def __init__(self, model: str, settings: Settings) -> None:
        from ml_backend.inference.detector import embedded_model
        from ml_backend.training.second_opinion import open_reviewer

        path = embedded_model() if model == "default" else Path(model).expanduser().absolute()
        self._backbone = open_reviewer(path, folder=settings.home / "learn", threads=settings.inference_threads)

    @property
    def max_side(self) -> int | None:
        """See `SecondOpinion`."""
        return self._backbone.spec.decode_side

    @property
    def max_images(self) -> int:
        """See `SecondOpinion`."""
        return MODEL_IMAGES

    def review(self, images: Iterator[OpinionImage]) -> tuple[Sequence[Objection], Sequence[str]]:
        """See `SecondOpinion`."""
        from ml_backend.learning.label_errors import withheld_sentence
        from ml_backend.training.second_opinion import MIN_IMAGES, ReviewedImage, review_labels

        opinion = review_labels(
            self._backbone, (ReviewedImage(one.position, one.image, one.boxes, one.labels) for one in images)
        )
        objections = [
            Objection(
                position, f"{_WORDS[issue.kind]}: {issue.label} ({issue.confidence:.0%})", issue.confidence, issue.box
            )
            for position, issue in opinion.issues
        ]
        if not opinion.images:
            return [], [f"The model reviewed nothing: that needs {MIN_IMAGES} images with boxes."]
        return objections, list(filter(None, [withheld_sentence(opinion.withheld)]))
