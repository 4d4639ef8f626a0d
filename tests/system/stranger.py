"""Somebody who has a bucket, boto3 and other people's loaders, and no labelloop: run as a script of its own.

``python -I stranger.py ENDPOINT KEY SECRET BUCKET PREFIX FOLDER`` downloads a data set into the folder, loads it with
pycocotools and supervision, compares the formats with each other, and prints {image: [[x0, y0, x1, y1], ...]}.
"""

import json
import sys
import zipfile
from pathlib import Path

# Importing them fails from here on.
sys.modules.update(dict.fromkeys(("labelloop", "exporters", "ml_backend", "qc_webhooks")))

import boto3  # noqa: E402
import numpy as np  # noqa: E402
import supervision as sv  # noqa: E402
from botocore.config import Config  # noqa: E402
from pycocotools.coco import COCO  # noqa: E402
from pycocotools.cocoeval import COCOeval  # noqa: E402


def download(endpoint: str, key: str, secret: str, bucket: str, prefix: str, folder: Path) -> None:
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        config=Config(s3={"addressing_style": "path"}),
    )
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/"):
        for entry in page["Contents"]:
            path = folder / entry["Key"].removeprefix(f"{prefix}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(client.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read())


def boxes(dataset: sv.DetectionDataset) -> dict[str, list]:
    return {Path(path).name: sorted(map(tuple, found.xyxy.round(2).tolist())) for path, _, found in dataset}


def same(found: dict[str, list], wanted: dict[str, list], tolerance: float) -> None:
    assert found.keys() == wanted.keys(), (found.keys(), wanted.keys())
    for name, rows in wanted.items():
        assert np.allclose(np.sort(found[name], axis=0), np.sort(rows, axis=0), atol=tolerance), name


def judged(sheet: Path) -> None:
    """The truth against itself is perfect, boxes and outlines."""
    truth = COCO(str(sheet))
    if truth.dataset["annotations"]:
        found = [one | {"score": 1.0} for one in truth.dataset["annotations"]]
        for kind in ("bbox", "segm"):
            judge = COCOeval(truth, truth.loadRes(found), kind)
            judge.evaluate()
            judge.accumulate()
            judge.summarize()
            assert judge.stats[0] > 0.999


def read(folder: Path) -> dict[str, list]:
    state = json.loads((folder / "latest/VERSION.json").read_bytes())
    assert state["state"] == "complete", state
    version, latest, unzipped = folder / "versions" / state["version"], folder / "latest", folder / "unzipped"
    with zipfile.ZipFile(version / "yolo-detect.zip") as archive:
        archive.extractall(unzipped)
    results: dict[str, list] = {}
    load = sv.DetectionDataset
    for sheet in sorted((latest / "coco/annotations").glob("instances_*.json")):
        split = sheet.stem.removeprefix("instances_")
        assert sheet.read_bytes() == (version / "coco/annotations" / sheet.name).read_bytes()
        judged(sheet)
        if not (latest / f"coco/images/{split}").is_dir():  # no image is in this split
            assert not json.loads(sheet.read_bytes())["images"]
            continue
        coco = boxes(load.from_coco(str(latest / f"coco/images/{split}"), str(sheet)))
        for root in (latest / "yolo-detect", unzipped):
            places = (root / f"images/{split}", root / f"labels/{split}", root / "data.yaml")
            same(boxes(load.from_yolo(*map(str, places))), coco, 0.2)
        results |= coco
    voc = load.from_pascal_voc(str(latest / "voc/JPEGImages"), str(latest / "voc/Annotations"))
    same(boxes(voc), results, 1.51)
    return results


if __name__ == "__main__":
    download(*sys.argv[1:6], Path(sys.argv[6]))
    print(json.dumps(read(Path(sys.argv[6]))))
