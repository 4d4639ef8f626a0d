"""Which class a number means in a list of COCO results: by the data set the model was trained on, or by the project."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from exporters.importing.errors import ImportFailed
from exporters.model.class_map import config_labels
from labelloop.labeling.studio.config import LabelConfig
from labelloop.service.datasets import DataSet, LabelledObject, LabelledPhoto, Problem

_FIX = "Give the COCO file that the model was trained on, or the data set's classes.json, or a text file of names."


def class_numbers(told: Path | None, config: LabelConfig | None) -> Mapping[int, str]:
    """The classes by number.

    Args:
        told: A COCO file (its categories), a data set's ``classes.json``, or a text file with a name a line, from 1.
        config: Where nothing is told: the project's labels in their order, from 1, as a first export numbers them.

    Raises:
        ImportFailed: The file tells no classes.
    """
    if told is None:
        return dict(enumerate(config_labels(config) if config else (), start=1))
    try:
        data = told.read_bytes()
    except OSError as error:
        raise ImportFailed(f"{told} cannot be read: {error.strerror}.", fix=_FIX) from None
    if not data.lstrip().startswith(b"{"):
        lines = (line.strip() for line in data.decode("utf-8-sig", errors="replace").splitlines())
        return dict(enumerate((line for line in lines if line), start=1))
    try:
        found = _listed(msgspec.json.decode(data))
    except (msgspec.DecodeError, KeyError, TypeError, ValueError):
        found = {}
    if not found:
        raise ImportFailed(f"{told} tells no classes.", fix=_FIX)
    return found


def named(data: DataSet, numbers: Mapping[int, str]) -> DataSet:
    """A data set of results with names in place of numbers; a result of an unknown number becomes a `Problem`."""

    def photos() -> Iterator[LabelledPhoto | Problem]:
        for each in data.photos():
            if isinstance(each, Problem):
                yield each
                continue
            drawn: list[LabelledObject] = []
            for one in each.drawn:
                label = numbers.get(int(one.label.removeprefix("#")))
                if label is None:
                    yield Problem(each.name, f"category {one.label.removeprefix('#')} is no class (see --classes)")
                else:
                    drawn.append(msgspec.structs.replace(one, label=label))
            unread = each.unread + len(each.drawn) - len(drawn)
            yield msgspec.structs.replace(each, drawn=tuple(drawn), unread=unread)

    return msgspec.structs.replace(data, photos=photos, labels=tuple(dict.fromkeys(numbers.values())))


def _listed(sheet: Any) -> dict[int, str]:
    if "categories" in sheet:
        return {int(each["id"]): str(each["name"]) for each in sheet["categories"]}
    return {number: str(name) for number, name in enumerate(sheet["names"], start=1)}
