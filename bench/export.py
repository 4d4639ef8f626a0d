"""Exports compared with label-studio-sdk's converter: tasks a CPU second and peak memory, the same synthetic export.

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
from collections.abc import Sequence
from pathlib import Path

TASKS = (2_000, 20_000)
REPEATS = 2
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


def _ours(file: Path, kind: str, folder: Path) -> None:
    from exporters.export import export
    from labelloop.service.settings import Settings

    export(
        file,
        settings=Settings(home=folder / "home"),
        to=f"file://{folder / 'set'}",
        formats=(kind,),
        label_config=CONFIG,
        fetch=False,
        max_errors=1.0,
    )


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
        import boto3  # noqa: F401 - the store's own, imported late

        import exporters.export  # noqa: F401
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
    """Measure; gives the table as Markdown."""
    lines = [
        "Tasks a CPU second, ours and label-studio-sdk's converter, on the same synthetic export with some 8 boxes and",
        f"1 polygon a task, one format a process, best of {REPEATS} in turn, imports not counted.",
        "Ours writes the manifest, checksums and the bill besides, and syncs to the disk; the converter does not.",
        "",
        "| tasks | format | ours | converter | times | wall s | converter's | peak MiB | converter's |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for tasks in sizes:
        lines += _rows(tasks)
    return "\n".join(lines) + "\n"


def _rows(tasks: int) -> list[str]:
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "export.json"
        write_export(file, tasks)
        for kind in PAIRS:
            results: dict[str, list[list[float]]] = {"ours": [], "theirs": []}
            for _ in range(REPEATS):
                for who, measured in results.items():
                    measured.append(_measure(who, file, kind))
            ours, theirs = (min(results[who]) for who in ("ours", "theirs"))
            lines.append(
                f"| {tasks:,} | {kind} | {tasks / ours[0]:,.0f} | {tasks / theirs[0]:,.0f} | {theirs[0] / ours[0]:.1f} "
                f"| {ours[1]:.2f} | {theirs[1]:.2f} | {ours[2]:.0f} | {theirs[2]:.0f} |"
            )
    return lines


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in ("ours", "theirs"):
        _child(*sys.argv[1:4])
    else:
        print(run([int(size) for size in sys.argv[1:]] or TASKS))
