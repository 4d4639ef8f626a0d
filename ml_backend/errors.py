"""Errors of the ML backend, each with its fix."""

from pathlib import Path

from labelloop.service.errors import LabelloopError


class ModelError(LabelloopError):
    """The model cannot be served."""

    code = "model_error"
    status = 503


class ModelMissing(ModelError):
    """The model file does not exist."""

    code = "model_missing"
    message = "There is no model file at {path}."
    fix = (
        "Give the path of an ONNX file with --model PATH, as the argument of `labelloop models add`, or with "
        "LABELLOOP_MODEL for all services. Without one the embedded default is served."
    )


class ModelBroken(ModelError):
    """The file exists, but it is not a detector that can run."""

    code = "model_broken"
    message = "The model {path} cannot be served: {reason}"
    fix = "Export the model to ONNX again."
    path: Path
    reason: str


class UnknownLayout(ModelError):
    """No known layout matches the outputs of the graph."""

    code = "model_layout_unknown"
    message = "The model {path} {problem}. Its outputs: {outputs}."
    fix = (
        "`labelloop models inspect MODEL --suggest --image PHOTO` proposes a layout file from the graph and an image. "
        "Or name a known layout: --layout NAME on the command line, LABELLOOP_MODEL_LAYOUT for what is served. "
        "Known layouts: {layouts}."
    )


class LayoutFileError(ModelError):
    """A model's `MODEL.layout.toml` cannot be used."""

    code = "layout_file"
    path: Path
    key: str
    reason: str

    def __init__(self, path: Path, key: str, reason: str) -> None:
        super().__init__(
            f"The layout file {path}{f': `{key}`' if key else ''} {reason}.",
            fix="Correct this key (docs/reference/layout-file.md lists all), or let "
            "`labelloop models inspect MODEL --suggest --image PHOTO` propose a file.",
            path=path,
            key=key,
            reason=reason,
        )


class NamesMissing(ModelError):
    """The model's class names are unknown, or their number does not match its outputs."""

    code = "model_names_missing"
    fix = "Put a text file {path.name}.names next to the model, one class name per line, in the model's order."
    named: int | None

    def __init__(self, path: Path, *, classes: int | None, named: int | None = None, source: str = "") -> None:
        problem = f"{source} names {named} of them" if named is not None else "their names are unknown"
        has = "an unknown number of classes" if classes is None else f"{classes} classes"
        super().__init__(f"The model {path} has {has}, and {problem}.", path=path, named=named)


class NotLearnable(ModelError):
    """The model can be served, but it cannot be trained."""

    code = "model_not_learnable"
    message = "The model {path} cannot learn: {reason}."
    fix = (
        "Serve the embedded default, or an export with batch size 1 of a layout in STANDARD or FINISHED "
        "(docs/reference/tables.md), or give the model outputs `boxes`, `objectness`, `scores` and `embeddings` as "
        "docs/reference/base-model.md describes them."
    )
    reason: str


class DatasetUnreadable(LabelloopError):
    """The labelled data set given to `labelloop learn simulate` or `labelloop train` cannot be read."""

    code = "dataset_unreadable"
    status = 400
    message = "{path} cannot be read as labelled images: {reason}."
    fix = (
        "Give a folder of Pascal VOC XML, a folder of YOLO text files or a COCO JSON file (`learn simulate`: "
        "`--annotations`, `train`: `--data`), and the folder of its images with `--images`."
    )
    reason: str


class TestListUnusable(LabelloopError):
    """The list of test images given to `labelloop learn simulate` cannot be read, or does not split the data set."""

    code = "test_list_unusable"
    status = 400
    message = "The test list {path} cannot be used: {reason}."
    fix = (
        "Give with `--test-list` a text file that names images of the data set, one per line, with or without "
        "folder and extension. Models are evaluated on them; only the other images may be labelled."
    )
