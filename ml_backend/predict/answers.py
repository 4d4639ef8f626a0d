"""Write learned answers (Choices, Taxonomy, Rating) about images and objects as Label Studio results."""

from collections.abc import Mapping, Sequence
from typing import Any

from labelloop.labeling.studio.config import Control
from ml_backend.heads.base import Answer

# Fields of a region's value that are not its shape, and masks, which its own result holds.
_NOT_SHAPE = ("labels", "rle", "format", "imageDataURL")


def answer_value(control: Control, values: Sequence[str]) -> dict[str, Any]:
    """Return the value of a result: choices, paths of a taxonomy, or a number of stars.

    Args:
        control: The control that is answered.
        values: Values as `Label.stored` names them; a rating as text.
    """
    if control.type == "rating":
        return {"rating": round(float(values[0]))}
    paths = [_path(control, value) for value in values]
    if control.type == "taxonomy":
        return {"taxonomy": paths}
    return {"choices": [path if len(path) > 1 else path[0] for path in paths]}


def image_answer(control: Control, to_name: str, answer: Answer, *, name: str, item: int | None) -> dict[str, Any]:
    """Return the result of an answer about an image.

    Args:
        control: The control that is answered.
        to_name: Name of the image object.
        answer: With at least one value.
        name: Id of the result.
        item: Index of the image in a list; None where the task has one image.
    """
    result = {
        "id": name, "from_name": control.name, "to_name": to_name, "type": control.type,
        "value": answer_value(control, answer.values), "score": round(answer.score, 4),
    }  # fmt: skip
    return result if item is None else {**result, "item_index": item}


def region_answer(control: Control, region: Mapping[str, Any], answer: Answer) -> dict[str, Any]:
    """Return the result of an answer about an object: it has the id, the image and the shape of its region.

    Args:
        control: The control that is answered.
        region: Result that draws the region.
        answer: With at least one value.
    """
    shape = {
        key: value for key, value in region["value"].items() if key not in _NOT_SHAPE and not key.endswith("labels")
    }
    return {
        **region, "from_name": control.name, "type": control.type,
        "value": {**shape, **answer_value(control, answer.values)}, "score": round(answer.score, 4),
    }  # fmt: skip


def _path(control: Control, value: str) -> list[str]:
    """Split the path of a nested choice; a name may contain a slash itself."""
    parents = [
        label.stored for label in control.labels if value.startswith(f"{label.stored}/") and label.stored != value
    ]
    if not parents:
        return [value]
    parent = max(parents, key=len)
    return [*_path(control, parent), value[len(parent) + 1 :]]
