"""TASK_FORMATS: the formats of tasks, one line each; and every format by its name."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from exporters.errors import BadOption
from exporters.formats import FORMATS
from exporters.structures.class_table import ClassTable
from exporters.tasks.formats.base import TaskFormat

TASK_FORMATS: ClassTable[TaskFormat] = ClassTable(
    {
        "tasks-jsonl": "exporters.tasks.formats.jsonl:TasksJsonl",
        "tasks-parquet": "exporters.tasks.formats.parquet:TasksParquet",
        "conll": "exporters.tasks.formats.conll:Conll",
        "spacy-jsonl": "exporters.tasks.formats.spacy_jsonl:SpacyJsonl",
        "csv": "exporters.tasks.formats.csv_table:Csv",
        "preference-jsonl": "exporters.tasks.formats.preferences:PreferenceJsonl",
    }
)

# Formats of an export without --format, where nothing is drawn on images.
DEFAULT_TASK_FORMATS = ("tasks-jsonl",)


def format_class(name: str) -> type[Any]:
    """Return the class of a format of images or of tasks."""
    return FORMATS[name] if name in FORMATS else TASK_FORMATS[name]


def format_names(text: str) -> tuple[str, ...]:
    """Parse a comma-separated list of formats, without duplicates; an empty text is the default, ().

    Raises:
        BadOption: a format does not exist.
    """
    names = tuple(dict.fromkeys(name for name in (part.strip().lower() for part in text.split(",")) if name))
    known = (*FORMATS, *TASK_FORMATS)
    unknown = [name for name in names if name not in known]
    if unknown or (text and not names):
        near = [close for name in unknown for close in _near(name, known)]
        raise BadOption("--format", ",".join(unknown) or text, "one or more of " + ", ".join(known), near=near)
    return names


def _near(name: str, known: Sequence[str]) -> list[str]:
    """Return the formats that may be meant by an unknown name: those of its family, else the most alike one."""
    family = [other for other in known if other.startswith(f"{name}-") or name == other.replace("-", "")]
    return family or get_close_matches(name, known, n=1)


def image_formats(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the formats of images among some formats."""
    return tuple(name for name in names if name not in TASK_FORMATS)


def task_formats(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the formats of tasks among some formats."""
    return tuple(name for name in names if name in TASK_FORMATS)
