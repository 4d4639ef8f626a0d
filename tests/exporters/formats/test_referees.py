"""Other people's loaders read what we write, from the version itself and from pulled folders, with the same pixels."""

import contextlib
import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import supervision
import yaml
from globox import AnnotationSet
from pycocotools.coco import COCO

from exporters.dataset.pull import pull
from exporters.dataset.versions import read_version
from exporters.formats import DEFAULT_FORMATS, FORMATS
from labelloop.service.media import Media
from labelloop.service.store import open_store
from tests.supervision_referee import boxes_of

SIZE = {"a.jpg": (640, 360), "b.jpg": (320, 400), "empty.jpg": (100, 80), "日本.jpg": (200, 50)}


@pytest.fixture
def truth():
    """Image -> boxes (class, x_min, y_min, x_max, y_max) in pixels, all on whole pixels so that VOC can say them."""
    return {
        "a.jpg": [("car", 64, 36, 128, 108), ("dog", 0, 0, 640, 360)],
        "b.jpg": [("dog", 32, 40, 64, 80)],
        "empty.jpg": [],
        "日本.jpg": [("car", 10, 5, 190, 45)],
    }


@pytest.fixture
def tasks(build, photos, truth):
    tasks = []
    for number, (name, boxes) in enumerate(truth.items(), start=1):
        width, height = SIZE[name]
        results = [
            build.box(
                100 * x0 / width,
                100 * y0 / height,
                100 * (x1 - x0) / width,
                100 * (y1 - y0) / height,
                label,
                id=f"r{n}",
                original_width=width,
                original_height=height,
            )
            for n, (label, x0, y0, x1, y1) in enumerate(boxes)
        ]
        tasks.append(build.task(number, build.annotation(*results), image=photos(name, width, height)))
    return tasks


@pytest.fixture
def exported(run, tasks, config):
    return run(tasks, label_config=config("car", "dog"), copy_images=True, fetch=True)


def same(actual: dict, truth: dict, tolerance: float) -> None:
    assert set(actual) == set(truth)
    for name, boxes in truth.items():
        assert [box[0] for box in actual[name]] == [box[0] for box in sorted(boxes)]
        for box, expected in zip(actual[name], sorted(boxes), strict=True):
            np.testing.assert_allclose(box[1:], expected[1:], atol=tolerance)


def test_supervision_reads_coco(exported, truth):
    images, sheet = str(exported.folder / "images/train"), str(exported.coco_path())
    same(boxes_of(supervision.DetectionDataset.from_coco(images, sheet)), truth, 0.01)
    masks = supervision.DetectionDataset.from_coco(images, sheet, force_masks=True)
    for path, _, mask in masks:
        assert mask.mask is None or mask.mask.shape[1:] == SIZE[Path(path).name][::-1]


def test_supervision_reads_yolo(exported, truth):
    folder = exported.folder / "yolo-detect"
    data = supervision.DetectionDataset.from_yolo(
        str(exported.folder / "images/train"), str(folder / "labels/train"), str(folder / "data.yaml")
    )
    same(boxes_of(data), truth, 0.01)


def test_supervision_reads_voc(exported, truth):
    data = supervision.DetectionDataset.from_pascal_voc(
        str(exported.folder / "images/train"), str(exported.folder / "voc/Annotations")
    )
    same(boxes_of(data), truth, 1.01)  # readers differ in whether they take the 1 off


@pytest.mark.parametrize(
    ("read", "tolerance"),
    [
        (lambda out: AnnotationSet.from_coco(out.coco_path()), 0.01),
        (
            lambda out: AnnotationSet.from_yolo_v5(
                out.folder / "yolo-detect/labels/train", image_folder=out.folder / "images/train"
            ).map_labels({"0": "car", "1": "dog"}),
            0.01,
        ),
        (lambda out: AnnotationSet.from_pascal_voc(out.folder / "voc/Annotations"), 1.01),
    ],
    ids=["coco", "yolo", "voc"],
)
def test_globox_reads(exported, truth, read, tolerance):
    actual = {
        item.image_id: sorted((box.label, box.xmin, box.ymin, box.xmax, box.ymax) for box in item.boxes)
        for item in read(exported)
    }
    same(actual, truth, tolerance)


PACKED = ("yolo-classify", "webdataset")
"""Formats that lay photos out in a way of their own; their tests are in test_classify.py and test_webdataset.py."""


# Formats that supervision does not read: see test_new_formats.py.
READ_ELSEWHERE = ("semantic-png", "coco-panoptic", "dota", "imagefolder")


@pytest.mark.parametrize("copied", [True, False])
def test_pulled_folders_are_what_a_trainer_reads(run, tasks, config, settings, tmp_path, truth, copied):
    points = '<KeyPointLabels name="part" toName="image"><Label value="nose"/></KeyPointLabels></View>'
    out = run(
        tasks,
        label_config=config("car", "dog").replace("</View>", points),
        copy_images=copied,
        fetch=True,
        formats=tuple(FORMATS),
    )
    store = open_store(f"file://{out.root}", settings)
    with contextlib.closing(Media(settings, None)) as media:
        for name in FORMATS:
            if name not in PACKED:
                folder = tmp_path / "pulled" / name
                pulled = pull(store, read_version(store), to=folder, formats=[name], media=media)
                assert (pulled.images, pulled.missing, pulled.folders) == (4, (), {name: folder})
                read_as_a_trainer(name, folder, truth)


def read_as_a_trainer(name, folder, truth):
    if name.startswith("yolo-"):
        sheet = yaml.safe_load((folder / "data.yaml").read_text())
        images = folder / sheet["train"]
        # as Ultralytics does: the last /images/ of an image's path becomes /labels/
        listed = [folder / line for line in (folder / "train.txt").read_text().splitlines()]
        assert all(path.is_file() for path in listed)
        labels = [Path(str(path).replace("/images/", "/labels/")).with_suffix(".txt") for path in listed]
        assert all(path.is_file() for path in labels)
        data = supervision.DetectionDataset.from_yolo(
            str(images), str(folder / "labels/train"), str(folder / "data.yaml"), is_obb=name == "yolo-obb"
        )
    elif name.startswith("ndjson-"):
        rows = [json.loads(line) for line in (folder / "dataset.ndjson").read_text().splitlines()[1:]]
        assert all((folder / "images" / row["split"] / row["file"]).is_file() for row in rows)
        return  # read by Ultralytics' own converter in test_ndjson.py
    elif name.startswith("voc"):
        stems = (folder / "ImageSets/Main/train.txt").read_text().split()
        assert all((folder / f"JPEGImages/{stem}.jpg").is_file() for stem in stems)
        data = supervision.DetectionDataset.from_pascal_voc(str(folder / "JPEGImages"), str(folder / "Annotations"))
    elif name in READ_ELSEWHERE:
        places = FORMATS[name].image_folder.format(split="train")
        assert len([path for path in (folder / places).iterdir() if path.suffix == ".jpg"]) == 4
        return
    else:
        sheet = folder / "annotations/instances_train.json"
        assert all(
            (folder / "images/train" / image["file_name"]).is_file() for image in COCO(str(sheet)).dataset["images"]
        )
        data = supervision.DetectionDataset.from_coco(str(folder / "images/train"), str(sheet))
    same(boxes_of(data), truth, 1.01)


def test_copied_photo_is_the_same_file(exported, tmp_path):
    for name in SIZE:
        assert (exported.folder / "images/train" / name).read_bytes() == (tmp_path / "photos" / name).read_bytes()


def test_image_that_cannot_be_copied_keeps_its_labels(run, build, photos):
    tasks = [
        build.task(1, build.annotation(build.box(1, 1, 5, 5)), image=photos("here.jpg")),
        build.task(2, build.annotation(build.box(1, 1, 5, 5)), image="/data/local-files/?d=gone.jpg"),
    ]
    out = run(tasks, copy_images=True)
    assert out.report.accounts.notes == {"photos that could not be copied (see dropped.jsonl)": 1}
    assert [(loss["kind"], loss["task"]) for loss in out.losses] == [("photo", 2)]
    assert len(out.instances()["annotations"]) == 2
    assert out.report.accounts.failed == 1
    assert not run(tasks, copy_images=True, max_errors=0.01).report.published  # no trainer could load it


def test_several_formats_are_pulled_side_by_side(exported, settings, tmp_path):
    store = open_store(f"file://{exported.root}", settings)
    pulled = pull(store, read_version(store), to=tmp_path / "all")
    assert set(pulled.folders) == set(DEFAULT_FORMATS)
    assert (tmp_path / "all/yolo-detect/data.yaml").is_file()
    assert (tmp_path / "all/voc/JPEGImages/a.jpg").is_file()


def test_damaged_object_is_not_pulled(exported, settings, tmp_path):
    from exporters.errors import DatasetDamaged

    store = open_store(f"file://{exported.root}", settings)
    for path in exported.objects():
        good = path.read_bytes()
        path.write_bytes(good[:-9] + b"x" + good[-8:])
        with pytest.raises(DatasetDamaged, match=path.name) if b'"seq"' in good else nullcontext():
            pull(store, read_version(store), to=tmp_path / path.name)
        path.write_bytes(good)
