"""A bucket as a stranger finds it: read by boto3 and loaded by other people's loaders, without labelloop."""

import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from exporters.pipeline.export import export
from tests.exporters.conftest import ultralytics  # noqa: F401
from tests.system.test_export import BOXES, CONFIG, bucket, s3, settings  # noqa: F401

pytestmark = pytest.mark.system

STRANGER = Path(__file__).with_name("stranger.py")


def test_stranger_loads_the_bucket_without_labelloop(bucket, s3, s3_server, settings, tmp_path, ultralytics):  # noqa: F811
    options = {"settings": settings, "to": f"s3://{bucket}/sets/cars", "label_config": CONFIG, "copy_images": True}
    report = export(f"s3://{bucket}/export.json", split="train=.5,val=.5", **options)
    assert report.published
    assert report.latest == report.version == "v000001"
    words = [f"s3://{bucket}/sets/cars", str(tmp_path / "read")]
    environment = {**os.environ, **s3_server.environment()}
    done = subprocess.run(
        [sys.executable, "-I", STRANGER, *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=False,
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
    with zipfile.ZipFile(io.BytesIO(first)) as archive:
        assert archive.testzip() is None
    head = json.loads(s3.get_object(Bucket=bucket, Key="sets/cars/latest/VERSION.json")["Body"].read())
    manifest = s3.get_object(Bucket=bucket, Key=f"sets/cars/{head['manifest']}")["Body"].read()
    assert hashlib.sha256(manifest).hexdigest() == head["manifest_sha256"]


def listed(s3, bucket, prefix):  # noqa: F811
    return s3.list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]
