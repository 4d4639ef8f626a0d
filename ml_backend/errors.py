"""Owns the errors of the ML backend: what is wrong with a model or a request, and how to put it right."""

from pathlib import Path
from typing import ClassVar

from labelloop.service.errors import LabelloopError


class ModelError(LabelloopError):
    """The model cannot be served."""

    code: ClassVar[str] = "model_error"
    status: ClassVar[int] = 503


class ModelMissing(ModelError):
    """There is no model file where one is expected."""

    code: ClassVar[str] = "model_missing"

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"There is no model file at {path}.",
            fix="Give the path of an ONNX file with --model PATH, as the argument of `labelloop models add`, or to all "
            "services with LABELLOOP_MODEL; without one the embedded default is served.",
        )
        self.path = path


class ModelBroken(ModelError):
    """The file is there, but it is not a detector that can be run."""

    code: ClassVar[str] = "model_broken"

    def __init__(self, path: Path, reason: str, *, fix: str = "Export the model to ONNX again.") -> None:
        super().__init__(f"The model {path} cannot be served: {reason}", fix=fix)
        self.path = path
        self.reason = reason


class UnknownLayout(ModelError):
    """No layout in the table recognises the outputs of this graph."""

    code: ClassVar[str] = "model_layout_unknown"

    def __init__(
        self, path: Path, *, outputs: str, layouts: tuple[str, ...], asked: str = "", reason: str = ""
    ) -> None:
        what = f"is not of the layout {asked!r}" if asked else "has outputs that no known layout matches"
        what += f": {reason}" if reason else ""
        super().__init__(
            f"The model {path} {what}. Its outputs: {outputs}.",
            fix=f"Known layouts: {', '.join(layouts)}. Export the model to one of them, or name the layout yourself: "
            "--layout NAME on the command line, LABELLOOP_MODEL_LAYOUT for what is served; "
            "`labelloop models inspect MODEL --layout NAME --image PHOTO` tries one.",
        )
        self.path = path
        self.outputs = outputs
        self.layouts = layouts
        self.asked = asked


class NamesMissing(ModelError):
    """The class names of the model are unknown, or their number is not that of its outputs."""

    code: ClassVar[str] = "model_names_missing"

    def __init__(self, path: Path, *, classes: int | None, found: int | None = None, source: str = "") -> None:
        what = f"{source} names {found} of them" if found is not None else "nothing says their names"
        has = "classes whose number its outputs do not tell" if classes is None else f"{classes} classes"
        super().__init__(
            f"The model {path} has {has}, and {what}.",
            fix=f"Put a text file {path.name}.names next to the model, one class name a line, in the model's order.",
        )
        self.path = path
        self.classes = classes
        self.found = found


class ModelLoading(ModelError):
    """The worker has just started and its model is not in memory yet."""

    code: ClassVar[str] = "model_loading"
    retry_after_s = 5

    def __init__(self, path: Path, waited_s: float) -> None:
        since = f" after {waited_s:.0f} s" if waited_s else ""
        super().__init__(f"The model {path} is still being loaded{since}.", fix="Try again in a few seconds.")
        self.path = path


class OtherModel(ModelError):
    """The ML backend was started with another model than the worker that learns."""

    code: ClassVar[str] = "other_model"

    def __init__(self, serves: str, expected: str) -> None:
        super().__init__(
            f"The ML backend serves {serves}, and the worker would learn on {expected}.",
            fix="Give both the same LABELLOOP_MODEL, or put the model on the store: `labelloop models add MODEL.onnx "
            "--activate`.",
        )
        self.serves = serves
        self.expected = expected


class NotLearnable(ModelError):
    """The model can be served, but nothing of it can be refitted."""

    code: ClassVar[str] = "model_not_learnable"

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"The model {path} cannot learn: {reason}.",
            fix="Serve the embedded default, or an export for one photo a run of a layout in STANDARD or FINISHED "
            "(docs/reference/tables.md), or give the model outputs `boxes`, `objectness`, `scores` and `embeddings` as "
            "docs/reference/base-model.md describes them.",
        )
        self.path = path
        self.reason = reason


class DatasetUnreadable(LabelloopError):
    """A labelled data set given to `labelloop learn simulate` cannot be read."""

    code: ClassVar[str] = "dataset_unreadable"
    status: ClassVar[int] = 400

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"{path} cannot be read as labelled photos: {reason}.",
            fix="Give a folder of photos with `--images`, and with `--annotations` a folder of Pascal VOC XML, "
            "a folder of YOLO text files or a COCO JSON file.",
        )
        self.path = path
        self.reason = reason


class TestListUnusable(LabelloopError):
    """The list of test photos given to `labelloop learn simulate` cannot be read, or divides nothing."""

    code: ClassVar[str] = "test_list_unusable"
    status: ClassVar[int] = 400

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"The test list {path} cannot be used: {reason}.",
            fix="Give with `--test-list` a text file that names photos of the data set, one a line, with or without "
            "folder and ending. They are judged on, and only the others may be labelled.",
        )
        self.path = path
        self.reason = reason
