"""Fine-tuning beside the refit: AP50 by labelled images, at most ten CPU minutes of one core a fit."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

from ml_backend.finetune.trial import Trial

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
NANO = SHARED / "models" / "yolox_nano.onnx"
MIRRORS = Path(os.environ.get("LABELLOOP_MIRRORS", ROOT.parent / ".mirror"))
# Fits of this machine, so that a stopped bench goes on; and the data sets that were unpacked.
WORK = Path(os.environ.get("BENCH_WORK", Path(tempfile.gettempdir()) / "labelloop-bench-train"))
# Figures of every fit on the page. One that is not made again keeps its own.
RECORD = Path(__file__).parent / "results" / "train.jsonl"

# Data set -> (seeds by number of labelled images).
CASES: dict[str, dict[int, int]] = {
    "bccd": {20: 3, 50: 1, 100: 1, 200: 3},
    "raccoon": {20: 1, 150: 1},
    "neu_det": {20: 1, 200: 1},
    "deep_pcb": {20: 1, 200: 1},
}
# CPU minutes of the training by number of labelled images.
MINUTES = {20: 4.0, 50: 5.0, 100: 6.0, 150: 6.0, 200: 8.0}

TITLES = {
    "bccd": "blood cells (BCCD val)",
    "raccoon": "raccoons (50 held out)",
    "neu_det": "steel defects (NEU-DET)",
    "deep_pcb": "circuit board defects (DeepPCB)",
}
PCB_CLASSES = {1: "open", 2: "short", 3: "mousebite", 4: "spur", 5: "copper", 6: "pin-hole"}
NEU_REPO = "siddhartamukherjee+NEU-DET-Steel-Surface-Defect-Detection"
PCB_REPO = "tangsanli5201+DeepPCB"

# What the page needs of a fit, and what the record keeps.
NEEDED = ("key", "boxes", "refit", "tuned", "upon", "trial", "seen", "cpu_minutes")
KEPT = (*NEEDED, "ended", "test")


@dataclass(frozen=True)
class Case:
    """One fit."""

    data: str
    labelled: int
    seed: int

    @property
    def key(self) -> str:
        """Its name in the file of results."""
        return f"{self.data}:{self.labelled}:{self.seed}"


def cases() -> list[Case]:
    """All fits, in the order in which they are made."""
    every = [
        Case(data, labelled, seed)
        for data, sizes in CASES.items()
        for labelled, n in sizes.items()
        for seed in range(n)
    ]
    return sorted(every, key=lambda case: (case.seed, case.labelled not in {20, 200, 150}, -case.labelled))


def run() -> str:
    """The figures, in Markdown."""
    import importlib.util

    if importlib.util.find_spec("torch") is None:
        return "Not measured: the extra `[train]` is not installed."
    if not NANO.is_file():
        return "Not measured: the data sets are not on this machine."
    for case in cases():
        if case.key not in results(WORK / "fits.jsonl") and root_of(case.data) is not None:
            command = [sys.executable, "-W", "ignore", "-m", "bench.train", case.key]
            subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return page(recorded())


def results(file: Path) -> dict[str, dict]:
    """Fits in a file by their keys, the last of each; those without a figure of the page are named and left out."""
    fits = {}
    for number, line in enumerate(file.read_text().splitlines() if file.is_file() else [], start=1):
        try:
            entry = json.loads(line)
        except ValueError:  # the bench was killed while it wrote it
            entry = {}
        if lacking := [name for name in NEEDED if name not in entry]:
            print(f"Left out: line {number} of {file} has no {', '.join(lacking)}.", file=sys.stderr)
        else:
            fits[entry["key"]] = entry
    return fits


def recorded() -> dict[str, dict]:
    """The record, after the fits of this machine were written to it."""
    done = results(RECORD) | results(WORK / "fits.jsonl")
    lines = [json.dumps({name: entry[name] for name in KEPT if name in entry}) for _, entry in sorted(done.items())]
    RECORD.write_text("\n".join(lines) + "\n")
    return done


def fit(case: Case) -> dict:
    """Train and refit on the same images, and evaluate both on the test images."""
    import torch

    from ml_backend.finetune.recipe import Recipe
    from ml_backend.finetune.run import FinetuneJob, finetune
    from ml_backend.finetune.scores import refit_score

    torch.set_num_threads(1)
    labelled, test = split(case)
    WORK.mkdir(parents=True, exist_ok=True)
    out = WORK / f"{case.key.replace(':', '-')}.onnx"
    recipe = Recipe(minutes=MINUTES[case.labelled], seed=case.seed)
    checkpoint = WORK / "checkpoints" / f"{out.stem}.pt"
    job = FinetuneJob(
        NANO, labelled, out, recipe, test=test, folder=WORK / "features", compare=False, device="cpu",
        checkpoint=checkpoint,
    )  # fmt: skip
    resumed = checkpoint.exists()
    spent = time.process_time()
    done = finetune(job, clock=time.process_time)
    spent = time.process_time() - spent
    refit = refit_score(NANO, labelled, test, folder=WORK / "features")
    upon = refit_score(out, labelled, test, folder=WORK / "features").ap50
    return {
        "key": case.key,
        "trial": asdict(done.trial) if done.trial else None,
        "parent": done.scores["parent"].ap50,
        "refit": refit.ap50,
        "tuned": done.scores["fine-tuned"].ap50,
        "upon": upon,
        "seen": done.training.seen,
        "cpu_minutes": None if resumed else spent / 60,
        "ended": done.training.ended,
        "test": len(test),
        "curve": done.training.curve,
        "boxes": sum(len(image.labels) for image in labelled),
    }


def split(case: Case):
    """(labelled, test) images: those of `labelloop learn simulate --strategy random` with the same seed."""
    from labelloop.service.media import MediaError, load_image
    from ml_backend.training.datasets import read_labelled
    from ml_backend.training.simulate import POOL_SHARE, hash_order

    root = root_of(case.data)
    assert root is not None
    data = read_labelled(root / "images", root / "annotations_voc")
    listed = root / "val.txt"
    held = data.listed(listed)[0] if listed.is_file() else {image.name for image in data.images[::4]}

    def decodable(image) -> bool:
        try:
            load_image(image.path.read_bytes(), max_side=64)
        except MediaError:
            return False
        return True

    images = [image for image in data.images if decodable(image)]
    test = [image for image in images if image.name in held]
    pool = [image for image in images if image.name not in held]
    share = max(min(len(pool), case.labelled), round(len(pool) * POOL_SHARE))
    drawn = [pool[index] for index in np.random.default_rng(case.seed).permutation(len(pool))[:share]]
    return hash_order(drawn, seed=case.seed)[: case.labelled], test


def root_of(data: str) -> Path | None:
    """The folder of a data set, unpacked if need be; None where it is missing."""
    if (SHARED / "data" / data).is_dir():
        return SHARED / "data" / data
    folder = WORK / data
    if (folder / "val.txt").is_file():
        return folder
    repo = MIRRORS / {"neu_det": NEU_REPO, "deep_pcb": PCB_REPO}[data] / "repo"
    if not repo.is_dir():
        return None
    for name in ("images", "annotations_voc"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    held = {"neu_det": _unpack_neu, "deep_pcb": _unpack_pcb}[data](repo, folder)
    (folder / "val.txt").write_text("\n".join(held))
    return folder


def _git(repo: Path, *words: str) -> bytes:
    return subprocess.run(["git", "-C", str(repo), *words], capture_output=True, check=True).stdout


def _ordered(names: list[str]) -> list[str]:
    return sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())


def _unpack_neu(repo: Path, folder: Path) -> list[str]:
    """400 images by hash of their names, the first 100 for the test."""
    files = _git(repo, "ls-tree", "-r", "--name-only", "HEAD").decode().splitlines()
    stems = _ordered([Path(file).stem for file in files if file.startswith("ANNOTATIONS/")])[:400]
    for stem in stems:
        (folder / "images" / f"{stem}.jpg").write_bytes(_git(repo, "show", f"HEAD:IMAGES/{stem}.jpg"))
        (folder / "annotations_voc" / f"{stem}.xml").write_bytes(_git(repo, "show", f"HEAD:ANNOTATIONS/{stem}.xml"))
    return stems[:100]


def _unpack_pcb(repo: Path, folder: Path) -> list[str]:
    """300 images of its training split and 100 of its test split, by hash of their names."""
    held = []
    for part, count in (("trainval", 300), ("test", 100)):
        rows = dict(line.split() for line in _git(repo, "show", f"HEAD:PCBData/{part}.txt").decode().splitlines())
        for image in _ordered(list(rows))[:count]:
            stem = Path(image).stem
            content = _git(repo, "show", f"HEAD:PCBData/{image.replace('.jpg', '_test.jpg')}")
            (folder / "images" / f"{stem}.jpg").write_bytes(content)
            lines = _git(repo, "show", f"HEAD:PCBData/{rows[image]}").decode().splitlines()
            objects = "".join(_voc_object([int(value) for value in line.split()]) for line in lines if line.strip())
            size = "<size><width>640</width><height>640</height><depth>3</depth></size>"
            text = f"<annotation><filename>{escape(stem)}.jpg</filename>{size}{objects}</annotation>"
            (folder / "annotations_voc" / f"{stem}.xml").write_text(text)
            held += [stem] if part == "test" else []
    return held


def _voc_object(values: list[int]) -> str:
    x0, y0, x1, y1, number = values
    box = f"<xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
    return f"<object><name>{PCB_CLASSES[number]}</name><bndbox>{box}</bndbox></object>"


def page(done: dict[str, dict]) -> str:
    """The table, in Markdown."""
    groups = defaultdict(list)
    for case in cases():
        if case.key in done:
            groups[case.data, case.labelled].append(done[case.key])
    sizes = [(data, labelled) for data, by_size in CASES.items() for labelled in by_size]
    rows = [_row(*size, groups[size]) for size in sizes if groups.get(size)]
    missing = [case.key for case in cases() if case.key not in done]
    return "\n".join(
        [
            "YOLOX-nano (0.9 million weights, 416 x 416) on one CPU thread. AP50 by pycocotools on test images that",
            "nothing was trained on; the same labelled images for the refit (`labelloop learn`) and the fine-tuning",
            "(`labelloop train`), drawn as `learn simulate` draws them. Minutes are CPU time of reading, training,",
            "writing and evaluating.",
            "",
            "| data | labelled | seeds | boxes | refit | fine-tuned | refit upon it | trial | served | seen | CPU m |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
            *rows,
            *(["", *textwrap.wrap(f"Not measured yet: {', '.join(missing)}.", 100)] if missing else []),
            "",
            "`refit upon it`: the last layer is refitted on the features of the fine-tuned model, on the same images.",
            "`trial`: with fewer than 60 labelled images, AP50 of the refit / the refit upon the fine-tuned model on",
            "a quarter of the labelled images (up to half, where boxes are few), both fitted on the others, in half of",
            "the minutes; in brackets the evaluated boxes. `served`: what the gate then serves: the refit upon the",
            "fine-tuned model where the trial gains two boxes by AP50 or by the squared error of the scores (of fits",
            "that recorded it), else the refit.",
            "The images of steel and circuit boards come from the repositories in `bench/sources.toml`",
            "(whose folder [the benches](../README.md) name). `BENCH_WORK` keeps fits that are done, so that a",
            "stopped bench goes on; `train.jsonl` beside this page keeps the figures of all, and a fit that is not",
            "made again keeps its own. `python -m bench.train` writes that file and prints the table.",
        ]
    )


def _served(run: dict) -> float:
    """AP50 of what the gate serves."""
    return run["refit"] if run["trial"] and not Trial(**run["trial"]).passed else run["upon"]


def _row(data: str, labelled: int, runs: list[dict]) -> str:
    def mean(name: str) -> float:
        return float(np.mean([run[name] for run in runs]))

    minutes = [run["cpu_minutes"] for run in runs if run["cpu_minutes"] is not None]  # None: stopped in between
    cpu = f"{np.mean(minutes):.1f}" if minutes else "-"
    trials = [
        f"{made['refit']:.3f} / {made['tuned']:.3f} ({made['boxes']})" for run in runs if (made := run.get("trial"))
    ]
    served = float(np.mean([_served(run) for run in runs]))

    def spread(name: str) -> str:
        return f" ± {np.std([run[name] for run in runs]):.3f}" if len(runs) > 1 else ""

    return (
        f"| {TITLES[data]} | {labelled} | {len(runs)} | {mean('boxes'):.0f} | {mean('refit'):.3f}{spread('refit')} "
        f"| {mean('tuned'):.3f}{spread('tuned')} | {mean('upon'):.3f} | {'; '.join(trials) or '-'} "
        f"| **{served:.3f}** ({served - mean('refit'):+.3f}) | {mean('seen'):.0f} | {cpu} |"
    )


if __name__ == "__main__":  # without a fit: the page of those in the record
    if not sys.argv[1:]:
        print(page(recorded()))
    for word in sys.argv[1:]:
        name, count, number = word.split(":")
        entry = fit(Case(name, int(count), int(number)))
        with (WORK / "fits.jsonl").open("a") as stream:
            stream.write(json.dumps(entry) + "\n")
        print(json.dumps(entry), flush=True)
