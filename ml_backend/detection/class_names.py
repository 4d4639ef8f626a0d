"""Read the class and keypoint names of a model from its metadata (parsed, never evaluated) or from sidecar files."""

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ml_backend.errors import ModelBroken, NamesMissing

# Sidecar files of one model, in order of precedence.
OWN_SIDECARS = ("{file}.names", "{stem}.names", "{stem}.yaml", "{stem}.json")

# Files that may serve several models of a folder; used only where the number of names matches.
SHARED_SIDECARS = ("names.txt", "coco80.txt", "classes.txt", "labels.txt", "data.yaml", "metadata.yaml", "config.json")

# Names of a background class.
BACKGROUND_NAMES = frozenset({"background", "__background__", "bg", "n/a", "unlabeled", "???"})

# Unused COCO category ids below 91: models with COCO's ids have 91 outputs for 80 classes.
COCO_GAPS = (0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83)

# COCO's person keypoints, used for models with 17 unnamed keypoints.
COCO_KEYPOINTS = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)  # fmt: skip

Background = Literal["none", "first", "last", "any"]


@dataclass(frozen=True)
class ClassNames:
    """Class names in the model's order.

    Attributes:
        names: One per class.
        source: Where they were found.
        indices: Index into `names` for each class number in the outputs, -1 for background; None where they are equal.
    """

    names: tuple[str, ...]
    source: str
    indices: tuple[int, ...] | None = None


def sidecars(path: Path) -> tuple[Path, ...]:
    """List the existing files next to a model that may name its classes, its own ones first."""
    return tuple(
        file for file in (*_own_sidecars(path), *(path.with_name(name) for name in SHARED_SIDECARS)) if file.is_file()
    )


def find_names(
    path: Path,
    metadata: Mapping[str, str],
    classes: int | None,
    *,
    background: Background = "none",
    names_file: Path | None = None,
    declared: tuple[tuple[str, ...], str] = ((), ""),
) -> ClassNames:
    """Find the names of a model's classes.

    Precedence: the user's file, the model's own sidecar, the layout file, the metadata, a shared sidecar such as
    `names.txt`. A sidecar thus renames classes without a change of the model.

    Args:
        path: The model file.
        metadata: Its metadata; `names` is a JSON list, or a Python literal as Ultralytics writes it.
        classes: Number of classes in the outputs; None: unknown.
        background: Which class number may be the background.
        names_file: The user's file.
        declared: Names that the model's layout file has, and the name of that file.

    Raises:
        NamesMissing: No names are found, or their number differs.
        ModelBroken: The metadata `names`, or a sidecar, cannot be parsed.
    """
    own = (names_file,) if names_file is not None else tuple(file for file in _own_sidecars(path) if file.is_file())
    for file in own:
        return _matched(path, _read(path, file), file.name, classes, background)
    if declared[0]:
        return _matched(path, declared[0], declared[1], classes, background)
    if "names" in metadata:
        try:
            names = parse_names(metadata["names"])
        except ValueError as error:
            raise ModelBroken(path=path, reason=f"its metadata `names` cannot be read: {error}") from None
        return _matched(path, names, "metadata", classes, background)
    for name in SHARED_SIDECARS:
        file = path.with_name(name)
        if not file.is_file():
            continue
        try:
            return _matched(path, _read(path, file), name, classes, background)
        except (ModelBroken, NamesMissing):
            continue  # another model's
    raise NamesMissing(path, classes=classes)


def class_indices(names: tuple[str, ...], classes: int | None, background: Background) -> tuple[int, ...] | None:
    """Map each class number of the outputs to an index into the names; None for the identity.

    Args:
        names: Class names.
        classes: Number of classes in the outputs; None: unknown.
        background: Which class number may be the background.

    Raises:
        ValueError: The number of names does not match.
    """
    count = len(names)
    if count == classes or (classes is None and background == "none"):
        return None
    coco = count == 80 and (names[0].casefold(), names[-1].casefold()) == ("person", "toothbrush")
    if background in {"first", "any"} and coco and classes in {None, 91}:
        index = iter(range(80))
        return tuple(-1 if number in COCO_GAPS else next(index) for number in range(91))
    if classes is None:
        return None if names and names[0].casefold() in BACKGROUND_NAMES else (-1, *range(count))
    if count == classes - 1 and background != "none":
        # COCO's 90 category ids start at 1; other name lists start at 0 and have the background last.
        first = background == "first" or (count == 90 and names[0].casefold() == "person")
        return (-1, *range(count)) if first else (*range(count), -1)
    raise ValueError(f"{count} names for {classes} classes")


def parse_names(text: str) -> tuple[str, ...]:
    """Parse class names from metadata: a JSON list or map, or a Python literal such as `{0: 'person', 1: 'bicycle'}`.

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
    """Read class names from a text file with one name per line, or from a YAML or JSON file.

    YAML is Ultralytics' `data.yaml` (`names`); JSON is a list, a map, or transformers' `config.json` (`id2label`).
    Trailing blank lines are ignored.

    Raises:
        ValueError: The YAML or JSON has no names.
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


def keypoint_names(metadata: Mapping[str, str], points: int) -> tuple[str, ...]:
    """Names of a model's keypoints: the metadata's `kpt_names`, COCO's for 17, else their indices.

    `kpt_names` is a list, or, as Ultralytics writes it, a list per class, of which the first is used.
    """
    try:
        value: Any = ast.literal_eval(metadata.get("kpt_names", ""))
        value = next(iter(value.values())) if isinstance(value, Mapping) else value
        names = _listed(value)
        if len(names) == points:
            return names
    except (SyntaxError, ValueError, MemoryError, RecursionError, StopIteration):
        pass
    return COCO_KEYPOINTS if points == len(COCO_KEYPOINTS) else tuple(str(number) for number in range(points))


def _own_sidecars(path: Path) -> tuple[Path, ...]:
    return tuple(path.with_name(form.format(file=path.name, stem=path.stem)) for form in OWN_SIDECARS)


def _read(path: Path, file: Path) -> tuple[str, ...]:
    try:
        return read_sidecar(file)
    except (OSError, ValueError) as error:
        raise ModelBroken(
            path=path, reason=f"its names cannot be read from {file}: {error}", fix="Put one name a line."
        ) from None


def _matched(path: Path, names: tuple[str, ...], source: str, classes: int | None, spare: Background) -> ClassNames:
    try:
        return ClassNames(names, source, class_indices(names, classes, spare))
    except ValueError:
        described_source = "its metadata" if source == "metadata" else source
        raise NamesMissing(path, classes=classes, named=len(names), source=described_source) from None


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
