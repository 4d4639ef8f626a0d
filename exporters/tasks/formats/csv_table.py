"""csv: a row per task with its data and its answers, for spreadsheets and classifiers."""

import csv
import io
from collections.abc import Iterable
from typing import Any, BinaryIO, ClassVar

import msgspec

from exporters.formats.base import FormatContext, OutputTree, Record
from exporters.tasks.flat import ANSWER_FIELDS
from exporters.tasks.formats.base import EncodedLine, SplitFiles, TaskFormat
from exporters.tasks.line import TaskLine

OWN = ("task_id", "split", "annotation_id", "annotator", "ground_truth", "created_at", "updated_at", "lead_time")
NO_PLACE = "regions and relations, for which a CSV file has no place"
ITEMS = "answers about one item of a list, for which a CSV file has no place"
_encode = msgspec.json.Encoder().encode


class _Row(msgspec.Struct, frozen=True):
    """A record: the values of `OWN`, of the task's data, and of its answers."""

    own: list[Any]
    data: dict[str, Any]
    answers: dict[str, Any]


class Csv(TaskFormat):
    """Comma-separated values in UTF-8 with a header, the same columns in each split.

    Columns: `OWN`, the keys of the data, the controls. A data key that is the name of another column is ``data.KEY``.
    Texts and numbers are as they are; lists and objects are JSON.
    """

    name: ClassVar[str] = "csv"
    needs: ClassVar[str] = "it needs a control that asks about the whole task, and the label config has none"

    @classmethod
    def fits(cls, context: FormatContext) -> bool:
        """See `TaskFormat.fits`."""
        controls = context.config.controls.values() if context.config else ()
        return context.config is None or any(one.type in ANSWER_FIELDS and not one.per_region for one in controls)

    def encode_line(self, line: TaskLine) -> EncodedLine:
        """See `TaskFormat.encode_line`."""
        made = line.annotation
        own = [line.task, line.split, made.get("id"), made.get("by"), made.get("ground_truth")]
        row = _Row([*own, *(made.get(name) for name in OWN[5:])], _cells(line.data), _cells(line.flat.answers))
        places = len(line.flat.regions) + len(line.flat.relations)
        return EncodedLine(_encode(row), 1, notes={NO_PLACE: places, ITEMS: len(line.flat.item_answers)})

    def write_files(self, records: Iterable[Record], output: OutputTree) -> None:
        """See `TaskFormat.write_files`. Rows wait on the disk until all columns are known."""
        decode = msgspec.json.Decoder(_Row).decode
        data: dict[str, None] = {}
        answers: dict[str, None] = {}
        with output.scratch() as waiting, SplitFiles(output, ".csv", splits=self.context.splits) as files:
            for record in records:
                row = decode(record.body)
                data |= dict.fromkeys(row.data)
                answers |= dict.fromkeys(row.answers)
                waiting.write(_encode([record.split, row]) + b"\n")
            header = _line(_header(data, answers))
            for split in self.context.splits:
                files.of(split).write(header)
            _write_rows(waiting, files, header, tuple(data), tuple(answers))


def _header(data: Iterable[str], answers: Iterable[str]) -> list[str]:
    """Return the names of the columns; a name that is taken gets a prefix, as often as it takes."""
    taken = {*OWN}
    answer_names = [_free(key, "answer.", taken) for key in answers]
    return [*OWN, *[_free(key, "data.", taken) for key in data], *answer_names]


def _free(name: str, prefix: str, taken: set[str]) -> str:
    while name in taken:
        name = prefix + name
    taken.add(name)
    return name


def _write_rows(
    waiting: BinaryIO, files: SplitFiles, header: bytes, data: tuple[str, ...], answers: tuple[str, ...]
) -> None:
    decode = msgspec.json.Decoder(tuple[str, _Row]).decode
    waiting.seek(0)
    for text in waiting:
        split, row = decode(text)
        file = files.of(split)
        if not file.tell():  # a split that the version does not list
            file.write(header)
        file.write(_line([*row.own, *map(row.data.get, data), *map(row.answers.get, answers)]))


def _cells(values: Any) -> dict[str, Any]:
    return {
        key: value if value is None or isinstance(value, str | int | float) else _encode(value).decode()
        for key, value in values.items()
    }


def _line(cells: Iterable[Any]) -> bytes:
    out = io.StringIO()
    # the writer quotes a cell with a character of the line's end: of CR as of LF
    csv.writer(out, lineterminator="\r\n").writerow(
        [str(cell).lower() if isinstance(cell, bool) else cell for cell in cells]
    )
    return out.getvalue().removesuffix("\r\n").encode("utf-8", "surrogatepass") + b"\n"
