"""Define the interface of a format of tasks: ``encode_line`` makes a record per line, ``write_files`` makes files.

As with formats of images (`exporters.formats.base`), records are stored in the shards of a version and shared by later
versions: an unchanged task is never encoded again. A record holds everything that its format writes of a line.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, ClassVar, Self

import msgspec

from exporters.formats.base import FormatContext, ImageReader, OutputTree, Record
from exporters.model.manifest import ImageCopy
from exporters.tasks.line import TaskLine


class EncodedLine(msgspec.Struct, frozen=True):
    """A line in one format.

    Attributes:
        record: JSON; None if the format has nothing of this line.
        entries: What the format counts: rows, spans, pairs.
        dropped: Why there is no record.
        losses: Regions that the format leaves out: (region id, reason).
        notes: What is changed or has no place in the format, with its number.
    """

    record: bytes | None
    entries: int = 0
    dropped: str = ""
    losses: Sequence[tuple[str, str]] = ()
    notes: Mapping[str, int] = {}


SIGNED_INSIDE = "with a signed address inside a text, which stays there: whoever reads the files can use it"
_SIGNATURE = re.compile(rb"(?i)[?&;](?:x-amz-signature|x-goog-signature|signature|sig)=")


def noted(encoded: EncodedLine) -> EncodedLine:
    """Add a note to a line that holds the signature of an address within a text, such as HTML.

    Addresses that are a whole value have lost theirs (`exporters.tasks.line.without_signatures`); a text is not
    changed, because spans have offsets in it.
    """
    record = encoded.record
    # the search for plain bytes is a hundred times as fast, and almost no record has them
    if record is None or not (b"ignature=" in record or b"sig=" in record) or not _SIGNATURE.search(record):
        return encoded
    return msgspec.structs.replace(encoded, notes={**encoded.notes, SIGNED_INSIDE: 1})


class TaskFormat:
    """A format of tasks: implement ``encode_line`` and ``write_files``.

    Attributes:
        name: Its name in ``TASK_FORMATS``.
        needs: What a label config needs for the format, for the error if the config has it not; empty: nothing.
    """

    name: ClassVar[str]
    needs: ClassVar[str] = ""
    image_folder: ClassVar[str] = ""
    file_per_image: ClassVar[bool] = False
    needs_size: ClassVar[bool] = False

    def __init__(self, context: FormatContext) -> None:
        self.context = context

    @classmethod
    def fits(cls, context: FormatContext) -> bool:
        """Whether a project with this label config can fill the format; without a config each may."""
        del context
        return True

    def encode_line(self, line: TaskLine) -> EncodedLine:
        """Encode a line."""
        raise NotImplementedError

    def write_files(self, records: Iterable[Record], output: OutputTree) -> None:
        """Write the data set as plain files: see `exporters.formats.base.Format.write_files`."""
        raise NotImplementedError

    def image_paths(
        self, records: Iterable[Record], copies: Iterable[tuple[str, ImageCopy]]
    ) -> Iterator[tuple[str, ImageCopy]]:
        """Yield nothing: images do not lie next to tasks."""
        del records, copies
        return iter(())

    def finish(self, root: Path, images: ImageReader | None = None) -> None:
        """Do nothing: the files are complete."""


class SplitFiles:
    """The files of a format, one per split, opened when something is written to them. Use it as a context manager.

    Args:
        output: Where the files go.
        suffix: The end of their names, such as ``.jsonl``.
        splits: Splits that have a file even if nothing is in it.
        head: What each file begins with.
    """

    def __init__(self, output: OutputTree, suffix: str, *, splits: Iterable[str] = (), head: bytes = b"") -> None:
        self._output, self._suffix, self._head = output, suffix, head
        self._wanted = tuple(splits)
        self._stack = ExitStack()
        self._files: dict[str, BinaryIO] = {}

    def __enter__(self) -> Self:
        for split in self._wanted:
            self.of(split)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def of(self, split: str) -> BinaryIO:
        """Return the file of a split."""
        file = self._files.get(split)
        if file is None:
            file = self._files[split] = self._stack.enter_context(self._output.open(f"{split}{self._suffix}"))
            file.write(self._head)
        return file


class LineFormat(TaskFormat):
    """A format of one JSON line per record: ``train.jsonl``, ``val.jsonl``, ``test.jsonl``."""

    def write_files(self, records: Iterable[Record], output: OutputTree) -> None:
        """See `TaskFormat.write_files`. A record may hold several lines, as a JSON array."""
        with SplitFiles(output, ".jsonl", splits=self.context.splits) as files:
            for record in records:
                body = bytes(record.body)
                lines = msgspec.json.decode(body, type=list[msgspec.Raw]) if body.startswith(b"[") else [body]
                files.of(record.split).write(b"".join(bytes(line) + b"\n" for line in lines))
