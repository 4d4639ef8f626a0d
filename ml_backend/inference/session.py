"""ONNX Runtime session of a worker: opened once, run in batches, with bounded concurrency."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.checksums import verify_file
from ml_backend.detection.onnx_graph import DTYPES, Arrays, Graph, read_graph
from ml_backend.errors import ModelBroken, ModelMissing
from ml_backend.inference.run_limit import RunLimit

# Execution providers in order of preference -> batch size where the graph's batch is open. On a CPU a larger batch is
# no faster, and takes 60 MB per image with the embedded model.
PROVIDERS: Mapping[str, int] = {"CUDAExecutionProvider": 16, "CPUExecutionProvider": 1}

CPU_ONLY = ["CPUExecutionProvider"]

# The fix of models whose input is no image.
ONE_IMAGE = (
    "Serve a model of one image, [batch, 3 or 1, height, width] or [batch, height, width, 3 or 1]. Models of text, "
    "sound, video or several images are not served."
)

# Concurrent runs of one session on a CPU: a single run leaves cores idle in serial parts of the graph. A third run is
# no faster, and each takes memory (25 MB with the embedded model).
CONCURRENT_RUNS = 2


class Engine:
    """A session and its graph."""

    def __init__(
        self,
        path: Path,
        *,
        threads: int = 0,
        optimized: Path | None = None,
        save_optimized: Path | None = None,
        changed: bytes | None = None,
    ) -> None:
        """Open the file.

        Args:
            path: The ONNX file.
            threads: Threads per run; 0: one per core.
            optimized: The graph as optimised for this CPU; None: optimise now.
            save_optimized: Where to write the optimised graph; CPU only.
            changed: The graph to open instead of the file's.

        Raises:
            ModelMissing: The file does not exist.
            ModelDamaged: Its bytes do not match its checksum.
            ModelBroken: ONNX Runtime cannot open it.
        """
        self._session = open_session(
            path, threads=threads, optimized=optimized, save_optimized=save_optimized, changed=changed
        )
        self._limit = RunLimit()
        self._path = path
        self._slots = threading.Semaphore(CONCURRENT_RUNS if self._session.get_providers() == CPU_ONLY else 1)
        self.graph: Graph = read_graph(self._session, path)
        if self.graph.image is None:
            inputs = ", ".join(str(tensor) for tensor in self.graph.inputs)
            raise ModelBroken(
                path=path, reason=f"it does not have exactly one image input. Its inputs: {inputs}", fix=ONE_IMAGE
            )
        if self.graph.image.dtype not in DTYPES:
            raise ModelBroken(
                path=path,
                reason=f"its input takes {self.graph.image.dtype}, and {', '.join(sorted(DTYPES))} are supported",
                fix="Export it with a float32 or uint8 input.",
            )
        self._input = self.graph.image.name
        self.batch = self._batch()
        self.on_cpu: bool = self._session.get_providers() == CPU_ONLY

    def run(self, images: Sequence[npt.NDArray[Any]], outputs: Sequence[str] | None = None) -> Arrays:
        """Run at most `batch` images; smaller batches are padded where the graph's batch is fixed.

        Args:
            images: Input arrays without the batch axis.
            outputs: Names of the outputs; all where None.

        Raises:
            ModelBroken: ONNX Runtime fails (wrong size, out of memory), or the run exceeds `RUN_LIMIT_S`.
        """
        if not self.graph.batched:
            return self._fetch(images[0], images[0], 1, outputs)
        stacked = np.stack(images) if len(images) > 1 else images[0][None]  # a single image needs no copy
        fixed = self.graph.image.shape[0] if self.graph.image else None
        if fixed is not None and len(images) < fixed:
            padding = np.zeros((fixed - len(images), *stacked.shape[1:]), stacked.dtype)
            stacked = np.concatenate([stacked, padding])
        arrays = self._fetch(stacked, images[0], len(stacked), outputs)
        unpadded = len(stacked) == len(images)
        return {
            name: array if unpadded or len(array) != len(stacked) else array[: len(images)]
            for name, array in arrays.items()
        }

    def _fetch(
        self, batch: npt.NDArray[Any], image: npt.NDArray[Any], count: int, outputs: Sequence[str] | None
    ) -> Arrays:
        names = list(outputs) if outputs is not None else [tensor.name for tensor in self.graph.outputs]
        height, width = image.shape[:2] if self.graph.channels_last else image.shape[1:]
        try:
            with self._slots:
                feeds = {self._input: batch, **self.graph.auxiliary_feeds(height, width, count)}
                if self.graph.cut is not None:
                    feeds |= self.graph.cut.feeds(height, width)
                arrays = self._limit.run(self._session, names, feeds)
        except Exception as error:  # ONNX Runtime raises errors that derive from Exception alone
            raise ModelBroken(path=self._path, reason=_first_line(error)) from error
        return dict(zip(names, arrays, strict=True))

    def _batch(self) -> int:
        fixed = self.graph.image.shape[0] if self.graph.image and self.graph.batched else 1
        if fixed is not None:
            return fixed
        return PROVIDERS.get(self._session.get_providers()[0], 1)


def open_session(
    path: Path,
    *,
    threads: int = 0,
    optimized: Path | None = None,
    save_optimized: Path | None = None,
    changed: bytes | None = None,
) -> Any:
    """Open an `onnxruntime.InferenceSession`; arguments and errors are those of `Engine`."""
    import onnxruntime

    if not path.is_file():
        raise ModelMissing(path=path)
    verify_file(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # users cannot act on exporters' warnings
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # planned memory is 30 MB more per session of the embedded model, and no faster
    # Spinning threads would take cores from the threads that decode images and answer /health.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    available = onnxruntime.get_available_providers()
    providers = [name for name in PROVIDERS if name in available]
    chosen: Path | bytes = path if changed is None else changed
    if providers == CPU_ONLY and optimized is not None:
        chosen = optimized
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    elif providers == CPU_ONLY and save_optimized is not None and not path.with_name(f"{path.name}.data").is_file():
        options.optimized_model_filepath = str(save_optimized)  # graphs above 2 GB keep their weights in a second file
    try:
        model = chosen if isinstance(chosen, bytes) else str(chosen)
        return onnxruntime.InferenceSession(model, options, providers=providers)
    except Exception as error:  # ONNX Runtime raises errors that derive from Exception alone
        raise _refused(path, str(error)) from error


# First bytes of files that are no ONNX model, at an offset -> what the file is, and the fix.
_OTHER_FILES: Sequence[tuple[int, bytes, str, str]] = (
    (0, b"version https://git-lfs", "a pointer of Git LFS", "Run `git lfs pull` in its repository."),
    (0, b"<", "a web page", "Download the file itself."),
    (0, b"PK\x03\x04", "a ZIP archive, such as a checkpoint of PyTorch", "Export the model to ONNX."),
    (0, b"\x80\x02", "a pickle, such as a checkpoint of PyTorch", "Export the model to ONNX."),
    (0, b"\x89HDF", "an HDF5 file, such as a model of Keras", "Convert it to ONNX, for example with tf2onnx."),
    (4, b"TFL3", "a TensorFlow Lite model", "Convert it to ONNX, for example with tf2onnx."),
)
# What ONNX Runtime says of a model that it does not open -> the fix.
_FIXES = (
    ("external data", "Put the file with its weights next to it, under the name that it was exported with."),
    ("not a registered function", "Export it with operators of ONNX alone, without those of another library."),
    ("opset", "Export it again with a lower opset, such as 17."),
    ("ir version", "Export it again with a lower opset, such as 17."),
    ("protobuf", "The file is damaged or incomplete: copy or export it again."),
)


def _refused(path: Path, said: str) -> ModelBroken:
    """The error of a file that ONNX Runtime does not open, with the fix that its bytes or what was said suggest."""
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        return ModelBroken(path=path, reason="the file is empty", fix="Copy or export it again.")
    for offset, mark, what, fix in _OTHER_FILES:
        if head[offset:].startswith(mark):
            return ModelBroken(path=path, reason=f"it is {what}, not an ONNX model", fix=fix)
    fix = next((fix for words, fix in _FIXES if words in said.lower()), "")
    reason = said.rsplit(") ", 1)[-1] if "onnxruntime_src" in said else said  # without the place in its sources
    return ModelBroken(path=path, reason=_first_line(reason), fix=fix)


def _first_line(error: Exception | str) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
