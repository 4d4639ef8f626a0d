"""Whether moves and renames kept every byte: exports, reports, consensus and learned models, before and now.

The same inputs go through the command line of both: the test matrix in every format, dense tasks of several annotators
with boxes and outlines, and a fit on drawn images. Timestamps, sentences of reports and digits of calibrations beyond
1e-12 are left out of the comparison.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from bench.bounds import CONFIG, dense_task
from bench.house import checkout

ROOT = Path(__file__).parents[1]
COMMIT = "4a17226"
FORMATS = (
    "coco,voc,voc-masks,yolo-detect,yolo-segment,yolo-obb,yolo-pose,yolo-classify,"
    "ndjson-detect,ndjson-segment,ndjson-obb,ndjson-pose,webdataset"
)
# Cases of the test matrix: "mixed" has every kind of shape.
CASES = ("mixed", "noted", "names", "people", "twins", "several")
# Keys of JSON files that hold the time of the run, or an address of the run's folder.
VOLATILE = ("created_at", "source", "seconds", "manifest_sha256", "sha256", "path", "url")
# Keys of reports with sentences, which were rewritten.
PROSE = ("text", "note", "reason", "review", "violations", "concerns", "evidence", "not_judged")

MAIN = """
import sys
try:
    from labelloop.cli.main import main
except ImportError:
    from labelloop.cli import main
sys.argv[0] = "labelloop"
main()
"""

# Modules of each commit: those of the working tree, and those of COMMIT.
LEARN = """
import json, sys, tempfile
from pathlib import Path
import numpy as np
try:
    from ml_backend.training.backbone import open_backbone
    from ml_backend.inference.detector import embedded_model
    from ml_backend.detection.preprocess import prepare
    from ml_backend.training.examples import Example
    from ml_backend.training.model_selection import select_and_fit
    from ml_backend.training.onnx_export import learned_model
except ImportError:
    from ml_backend.backbone import open_backbone
    from ml_backend.detector import embedded_model
    from ml_backend.preprocess import prepare
    from ml_backend.examples import Example
    from ml_backend.learn import learn as select_and_fit
    from ml_backend.learned import learned_model
from tests.drawn import draw_shapes
out = Path(sys.argv[1])
backbone = open_backbone(embedded_model(), folder=Path(tempfile.mkdtemp()), threads=1)
examples = []
for seed in range(9):
    image, shapes = draw_shapes(seed, ("Disc", "Square") if seed % 3 else ("Disc",))
    look = getattr(backbone, "extract_features", None) or backbone.see
    [features] = look([prepare(image, backbone.spec)])
    boxes = np.array([box for _, box in shapes], np.float32)
    examples.append(Example(features, boxes, tuple(label for label, _ in shapes)))
for count in (1, 3, 9):
    head = select_and_fit(examples[:count], levels=backbone.levels).head
    model = learned_model(backbone, head)
    for entry in model.metadata_props:
        if entry.key == "labelloop.lines":  # calibrations: equal but for the last digit of another sigmoid
            rows = json.loads(entry.value)
            entry.value = json.dumps([row and [round(number, 12) for number in row] for row in rows])
    (out / f"learned-{count}.onnx").write_bytes(model.SerializeToString())
"""


def run() -> str:
    """The number of equal and different files by part, in Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if (before := checkout(COMMIT, work / COMMIT)) is None:
            return f"Commit {COMMIT} is not in this repository: nothing to compare with."
        inputs = work / "inputs"
        inputs.mkdir()
        write_inputs(inputs)
        files = {name: outputs(root, inputs, work / name) for name, root in (("before", before), ("now", ROOT))}
        lines = ["| part | files | equal | different |", "|---|---|---|---|"]
        different: list[str] = []
        for part in ("export", "report", "consensus", "what-if", "learned"):
            old, new = ({k: v for k, v in found.items() if k.startswith(part)} for found in files.values())
            unequal = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
            lines.append(f"| {part} | {len(new)} | {len(new) - len(unequal)} | {len(unequal)} |")
            different += unequal
        lines += ["", f"Commit {COMMIT} and the working tree, on the same inputs."]
        lines += ["", *(f"- `{name}` differs" for name in different[:20])] if different else []
        return "\n".join(lines)


def write_inputs(folder: Path) -> None:
    """The test matrix and dense tasks as Label Studio's JSON, each next to its label config, with their images."""
    from tests.exporters.conftest import Build
    from tests.exporters.matrix import HEIGHT, LABELS, ODD_LABELS, WIDTH, cases, config

    build = Build()
    for case, images in cases(build).items():
        if case not in CASES:
            continue
        tasks = []
        for number, (name, results) in enumerate(images.items(), start=1):
            path = folder / "images" / case / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (WIDTH, HEIGHT), (90, 120, 150)).save(path)
            named = [result | {"from_name": result["type"]} for result in results]
            address = f"/data/local-files/?d={case}/{name}"
            tasks.append(build.task(number, build.annotation(*named), image=address))
        labels = (*LABELS, *ODD_LABELS) if case == "names" else LABELS
        (folder / f"{case}.json").write_text(json.dumps(tasks))
        (folder / f"{case}.xml").write_text(config(labels))
    for shape, size in (("dense-boxes", 60), ("dense-outlines", 30)):
        tasks = [dense_task(size, people, outlines="outlines" in shape) | {"id": people} for people in (1, 2, 3)]
        (folder / f"{shape}.json").write_text(json.dumps(tasks))
        (folder / f"{shape}.xml").write_text(CONFIG)
    (folder / "strict.toml").write_text("agreement = 0.95\nmax_annotators = 4\n")


def outputs(root: Path, inputs: Path, out: Path) -> dict[str, str]:
    """What a checkout makes of the inputs: part and file -> checksum."""
    out.mkdir()
    checksums: dict[str, str] = {}
    for tasks in sorted(inputs.glob("*.json")):
        name, source = tasks.stem, ("--from", str(tasks), "--label-config", str(tasks.with_suffix(".xml")))
        sets, formats = [("latest", out / f"export-{name}")], FORMATS
        if name.startswith("dense"):
            formats = FORMATS.replace("voc-masks,", "")  # masks of 64 megapixels take minutes
            sets.append(("consensus", out / f"export-consensus-{name}"))
        for annotation, folder in sets:
            to = f"file://{folder}"
            labelloop(root, inputs, out, "export", *source, "--to", to, "--format", formats, "--max-errors", "1",
                      "--annotation", annotation)  # fmt: skip
            labelloop(root, inputs, out, "dataset", "pull", to, "--to", str(folder) + "-pulled", "--no-images")
            checksums |= {f"export {file}": checksum for file, checksum in tree(folder.parent, folder.name)}
            checksums |= {f"export {file}": checksum for file, checksum in tree(folder.parent, f"{folder.name}-pulled")}
        for part, options in {
            "report": ("report", *source, "--json", str(out / "report.json")),
            "consensus": ("consensus", *source, "--out", str(out / "consensus.json")),
            "what-if": (
                "what-if",
                *source,
                "--policy",
                str(inputs / "strict.toml"),
                "--json",
                str(out / "what-if.json"),
            ),
        }.items():
            labelloop(root, inputs, out, "qc", *options)
            checksums[f"{part} {name}"] = checksum_of(out / f"{part}.json")
        print(out.name, name, flush=True)
    learned = out / "learned"
    learned.mkdir()
    python(root, inputs, out, "-c", LEARN, str(learned))
    return checksums | {f"learned {file.name}": checksum_of(file) for file in sorted(learned.iterdir())}


def labelloop(root: Path, inputs: Path, out: Path, *words: str) -> None:
    """Runs a command of a checkout."""
    python(root, inputs, out, "-c", MAIN, *words)


def python(root: Path, inputs: Path, out: Path, *words: str) -> None:
    """Runs Python on a checkout; a failed command is part of the comparison only where it writes nothing."""
    environment = os.environ | {
        "PYTHONPATH": str(root), "LABELLOOP_HOME": str(out / "home"), "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1", "LABELLOOP_LOCAL_FILES_ROOT": str(inputs / "images"),
    }  # fmt: skip
    done = subprocess.run([sys.executable, *words], cwd=root, env=environment, capture_output=True, check=False)
    if done.returncode and b"Traceback" in done.stderr:
        raise RuntimeError(done.stderr.decode()[-2000:])


def tree(folder: Path, name: str) -> Iterator[tuple[str, str]]:
    """The files below a folder with their checksums."""
    for file in sorted((folder / name).rglob("*")):
        if file.is_file():
            yield str(file.relative_to(folder)), checksum_of(file)


def checksum_of(file: Path) -> str:
    """SHA-256 of a file; of JSON without the time and place of the run."""
    data = file.read_bytes() if file.is_file() else b"missing"
    if file.suffix == ".json" and data[:1] in b"{[":
        data = json.dumps(stable(json.loads(data)), sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()


def stable(value: Any) -> Any:
    """JSON without volatile keys."""
    if isinstance(value, Mapping):
        return {key: stable(item) for key, item in value.items() if key not in (*VOLATILE, *PROSE)}
    return [stable(item) for item in value] if isinstance(value, list) else value
