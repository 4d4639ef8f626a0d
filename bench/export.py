"""Exports compared with label-studio-sdk's converter on the same synthetic export; memory, growth, S3 requests.

Each measurement is a process of its own (CPU seconds and peak memory are the process's), ours and theirs in turn.
"""

import json
import math
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.export_s3 import to_s3
from labelloop.cli.main import one_blas_thread
from labelloop.service.settings import Settings

if TYPE_CHECKING:
    from exporters.model.accounting import ExportReport

TASKS = (2_000, 20_000)
MOST_TASKS = 100_000
REPEATS = 3
LABELS = [f"label-{n:02d}" for n in range(20)]
SIZES = [(1920, 1080), (1280, 720), (640, 480), (4000, 3000), (800, 800)]
PAIRS = {"coco": "COCO", "voc": "VOC", "yolo-detect": "YOLO"}
CONFIG = (
    '<View><Image name="image" value="$image"/><RectangleLabels name="box" toName="image">{labels}</RectangleLabels>'
    '<PolygonLabels name="shape" toName="image">{labels}</PolygonLabels></View>'
).format(labels="".join(f'<Label value="{label}"/>' for label in LABELS))


def write_export(path: Path, tasks: int) -> None:
    """A Label Studio JSON export: about 8 boxes and 0 to 2 polygons a task, 20 labels, its whole envelope."""
    rng = random.Random(0)
    with path.open("w") as file:
        for number in range(1, tasks + 1):
            file.write("[" if number == 1 else ",\n")
            json.dump(_task(rng, number), file)
        file.write("]")


def _task(rng: random.Random, number: int) -> dict:
    width, height = rng.choice(SIZES)
    results = []
    for index in range(max(0, round(rng.gauss(8, 2)))):
        x, y = rng.uniform(0, 80), rng.uniform(0, 80)
        value = {"x": x, "y": y, "width": rng.uniform(1, 99 - x), "height": rng.uniform(1, 99 - y), "rotation": 0}
        results.append(_result(f"b{index}", "box", "rectanglelabels", value, rng.choice(LABELS), width, height))
    for index in range(rng.randrange(3)):
        points = _outline(rng)
        value = {"points": points, "closed": True}
        results.append(_result(f"p{index}", "shape", "polygonlabels", value, rng.choice(LABELS), width, height))
    day = "2026-01-01T10:00:00.000000Z"
    annotation = {
        "id": number,
        "completed_by": 1,
        "result": results,
        "was_cancelled": False,
        "ground_truth": False,
        "created_at": day,
        "updated_at": day,
        "draft_created_at": None,
        "lead_time": 12.3,
        "prediction": {},
        "result_count": len(results),
        "unique_id": f"{number:032x}",
        "import_id": None,
        "last_action": None,
        "bulk_created": False,
        "task": number,
        "project": 1,
        "updated_by": 1,
        "parent_prediction": None,
        "parent_annotation": None,
        "last_created_by": None,
    }
    return {
        "id": number,
        "annotations": [annotation],
        "drafts": [],
        "predictions": [],
        "meta": {},
        "inner_id": number,
        "data": {"image": f"s3://bucket/photos/{number:06d}.jpg"},
        "created_at": day,
        "updated_at": day,
        "total_annotations": 1,
        "cancelled_annotations": 0,
        "total_predictions": 0,
        "comment_count": 0,
        "unresolved_comment_count": 0,
        "last_comment_updated_at": None,
        "project": 1,
        "updated_by": 1,
        "comment_authors": [],
    }


def _outline(rng: random.Random) -> list[list[float]]:
    """6 to 16 points around a centre: an outline as people draw it, which does not cross itself."""
    x, y, reach = rng.uniform(20, 80), rng.uniform(20, 80), rng.uniform(4, 18)
    turns = sorted(rng.uniform(0, math.tau) for _ in range(rng.randrange(6, 17)))
    radii = [reach * rng.uniform(0.5, 1) for _ in turns]
    return [[x + r * math.cos(turn), y + r * math.sin(turn)] for r, turn in zip(radii, turns, strict=True)]


def _result(name: str, control: str, kind: str, value: dict, label: str, width: int, height: int) -> dict:
    return {
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": value | {kind: [label]},
        "id": name,
        "from_name": control,
        "to_name": "image",
        "type": kind,
        "origin": "manual",
    }


_THEIRS = """
import logging
from label_studio_sdk.converter import Converter
logging.disable(logging.ERROR)
Converter(config={config!r}, project_dir={folder!r}, download_resources=False).convert(
    {file!r}, {folder!r} + "/out", "COCO", is_dir=False
)
"""


# The peak memory of a process counts from what it was forked from: so the measured one is started by a small one.
_MEASURED = """
import json, resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
"""


def export_to(file: Path, kinds: str, to: str, settings: Settings) -> "ExportReport":
    from exporters.pipeline.export import export

    return export(
        file,
        settings=settings,
        to=to,
        formats=kinds.split(","),
        label_config=CONFIG,
        fetch=False,
        max_errors=1.0,
        archives=False,  # `bench.export_plain` measures what they cost
    )


def _ours(file: Path, kind: str, folder: Path) -> None:
    export_to(file, kind, f"file://{folder / 'set'}", Settings(home=folder / "home"))


def _theirs(file: Path, kind: str, folder: Path) -> None:
    import logging

    from label_studio_sdk.converter import Converter

    logging.disable(logging.ERROR)
    converter = Converter(config=CONFIG, project_dir=str(folder), download_resources=False)
    converter.convert(str(file), str(folder / "out"), PAIRS[kind], is_dir=False)


def _measure(who: str, file: Path, kind: str) -> list[float]:
    """[CPU seconds without imports, wall seconds, peak MiB] of one conversion in a fresh process."""
    line = [sys.executable, "-W", "ignore", "-m", "bench.export", who, str(file), kind]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _child(who: str, file: str, kind: str) -> None:
    # what is imported is paid before the clock starts, by both
    if who == "ours":
        with one_blas_thread():  # as the command begins
            import exporters.pipeline.export  # noqa: F401
    else:
        import label_studio_sdk.converter  # noqa: F401
    with tempfile.TemporaryDirectory(dir=_fast_folder()) as folder:
        wall, cpu = time.perf_counter(), time.process_time()
        (_ours if who == "ours" else _theirs)(Path(file), kind, Path(folder))
        spent = time.process_time() - cpu, time.perf_counter() - wall
    print(json.dumps([*spent, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


def _fast_folder() -> str | None:
    """A folder in memory where there is one, so that the disk is not what is measured."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def run(sizes: Sequence[int] = TASKS) -> str:
    """Measure; gives the tables as Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        files = {tasks: Path(folder) / f"{tasks}.json" for tasks in (*sizes, MOST_TASKS)}
        for tasks, file in files.items():
            write_export(file, tasks)
        busy = os.getloadavg()[0]
        parts = [_conversion(files, sizes), _commands(files), _second(files[sizes[0]], sizes[0])]
        parts.append(to_s3(files[sizes[-1]], sizes[-1]))
    load = f"The machine ran other work besides (load {busy:.0f} at the start, {os.getloadavg()[0]:.0f} at the end):"
    return "\n\n".join(
        [*parts, f"{load} wall seconds say little then, and CPU seconds are higher than on a quiet one."]
    )


def _conversion(files: Mapping[int, Path], sizes: Sequence[int]) -> str:
    lines = [
        "## Against the converter",
        "",
        "Tasks a CPU second, some 8 boxes and 1 polygon a task, one format a process,",
        f"best of {REPEATS} in turn, imports not counted.",
        "Both write plain files. Ours writes shards, manifest, checksums and the accounting as well, and syncs to the",
        "disk; the converter does not.",
        "",
        "| tasks | format | ours | converter | times | wall s | converter's | peak MiB | converter's |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    spent: dict[str, list[float]] = {kind: [] for kind in PAIRS}
    for tasks in sizes:
        for kind in PAIRS:
            results: dict[str, list[list[float]]] = {"ours": [], "theirs": []}
            for _ in range(REPEATS):
                for who, measured in results.items():
                    measured.append(_measure(who, files[tasks], kind))
            ours, theirs = (min(results[who]) for who in ("ours", "theirs"))
            spent[kind].append(ours[0])
            lines.append(
                f"| {tasks:,} | {kind} | {tasks / ours[0]:,.0f} | {tasks / theirs[0]:,.0f} | {theirs[0] / ours[0]:.1f} "
                f"| {ours[1]:.2f} | {theirs[1]:.2f} | {ours[2]:.0f} | {theirs[2]:.0f} |"
            )
    grows = ", ".join(f"{times[-1] / times[0]:.1f} ({kind})" for kind, times in spent.items())
    return "\n".join([*lines, "", f"From {sizes[0]:,} to {sizes[-1]:,} tasks CPU time grows by the factor {grows}."])


def _commands(files: Mapping[int, Path]) -> str:
    lines = [
        "## The whole command",
        "",
        "`labelloop export --format coco --no-fetch` as it is typed: its start, imports and report included;",
        "the converter from the start of Python to the end of its file.",
        "",
        "| tasks | CPU s | converter's | peak MiB | converter's |",
        "|---|---|---|---|---|",
    ]
    for tasks, file in files.items():
        ours = _spent(file, "ours")
        theirs = _spent(file, "theirs") if tasks < MOST_TASKS else None
        cells = (f"{theirs[0]:.2f}", f"{theirs[1]:.0f}") if theirs else ("not run", "not run")
        lines.append(f"| {tasks:,} | {ours[0]:.2f} | {cells[0]} | {ours[1]:.1f} | {cells[1]} |")
    return "\n".join(lines)


def _spent(file: Path, who: str) -> tuple[float, float]:
    """(CPU seconds, peak MiB) of a whole process."""
    with tempfile.TemporaryDirectory(dir=_fast_folder()) as folder:
        config = Path(folder) / "config.xml"
        config.write_text(CONFIG)
        command = ["-m", "labelloop.cli.main", "export", "--from", str(file), "--to", f"file://{folder}/set"]
        command += ["--label-config", str(config), "--format", "coco", "--no-fetch", "--max-errors", "1"]
        if who == "theirs":
            code = _THEIRS.format(config=CONFIG, folder=folder, file=str(file))
            command = ["-W", "ignore", "-c", code]
        environment = {**os.environ, "LABELLOOP_HOME": f"{folder}/home"}
        line = [sys.executable, "-c", _MEASURED, sys.executable, *command]
        done = subprocess.run(line, capture_output=True, text=True, check=True, env=environment)
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak


def _second(file: Path, tasks: int) -> str:
    """A second export of a file in which 1 % changed."""
    every = 100
    with tempfile.TemporaryDirectory(dir=_fast_folder()) as folder:
        settings, changed = Settings(home=Path(folder) / "home"), Path(folder) / "changed.json"
        told = json.loads(file.read_text())
        for task in told[::every]:
            task["annotations"][0]["result"][:1] = []
        changed.write_text(json.dumps(told))
        spent = []
        for source in (file, changed, changed):
            clock = time.process_time()
            report = export_to(source, "coco", f"file://{folder}/set", settings)
            spent.append((time.process_time() - clock, report.written))
    first, second, third = spent
    return (
        "## A second export\n\n"
        f"Of {tasks:,} tasks (coco) {tasks // every} changed: {second[0]:.3f} CPU seconds instead of {first[0]:.3f}, "
        f"{second[1].bytes / 1e3:,.0f} KB written instead of {first[1].bytes / 1e6:.1f} MB.\n"
        f"Where nothing changed: {third[0]:.3f} CPU seconds and {third[1].objects} objects. "
        "A file is read and compared as a whole each time; of a project only what changed is read."
    )


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in ("ours", "theirs"):
        _child(*sys.argv[1:4])
    else:
        print(run([int(size) for size in sys.argv[1:]] or TASKS))
