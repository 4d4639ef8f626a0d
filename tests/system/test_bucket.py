"""A bucket as a stranger finds it: read by boto3 and loaded by other people's loaders, without labelloop."""

import hashlib
import json
import subprocess
import sys
import zipfile

import pytest

from exporters.pipeline.export import export
from tests.exporters.conftest import ultralytics  # noqa: F401
from tests.system.test_export import BOXES, CONFIG, bucket, s3, settings  # noqa: F401

pytestmark = pytest.mark.system

# Runs in a process of its own, in which labelloop cannot be imported.
STRANGER = """
import io, json, sys, zipfile
from pathlib import Path
sys.modules.update(dict.fromkeys(("labelloop", "exporters", "ml_backend", "qc_webhooks")))  # importing them fails
import boto3
import numpy as np
import supervision as sv
from botocore.config import Config
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

endpoint, key, secret, bucket, prefix, to = sys.argv[1:]
client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id=key,
    aws_secret_access_key=secret, config=Config(s3={"addressing_style": "path"}))
to = Path(to)
for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix + "/"):
    for entry in page["Contents"]:
        path = to / entry["Key"].removeprefix(prefix + "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(client.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read())

state = json.loads((to / "latest/VERSION.json").read_bytes())
assert state["state"] == "complete", state
version, latest = to / "versions" / state["version"], to / "latest"
with zipfile.ZipFile(version / "yolo-detect.zip") as archive:
    archive.extractall(to / "unzipped")

def boxes(dataset):
    return {Path(path).name: sorted(map(tuple, np.round(found.xyxy, 1).tolist())) for path, image, found in dataset}

results = {}
for split in ("train", "val"):
    sheet = latest / f"coco/annotations/instances_{split}.json"
    assert sheet.read_bytes() == (version / f"coco/annotations/instances_{split}.json").read_bytes()
    truth = COCO(str(sheet))
    if truth.dataset["annotations"]:
        found = [one | {"score": 1.0} for one in truth.dataset["annotations"]]
        for kind in ("bbox", "segm"):
            judge = COCOeval(truth, truth.loadRes(found), kind)
            judge.evaluate(); judge.accumulate(); judge.summarize()
            assert judge.stats[0] > 0.999
    load = sv.DetectionDataset
    coco = boxes(load.from_coco(str(latest / f"coco/images/{split}"), str(sheet)))
    for root in (latest / "yolo-detect", to / "unzipped"):
        places = (root / f"images/{split}", root / f"labels/{split}", root / "data.yaml")
        yolo = boxes(load.from_yolo(*map(str, places)))
        assert yolo.keys() == coco.keys()
        for name in coco:
            assert np.allclose(yolo[name], coco[name], atol=0.2), (name, yolo[name], coco[name])
    results |= coco
voc = boxes(sv.DetectionDataset.from_pascal_voc(str(latest / "voc/JPEGImages"), str(latest / "voc/Annotations")))
assert voc.keys() == results.keys()
for name in voc:
    assert np.allclose(voc[name], results[name], atol=1.51), name
print(json.dumps(results))
"""


def test_stranger_loads_the_bucket_without_labelloop(bucket, s3, s3_server, settings, tmp_path, ultralytics):  # noqa: F811
    options = {"settings": settings, "to": f"s3://{bucket}/sets/cars", "label_config": CONFIG, "copy_images": True}
    report = export(f"s3://{bucket}/export.json", split="train=.5,val=.5", **options)
    assert report.published
    assert report.latest == report.version == "v000001"
    script = tmp_path / "stranger.py"
    script.write_text(STRANGER)
    words = [s3_server.endpoint, s3_server.key, s3_server.secret, bucket, "sets/cars", str(tmp_path / "read")]
    done = subprocess.run(
        [sys.executable, "-I", script, *words], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout.splitlines()[-1])) == set(BOXES)
    for root in (tmp_path / "read/latest/yolo-detect", tmp_path / "read/unzipped"):
        for split in ("train", "val"):
            if (root / f"images/{split}").is_dir():
                assert ultralytics(root / f"images/{split}", root / f"labels/{split}", 2) == []
    # the photographs lie once as they came, and were copied by the server
    for name in BOXES:
        original = s3.get_object(Bucket=bucket, Key=f"photos/{name}")["Body"].read()
        copies = list((tmp_path / "read/latest/yolo-detect/images").rglob(name))
        assert [copy.read_bytes() for copy in copies] == [original]


def test_second_version_sends_only_what_changed(bucket, s3, settings):  # noqa: F811
    options = {"settings": settings, "to": f"s3://{bucket}/sets/cars", "label_config": CONFIG, "copy_images": True}
    source = f"s3://{bucket}/export.json"
    export(source, split="train=1", **options)
    tasks = json.loads(s3.get_object(Bucket=bucket, Key="export.json")["Body"].read())
    tasks[0]["annotations"][0]["result"][0]["value"]["x"] += 5
    s3.put_object(Bucket=bucket, Key="export.json", Body=json.dumps(tasks).encode())
    before = {entry["Key"]: entry["LastModified"] for entry in listed(s3, bucket, "sets/cars/latest/")}
    report = export(source, split="train=1", **options)
    assert report.latest_files["unverified"] == 0
    after = {entry["Key"]: entry["LastModified"] for entry in listed(s3, bucket, "sets/cars/latest/")}
    assert before.keys() == after.keys()
    loose = [key for key in after if "/labels/" in key or "/Annotations/" in key or key.endswith(".jpg")]
    changed = {key.rpartition("/")[2] for key in loose if before[key] != after[key]}
    assert changed <= {"first.txt", "first.xml"}  # times are whole seconds: both may look the same
    first = s3.get_object(Bucket=bucket, Key="sets/cars/versions/v000001/voc.zip")["Body"].read()
    with zipfile.ZipFile(_file(first)) as archive:
        assert archive.testzip() is None
    head = json.loads(s3.get_object(Bucket=bucket, Key="sets/cars/latest/VERSION.json")["Body"].read())
    manifest = s3.get_object(Bucket=bucket, Key=f"sets/cars/{head['manifest']}")["Body"].read()
    assert hashlib.sha256(manifest).hexdigest() == head["manifest_sha256"]


def listed(s3, bucket, prefix):  # noqa: F811
    return s3.list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]


def _file(data):
    import io

    return io.BytesIO(data)
