"""Ultralytics NDJSON, read by Ultralytics' own converter: the same labels as the YOLO folders, from one file."""

import ast
import asyncio
import hashlib
import json
import logging
import math
import os
import random
import shutil
import sys
import types
import urllib.parse
import uuid
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.exporters.conftest import CHECKER

TASKS = ["detect", "segment", "obb", "pose"]
KEYS = {"detect": "boxes", "segment": "segments", "obb": "obb", "pose": "pose"}
CONFIG = """<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">
<Label value="car"/><Label value="dog"/></RectangleLabels><KeyPointLabels name="point" toName="image">
<Label value="left eye"/><Label value="right eye"/></KeyPointLabels></View>"""


def tasks(build, address):
    drawn = build.annotation(
        build.box(10, 20, 30, 40, "dog", rotation=20, id="r1"),
        build.polygon([[50, 50], [90, 55], [70, 90]], "car", id="r2"),
        build.keypoint(20, 30, "left eye", id="k", parentID="r1"),
    )
    return [build.task(n, drawn, image=address(n)) for n in (1, 2)] + [
        build.task(3, build.annotation(), image=address(3), width=640, height=360)
    ]


@pytest.fixture(scope="session")
def converter():
    """Ultralytics' ``_convert_ndjson_to_yolo``, taken out of its wheel; photos come from ``web`` (address -> bytes)."""
    wheels = sorted(CHECKER.glob("*.whl"))
    if not wheels:
        pytest.skip("no wheel of Ultralytics in .labelloop/test/ultralytics (tests/system/setup.sh brings it)")
    names: dict[str, Any] = {}
    with zipfile.ZipFile(wheels[-1]) as wheel:
        for module, wanted in (
            ("utils/__init__.py", {"clean_url"}),
            ("utils/checks.py", set()),
            ("data/utils.py", {"get_split_fraction"}),
            ("data/converter.py", {"_convert_ndjson_to_yolo", "_infer_ndjson_kpt_shape"}),
        ):
            tree = ast.parse(wheel.read(f"ultralytics/{module}"))
            kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
            tree.body = [node for node in tree.body if isinstance(node, kinds) and node.name in wanted]
            tree.body.insert(0, ast.fix_missing_locations(ast.ImportFrom("__future__", [ast.alias("annotations")], 0)))
            exec(compile(tree, module, "exec"), names)

    def convert(file: Path, out: Path, web: dict[str, bytes]) -> Path:
        names.update(surroundings(web))
        local = True
        return asyncio.run(names["_convert_ndjson_to_yolo"](file, out, local, 1.0))

    return convert


def surroundings(web: dict[str, bytes]) -> dict[str, Any]:
    """What the converter takes from elsewhere, without a network."""

    class Session:
        def __init__(self, **_: object) -> None: ...

        async def __aenter__(self):
            return self

        async def __aexit__(self, *_: object) -> None: ...

        def get(self, url, **_: object):
            return Answer(web[url])

    class Answer(Session):
        def __init__(self, data: bytes) -> None:
            self.data = data

        def raise_for_status(self) -> None: ...

        async def read(self) -> bytes:
            return self.data

    class Sheet:
        @staticmethod
        def save(path, data) -> None:
            Path(path).write_text(yaml.safe_dump(data))

    aiohttp = types.ModuleType("aiohttp")
    aiohttp.ClientSession, aiohttp.ClientTimeout = Session, lambda **_: None
    aiohttp.ClientResponseError = aiohttp.ClientError = ConnectionError
    sys.modules.setdefault("aiohttp", aiohttp)
    bar = types.SimpleNamespace(update=lambda _: None, close=lambda: None)
    modules = (asyncio, hashlib, json, math, os, random, shutil, urllib)
    return {module.__name__: module for module in modules} | {
        "np": np,
        "uuid4": uuid.uuid4,
        "unquote": urllib.parse.unquote,
        "Path": Path,
        "LOGGER": logging.getLogger("ultralytics"),
        "YAML": Sheet,
        "TQDM": lambda **_: bar,
        "check_requirements": lambda _: None,
        "PLATFORM_URL": "https://platform.example",
    }


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("placed", ["web", "local"])
def test_ultralytics_converter_makes_the_same_rows(
    run, build, photos, settings, tmp_path, converter, ultralytics, task, placed
):
    """The rows are those of `yolo-*`, and its own check of labels finds nothing to complain of."""
    local = {number: photos(f"{number}.jpg") for number in (1, 2, 3)}
    data = {n: (tmp_path / f"photos/{n}.jpg").read_bytes() for n in local}
    web = {f"https://host/{n}.jpg": data[n] for n in local}
    address = (lambda n: f"https://host/{n}.jpg") if placed == "web" else local.get
    out = run(tasks(build, address), label_config=CONFIG, formats=(f"ndjson-{task}", f"yolo-{task}"))
    folder = out.folder / f"ndjson-{task}"
    if placed == "local":  # as `dataset pull` writes them
        (folder / "images/train").mkdir(parents=True)
        for n, item in data.items():
            (folder / f"images/train/{n}.jpg").write_bytes(item)
    sheet = yaml.safe_load(converter(folder / "dataset.ndjson", tmp_path / "u", web).read_text())
    assert list(sheet["names"].values()) == ["car", "dog"]
    if task == "pose":
        assert sheet["kpt_shape"] == [2, 3]
        assert sheet["flip_idx"] == [1, 0]
    converted = next((tmp_path / "u").iterdir())
    rows = sorted(text.read_text() for split in ("train", "val") for text in (converted / "labels" / split).iterdir())
    wanted = sorted(text.read_text() for text in (out.folder / f"yolo-{task}/labels/train").iterdir())
    assert [numbers(text) for text in rows] == [numbers(text) for text in wanted]
    points = 2 if task == "pose" else 0
    for split in ("train", "val"):
        assert ultralytics(converted / "images" / split, converted / "labels" / split, 2, points) == []


def numbers(text: str) -> list[list[float]]:
    return [[float(cell) for cell in row.split()] for row in text.splitlines()]


def test_the_file_is_published_in_the_store(run, build):
    out = run(tasks(build, lambda n: f"https://host/{n}.jpg?X-Amz-Signature=x"), formats=("ndjson-detect",))
    (file,) = [file for file in out.manifest["files"] if file["path"] == "ndjson-detect/dataset.ndjson"]
    assert file["key"] == "versions/v000001/ndjson-detect/dataset.ndjson"
    lines = [json.loads(line) for line in (out.root / file["key"]).read_text().splitlines()]
    assert lines[0]["task"] == "detect"
    assert "path" not in lines[0]
    assert [line["url"] for line in lines[1:]] == [f"https://host/{n}.jpg" for n in (1, 2, 3)]
    assert lines[3]["annotations"] == {"boxes": []}


def test_tasks_kept_apart_are_in_a_file_of_their_own(run, build):
    task_list = tasks(build, lambda n: f"s3://b/{n}.jpg")
    task_list[1]["data"]["qc_status"] = "disputed"
    out = run(task_list, formats=("ndjson-detect",), disputed="apart")
    rows = {path.stem: path.read_text().count("\n") - 1 for path in (out.folder / "ndjson-detect").glob("*.ndjson")}
    assert rows == {"dataset": 2, "disputed": 1}
