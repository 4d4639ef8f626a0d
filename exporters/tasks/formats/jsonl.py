"""tasks-jsonl: every task of any project as a line of JSON, with nothing left out."""

from typing import ClassVar

import msgspec

from exporters.tasks.formats.base import EncodedLine, LineFormat
from exporters.tasks.line import SIGNED, TaskLine

OTHER = "results kept as Label Studio stores them, in `other`: the flat form does not hold them"
_encode = msgspec.json.Encoder().encode


class TasksJsonl(LineFormat):
    """A line per task: docs/reference/flat-form.md. It holds everything of every task."""

    name: ClassVar[str] = "tasks-jsonl"

    def encode_line(self, line: TaskLine) -> EncodedLine:
        """See `TaskFormat.encode_line`."""
        flat = line.flat
        entries = len(flat.answers) + len(flat.item_answers) + len(flat.regions)
        return EncodedLine(_encode(line.json()), entries, notes={OTHER: len(flat.other), SIGNED: line.signed})
