"""Errors of reading Label Studio's data, each with its location and reason."""


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

    def __init__(self, begins: int, ends: int) -> None:
        within = (
            f"in the middle of the item that begins at byte {begins}"
            if begins < ends
            else "without its closing bracket"
        )
        super().__init__(None, "", f"it is cut short: it ends at byte {ends}, {within}")
        self.item_start = begins
        self.file_size = ends


class MalformedConfig(LabelingError):
    """A label config is not XML that Label Studio accepts.

    Attributes:
        reason: What is wrong with it.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"label config: {self.reason}"


class MalformedValue(LabelingError):
    """A field of a result's value is not a valid shape or answer.

    Attributes:
        field: The invalid field, such as ``width`` or ``points``.
        reason: What is wrong with it.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}"


class MaskTooLarge(LabelingError):
    """A mask has more pixels than fit into memory or can be counted.

    Attributes:
        width: Width in pixels.
        height: Height in pixels.
    """

    def __init__(self, width: int, height: int) -> None:
        super().__init__(width, height)
        self.width = width
        self.height = height

    def __str__(self) -> str:
        return f"a mask of {self.width} x {self.height} pixels is too large for memory"


class TooLargeToJudge(LabelingError):
    """A task has too many regions, or overlapping regions, to be compared in bounded time and memory.

    Attributes:
        reason: The number that is too large, with its limit.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"too large to judge: {self.reason}"


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

    def __init__(
        self,
        task: int | None,
        annotation: int | None,
        result: str,
        field: str,
        reason: str,
        *,
        source: object = None,
    ) -> None:
        super().__init__(task, annotation, result, field, reason)
        self.task = task
        self.annotation = annotation
        self.result = result
        self.field = field
        self.reason = reason
        self.source = source

    def __str__(self) -> str:
        return (
            f"task {self.task}, annotation {self.annotation}, result {self.result or '(no id)'}: "
            f"{self.field}: {self.reason}"
        )
