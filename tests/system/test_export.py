"""A data set in a real S3 server, read back by boto3, pycocotools and supervision with the right pixels."""

import hashlib
import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import shapely
import supervision
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from shapely import affinity

from exporters.dataset.pull import pull
from exporters.dataset.versions import read_head, read_version
from exporters.model.manifest import object_key
from exporters.pipeline.export import export
from labelloop.service.media import Media
from labelloop.service.store import open_store
from tests.supervision_referee import boxes_of

pytestmark = pytest.mark.system

WIDTH, HEIGHT = 640, 360
# name, percent: x, y, width, height, rotation, label
BOXES = {
    "first.jpg": [("car", 10, 20, 30, 40, 0), ("bus", 50, 10, 20, 30, 30)],
    "second.jpg": [("car", 60, 50, 30, 40, 0)],
    "empty.jpg": [],
}
CONFIG = """<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">
<Label value="bus"/><Label value="car"/></RectangleLabels></View>"""


def true_box(x, y, w, h, rotation):
    """The pixels by shapely: the box around the rectangle turned about its top left corner."""
    x, w, y, h = x * WIDTH / 100, w * WIDTH / 100, y * HEIGHT / 100, h * HEIGHT / 100
    return affinity.rotate(shapely.box(x, y, x + w, y + h), rotation, origin=(x, y)).bounds


TRUTH = {name: sorted((label, *true_box(*box)) for label, *box in boxes) for name, boxes in BOXES.items()}


@pytest.fixture
def settings(s3_server, tmp_path):
    return s3_server.settings(tmp_path / "home")


@pytest.fixture
def s3(s3_server):
    return s3_server.client()


def task(number, bucket, name, boxes):
    results = [
        {
            "id": f"r{n}",
            "from_name": "label",
            "to_name": "image",
            "type": "rectanglelabels",
            "image_rotation": 0,
            "original_width": WIDTH,
            "original_height": HEIGHT,
            "value": {"x": x, "y": y, "width": w, "height": h, "rotation": turn, "rectanglelabels": [label]},
        }
        for n, (label, x, y, w, h, turn) in enumerate(boxes)
    ]
    annotation = {
        "id": number,
        "completed_by": 1,
        "was_cancelled": False,
        "ground_truth": False,
        "result": results,
        "created_at": "2026-01-01T00:00:00Z",
        "updated_at": "2026-01-01T00:00:00Z",
    }
    return {"id": number, "data": {"image": f"s3://{bucket}/photos/{name}"}, "annotations": [annotation]}


@pytest.fixture
def bucket(s3_server, s3):
    """A bucket with three photographs and, beside them, the project's JSON export."""
    name = s3_server.make_bucket()
    rng = np.random.default_rng(1)
    for photo in BOXES:
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(file, "JPEG", quality=60)
        s3.put_object(Bucket=name, Key=f"photos/{photo}", Body=file.getvalue())
    tasks = [task(n, name, photo, boxes) for n, (photo, boxes) in enumerate(BOXES.items(), start=1)]
    s3.put_object(Bucket=name, Key="export.json", Body=json.dumps(tasks).encode())
    return name


def download(s3, bucket, prefix, folder) -> Path:
    """Every object below a prefix, by boto3 alone."""
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for entry in page.get("Contents", ()):
            path = folder / entry["Key"].removeprefix(prefix)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(s3.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read())
    return folder


def same(found, tolerance):
    assert set(found) == set(TRUTH)
    for name, boxes in TRUTH.items():
        assert [box[0] for box in found[name]] == [box[0] for box in boxes]
        for ours, theirs in zip(found[name], boxes, strict=True):
            np.testing.assert_allclose(ours[1:], theirs[1:], atol=tolerance)


def test_data_set_in_s3_is_read_back_with_the_right_pixels(bucket, s3, settings, tmp_path):
    report = export(
        f"s3://{bucket}/export.json",
        settings=settings,
        to=f"s3://{bucket}/sets/cars",
        label_config=CONFIG,
        split="train=1",
        copy_images=True,
    )
    assert report.published
    assert report.accounts.balanced
    folder = download(s3, bucket, "sets/cars/", tmp_path / "read")

    head = json.loads((folder / "HEAD.json").read_bytes())
    manifest_bytes = (folder / head["manifest"]).read_bytes()
    assert hashlib.sha256(manifest_bytes).hexdigest() == head["sha256"]
    for shard in read_version(open_store(f"s3://{bucket}/sets/cars", settings)).shards().values():
        data = (folder / object_key(shard.sha256)).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard.size, shard.sha256)

    version = tmp_path / "pulled"
    store = open_store(f"s3://{bucket}/sets/cars", settings)
    assert pull(store, read_version(store), to=version).images == len(BOXES)
    sheet = str(version / "coco/annotations/instances_train.json")
    truth = COCO(sheet)
    for kind in ("bbox", "segm"):
        guesses = [
            {key: each[key] for key in ("image_id", "category_id", "bbox", "segmentation")} | {"score": 1.0}
            for each in truth.dataset["annotations"]
        ]
        judge = COCOeval(truth, truth.loadRes(guesses), kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
        assert judge.stats[0] == pytest.approx(1.0)

    images = str(version / "coco/images/train")
    load = supervision.DetectionDataset
    same(boxes_of(load.from_coco(images, sheet)), 0.01)
    yolo = version / "yolo-detect"
    same(boxes_of(load.from_yolo(images, str(yolo / "labels/train"), str(yolo / "data.yaml"))), 0.01)
    same(boxes_of(load.from_pascal_voc(images, str(version / "voc/Annotations"))), 1.51)

    for name in BOXES:
        original = s3.get_object(Bucket=bucket, Key=f"photos/{name}")["Body"].read()
        assert (version / "coco/images/train" / name).read_bytes() == original
    assert truth.dataset["images"][0]["coco_url"] == f"s3://{bucket}/photos/first.jpg"


def test_exporters_at_once_in_s3_all_end_well(bucket, settings):
    def one(_):
        return export(f"s3://{bucket}/export.json", settings=settings, to=f"s3://{bucket}/many")

    with ThreadPoolExecutor(3) as threads:
        reports = list(threads.map(one, range(3)))
    assert all(report.published for report in reports)
    assert sorted(report.version for report in reports) == ["v000001", "v000002", "v000003"]
    store = open_store(f"s3://{bucket}/many", settings)
    assert read_head(store)[0].version == "v000003"
    made_of = [set(read_version(store, report.version).shards()) for report in reports]
    assert made_of[0] == made_of[1] == made_of[2]
    assert len({frozenset(report.classes.items()) for report in reports}) == 1


def test_version_in_s3_is_pulled_with_photos_from_their_own_place(bucket, settings, tmp_path):
    export(f"s3://{bucket}/export.json", settings=settings, to=f"s3://{bucket}/bare", split="train=1", formats=("voc",))
    media = Media(settings, None)
    store = open_store(f"s3://{bucket}/bare", settings)
    pulled = pull(store, read_version(store), to=tmp_path / "voc", media=media)
    media.close()
    assert (pulled.images, pulled.missing) == (3, ())
    load = supervision.DetectionDataset.from_pascal_voc
    same(boxes_of(load(str(tmp_path / "voc/JPEGImages"), str(tmp_path / "voc/Annotations"))), 1.51)


def test_size_of_a_photo_in_s3_is_read_from_its_header(bucket, s3, settings):
    tasks = [task(1, bucket, "first.jpg", BOXES["first.jpg"]), task(2, bucket, "empty.jpg", [])]
    for result in tasks[0]["annotations"][0]["result"]:
        del result["original_width"], result["original_height"]
    s3.put_object(Bucket=bucket, Key="bare.json", Body=json.dumps(tasks).encode())
    report = export(f"s3://{bucket}/bare.json", settings=settings, to=f"s3://{bucket}/sized", formats=("coco",))
    assert report.accounts.images.kept == 2
    assert report.accounts.regions.kept == 2
    assert report.accounts.notes["image sizes read from the image's header"] >= 1
