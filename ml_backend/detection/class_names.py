"""Owns the names of a model's classes and keypoints: from metadata (parsed, never evaluated) or a file beside it."""

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ml_backend.errors import ModelBroken, NamesMissing

OWN_SIDECARS = ("{file}.names", "{stem}.names", "{stem}.yaml", "{stem}.json")
"""Files of one model, those that win first."""

SHARED_SIDECARS = ("names.txt", "coco80.txt", "classes.txt", "labels.txt", "data.yaml", "metadata.yaml", "config.json")
"""Files that may serve several models of one folder; one is used only where its count is that of the model."""

BACKGROUND = frozenset({"background", "__background__", "bg", "n/a", "unlabeled", "???"})
"""How the class 0 that is no class is called."""

COCO_GAPS = (0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
"""Numbers below 91 that no class of COCO has: models that keep its numbers have 91 outputs for 80 classes."""

COCO_KEYPOINTS = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)  # fmt: skip
"""COCO's points of a person, which a model of 17 points without names of its own has."""

Spare = Literal["none", "first", "last", "any"]


@dataclass(frozen=True)
class Names:
    """Class names in the model's order, and where they were found.

    Attributes:
        names: One a class.
        source: Where they were found.
        places: For each number that the outputs can hold the index into `names`, -1 where it stands for no class;
            None where the numbers are the indices.
    """

    names: tuple[str, ...]
    source: str
    places: tuple[int, ...] | None = None


def sidecars(path: Path) -> tuple[Path, ...]:
    """The files beside a model that may name its classes, those of this very model first; only what exists."""
    return tuple(file for file in (*_own(path), *(path.with_name(name) for name in SHARED_SIDECARS)) if file.is_file())


def find_names(
    path: Path,
    metadata: Mapping[str, str],
    classes: int | None,
    *,
    spare: Spare = "none",
    given: Path | None = None,
) -> Names:
    """The names of a model's classes.

    A file that the user names wins, then a sidecar of the model's own, so that classes can be renamed without touching
    the model, then the metadata; a shared sidecar (`names.txt`) is the last resort.

    Args:
        path: The model file.
        metadata: Its metadata; `names` is a JSON list, or a Python literal as Ultralytics writes it.
        classes: How many classes its outputs have; None where they do not say.
        spare: Which of the numbers may stand for no class.
        given: The file that the user names.

    Raises:
        NamesMissing: Nothing names them, or what does has another count.
        ModelBroken: The metadata `names`, or a sidecar, cannot be parsed.
    """
    own = (given,) if given is not None else tuple(file for file in _own(path) if file.is_file())
    for file in own:
        return _fitting(path, _read(path, file), file.name, classes, spare)
    if "names" in metadata:
        try:
            names = parse_names(metadata["names"])
        except ValueError as error:
            raise ModelBroken(path, f"its metadata `names` cannot be read: {error}") from None
        return _fitting(path, names, "metadata", classes, spare)
    for name in SHARED_SIDECARS:
        file = path.with_name(name)
        if not file.is_file():
            continue
        try:
            return _fitting(path, _read(path, file), name, classes, spare)
        except (ModelBroken, NamesMissing):
            continue  # another model's
    raise NamesMissing(path, classes=classes)


def class_places(names: tuple[str, ...], classes: int | None, spare: Spare) -> tuple[int, ...] | None:
    """For each number that the outputs can hold the index into the names; None where they are the same.

    Args:
        names: Of the classes.
        classes: How many numbers the outputs can hold; None where they do not say.
        spare: Which of them may stand for no class.

    Raises:
        ValueError: There are more or fewer names than classes.
    """
    count = len(names)
    if count == classes or (classes is None and spare == "none"):
        return None
    coco = count == 80 and (names[0].casefold(), names[-1].casefold()) == ("person", "toothbrush")
    if spare in {"first", "any"} and coco and classes in {None, 91}:
        number = iter(range(80))
        return tuple(-1 if place in COCO_GAPS else next(number) for place in range(91))
    if classes is None:
        return None if names and names[0].casefold() in BACKGROUND else (-1, *range(count))
    if count == classes - 1 and spare != "none":
        # COCO's own 90 numbers begin with 1; every other set of names begins with 0 and leaves the last one over.
        first = spare == "first" or (count == 90 and names[0].casefold() == "person")
        return (-1, *range(count)) if first else (*range(count), -1)
    raise ValueError(f"{count} names for {classes} classes")


def parse_names(text: str) -> tuple[str, ...]:
    """Names out of metadata: a JSON list or map, or a Python literal of the same (`{0: 'person', 1: 'bicycle'}`).

    Raises:
        ValueError: It is neither, or a map whose keys are not 0..n-1.
    """
    try:
        value: Any = json.loads(text)
    except json.JSONDecodeError:
        try:
            value = ast.literal_eval(text)
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            raise ValueError("neither JSON nor a Python literal") from None
    return _listed(value)


def read_sidecar(file: Path) -> tuple[str, ...]:
    """Names out of a file: one a line, where blank lines at the end do not count; or a YAML or JSON file.

    YAML is Ultralytics' `data.yaml` (`names`), JSON a list, a map, or transformers' `config.json` (`id2label`).

    Raises:
        ValueError: It is YAML or JSON without names.
    """
    text = file.read_text(encoding="utf-8-sig", errors="replace")
    if file.suffix in {".yaml", ".yml"}:
        import yaml

        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ValueError("not YAML") from None
    elif file.suffix == ".json":
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            raise ValueError("not JSON") from None
    else:
        return tuple(line.strip() for line in text.rstrip().splitlines())
    if isinstance(value, Mapping):
        value = next((value[key] for key in ("names", "id2label", "classes", "labels") if key in value), value)
    return _listed(value)


def point_names(metadata: Mapping[str, str], points: int) -> tuple[str, ...]:
    """The names of a model's keypoints: the metadata's `kpt_names`, COCO's for 17; else their numbers.

    `kpt_names` is a list, or as Ultralytics writes it a list for each class, of which the first is taken.
    """
    try:
        told: Any = ast.literal_eval(metadata.get("kpt_names", ""))
        told = next(iter(told.values())) if isinstance(told, Mapping) else told
        names = _listed(told)
        if len(names) == points:
            return names
    except (SyntaxError, ValueError, MemoryError, RecursionError, StopIteration):
        pass
    return COCO_KEYPOINTS if points == len(COCO_KEYPOINTS) else tuple(str(number) for number in range(points))


def _own(path: Path) -> tuple[Path, ...]:
    return tuple(path.with_name(form.format(file=path.name, stem=path.stem)) for form in OWN_SIDECARS)


def _read(path: Path, file: Path) -> tuple[str, ...]:
    try:
        return read_sidecar(file)
    except (OSError, ValueError) as error:
        raise ModelBroken(path, f"its names cannot be read from {file}: {error}", fix="Put one name a line.") from None


def _fitting(path: Path, names: tuple[str, ...], source: str, classes: int | None, spare: Spare) -> Names:
    try:
        return Names(names, source, class_places(names, classes, spare))
    except ValueError:
        told = "its metadata" if source == "metadata" else source
        raise NamesMissing(path, classes=classes, found=len(names), source=told) from None


def _listed(value: Any) -> tuple[str, ...]:
    if isinstance(value, Mapping):
        try:
            by_index = {int(key): name for key, name in value.items()}
        except (TypeError, ValueError):
            raise ValueError("its keys are not numbers") from None
        if sorted(by_index) != list(range(len(by_index))):
            raise ValueError("its keys are not 0, 1, 2, ...")
        value = [by_index[index] for index in range(len(by_index))]
    if not isinstance(value, list | tuple) or not all(isinstance(name, str | int) for name in value):
        raise ValueError("not a list of names")
    return tuple(str(name) for name in value)
