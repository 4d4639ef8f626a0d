"""A refit beside a fine-tuning: seconds from a new label to the refitted layer, alone and while the worker trains."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import numpy as np

from bench.train import NANO, ROOT, Case, root_of, split

# Labelled images of the refit, and refits of each kind.
LABELLED, ROUNDS = 20, 20

# The fine-tuning, as `ml_backend.learning.train_child` runs it: its priority, one core.
_TRAINING = """
    import sys
    from dataclasses import replace
    from pathlib import Path
    import torch
    from bench.train import NANO, Case, split
    from ml_backend.finetune.recipe import Recipe
    from ml_backend.finetune.run import FinetuneJob, finetune
    from ml_backend.learning.train_child import lower_priority

    lower_priority()
    torch.set_num_threads(1)
    labelled, test = split(Case("bccd", 100, 0))
    job = FinetuneJob(NANO, labelled, Path(sys.argv[1]) / "out.onnx", Recipe(minutes=30), test=test[:20], device="cpu")
    finetune(job, progress=lambda state: print(state.step, flush=True) if state.step in (1, 2) else None)
"""


def run() -> str:
    """The figures, in Markdown."""
    import importlib.util

    if importlib.util.find_spec("torch") is None:
        return "Not measured: the extra `[train]` is not installed."
    if not NANO.is_file() or root_of("bccd") is None:
        return "Not measured: the data sets are not on this machine."
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        alone = refits(folder)
        command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(_TRAINING), name]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, env=environment, cwd=ROOT, start_new_session=True
        ) as child:
            assert child.stdout is not None
            child.stdout.readline()  # it trains
            before = _cpu_seconds(child.pid)
            beside = refits(folder)
            trained = _cpu_seconds(child.pid) - before
            child.kill()
    rows = [
        f"| {name} | {np.percentile(values, 50):.2f} | {np.percentile(values, 95):.2f} | {max(values):.2f} |"
        for name, values in (("alone", alone), ("beside a fine-tuning", beside))
    ]
    return "\n".join(
        [
            f"Seconds from a new labelled image to a refitted last layer of YOLOX-nano ({LABELLED} images of blood",
            f"cells: decode, features, cross-validation, fit), {ROUNDS} times. The fine-tuning runs as the worker's",
            "child process: one core, lowest priority.",
            "",
            "| refit | p50 | p95 | most |",
            "|---|---|---|---|",
            *rows,
            "",
            f"The fine-tuning had {trained:.0f} CPU seconds meanwhile, of {sum(beside):.0f} by the clock.",
        ]
    )


def refits(folder: Path) -> list[float]:
    """Seconds of each refit."""
    from ml_backend.training.backbone import open_backbone
    from ml_backend.training.feature_cache import FeatureCache
    from ml_backend.training.model_selection import select_and_fit
    from ml_backend.training.simulate import FeatureSource

    labelled, _ = split(Case("bccd", LABELLED + ROUNDS, 0))
    backbone = open_backbone(NANO, folder=folder, threads=1)
    classes = {label for image in labelled for label in image.labels}
    known = [(name, index) for index, name in enumerate(backbone.names) if name in classes]
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        source = FeatureSource(backbone, FeatureCache(Path(cache), max_bytes=2**30))
        examples = [source.example(image) for image in labelled[:LABELLED]]
        seconds = []
        for image in labelled[LABELLED:]:
            started = time.perf_counter()
            examples = [*examples[1:], source.example(image)]
            select_and_fit(examples, levels=backbone.levels, backbone_classes=known)
            seconds.append(time.perf_counter() - started)
    return seconds


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
