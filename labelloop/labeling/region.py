"""Region and ParsedAnnotation: the content of one annotation as shapes and answers instead of JSON."""

from collections.abc import Mapping
from typing import Any

import msgspec

from labelloop.labeling.errors import RegionError
from labelloop.labeling.geometry.shapes import Geometry
from labelloop.labeling.result import Result

NO_ATTRIBUTES: Mapping[str, tuple[Any, ...]] = {}


class Region(msgspec.Struct, frozen=True, gc=False):
    """A shape on an image, with its labels and attributes.

    Attributes:
        geometry: The shape, in pixels.
        labels: Its labels, in stored order; empty if it has none.
        id: Label Studio's id of the region; empty if the JSON has none.
        control: ``from_name`` of the control of its labels; without labels, of its shape.
        to_name: The name of the object tag, such as that of the Image.
        type: The result type of its shape: ``rectanglelabels`` or, for a separate shape, ``rectangle``.
        score: The model's confidence, on predictions.
        item_index: Index of the image in a multi-image task; 0 if the task has one image.
        width: The image's width in pixels.
        height: The image's height in pixels.
        attributes: Answers of per-region controls (choices, taxonomy paths, rating, number, text, further labels), by
            ``from_name``.
        result: The results that it was read from: its shape, then the others in stored order. Empty for a new region.
    """

    geometry: Geometry
    labels: tuple[str, ...]
    id: str
    control: str
    to_name: str
    type: str
    score: float | None
    item_index: int
    width: int
    height: int
    attributes: Mapping[str, tuple[Any, ...]] = NO_ATTRIBUTES
    result: tuple[Result, ...] = ()


class ParsedAnnotation(msgspec.Struct, frozen=True, gc=False):
    """The content of one annotation. Each of its results is in exactly one of these fields.

    Attributes:
        regions: The shapes, each with its results.
        choices: Per-task choices and taxonomy paths (joined with ``/``), by ``from_name``.
        choice_results: The results of ``choices``; they name the image if a task has several.
        relations: Links between regions.
        other_results: Everything else: video, time series, text spans, per-task ratings, numbers and text, and answers
            about regions that could not be read.
        errors: The malformed results.
    """

    regions: tuple[Region, ...] = ()
    choices: Mapping[str, tuple[str, ...]] = {}
    choice_results: tuple[Result, ...] = ()
    relations: tuple[Result, ...] = ()
    other_results: tuple[Result, ...] = ()
    errors: tuple[RegionError, ...] = ()
