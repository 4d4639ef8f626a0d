"""Somebody who has a bucket, its vendor's client, other people's loaders, and no labelloop: run as a script of its own.

``python -I stranger.py s3://BUCKET/PREFIX FOLDER`` (``gs://``, ``az://``), with the credentials in the environment,
downloads a data set into the folder, loads it with pycocotools and supervision, compares the formats with each other,
and prints {image: [[x0, y0, x1, y1], ...]}.
"""

import json
import os
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

# Importing them fails from here on.
sys.modules.update(dict.fromkeys(("labelloop", "exporters", "ml_backend", "qc_webhooks")))

import numpy as np  # noqa: E402
import supervision as sv  # noqa: E402
from pycocotools.coco import COCO  # noqa: E402
from pycocotools.cocoeval import COCOeval  # noqa: E402


def from_s3(bucket: str, prefix: str) -> Iterator[tuple[str, bytes]]:
    """(name, content) of each object, by boto3."""
    import boto3
    from botocore.config import Config

    client = boto3.client("s3", config=Config(s3={"addressing_style": "path"}))
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for entry in page["Contents"]:
            yield entry["Key"], client.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read()


def from_google(bucket: str, prefix: str) -> Iterator[tuple[str, bytes]]:
    """(name, content) of each object, by google-cloud-storage."""
    from google.cloud.storage import Client

    for blob in Client().list_blobs(bucket, prefix=prefix):
        yield blob.name, blob.download_as_bytes()


def from_azure(container: str, prefix: str) -> Iterator[tuple[str, bytes]]:
    """(name, content) of each blob, by azure-storage-blob."""
    from azure.storage.blob import ContainerClient

    with ContainerClient.from_connection_string(os.environ["AZURE_STORAGE_CONNECTION_STRING"], container) as client:
        for name in client.list_blob_names(name_starts_with=prefix):
            yield name, client.download_blob(name).readall()


CLIENTS = {"s3": from_s3, "gs": from_google, "az": from_azure}


def download(url: str, folder: Path) -> None:
    scheme, _, rest = url.partition("://")
    bucket, _, prefix = rest.partition("/")
    for name, content in CLIENTS[scheme](bucket, f"{prefix}/"):
        path = folder / name.removeprefix(f"{prefix}/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


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
    download(sys.argv[1], Path(sys.argv[2]))
    print(json.dumps(read(Path(sys.argv[2]))))
