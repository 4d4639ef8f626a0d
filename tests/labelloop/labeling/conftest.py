"""Label Studio's JSON, made to order."""

from collections.abc import Callable
from typing import Any

import pytest

from labelloop.labeling.studio.task import Task, read_task


@pytest.fixture(scope="session")
def make_task() -> Callable[..., Task]:
    def make(*results: Any, **fields: Any) -> Task:
        annotation = {"id": 30, "completed_by": 1, "result": list(results)}
        return read_task({"id": 53, "data": {"image": "s3://a/b.jpg"}, "annotations": [annotation], **fields})

    return make


@pytest.fixture(scope="session")
def box() -> Callable[..., dict[str, Any]]:
    """A rectanglelabels result on a 200 x 100 image; keyword arguments replace its fields, ``value`` is merged."""

    def make(name: str = "r1", *, value: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
        return {
            "original_width": 200,
            "original_height": 100,
            "image_rotation": 0,
            "id": name,
            "from_name": "rect",
            "to_name": "image",
            "type": "rectanglelabels",
            "origin": "manual",
            "value": {"x": 10, "y": 10, "width": 20, "height": 30, "rotation": 0, "rectanglelabels": ["Car"]}
            | (value or {}),
        } | fields

    return make
