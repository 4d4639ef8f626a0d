"""`dataset diff` and `dataset gc` in a real S3 server."""

import json
import time

import pytest

from exporters.dataset.diff import ChangeCounts, diff_versions
from exporters.dataset.gc import collect_garbage, find_garbage
from exporters.dataset.versions import read_version, versions
from exporters.pipeline.export import export
from exporters.validate.version import verify
from labelloop.service.store import open_store

pytestmark = pytest.mark.system


def task(number, x):
    value = {"x": x, "y": 20.0, "width": 10.0, "height": 40.0, "rotation": 0, "rectanglelabels": ["car"]}
    place = {"from_name": "label", "to_name": "image", "type": "rectanglelabels"}
    box = {"id": "r1", **place, "original_width": 100, "original_height": 80, "value": value}
    return {"id": number, "data": {"image": f"s3://b/{number}.jpg"}, "annotations": [{"id": number, "result": [box]}]}


def test_older_versions_go_and_what_stays_is_whole(s3_server, tmp_path):
    settings = s3_server.settings(tmp_path / "home")
    url = f"s3://{s3_server.make_bucket()}/set"
    store, source = open_store(url, settings), tmp_path / "tasks.json"
    for last in (10.0, 30.0, 50.0):
        source.write_text(json.dumps([task(number, 10.0) for number in range(1, 30)] + [task(30, last)]))
        assert export(source, settings=settings, to=url, fetch=False, split="train=1").published
    found = diff_versions(store, read_version(store, "v000001"), read_version(store))
    assert found.images == ChangeCounts(changed=1, same=29)
    assert (found.objects.added, found.objects.removed) == (1, 1)
    assert find_garbage(store, keep=1).versions == ()  # all of it is younger than a day
    store.put("objects/00/" + "00" * 32, b"left by an export that was killed")
    time.sleep(1.1)  # Swift rounds times up to whole seconds
    gone = collect_garbage(store, keep=1, grace_h=0)
    assert gone.versions == ("v000001", "v000002")
    assert ("objects/00/" + "00" * 32, 33) in gone.objects
    assert [each.version for each in versions(store)] == ["v000003"]
    manifest, problems = verify(store)
    assert manifest is not None
    assert not problems
    time.sleep(1.1)
    assert find_garbage(store, keep=1, grace_h=0).objects == ()
