"""Label Studio exports built in the test, exported into a folder, and read back."""

import ast
import json
import os
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from pycocotools.coco import COCO

from exporters.dataset import mirror
from exporters.dataset.pull import pull
from exporters.dataset.versions import read_version
from exporters.model.accounting import ExportReport
from exporters.model.manifest import object_key
from exporters.pipeline.export import export
from labelloop.service.settings import Settings
from labelloop.service.store import open_store
from tests.exporters.fake_studio import fake_studio

__all__ = ["fake_studio"]

ONE_SPLIT = "train=1"
CHECKER = Path(__file__).parents[2] / ".labelloop/test/ultralytics"


@pytest.fixture(autouse=True)
def _no_power_cut(monkeypatch):
    """Do not sync the whole disk, which has what other tests write as well."""
    monkeypatch.setattr(mirror, "sync_disk", os.stat)


class Build:
    """Tasks, annotations and results as Label Studio writes them. Sizes are in percent, as there."""

    width, height = 640, 360

    def task(self, number: int | None, *annotations: dict, image: Any = None, **data: Any) -> dict:
        data = {"image": f"s3://photos/{number}.jpg" if image is None else image, **data}
        task = {"id": number, "data": data, "annotations": list(annotations), "predictions": []}
        return {name: value for name, value in task.items() if value is not None}

    def annotation(self, *results: dict | list, number: int = 1, **fields: Any) -> dict:
        flat = [item for result in results for item in (result if isinstance(result, list) else [result])]
        day = f"2026-01-{fields.pop('day', 1):02d}T10:00:00.000000Z"
        return {
            "id": number,
            "completed_by": 1,
            "was_cancelled": False,
            "ground_truth": False,
            "created_at": day,
            "updated_at": day,
            "result": flat,
        } | fields

    def result(self, kind: str, value: dict, **fields: Any) -> dict:
        base = {
            "id": fields.pop("id", "r1"),
            "from_name": "label",
            "to_name": "image",
            "type": kind,
            "value": value,
            "original_width": self.width,
            "original_height": self.height,
            "image_rotation": 0,
        }
        return {name: item for name, item in (base | fields).items() if item is not None}

    def box(self, x: float, y: float, w: float, h: float, *labels: str, rotation: float = 0, **fields: Any) -> dict:
        value = {
            "x": x,
            "y": y,
            "width": w,
            "height": h,
            "rotation": rotation,
            "rectanglelabels": list(labels or ("car",)),
        }
        return self.result("rectanglelabels", value, **fields)

    def polygon(self, points: list, *labels: str, **fields: Any) -> dict:
        value = {"points": points, "closed": True, "polygonlabels": list(labels or ("car",))}
        return self.result("polygonlabels", value, **fields)

    def ellipse(self, x: float, y: float, rx: float, ry: float, rotation: float = 0, **fields: Any) -> dict:
        value = {"x": x, "y": y, "radiusX": rx, "radiusY": ry, "rotation": rotation, "ellipselabels": ["car"]}
        return self.result("ellipselabels", value, **fields)

    def keypoint(self, x: float, y: float, *labels: str, **fields: Any) -> dict:
        value = {"x": x, "y": y, "width": 0.5, "keypointlabels": list(labels or ("nose",))}
        return self.result("keypointlabels", value, **fields)

    def brush(self, pixels: np.ndarray, **fields: Any) -> dict:
        from labelloop.labeling.geometry.brush_codec import encode_rle

        height, width = pixels.shape
        value = {"format": "rle", "rle": encode_rle(pixels), "brushlabels": ["car"]}
        return self.result("brushlabels", value, **{"original_width": width, "original_height": height} | fields)


@dataclass
class Exported:
    """A finished export and its files."""

    report: ExportReport
    root: Path

    @cached_property
    def folder(self) -> Path:
        """The pulled version, each format in its own folder; `images` holds the images."""
        folder = self.root.with_name(f"{self.root.name}-{self.report.version}-pulled")
        store = open_store(f"file://{self.root}", Settings(home=self.root.with_name("home"), label_studio_api_key=""))
        version = read_version(store, self.report.version)
        only = version.formats[0] if len(version.formats) == 1 else ""
        pull(store, version, to=folder / only)
        for name in version.formats:
            if not (folder / "images").exists() and (folder / name / "images").exists():
                (folder / "images").symlink_to(folder / name / "images")
        for name in ("images.jsonl", "dropped.jsonl") if only else ():
            (folder / only / name).rename(folder / name)
        return folder

    @property
    def manifest_path(self) -> Path:
        return self.root / "versions" / self.report.version / "manifest.json"

    @property
    def manifest(self) -> dict:
        return json.loads(self.manifest_path.read_bytes())

    def objects(self) -> list[Path]:
        """The shards of the version in the store."""
        names = read_version(
            open_store(f"file://{self.root}", Settings(home=self.root.with_name("home"), label_studio_api_key="")),
            self.report.version,
        ).shards()
        return [self.root / object_key(name) for name in names]

    @property
    def catalogue(self) -> list[dict]:
        return [json.loads(line) for line in (self.folder / "images.jsonl").read_bytes().splitlines()]

    @property
    def losses(self) -> list[dict]:
        return [json.loads(line) for line in (self.folder / "dropped.jsonl").read_bytes().splitlines()]

    def coco_path(self, split: str = "train") -> Path:
        return self.folder / f"coco/annotations/instances_{split}.json"

    def coco(self, split: str = "train") -> COCO:
        return COCO(str(self.coco_path(split)))

    def instances(self, split: str = "train") -> dict:
        return json.loads(self.coco_path(split).read_bytes())

    def voc(self, stem: str) -> ET.Element:
        return ET.parse(self.folder / f"voc/Annotations/{stem}.xml").getroot()

    def voc_boxes(self, stem: str) -> list[tuple[str, int, int, int, int]]:
        edges = ("xmin", "ymin", "xmax", "ymax")
        return [
            (element.findtext("name"), *(int(element.findtext(f"bndbox/{edge}")) for edge in edges))
            for element in self.voc(stem).iter("object")
        ]

    def yolo(self, stem: str, split: str = "train") -> np.ndarray:
        text = (self.folder / f"yolo-detect/labels/{split}/{stem}.txt").read_text()
        return np.array([[float(cell) for cell in row.split()] for row in text.splitlines()]).reshape(-1, 5)

    def yolo_boxes(self, stem: str, width: int, height: int, split: str = "train") -> np.ndarray:
        """(class, x_min, y_min, x_max, y_max) in pixels."""
        rows = self.yolo(stem, split)
        half = rows[:, 3:] / 2
        edges = np.hstack((rows[:, 1:3] - half, rows[:, 1:3] + half)) * [width, height, width, height]
        return np.hstack((rows[:, :1], edges))

    def files(self) -> dict[str, bytes]:
        """Every file of the version that must be the same for the same input."""
        return {
            str(path.relative_to(self.folder)): path.read_bytes()
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
        }


@pytest.fixture(scope="session")
def build() -> Build:
    return Build()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", label_studio_api_key="", local_files_root=tmp_path / "photos")


@pytest.fixture
def run(tmp_path: Path, settings: Settings) -> Callable[..., Exported]:
    """Export tasks: ``run([task, ...], to="name", **options of export)``; all images go to train unless asked."""

    def run(tasks: list | Path, *, to: str = "set", **options: Any) -> Exported:
        path = tasks
        if not isinstance(tasks, Path):
            path = tmp_path / "export.json"
            path.write_text(json.dumps(tasks))
        options = {"split": ONE_SPLIT, "max_errors": 1.0, "fetch": False} | options
        report = export(path, settings=settings, to=f"file://{tmp_path / to}", **options)
        assert report.accounts.balanced
        return Exported(report, tmp_path / to)

    return run


@pytest.fixture
def photos(tmp_path: Path) -> Callable[..., str]:
    """Make a photo that Media can read; gives its address as Label Studio stores it."""
    folder = tmp_path / "photos"
    folder.mkdir()

    def make(name: str, width: int = 640, height: int = 360) -> str:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (width, height), (90, 120, 150)).save(path)
        return f"/data/local-files/?d={name}"

    return make


BOX_CONFIG = """<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">
{labels}</RectangleLabels><Choices name="weather" toName="image"><Choice value="day"/><Choice value="night"/></Choices>
</View>"""


@pytest.fixture
def config() -> Callable[..., str]:
    """A label config with these labels in this order."""

    def config(*labels: str) -> str:
        return BOX_CONFIG.format(labels="".join(f'<Label value="{label}"/>' for label in labels))

    return config


@pytest.fixture(scope="session")
def ultralytics() -> Callable[..., list[str]]:
    """What Ultralytics' training says about a YOLO folder: its own ``verify_image_label``, taken out of its wheel.

    ``ultralytics(images folder, labels folder, classes, key points=0)`` gives the complaints, none for a good set.
    """
    wheels = sorted(CHECKER.glob("*.whl"))
    if not wheels:
        pytest.skip("no wheel of Ultralytics in .labelloop/test/ultralytics (tests/system/setup.sh brings it)")
    names: dict[str, Any] = {"np": np, "os": os, "Image": Image, "ImageOps": ImageOps, "FORMATS_HELP_MSG": ""}
    with zipfile.ZipFile(wheels[-1]) as wheel:
        for module, wanted in (
            ("utils/ops.py", {"segments2boxes", "xyxy2xywh", "empty_like"}),
            ("data/utils.py", {"IMG_FORMATS", "exif_size", "check_image", "verify_image_label"}),
        ):
            tree = ast.parse(wheel.read(f"ultralytics/{module}"))
            tree.body = [node for node in tree.body if _defines(node, wanted)]
            future = ast.ImportFrom("__future__", [ast.alias("annotations")], 0)
            tree.body.insert(0, ast.fix_missing_locations(future))
            exec(compile(tree, module, "exec"), names)
    # without torch every array is numpy's
    names["empty_like"] = lambda x: np.empty_like(x, dtype=np.float32)

    def check(images: Path, labels: Path, classes: int, points: int = 0) -> list[str]:
        messages = []
        for path in sorted(images.iterdir()):
            row = (str(path), str(labels / f"{path.stem}.txt"), "", points > 0, classes, points, 3, False)
            *_, missing, _found, _empty, corrupt, message = names["verify_image_label"](row)
            messages += [message or f"{path}: no labels"] if missing or corrupt or message else []
        return messages

    return check


def _defines(node: ast.stmt, wanted: set[str]) -> bool:
    if isinstance(node, ast.FunctionDef):
        return node.name in wanted
    return isinstance(node, ast.Assign) and any(getattr(target, "id", "") in wanted for target in node.targets)
