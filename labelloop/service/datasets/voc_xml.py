"""Parse the XML of Pascal VOC and its lists in ``ImageSets/Main``, for the import, validation and reports."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring

from labelloop.service.datasets.errors import DatasetError, MalformedData
from labelloop.service.datasets.files import DatasetFiles
from labelloop.service.datasets.text import decode_lines

_MULTI_BYTE = re.compile(
    rb"""\s*<\?xml[^>]*encoding=["']((?:gb|big5|shift|sjis|euc|cp9|ms9|hz|johab|iso-?2022)[\w-]*)["'][^>]*\?>""",
    re.IGNORECASE,
)
EDGES = ("xmin", "ymin", "xmax", "ymax")


class NotAnAnnotation(MalformedData):
    """The root element of an XML file is not <annotation>."""

    def __init__(self, tag: str) -> None:
        super().__init__(f"the root element is <{tag}>, not <annotation>")
        self.tag = tag


@dataclass(frozen=True, slots=True)
class VocObject:
    """An ``<object>``; its texts are stripped, and empty where the element is missing."""

    element: Any

    @property
    def name(self) -> str:
        """Its class."""
        return element_text(self.element, "name")

    @property
    def raw_name(self) -> str:
        """Its class with surrounding whitespace."""
        return self.element.findtext("name") or ""

    @property
    def edges(self) -> tuple[str, str, str, str]:
        """The texts of xmin, ymin, xmax and ymax: pixels from 1, maxima inclusive."""
        x_min, y_min, x_max, y_max = map(self.edge, EDGES)
        return x_min, y_min, x_max, y_max

    def edge(self, edge: str) -> str:
        """The text of an edge of its box, one of `EDGES`."""
        return element_text(self.element, f"bndbox/{edge}")


@dataclass(frozen=True, slots=True)
class VocAnnotation:
    """The ``<annotation>`` of an image; its texts are stripped, and empty where the element is missing."""

    root: Any

    @property
    def filename(self) -> str:
        """The file name of the image."""
        return element_text(self.root, "filename")

    @property
    def size(self) -> tuple[str, str]:
        """The texts of width and height in pixels."""
        return element_text(self.root, "size/width"), element_text(self.root, "size/height")

    @property
    def objects(self) -> list[VocObject]:
        """The objects of the image."""
        return [VocObject(element) for element in self.root.findall("object")]

    @property
    def nested_objects(self) -> Iterator[VocObject]:
        """The ``<object>`` elements at any depth, in document order."""
        return (VocObject(element) for element in self.root.iter("object"))


def element_text(element: Any, path: str) -> str:
    """The stripped text of a descendant; empty if it is missing."""
    return str(element.findtext(path) or "").strip()


def annotation_files(files: DatasetFiles) -> list[str]:
    """The names of the XML files, at any depth."""
    return [name for name in files.names if name.lower().endswith(".xml")]


def read_annotation(files: DatasetFiles, name: str) -> VocAnnotation:
    """Read an XML file. Raises `MalformedData` if it cannot be parsed or has another root than <annotation>."""
    try:
        return parse_annotation(files.read(name))
    except DatasetError as error:
        raise MalformedData(error.reason) from None


def parse_annotation(data: bytes) -> VocAnnotation:
    """Parse XML. Raises `MalformedData` if it is invalid or has another root than <annotation>."""
    try:
        declared = _MULTI_BYTE.match(data)  # of encodings with several bytes the parser knows only UTF
        root = fromstring(data[declared.end() :].decode(declared[1].decode()) if declared else data)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:  # LookupError: an unknown encoding
        raise MalformedData(f"it is not valid XML: {error or type(error).__name__}") from None
    if root.tag != "annotation":
        raise NotAnAnnotation(str(root.tag))
    return VocAnnotation(root)


def image_set_files(files: DatasetFiles) -> Iterator[str]:
    """The names of the files in ``ImageSets/Main``."""
    return (name for name in files.names if PurePosixPath(name).parts[-3:-1] == ("ImageSets", "Main"))


def read_image_set(files: DatasetFiles, name: str) -> list[str]:
    """The names of the images in a list; the lists of a class have a second column. Raises `MalformedData`."""
    return [line.split()[0] for line in decode_lines(files.read(name))]
