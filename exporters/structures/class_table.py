"""A table of classes by name; each is imported when it is first looked up, so that a command starts fast."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, TypeVar

C = TypeVar("C")


class ClassTable(Mapping[str, type[C]]):
    """Name -> class.

    Args:
        places: Name -> "module:Class".
    """

    def __init__(self, places: Mapping[str, str]) -> None:
        self._places = places

    def __getitem__(self, name: str) -> type[C]:
        module, _, class_name = self._places[name].partition(":")
        found: type[C] = getattr(import_module(module), class_name)
        return found

    def __contains__(self, name: Any) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
