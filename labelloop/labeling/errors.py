"""The errors of reading Label Studio's data: each one carries where it happened and why."""


class LabelingError(ValueError):
    """Label Studio's data could not be understood; every error of `labelloop.labeling` derives from this one."""


class MalformedTask(LabelingError):
    """A task cannot be read at all.

    Attributes:
        task: Label Studio's task id, where one could be read.
        field: The field at fault, such as ``data``; empty when the text is not JSON.
        reason: What is wrong with it, in words.
    """

    def __init__(self, task: object, field: str, reason: str) -> None:
        super().__init__(task, field, reason)
        self.task = task if isinstance(task, int) else None
        self.field = field
        self.reason = reason

    def __str__(self) -> str:
        return f"task {self.task}: {self.field or 'JSON'}: {self.reason}"


class EndsEarly(MalformedTask):
    """A file of tasks ends before its end: it was cut, or is still being written.

    Attributes:
        begins: The byte at which the item begins that is not whole; that of the end, where it ends between two.
        ends: The byte at which the file ends.
    """

    def __init__(self, begins: int, ends: int) -> None:
        within = (
            f"in the middle of the item that begins at byte {begins}"
            if begins < ends
            else "without its closing bracket"
        )
        super().__init__(None, "", f"it is cut short: it ends at byte {ends}, {within}")
        self.begins = begins
        self.ends = ends


class MalformedConfig(LabelingError):
    """A labelling configuration is not the XML that Label Studio accepts.

    Attributes:
        reason: What is wrong with it, in words.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"label config: {self.reason}"


class MalformedValue(LabelingError):
    """One field of a result's value does not describe a shape or an answer.

    Attributes:
        field: The field at fault, such as ``width`` or ``points``.
        reason: What is wrong with it, in words.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}"


class TooLarge(LabelingError):
    """A mask was asked for of more pixels than can be counted or held.

    Attributes:
        width: Pixels.
        height: Pixels.
    """

    def __init__(self, width: int, height: int) -> None:
        super().__init__(width, height)
        self.width = width
        self.height = height

    def __str__(self) -> str:
        return f"a mask of {self.width} x {self.height} pixels is more than can be held"


class TooLargeToJudge(LabelingError):
    """A task holds more regions, or more regions that overlap, than can be compared in bounded time and memory.

    Attributes:
        reason: What there is too much of, with the limit.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"too large to judge: {self.reason}"


class RegionError(LabelingError):
    """One result of an annotation is malformed; its siblings are not.

    Attributes:
        task: The task's id, where it is known.
        annotation: The annotation's (or prediction's) id, where it is known.
        result: The result's id; empty when it has none.
        field: The field at fault.
        reason: What is wrong with it, in words.
        source: The result's JSON as it came, so that nothing is lost.
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
