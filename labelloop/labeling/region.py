"""Region and Reading: what one annotation says, in shapes and answers instead of JSON."""

from collections.abc import Mapping
from typing import Any

import msgspec

from labelloop.labeling.errors import RegionError
from labelloop.labeling.geometry.shapes import Geometry
from labelloop.labeling.studio.task import Result

NO_ATTRIBUTES: Mapping[str, tuple[Any, ...]] = {}


class Region(msgspec.Struct, frozen=True, gc=False):
    """A shape on an image, with its labels and what was answered about it.

    Attributes:
        geometry: The shape, in pixels.
        labels: Its labels, in the order stored; none where the annotator gave it no label.
        id: Label Studio's id of the region; empty where the JSON has none.
        control: ``from_name`` of the control that gave it its labels (else its shape).
        to_name: The object tag it is drawn on.
        type: The result type of its shape, such as ``rectanglelabels`` or, for a separate shape, ``rectangle``.
        score: The model's confidence, on predictions.
        item_index: Which image of a multi-image task it is on, from 0; 0 where the task has one image.
        width: The image's width in pixels.
        height: The image's height in pixels.
        attributes: What was answered about it (choices, taxonomy paths, rating, number, text, further labels), by
            ``from_name``.
        result: The results it was read from: its shape, then the others in the order stored. Empty on a new region.
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


class Reading(msgspec.Struct, frozen=True, gc=False):
    """Everything one annotation says. Each of its results is in exactly one of these places.

    Attributes:
        regions: The shapes; each holds the results it was read from.
        choices: Per-task choices and taxonomy paths (joined by ``/``), by ``from_name``.
        answers: The results that ``choices`` was read from (they tell the image, where a task has several).
        relations: Links between regions.
        carried: Everything that is no image shape and no per-task choice: video, time series, text spans, per-task
            ratings, numbers and text, and answers about regions that could not be read.
        errors: What is malformed, each error with the result it is about.
    """

    regions: tuple[Region, ...] = ()
    choices: Mapping[str, tuple[str, ...]] = {}
    answers: tuple[Result, ...] = ()
    relations: tuple[Result, ...] = ()
    carried: tuple[Result, ...] = ()
    errors: tuple[RegionError, ...] = ()
