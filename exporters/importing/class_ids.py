"""Map the category ids of COCO results to class names, from the training data set or the project."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from exporters.errors import ImportFailed
from exporters.model.class_map import config_labels
from labelloop.labeling.studio.config import LabelConfig
from labelloop.service.datasets import DataSet, DatasetImage, DatasetProblem, LabelledObject

_FIX = "Pass the COCO file of the model's training data, the classes.json of the data set, or a text file of names."


def class_names_by_id(file: Path | None, config: LabelConfig | None) -> Mapping[int, str]:
    """Category id -> class name.

    Args:
        file: A COCO file (its categories), the ``classes.json`` of a data set, or a text file with one name per line,
            numbered from 1. None: the labels of the project.
        config: The project's label config; its labels are numbered from 1, as in the first export.

    Raises:
        ImportFailed: The file cannot be read or has no classes.
    """
    if file is None:
        return dict(enumerate(config_labels(config) if config else (), start=1))
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ImportFailed(f"{file} cannot be read: {error.strerror}.", fix=_FIX) from None
    if not data.lstrip().startswith(b"{"):
        lines = (line.strip() for line in data.decode("utf-8-sig", errors="replace").splitlines())
        return dict(enumerate((line for line in lines if line), start=1))
    try:
        names = _class_names(msgspec.json.decode(data))
    except (msgspec.DecodeError, KeyError, TypeError, ValueError):
        names = {}
    if not names:
        raise ImportFailed(f"{file} has no classes.", fix=_FIX)
    return names


def with_class_names(data: DataSet, names: Mapping[int, str]) -> DataSet:
    """Replace the category ids of COCO results by class names; unknown ids are yielded as `DatasetProblem`."""

    def images() -> Iterator[DatasetImage | DatasetProblem]:
        for item in data.images():
            if isinstance(item, DatasetProblem):
                yield item
                continue
            objects: list[LabelledObject] = []
            for result in item.objects:
                label = names.get(int(result.label.removeprefix("#")))
                if label is None:
                    yield DatasetProblem(
                        item.name, f"category {result.label.removeprefix('#')} is not a class (see --classes)"
                    )
                else:
                    objects.append(msgspec.structs.replace(result, label=label))
            unread = item.unread + len(item.objects) - len(objects)
            yield msgspec.structs.replace(item, objects=tuple(objects), unread=unread)

    return msgspec.structs.replace(data, images=images, labels=tuple(dict.fromkeys(names.values())))


def _class_names(content: Any) -> dict[int, str]:
    if "categories" in content:
        return {int(category["id"]): str(category["name"]) for category in content["categories"]}
    return {class_id: str(name) for class_id, name in enumerate(content["names"], start=1)}
