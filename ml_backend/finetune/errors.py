"""Errors of fine-tuning, each with its fix."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from labelloop.service.errors import LabelloopError


class TorchMissing(LabelloopError):
    """The extra `[train]` is not installed."""

    code = "train_extra_missing"
    status = 501
    message = "Fine-tuning needs torch and onnx2pytorch, and {missing}."
    fix = (
        "Install the extra: pip install 'labelloop[train]' (0.2 GB to download on a Mac or Windows; 3 GB on Linux, "
        "where PyPI has torch with CUDA only. Without a GPU first run: "
        "pip install torch --index-url https://download.pytorch.org/whl/cpu, 0.2 GB)."
    )
    missing: str


class GpuMissing(LabelloopError):
    """A GPU was asked for, and torch finds none."""

    code = "gpu_missing"
    status = 409
    message = "torch finds no GPU: {reason}."
    fix = "Pass --device cpu, or install torch with CUDA (https://pytorch.org/get-started) and the GPU's driver."
    reason: str


class GpuMemoryFull(LabelloopError):
    """The memory of the GPU does not suffice."""

    code = "gpu_memory_full"
    status = 409
    message = "The GPU has too little free memory: {reason}"
    fix = (
        "End other programs on it (`nvidia-smi` lists them), or train on the CPU: --device cpu, and the variable "
        "CUDA_VISIBLE_DEVICES with an empty value for the worker."
    )
    reason: str


@contextmanager
def disk_errors_name(file: Path) -> Iterator[None]:
    """Within the block, errors of the disk that name no file, as those of a write, name this one."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(file)
        raise


class TrainingRuns(LabelloopError):
    """A fine-tuning of the project runs already."""

    code = "training_runs"
    status = 409
    message = "Project {project} is being fine-tuned already: {what}."
    fix = 'Wait for it: its learning page shows how far it is. Or set `on = "off"` in the table [train] of learn.toml.'
    project: int


class NotTrainable(LabelloopError):
    """A model that can be served cannot be fine-tuned."""

    code = "model_not_trainable"
    status = 422
    message = "The model {path} cannot be fine-tuned: {reason}."
    fix = (
        "Give another model with --model: the embedded default, `labelloop models pull yolox-nano`, or an ONNX export "
        "of YOLOX, YOLOv5, v8 to v11 or NanoDet without built-in suppression. The refit of the last layer, `labelloop "
        "learn`, and your own trainer (docs/how-to/continuous-training.md) work with it as before."
    )
    path: Path
    reason: str


class ObjectsTooSmall(LabelloopError):
    """No object is large enough at the network's input."""

    code = "objects_too_small"
    status = 422
    message = "{source} cannot be trained on: {reason}."
    fix = (
        "Cut the images into tiles and train on those, or give a model with a larger input. `labelloop learn` tries "
        "tiles by itself."
    )
    source: str
    reason: str


class TooLittleToTrain(LabelloopError):
    """The data set has too few labelled images to train and to evaluate."""

    code = "too_little_to_train"
    status = 409
    message = "{source} cannot be trained on: {reason}."
    fix = "Label more images with boxes, at least {least}; until then `labelloop learn` refits the last layer."
    source: str
    reason: str
    least: int
