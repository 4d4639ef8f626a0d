"""`--copy-images` where photos and data set lie on one S3 server: the server copies, nothing comes through here."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from exporters.dataset.gc import find_garbage
from exporters.dataset.pull import pull
from exporters.dataset.versions import read_version
from exporters.pipeline.export import export
from exporters.validate.version import verify
from labelloop.service.media import Media
from labelloop.service.store import ObjectInfo, open_store

pytestmark = pytest.mark.system


def photo(seed):
    out = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 255, (80, 100, 3), dtype=np.uint8)
    Image.fromarray(noise).save(out, "JPEG")
    return out.getvalue()


def task(number, url, x=10.0):
    value = {"x": x, "y": 20.0, "width": 10.0, "height": 40.0, "rotation": 0, "rectanglelabels": ["car"]}
    place = {"from_name": "label", "to_name": "image", "type": "rectanglelabels"}
    box = {"id": "r1", **place, "original_width": 100, "original_height": 80, "value": value}
    return {"id": number, "data": {"image": url}, "annotations": [{"id": number, "result": [box]}]}


@pytest.fixture
def settings(s3_server, tmp_path):
    return s3_server.settings(tmp_path / "home")


def test_server_copies_each_photo_once_and_what_is_pulled_is_the_same(s3_server, settings, tmp_path, monkeypatch):
    source, target = s3_server.make_bucket(), s3_server.make_bucket()
    photos = {f"a b/{number} ü.jpg": photo(number) for number in range(5)}
    bucket = open_store(f"s3://{source}", settings)
    for name, data in photos.items():
        bucket.put(name, data)
    monkeypatch.setattr(Media, "path", lambda *_, **__: pytest.fail("a photo came through here"))
    file, url = tmp_path / "tasks.json", f"s3://{target}/set"
    tasks = [task(number + 1, f"s3://{source}/{name}") for number, name in enumerate(photos)]
    file.write_text(json.dumps([*tasks, task(9, f"s3://{source}/a b/0 ü.jpg")]))  # one photo in two tasks
    options = {"settings": settings, "to": url, "split": "train=1", "formats": ["coco"], "fetch": False}
    assert export(file, copy_images=True, **options).published
    store = open_store(url, settings)
    copies = {each.key: each for each in store.entries("photos/")}
    assert len(copies) == 5
    manifest, problems = verify(store)
    assert not problems
    pull(store, manifest, to=tmp_path / "pulled")
    pulled = {path.name: path.read_bytes() for path in (tmp_path / "pulled/images/train").iterdir()}
    assert len(pulled) == 6
    assert sorted(pulled.values()) == sorted([*photos.values(), photo(0)])
    # an object that is replaced at its source is another photo; the version before keeps the one that it had
    bucket.put("a b/1 ü.jpg", photo(99))
    tasks[1] = task(2, f"s3://{source}/a b/1 ü.jpg", x=50.0)
    file.write_text(json.dumps([*tasks, task(9, f"s3://{source}/a b/0 ü.jpg")]))
    assert export(file, copy_images=True, **options).written.tasks == 2  # it, and the second task of photo 0
    assert len(list(store.entries("photos/"))) == 6
    for version, seed in (("v000001", 1), ("v000002", 99)):
        pull(store, read_version(store, version), to=tmp_path / version)
        assert (tmp_path / version / "images/train/1_ü.jpg").read_bytes() == photo(seed)
    assert find_garbage(store, grace_h=0).objects == ()
    # a copy that was damaged is found
    store.put(next(iter(copies)), photo(7))
    assert verify(store, "v000001")[1]


def test_photo_that_the_server_does_not_have_is_read_from_where_it_is(s3_server, settings, tmp_path):
    store = open_store(f"s3://{s3_server.make_bucket()}/set", settings)
    for url in (
        "s3://no-such-bucket/x.jpg",
        f"{store.url}/missing.jpg",
        "https://example.com/x.jpg",
        "s3://",
        "/data/x",
    ):
        assert store.copy_from(url, lambda _: "photos/x") is None
    store.put("here.jpg", photo(1))
    assert store.copy_from(f"{store.url}/here.jpg", lambda _: "") is None
    made = store.copy_from(f"{store.url}/here.jpg", lambda entry: f"photos/{entry.size}")
    assert isinstance(made, ObjectInfo)
    assert store.get(made.key) == photo(1)
