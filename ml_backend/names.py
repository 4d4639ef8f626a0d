"""Owns the class names of a model: from the file's metadata (parsed, never evaluated) or from a text file beside it."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_backend.errors import ModelBroken, NamesMissing

SHARED_SIDECARS = ("names.txt", "coco80.txt")
"""Files that may serve several models of one folder; one is used only where its count is that of the model."""


@dataclass(frozen=True)
class Names:
    """Class names in the model's order, and where they were found."""

    names: tuple[str, ...]
    source: str


def sidecars(path: Path) -> tuple[Path, ...]:
    """The text files beside a model that may name its classes, those of this very model first; only what exists."""
    own = (path.with_name(f"{path.name}.names"), path.with_suffix(".names"))
    shared = tuple(path.with_name(name) for name in SHARED_SIDECARS)
    return tuple(file for file in (*own, *shared) if file.is_file())


def find_names(path: Path, metadata: Mapping[str, str], classes: int) -> Names:
    """The names of a model's classes.

    A sidecar of the model's own wins over the metadata, so that a user can rename classes without touching the file;
    a shared one (`names.txt`) is the last resort.

    Args:
        path: The model file.
        metadata: Its metadata; `names` is a JSON list, or a Python literal as Ultralytics writes it.
        classes: How many classes its outputs have.

    Raises:
        NamesMissing: Nothing names them, or what does has another count.
        ModelBroken: The metadata `names` cannot be parsed.
    """
    for file in sidecars(path):
        names = read_sidecar(file)
        if file.name in SHARED_SIDECARS:
            continue
        if len(names) != classes:
            raise NamesMissing(path, classes=classes, found=len(names), source=file.name)
        return Names(names, file.name)
    if "names" in metadata:
        try:
            names = parse_names(metadata["names"])
        except ValueError as error:
            raise ModelBroken(path, f"its metadata `names` cannot be read: {error}") from None
        if len(names) != classes:
            raise NamesMissing(path, classes=classes, found=len(names), source="its metadata")
        return Names(names, "metadata")
    for file in sidecars(path):
        names = read_sidecar(file)
        if len(names) == classes:
            return Names(names, file.name)
    raise NamesMissing(path, classes=classes)


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


def read_sidecar(file: Path) -> tuple[str, ...]:
    """One name a line; blank lines at the end do not count."""
    lines = file.read_text(encoding="utf-8-sig", errors="replace").rstrip().splitlines()
    return tuple(line.strip() for line in lines)
