"""Sources on real parts: a project of stock Label Studio, and its own target storage in a real S3 server."""

import pytest

from exporters.dataset.pull import pull
from exporters.dataset.versions import read_version
from exporters.errors import SourceNotFound
from exporters.pipeline.export import export
from exporters.sources import open_source, project
from labelloop.service.settings import SecretStr
from labelloop.service.store import open_store
from labelloop.service.studio import Studio

pytestmark = pytest.mark.system

CONFIG = """<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">
<Label value="car"/><Label value="bus"/></RectangleLabels></View>"""


def box(x, label="car"):
    value = {"x": x, "y": 20.0, "width": 10.0, "height": 40.0, "rotation": 0, "rectanglelabels": [label]}
    place = {"from_name": "label", "to_name": "image", "type": "rectanglelabels"}
    return {"id": f"r{x:g}", **place, "original_width": 100, "original_height": 80, "value": value}


@pytest.fixture
def settings(label_studio, s3_server, tmp_path):
    return s3_server.settings(
        tmp_path / "home",
        label_studio_url=label_studio.url,
        label_studio_api_key=SecretStr(label_studio.admin_token),
    )


@pytest.fixture
def studio(settings):
    studio = Studio.from_settings(settings)
    yield studio
    studio.close()


@pytest.fixture
def number(studio):
    """A project of 12 annotated tasks."""
    made = studio.create_project(title="sources", label_config=CONFIG, maximum_annotations=2)["id"]
    annotated = [{"result": [box(10.0)], "ground_truth": False}]
    studio.import_tasks(made, [{"data": {"image": f"s3://b/{n}.jpg"}, "annotations": annotated} for n in range(12)])
    yield made
    studio.request("DELETE", f"api/projects/{made}/")


def told(tasks):
    """What of the tasks must be the same by whichever way they came."""
    return {
        task.id: (
            task.data,
            task.updated_at,
            sorted(
                (each.id, each.completed_by, each.was_cancelled, each.ground_truth, [r.raw for r in each.results])
                for each in task.annotations
            ),
        )
        for task in tasks
    }


def test_project_is_read_as_a_snapshot_and_then_by_its_changes_and_is_always_what_pages_give(
    settings, studio, number, monkeypatch
):
    monkeypatch.setattr(project, "SNAPSHOT_MIN_TASKS", 5)

    def check(read):
        source = open_source(number, settings=settings, studio=studio)
        try:
            found = told(source.tasks())
        finally:
            source.close()
        assert found == told(studio.tasks(number))
        if read is not None:
            assert source.origin["read"] == read
        return found

    ids = list(check(read=None))
    check(read=0)  # nothing newer than the newest: from here on no overlap is read
    assert studio.request("GET", f"api/projects/{number}/exports/") == []  # the snapshot was removed
    first = next(iter(studio.tasks(number, only_ids=ids[:1])))
    studio.update_annotation(first.annotations[0].id, ground_truth=True)
    check(read=1)
    studio.add_annotation(ids[1], [box(50.0, "bus")])
    studio.add_annotation(ids[2], [], was_cancelled=True)
    studio.update_task(ids[3], data={"image": "s3://b/3.jpg", "qc_status": "disputed"})
    assert len(check(read=None)[ids[1]][2]) == 2
    studio.request("DELETE", f"api/annotations/{first.annotations[0].id}/")
    assert check(read=None)[ids[0]][2] == []
    studio.request("DELETE", f"api/tasks/{ids[4]}/")
    assert ids[4] not in check(read=None)
    params = {"id": "delete_tasks_annotations", "project": number}
    chosen = {"selectedItems": {"all": False, "included": ids[5:7]}}
    studio.request("POST", "api/dm/actions/", params=params, json=chosen)  # in bulk: no webhook, and a wrong time
    found = check(read=None)
    assert found[ids[5]][2] == found[ids[6]][2] == []
    studio.import_tasks(number, [{"data": {"image": "s3://b/new.jpg"}}])
    assert len(check(read=None)) == 12


def test_target_storage_that_label_studio_writes_gives_the_same_data_set_as_the_project(
    settings, studio, number, s3_server
):
    bucket = s3_server.make_bucket()
    fields = {
        "project": number,
        "title": "target",
        "bucket": bucket,
        "prefix": "out/here",
        "aws_access_key_id": s3_server.key,
        "aws_secret_access_key": s3_server.secret,
        "s3_endpoint": s3_server.endpoint,
        "region_name": "us-east-1",
    }
    storage = studio.request("POST", "api/storages/export/s3", json=fields)["id"]
    studio.request("POST", f"api/storages/export/s3/{storage}/sync", json={}, timeout_s=60)
    keys = list(open_store(f"s3://{bucket}/out/here", settings).list())
    assert len(keys) == 12
    assert all(key.isdecimal() for key in keys)  # no extension
    options = {"settings": settings, "label_config": CONFIG, "fetch": False}
    one = export(number, to=f"s3://{bucket}/one", **options)
    two = export(f"s3://{bucket}/out/here", to=f"s3://{bucket}/two", **options)
    assert two.accounts == one.accounts
    assert two.accounts.tasks.kept == 12
    files = []
    for name in ("one", "two"):
        store = open_store(f"s3://{bucket}/{name}", settings)
        pull(store, read_version(store), to=settings.home / name, formats=["coco"])
        files.append({path.name: path.read_bytes() for path in (settings.home / name).rglob("instances_*.json")})
    assert files[0]["instances_train.json"]
    assert files[0] == files[1]  # to the bit
    # a submit writes its object by itself; the next export reads that one alone
    task = next(iter(studio.tasks(number)))
    studio.add_annotation(task.id, [box(70.0)], completed_by=task.annotations[0].completed_by)
    again = export(f"s3://{bucket}/out/here", to=f"s3://{bucket}/two", **options)
    source = read_version(open_store(f"s3://{bucket}/two", settings), again.version).source
    assert source["read"] == 1
    assert again.accounts.annotations.input == 13


def test_project_that_is_not_there_is_said_with_those_that_are(settings, studio, number):
    with pytest.raises(SourceNotFound, match=f"{number} \\(sources\\)"):
        open_source(10_000_000, settings=settings, studio=studio)
