"""A 50 MB export, read task by task: speed of each step, and memory that does not grow with the file."""

import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TASKS = (1_000, 12_000)  # 4.3 and 52 MB

# Run in a process of its own, so that its peak memory is the reading's alone.
STEP = """
import re, sys, time
from pathlib import Path
from labelloop.labeling.studio.reading import read_annotation
from labelloop.labeling.studio.stream import iter_raw_tasks, iter_tasks

start, found = time.process_time(), 0
with open(sys.argv[2], "rb") as file:
    if sys.argv[1] == "cut":
        found = sum(1 for _ in iter_raw_tasks(file))
    elif sys.argv[1] == "tasks":
        found = sum(1 for _ in iter_tasks(file))
    elif sys.argv[1] == "regions":
        for task in iter_tasks(file):
            found += sum(len(read_annotation(annotation, task=task).regions) for annotation in task.annotations)
    elif sys.argv[1] == "ijson":
        import ijson
        found = sum(1 for _ in ijson.items(file, "item", use_float=True))
    else:
        import json
        found = len(json.load(file))
# Not ru_maxrss: that remembers the process we were forked from.
peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())
print(time.process_time() - start, int(peak[1]) / 1024, found)
"""
STEPS = {
    "cut": "cut the array (`iter_raw_tasks`)",
    "tasks": "... and decode each task (`iter_tasks`)",
    "regions": "... and read its regions (`read_annotation`)",
    "ijson": "ijson.items, nothing read",
    "json": "json.load, nothing read",
}


def run() -> str:
    """Read exports of two sizes with each step."""
    lines = [
        "Exports of about 8 rectangles and 1 polygon a task: CPU seconds (best of 2), peak memory of the process.",
        "",
        "| step | tasks | file | CPU s | ms a task | MB/s | peak memory |",
        "|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for count in TASKS:
            file = Path(folder) / f"{count}.json"
            file.write_text(json.dumps(list(export(count))))
            size = file.stat().st_size / 1e6
            for step, name in STEPS.items():
                seconds, memory, _ = min(measure(step, file) for _ in range(2))
                lines.append(
                    f"| {name} | {count:,} | {size:.0f} MB | {seconds:.2f} | {seconds / count * 1e3:.3f} "
                    f"| {size / seconds:.0f} | {memory:.0f} MB |"
                )
    return "\n".join(lines)


def measure(step: str, file: Path) -> tuple[float, float, int]:
    """CPU seconds, peak megabytes and how many were found."""
    done = subprocess.run([sys.executable, "-c", STEP, step, str(file)], capture_output=True, text=True, check=True)
    seconds, memory, found = done.stdout.split()
    return float(seconds), float(memory), int(found)


def export(count: int) -> Iterator[dict[str, Any]]:
    """Tasks as Label Studio exports them."""
    rng = random.Random(0)
    for number in range(count):
        width, height = rng.choice([(640, 480), (1920, 1080), (800, 600), (1280, 720)])
        common = {"original_width": width, "original_height": height, "image_rotation": 0, "to_name": "image"}
        results = []
        for index in range(max(0, round(rng.gauss(8, 2)))):
            value = {edge: rng.random() * 80 for edge in ("x", "y", "width", "height")} | {"rotation": 0}
            value["rectanglelabels"] = [f"label{rng.randrange(20)}"]
            name = {"id": f"r{number}_{index}", "from_name": "label", "type": "rectanglelabels", "origin": "manual"}
            results.append(common | name | {"value": value})
        for index in range(rng.randint(0, 2)):
            points = [[rng.random() * 100, rng.random() * 100] for _ in range(rng.randint(6, 16))]
            value = {"points": points, "closed": True, "polygonlabels": [f"label{rng.randrange(20)}"]}
            name = {"id": f"p{number}_{index}", "from_name": "poly", "type": "polygonlabels", "origin": "manual"}
            results.append(common | name | {"value": value})
        annotation = {
            "id": number,
            "completed_by": 1,
            "result": results,
            "was_cancelled": False,
            "ground_truth": False,
            "created_at": "2026-11-23T21:02:28.534512Z",
            "updated_at": "2026-11-23T21:02:28.534548Z",
            "lead_time": 12.5,
            "unique_id": "1edd6a9d-ef97-4abd-85d5-443e60ac6e47",
        }
        yield {
            "id": number,
            "annotations": [annotation],
            "drafts": [],
            "predictions": [],
            "data": {"image": f"s3://bucket/photos/{number}.jpg"},
            "meta": {},
            "created_at": "2026-11-23T21:02:28.534512Z",
            "updated_at": "2026-11-23T21:02:28.534512Z",
            "inner_id": number,
            "total_annotations": 1,
            "cancelled_annotations": 0,
            "project": 5,
            "comment_authors": [],
        }
