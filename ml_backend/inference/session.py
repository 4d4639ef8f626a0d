"""Owns the ONNX Runtime session of a worker: opened once, run in batches, as few runs at a time as are of use."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.checksums import check_file
from ml_backend.detection.onnx_graph import Arrays, Graph, read_graph
from ml_backend.errors import ModelBroken, ModelMissing
from ml_backend.inference.run_limit import RunLimit

PROVIDERS: Mapping[str, int] = {"CUDAExecutionProvider": 16, "CPUExecutionProvider": 1}
"""Where a graph may run, best first -> photos a run where the graph's batch is open. On a processor a larger batch is
no faster, and costs 60 MB a photo with the embedded model."""

ON_PROCESSOR = ["CPUExecutionProvider"]

AT_ONCE = 2
"""Runs of one session at a time on a processor: one run alone leaves cores idle in the parts of a graph that do not
spread over threads. A third is no faster, and each takes its memory (25 MB with the embedded model)."""


class Engine:
    """A session and its graph."""

    def __init__(self, path: Path, *, threads: int = 0, graph: Path | None = None, keep: Path | None = None) -> None:
        """Opens the file.

        Args:
            path: The ONNX file.
            threads: Threads of one run; 0 lets ONNX Runtime take one a core.
            graph: The same graph as ONNX Runtime optimised it for this processor; None: it is optimised now.
            keep: Where the optimised graph is written to, where it can be; only for the processor.

        Raises:
            ModelMissing: There is no such file.
            ModelDamaged: Its bytes are not those of the checksum beside it.
            ModelBroken: ONNX Runtime cannot open it.
        """
        self._session = open_session(path, threads=threads, graph=graph, keep=keep)
        self._limit = RunLimit()
        self._path = path
        self._turn = threading.Semaphore(AT_ONCE if self._session.get_providers() == ON_PROCESSOR else 1)
        self.graph: Graph = read_graph(self._session)
        if self.graph.image is None:
            inputs = ", ".join(str(tensor) for tensor in self.graph.inputs)
            raise ModelBroken(path, f"it takes no single photo. Its inputs: {inputs}")
        self._input = self.graph.image.name
        self.batch = self._batch()

    def run(self, photos: Sequence[npt.NDArray[Any]], outputs: Sequence[str] | None = None) -> Arrays:
        """One run on at most `batch` photos; a graph of a larger fixed batch is filled up and the rest cut off.

        Args:
            photos: Arrays of the graph's input without the batch axis.
            outputs: The outputs wanted, all where None.

        Raises:
            ModelBroken: ONNX Runtime refuses (wrong size, out of memory), or the run takes longer than `RUN_LIMIT_S`.
        """
        if not self.graph.batched:
            return self._fetch(photos[0], photos[0], 1, outputs)
        stacked = np.stack(photos) if len(photos) > 1 else photos[0][None]  # one photo needs no copy
        fixed = self.graph.image.shape[0] if self.graph.image else None
        if fixed is not None and len(photos) < fixed:
            filling = np.zeros((fixed - len(photos), *stacked.shape[1:]), stacked.dtype)
            stacked = np.concatenate([stacked, filling])
        arrays = self._fetch(stacked, photos[0], len(stacked), outputs)
        whole = len(stacked) == len(photos)
        return {
            name: array if whole or len(array) != len(stacked) else array[: len(photos)]
            for name, array in arrays.items()
        }

    def _fetch(
        self, given: npt.NDArray[Any], photo: npt.NDArray[Any], count: int, outputs: Sequence[str] | None
    ) -> Arrays:
        names = list(outputs) if outputs is not None else [tensor.name for tensor in self.graph.outputs]
        height, width = photo.shape[:2] if self.graph.channels_last else photo.shape[1:]
        try:
            with self._turn:
                feeds = {self._input: given, **self.graph.feeds(height, width, count)}
                arrays = self._limit.run(self._session, names, feeds)
        except Exception as error:  # as above
            raise ModelBroken(self._path, _first_line(error)) from error
        return dict(zip(names, arrays, strict=True))

    def _batch(self) -> int:
        fixed = self.graph.image.shape[0] if self.graph.image and self.graph.batched else 1
        if fixed is not None:
            return fixed
        return PROVIDERS.get(self._session.get_providers()[0], 1)


def open_session(path: Path, *, threads: int = 0, graph: Path | None = None, keep: Path | None = None) -> Any:
    """An `onnxruntime.InferenceSession`; the arguments and errors are those of `Engine`."""
    import onnxruntime

    if not path.is_file():
        raise ModelMissing(path)
    check_file(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # the warnings of exporters are nothing that a user could act on
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that spin between runs keep the cores from the threads that decode photos and answer /health.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    available = onnxruntime.get_available_providers()
    providers = [name for name in PROVIDERS if name in available]
    chosen = path
    if providers == ON_PROCESSOR and graph is not None:
        chosen = graph
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    elif providers == ON_PROCESSOR and keep is not None and not path.with_name(f"{path.name}.data").is_file():
        options.optimized_model_filepath = str(keep)  # one file: a graph of more than 2 GB has its weights beside it
    try:
        return onnxruntime.InferenceSession(str(chosen), options, providers=providers)
    except Exception as error:  # ONNX Runtime raises a family of its own that derives from Exception alone
        raise ModelBroken(path, _first_line(error)) from error


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
