"""Result: one item of an annotation's ``result`` list, as Label Studio's JSON."""

from typing import Any

import msgspec

# Pixels along one side of an image; a larger stated size is invalid.
MAX_IMAGE_SIDE = 1_000_000


class Result(msgspec.Struct, frozen=True, gc=False):
    """One item of an annotation's ``result`` list: the stored JSON, with fields parsed on access.

    Attributes:
        raw: The JSON object as stored, including unknown fields. Read-only.
    """

    raw: dict[str, Any]

    @property
    def id(self) -> str:
        """The region's id, shared by all results of a region; empty if there is none, as for relations."""
        value = self.raw.get("id")
        return value if type(value) is str else text_or_empty(value)

    @property
    def from_name(self) -> str:
        """The name of its control tag."""
        value = self.raw.get("from_name")
        return value if type(value) is str else text_or_empty(value)

    @property
    def to_name(self) -> str:
        """The name of its object tag."""
        value = self.raw.get("to_name")
        return value if type(value) is str else text_or_empty(value)

    @property
    def type(self) -> str:
        """Label Studio's result type in lower case, such as ``rectanglelabels``."""
        value = self.raw.get("type")
        return value.lower() if type(value) is str else ""

    @property
    def value(self) -> dict[str, Any]:
        """The value object; empty if it is missing or not an object."""
        value = self.raw.get("value")
        return value if isinstance(value, dict) else {}

    @property
    def original_width(self) -> int | None:
        """The image's width in pixels; None if it is missing or invalid."""
        value = self.raw.get("original_width")
        return value if type(value) is int and 0 < value < MAX_IMAGE_SIDE else _image_side(value)

    @property
    def original_height(self) -> int | None:
        """The image's height in pixels; None if it is missing or invalid."""
        value = self.raw.get("original_height")
        return value if type(value) is int and 0 < value < MAX_IMAGE_SIDE else _image_side(value)

    @property
    def image_rotation(self) -> float:
        """Rotation of the image in the viewer, in degrees; coordinates refer to the stored image."""
        return number_or_none(self.raw.get("image_rotation")) or 0.0

    @property
    def item_index(self) -> int | None:
        """Index of the image in a multi-image task; None if the task has one image."""
        value = self.raw.get("item_index")
        return None if value is None else integer_or_none(value)

    @property
    def score(self) -> float | None:
        """The model's confidence, on predictions."""
        value = self.raw.get("score")
        return None if value is None else number_or_none(value)

    @property
    def origin(self) -> str | None:
        """``manual``, ``prediction`` or ``prediction-changed``."""
        origin = self.raw.get("origin")
        return origin if isinstance(origin, str) else None

    @property
    def meta(self) -> dict[str, Any] | None:
        """The annotator's notes on the region, such as ``{"text": ["..."]}``."""
        meta = self.raw.get("meta")
        return meta if isinstance(meta, dict) else None

    @property
    def parent_id(self) -> str | None:
        """The id of its parent region, such as the box of a skeleton's key points."""
        parent = self.raw.get("parentID")
        return parent if isinstance(parent, str) and parent else None


def text_or_empty(value: object) -> str:
    """A string unchanged, an integer as digits; otherwise empty."""
    if type(value) is str:
        return value
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else ""


def integer_or_none(value: object) -> int | None:
    """An integer, also from a float without fraction; otherwise None."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    return int(value) if isinstance(value, float) and value.is_integer() else None


def _image_side(value: object) -> int | None:
    number = integer_or_none(value)
    return number if number is not None and 0 < number < MAX_IMAGE_SIDE else None


def number_or_none(value: object) -> float | None:
    """A finite number as a float; otherwise None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) != float("inf") and value == value else None  # noqa: PLR0124 - NaN
