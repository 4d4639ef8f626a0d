"""Errors of reading Label Studio's data, each with its location and reason."""

from dataclasses import KW_ONLY, dataclass


class LabelingError(ValueError):
    """Base class of the errors of `labelloop.labeling`: Label Studio's data is invalid."""


class MalformedTask(LabelingError):
    """A task cannot be read at all.

    Attributes:
        task: Label Studio's task id; None if it could not be read.
        field: The invalid field, such as ``data``; empty if the text is not JSON.
        reason: What is wrong with it.
    """

    def __init__(self, task: object, field: str, reason: str) -> None:
        super().__init__(task, field, reason)
        self.task = task if isinstance(task, int) else None
        self.field = field
        self.reason = reason

    def __str__(self) -> str:
        return f"task {self.task}: {self.field or 'JSON'}: {self.reason}"


class TruncatedFile(MalformedTask):
    """A file of tasks is incomplete: it was truncated, or is still being written.

    Attributes:
        item_start: Offset in bytes of the incomplete item; that of the end if the file ends between two items.
        file_size: Size of the file in bytes.
    """

    def __init__(self, item_start: int, file_size: int) -> None:
        within = (
            f"in the middle of the item that begins at byte {item_start}"
            if item_start < file_size
            else "without its closing bracket"
        )
        super().__init__(None, "", f"it is cut short: it ends at byte {file_size}, {within}")
        self.item_start = item_start
        self.file_size = file_size


@dataclass(eq=False, repr=False)
class MalformedConfig(LabelingError):
    """A label config is not XML that Label Studio accepts; the reason says what is wrong with it."""

    reason: str

    def __str__(self) -> str:
        return f"label config: {self.reason}"


@dataclass(eq=False, repr=False)
class MalformedValue(LabelingError):
    """A field of a result's value is not a valid shape or answer.

    Attributes:
        field: The invalid field, such as ``width`` or ``points``.
        reason: What is wrong with it.
    """

    field: str
    reason: str

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}"


@dataclass(eq=False, repr=False)
class MaskTooLarge(LabelingError):
    """A mask has more pixels (width times height) than fit into memory or can be counted."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"a mask of {self.width} x {self.height} pixels is too large for memory"


@dataclass(eq=False, repr=False)
class TooLargeToJudge(LabelingError):
    """A task has too many regions, or overlapping regions, to be compared in bounded time and memory.

    The reason names the number that is too large, with its limit.
    """

    reason: str

    def __str__(self) -> str:
        return f"too large to judge: {self.reason}"


@dataclass(eq=False, repr=False)
class RegionError(LabelingError):
    """One result of an annotation is malformed; its siblings are not.

    Attributes:
        task: The task's id; None if unknown.
        annotation: The annotation's (or prediction's) id; None if unknown.
        result: The result's id; empty if it has none.
        field: The invalid field.
        reason: What is wrong with it.
        source: The result's JSON as stored.
    """

    task: int | None
    annotation: int | None
    result: str
    field: str
    reason: str
    _: KW_ONLY
    source: object = None

    def __str__(self) -> str:
        return (
            f"task {self.task}, annotation {self.annotation}, result {self.result or '(no id)'}: "
            f"{self.field}: {self.reason}"
        )
