"""Semantic and panoptic masks, DOTA and ImageFolder that an export writes, read by other tools.

BENCH_FORMATS_PYTHON is a Python with datasets (Hugging Face), datumaro, shapely and Pillow; panopticapi, which no
package index has, comes out of its mirror in LABELLOOP_MIRRORS (`bench/sources.toml`).
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from PIL import Image

from exporters.pipeline.export import export
from exporters.validate import validate
from labelloop.service.settings import Settings

SCRIPT = Path(__file__).with_name("written_referee.py")
SOURCES = Path(__file__).parent / "sources.toml"
FORMATS = ("semantic-png", "coco-panoptic", "dota", "imagefolder")
LABELS = ("car", "big bus", "sky", "void")
TASKS, WIDTH, HEIGHT = 100, 640, 360


def run() -> str:
    """Export made-up tasks, and give what each referee reads of each format."""
    python = os.environ.get("BENCH_FORMATS_PYTHON")
    if not python:
        return "Not measured: set BENCH_FORMATS_PYTHON."
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        report = _export(root)
        latest = root / "set/latest"
        lines = []
        for name in FORMATS:
            command = [python, "-I", str(SCRIPT), name, str(latest / name), str(_panopticapi(root))]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            said = done.stdout.strip() if not done.returncode else f"stops: {done.stderr.strip().splitlines()[-1]}"
            account = report.accounts.formats[name]
            issues = len(validate(latest / name).issues)
            lines.append(f"| {name} | {account.objects} | {sum(account.dropped.values())} | {issues} | {said} |")
    return _PAGE.format(tasks=TASKS, rows="\n".join(lines))


def _export(root: Path) -> Any:
    rng = random.Random(0)
    (root / "photos").mkdir()
    for number in range(1, TASKS + 1):
        Image.new("RGB", (WIDTH, HEIGHT), (number, 0, 0)).save(root / f"photos/{number}.jpg")
    (root / "tasks.json").write_text(json.dumps([_task(number, rng) for number in range(1, TASKS + 1)]))
    labels = "".join(f'<Label value="{name}"{_stuff(name)}/>' for name in LABELS)
    tags = "".join(f'<{kind}Labels name="{kind}" toName="image">{labels}</{kind}Labels>' for kind in _KINDS)
    config = f'<View><Image name="image" value="$image"/>{tags}<TextArea name="caption" toName="image"/></View>'
    settings = Settings(home=root / "home", label_studio_api_key="", local_files_root=root / "photos")
    options = {"label_config": config, "formats": FORMATS, "copy_images": True, "split": "train=.8,val=.2"}
    return export(root / "tasks.json", settings=settings, to=f"file://{root / 'set'}", **options)


_KINDS = ("Rectangle", "Polygon", "Ellipse")


def _stuff(name: str) -> str:
    return ' isthing="0"' if name == "sky" else ""


def _task(number: int, rng: random.Random) -> dict[str, Any]:
    result = [_region(rng, f"r{index}") for index in range(rng.randrange(12))]
    text = {"id": "t", "from_name": "caption", "to_name": "image", "type": "textarea", "value": {"text": ["a", "b"]}}
    return {
        "id": number,
        "data": {"image": f"/data/local-files/?d={number}.jpg"},
        "annotations": [{"id": number, "completed_by": 1, "result": [*result, text]}],
    }


def _region(rng: random.Random, region: str) -> dict[str, Any]:
    kind = rng.choice(_KINDS)
    x, y, size = rng.uniform(0, 80), rng.uniform(0, 80), rng.uniform(2, 30)
    shapes: dict[str, dict[str, Any]] = {
        "Rectangle": {"x": x, "y": y, "width": size, "height": size, "rotation": rng.choice((0, 0, 33))},
        "Polygon": {"points": [[x, y], [x + size, y + 2], [x + 3, y + size]], "closed": True},
        "Ellipse": {"x": x, "y": y, "radiusX": size / 2, "radiusY": size / 3, "rotation": rng.choice((0, 40))},
    }
    return {
        "id": region,
        "from_name": kind,
        "to_name": "image",
        "type": f"{kind.lower()}labels",
        "original_width": WIDTH,
        "original_height": HEIGHT,
        "value": shapes[kind] | {f"{kind.lower()}labels": [rng.choice(LABELS)]},
    }


def _panopticapi(root: Path) -> Path:
    """The folder of panopticapi, out of its mirror."""
    [source] = [
        entry for entry in tomllib.loads(SOURCES.read_text())["source"] if "written_formats" in entry["benches"]
    ]
    git = Path(os.environ.get("LABELLOOP_MIRRORS", "")) / source["repo"].replace("/", "+") / "repo"
    target = root / "panopticapi"
    if not target.is_dir():
        target.mkdir()
        command = f"git --git-dir='{git}' archive {source['commit']} {source['path']} | tar x -C '{target}'"
        subprocess.run(command, shell=True, check=False, capture_output=True)
    return target


_PAGE = """\
{tasks} made-up tasks with up to 11 overlapping boxes, polygons and ellipses of four labels (one of
stuff, one void) and captions, exported with their images in two splits.

| format | objects | left out, with reasons in the report | issues of `dataset validate` | what the referee reads |
|---|---|---|---|---|
{rows}
"""
