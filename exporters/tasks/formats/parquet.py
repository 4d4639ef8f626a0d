"""tasks-parquet: the lines of tasks-jsonl as Apache Parquet, with a column for each data key and each control.

It needs the extra ``[parquet]`` (pyarrow).
"""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, BinaryIO, ClassVar

import msgspec

from exporters.errors import ExportError
from exporters.formats.base import FormatContext, OutputTree, Record
from exporters.tasks.formats.base import SplitFiles
from exporters.tasks.formats.jsonl import TasksJsonl

# Rows of a row group: what is in memory at once.
_GROUP = 512
# Keys of a line that are columns of JSON.
_AS_JSON = ("meta", "item_answers", "controls", "other", "replaced", "consensus", "qc")
_MADE = ("id", "by", "rule", "ground_truth", "created_at", "updated_at", "lead_time")
_PLACES = ("start", "end", "x", "y", "width", "height", "rotation")
_encode = msgspec.json.Encoder().encode


class TasksParquet(TasksJsonl):
    """The same records as tasks-jsonl: a data set with both stores them once."""

    name: ClassVar[str] = "tasks-parquet"

    def __init__(self, context: FormatContext) -> None:
        super().__init__(context)
        _pyarrow()

    def write_files(self, records: Iterable[Record], output: OutputTree) -> None:
        """See `TaskFormat.write_files`. Lines wait on the disk until the type of every column is known."""
        pa = _pyarrow()
        columns = _Columns()
        splits = dict.fromkeys(self.context.splits)
        with output.scratch() as waiting:
            for record in records:
                columns.add(msgspec.json.decode(record.body))
                splits.setdefault(record.split)
                waiting.write(bytes(record.body) + b"\n")
            schema = columns.schema(pa)
            with SplitFiles(output, ".parquet") as files:
                writers = {split: pa.parquet.ParquetWriter(files.of(split), schema) for split in splits}
                for split, rows in _groups(waiting):
                    writers[split].write_table(
                        pa.Table.from_pylist([columns.row(line) for line in rows], schema=schema)
                    )
                for writer in writers.values():
                    writer.close()


class _Columns:
    """The columns of the data and of the answers, with their types."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, str], set[str]] = {}

    def add(self, line: Mapping[str, Any]) -> None:
        for part in ("data", "answers"):
            for key, value in line[part].items():
                kinds = self._kinds.setdefault((part, key), set())
                kinds.add(_kind(value))

    def schema(self, pa: Any) -> Any:
        texts = pa.list_(pa.string())
        fields = [("task", pa.int64()), ("split", pa.string())]
        types = {"text": pa.string(), "integer": pa.int64(), "number": pa.float64(), "yes or no": pa.bool_()}
        types |= {"texts": texts, "json": pa.string()}
        fields += [(_column(part, key), types[self._type(part, key)]) for part, key in sorted(self._kinds)]
        numbers, names = [(name, pa.float64()) for name in _PLACES], ("id", "type", "control", "object", "parent")
        region = [*((name, pa.string()) for name in names), ("labels", texts), *numbers, ("text", pa.string())]
        region += [("item", pa.int64()), ("image_width", pa.int64()), ("image_height", pa.int64())]
        region += [("shape", pa.string()), ("answers", pa.string()), ("fields", pa.string())]
        relation = [("from", pa.string()), ("to", pa.string()), ("direction", pa.string()), ("labels", texts)]
        fields += [("regions", pa.list_(pa.struct(region))), ("relations", pa.list_(pa.struct(relation)))]
        made = [pa.int64(), pa.int64(), pa.string(), pa.bool_(), pa.string(), pa.string(), pa.float64()]
        fields += [(f"annotation.{name}", kind) for name, kind in zip(_MADE, made, strict=True)]
        return pa.schema([*fields, *((name, pa.string()) for name in _AS_JSON)])

    def row(self, line: Mapping[str, Any]) -> dict[str, Any]:
        row: dict[str, Any] = {"task": line["task"], "split": line["split"]}
        for part in ("data", "answers"):
            for key, value in line[part].items():
                is_json = self._type(part, key) == "json" and value is not None
                row[_column(part, key)] = _encode(value).decode() if is_json else value
        row["regions"] = [_region(region) for region in line["regions"]]
        row["relations"] = [_relation(relation) for relation in line["relations"]]
        row |= {f"annotation.{name}": line["annotation"].get(name) for name in _MADE}
        return row | {name: _encode(line[name]).decode() for name in _AS_JSON if line.get(name) is not None}

    def _type(self, part: str, key: str) -> str:
        kinds = self._kinds[part, key] - {"nothing"}
        if "large integer" in kinds and kinds <= {"large integer", "integer"}:
            return "integer"
        if len(kinds) < 2:
            return next(iter(kinds), "text")
        return "number" if kinds == {"integer", "number"} else "json"


def _column(part: str, key: str) -> str:
    return f"{'data' if part == 'data' else 'answer'}.{key}"


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "yes or no"
    if isinstance(value, int):
        if abs(value) <= _EXACT:
            return "integer"
        return "large integer" if _is_int64(value) else "json"
    if isinstance(value, float):
        return "number"
    if isinstance(value, str):
        return "text"
    return "texts" if isinstance(value, list) and all(isinstance(item, str) for item in value) else "json"


def _region(region: Mapping[str, Any]) -> dict[str, Any]:
    """Return a region as a struct: its common numbers as columns, its whole shape as JSON."""
    shape = region["shape"]
    row: dict[str, Any] = {name: _number(shape[name]) for name in _PLACES if type(shape.get(name)) in (int, float)}
    row |= {name: _text(region.get(name)) for name in ("id", "type", "control", "object", "parent")}
    row |= {name: region[name] for name in ("item", "image_width", "image_height") if _is_int64(region.get(name))}
    rest = {key: region[key] for key in region if key not in _REGION_COLUMNS and key not in row}
    row["text"] = shape["text"] if isinstance(shape.get("text"), str) else None
    row["labels"] = [str(label) for label in region["labels"]]
    return row | {name: _encode(value).decode() for name, value in _json_parts(region, rest) if value}


def _json_parts(region: Mapping[str, Any], rest: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    return ("shape", region["shape"]), ("answers", region["answers"]), ("fields", rest)


_REGION_COLUMNS = frozenset({"labels", "shape", "answers"})
# Integers up to here are exact as floats.
_EXACT = 2**53


def _is_int64(value: object) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


def _number(value: float) -> float | None:
    """Return a number as pyarrow takes it for a float; None if it is beyond a float. The shape holds it exactly."""
    try:
        return float(value)
    except OverflowError:
        return None


def _relation(relation: Mapping[str, Any]) -> dict[str, Any]:
    labels = relation.get("labels")
    row: dict[str, Any] = {name: _text(relation.get(name)) for name in ("from", "to", "direction")}
    return row | {"labels": [str(label) for label in labels] if isinstance(labels, list) else None}


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _groups(waiting: BinaryIO) -> Iterable[tuple[str, list[Any]]]:
    """Yield the lines of each split, some at a time."""
    waiting.seek(0)
    while lines := [msgspec.json.decode(text) for text in islice(waiting, _GROUP)]:
        for split in dict.fromkeys(line["split"] for line in lines):
            yield split, [line for line in lines if line["split"] == split]


def _pyarrow() -> Any:
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ImportError as error:
        raise ExportError(
            "tasks-parquet needs pyarrow, and it is not installed.",
            fix="Install it: pip install 'labelloop[parquet]'. Or use --format tasks-jsonl.",
            code="extra_missing",
            status=409,
        ) from error
    return pa
