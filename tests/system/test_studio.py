"""`Studio` and `Media` against stock Label Studio: every call does what it says, and reading has no side effects."""

import base64
import io

import httpx
import numpy as np
import pytest
from PIL import Image

from labelloop.service.media import Media, MediaMissing
from labelloop.service.settings import Settings
from labelloop.service.studio import (
    PredictionsDropped,
    Studio,
    StudioError,
    StudioNotFound,
    StudioRefused,
    StudioUnauthorized,
)
from tests.web_server import WebServer

pytestmark = pytest.mark.system

CONFIG = """<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">
<Label value="Car"/><Label value="Person"/></RectangleLabels></View>"""


def box(label="Car", x=10.0):
    value = {"x": x, "y": 20.0, "width": 30.0, "height": 40.0, "rotation": 0, "rectanglelabels": [label]}
    place = {"from_name": "label", "to_name": "image", "type": "rectanglelabels"}
    return {"id": "r1", **place, "original_width": 100, "original_height": 80, "value": value}


def data_filter(key, operator, value):
    item = {"filter": f"filter:tasks:data.{key}", "operator": operator, "type": "String", "value": value}
    return {"conjunction": "and", "items": [item]}


@pytest.fixture(scope="module")
def studio(label_studio):
    studio = Studio(label_studio.url, label_studio.admin_token)
    yield studio
    studio.close()


@pytest.fixture
def project(studio):
    made = studio.create_project(title="studio calls", label_config=CONFIG, maximum_annotations=2)
    yield made["id"]
    studio.request("DELETE", f"api/projects/{made['id']}/")


@pytest.fixture
def backend():
    """An ML backend that only counts what it is asked."""
    calls = []

    def answer(asked):
        calls.append(asked.path)
        return 200, {"status": "UP", "model_version": "counting"}

    with WebServer(answer) as server:
        yield server.url, calls


def test_both_kinds_of_token_open_the_door_and_a_wrong_one_is_explained(label_studio, studio):
    legacy = Studio(label_studio.url, label_studio.legacy_token)
    assert studio.me()["email"] == legacy.me()["email"]
    assert studio.version() == "1.23.2"
    for token, says in (
        ("f" * 40, "does not know this legacy token"),
        (label_studio.admin_token[:-4] + "AAAA", "another Label"),
    ):
        with pytest.raises(StudioUnauthorized, match=says) as caught:
            Studio(label_studio.url, token).me()
        assert token not in str(caught.value)


def test_a_token_of_five_minutes_that_was_lost_is_exchanged_again(label_studio):
    studio = Studio(label_studio.url, label_studio.admin_token)
    first = studio.authorization()
    assert studio.authorization() == first
    studio.me()
    assert studio.authorization(refused=first).startswith("Bearer ")
    studio.me()


def test_a_project_is_made_found_changed_and_read(studio, project):
    assert project in [found["id"] for found in studio.projects()]
    assert studio.update_project(project, title="renamed")["title"] == "renamed"
    assert studio.project(project)["maximum_annotations"] == 2
    assert [label.value for label in studio.label_config(project).controls["label"].labels] == ["Car", "Person"]
    assert studio.me()["id"] in [user["id"] for user in studio.users()]
    with pytest.raises(StudioNotFound):
        studio.project(10**6)
    with pytest.raises(StudioRefused, match="at least 3 characters"):
        studio.create_project(title="x")


def test_tasks_come_with_every_annotation_and_prediction_and_raw_addresses(studio, project):
    ids = studio.import_tasks(project, [{"image": f"s3://bucket/a {n}.jpg", "n": f"{n}"} for n in range(7)])
    skipped = studio.add_annotation(ids[0], [], was_cancelled=True)
    given = studio.add_annotation(ids[0], [box()], lead_time=3.5)
    prediction = studio.add_prediction(ids[0], [box("Person")], 0.25, "v1")

    tasks = list(studio.tasks(project, page_size=3))
    assert [task.id for task in tasks] == ids
    first = tasks[0]
    assert first.data == {"image": "s3://bucket/a 0.jpg", "n": "0"}
    assert {annotation.id: annotation.was_cancelled for annotation in first.annotations} == {
        skipped["id"]: True,
        given["id"]: False,
    }
    [prelabel] = first.predictions
    assert (prelabel.id, prelabel.model_version, prelabel.score) == (prediction["id"], "v1", 0.25)
    assert prelabel.results[0].raw == box("Person")
    assert first.overlap == 2
    assert first.project == project

    assert studio.task(project, ids[3]) == tasks[3]
    assert studio.task(project, 10**7) is None
    assert studio.task_json(project, ids[0])["annotations"][0]["completed_by"] == studio.me()["id"]
    with pytest.raises(StudioNotFound):
        list(studio.tasks(10**6))


def test_tasks_are_filtered_ordered_and_picked(studio, project):
    ids = studio.import_tasks(project, [{"image": f"{n}.jpg", "n": f"{n % 3} 100%"} for n in range(9)])

    def found(**kwargs):
        return [task.id for task in studio.tasks(project, page_size=2, **kwargs)]

    assert found(filters=data_filter("n", "equal", "1 100%")) == [ids[1], ids[4], ids[7]]
    either = data_filter("image", "equal", "2.jpg")
    either["items"] += data_filter("image", "equal", "5.jpg")["items"]
    assert found(filters={**either, "conjunction": "or"}) == [ids[2], ids[5]]
    assert found(ordering=["-tasks:id"]) == ids[::-1]
    assert found(only_ids=[ids[8], ids[0], 10**7, ids[3]]) == [ids[0], ids[3], ids[8]]
    assert found(only_ids=[]) == []


def test_no_task_is_missed_or_doubled_while_others_are_deleted(studio, project):
    ids = studio.import_tasks(project, [{"image": f"{n}.jpg"} for n in range(8)])
    seen = []
    for task in studio.tasks(project, page_size=2):
        seen.append(task.id)
        if task.id == ids[2]:
            studio.request("DELETE", f"api/tasks/{ids[0]}/")
            studio.request("DELETE", f"api/tasks/{ids[7]}/")
    assert seen == ids[:7]


def test_reading_tasks_never_calls_the_ml_backend(studio, project, backend):
    url, calls = backend
    ids = studio.import_tasks(project, [{"image": f"{n}.jpg"} for n in range(3)])
    made = studio.add_ml_backend(project, url, "counting")
    studio.update_project(project, evaluate_predictions_automatically=True)
    calls.clear()
    assert [task.id for task in studio.tasks(project)] == ids
    assert studio.task(project, ids[0]).id == ids[0]
    assert calls == []
    studio.request("GET", f"api/tasks/{ids[0]}")  # what a browser does
    assert "/predict" in calls
    studio.delete_ml_backend(made["id"])


def test_a_task_is_changed_without_losing_its_stored_address(studio, project):
    [task] = studio.import_tasks(project, [{"image": "s3://bucket/a.jpg"}])
    studio.add_annotation(task, [box()])
    data = studio.task(project, task).data
    studio.update_task(task, data={**data, "qc_status": "disputed"}, overlap=3, is_labeled=False)
    read = studio.task(project, task)
    assert read.data == {"image": "s3://bucket/a.jpg", "qc_status": "disputed"}
    assert (read.overlap, read.is_labeled) == (3, False)


def test_annotations_are_changed_and_the_stream_serves_what_is_left(studio, project, label_studio):
    token, user = label_studio.user("stream@example.com")
    annotator = Studio(label_studio.url, token)
    first, second = studio.import_tasks(project, [{"image": "1.jpg"}, {"image": "2.jpg"}])
    annotation = annotator.add_annotation(first, [box()])
    assert annotation["completed_by"] == user
    assert studio.update_annotation(annotation["id"], ground_truth=True)["ground_truth"]
    assert annotator.next_task(project)["id"] == second
    annotator.add_annotation(second, [], was_cancelled=True)
    assert annotator.next_task(project) is None
    with pytest.raises(StudioNotFound):
        annotator.next_task(10**6)
    annotator.close()


def test_predictions_are_imported_counted_and_removed(studio, project):
    ids = studio.import_tasks(project, [{"image": f"{n}.jpg"} for n in range(3)])
    rows = [{"task": task, "result": [box()], "score": 0.5, "model_version": "v2"} for task in ids]
    assert studio.import_predictions(project, rows) == 3
    assert studio.import_predictions(project, []) == 0
    assert studio.model_versions(project) == {"v2": 3}
    with pytest.raises(StudioRefused, match="task ID"):
        studio.import_predictions(project, [{**rows[0], "task": 10**7}])
    with pytest.raises(PredictionsDropped):
        studio.import_predictions(project, [{**rows[0], "result": [box("Nobody")]}, rows[1]])
    studio.delete_prediction(studio.task(project, ids[0]).predictions[0].id)
    studio.delete_model_version(project, "v2")
    assert studio.model_versions(project) == {}


def test_a_backend_keeps_its_address_and_auth_when_it_is_changed(studio, project, backend):
    url, _ = backend
    made = studio.add_ml_backend(project, url, "counting", basic_auth=("user", "secret"))
    changed = studio.update_ml_backend(made["id"], title="renamed", basic_auth=("user", "secret"))
    assert (changed["url"], changed["title"], changed["auth_method"]) == (url, "renamed", "BASIC_AUTH")
    with pytest.raises(StudioError, match="Pass basic_auth"):
        studio.update_ml_backend(made["id"], title="again")
    open_ = studio.update_ml_backend(made["id"], auth_method="NONE")
    assert open_["auth_method"] == "NONE"
    assert [row["title"] for row in studio.ml_backends(project)] == ["renamed"]
    studio.delete_ml_backend(made["id"])
    assert studio.ml_backends(project) == []
    with pytest.raises(StudioRefused, match="Start the ML backend"):
        studio.add_ml_backend(project, "http://127.0.0.1:9", "nobody")


def test_a_webhook_keeps_its_actions_when_it_is_changed(studio, project):
    made = studio.add_webhook(
        project, "http://127.0.0.1:9/hook", actions=["ANNOTATION_CREATED"], headers={"X-Secret": "s"}, is_active=False
    )
    changed = studio.update_webhook(made["id"], headers={"X-Secret": "t"})
    assert (changed["actions"], changed["headers"]) == (["ANNOTATION_CREATED"], {"X-Secret": "t"})
    [kept] = studio.webhooks(project)
    assert (kept["actions"], kept["send_for_all_actions"]) == (["ANNOTATION_CREATED"], False)
    with pytest.raises(StudioRefused, match="without a dot"):
        studio.add_webhook(project, "http://qc:9091/hook")
    studio.delete_webhook(made["id"])
    assert studio.webhooks(project) == []


def test_tabs_are_made_changed_and_removed(studio, project):
    disputed = {"title": "QC: disputed", "filters": data_filter("qc_status", "equal", "disputed"), "type": "list"}
    made = studio.add_view(project, disputed)
    studio.update_view(made["id"], project, {"title": "Renamed", "ordering": ["-tasks:data.qc_iou"]})
    [view] = studio.views(project)
    assert view["data"]["title"] == "Renamed"
    assert view["data"]["filters"]["items"][0]["value"] == "disputed"
    studio.delete_view(made["id"])
    assert studio.views(project) == []


def photo_file(path, width=90, height=60, orientation=1):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(1).integers(0, 255, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path, exif=exif)
    return path


@pytest.mark.parametrize("key", ["admin_token", "legacy_token"])
def test_uploaded_images_become_tasks_and_are_read_back_upright(label_studio, project, tmp_path, key):
    studio = Studio(label_studio.url, getattr(label_studio, key))
    files = [photo_file(tmp_path / "a b.png"), photo_file(tmp_path / "ü turned.jpg", orientation=6)]
    ids = studio.upload_images(project, files)
    media = Media(Settings(home=tmp_path / "home"), studio)
    sizes = []
    for task in ids:
        url = studio.task(project, task).data["image"]
        assert url.startswith("/data/upload/")
        photo = media.photo(url, task_id=task)
        sizes.append(photo.pixels.shape[1::-1])
        assert media.size(url) == (photo.width, photo.height)
    assert sizes == [(90, 60), (60, 90)]
    with pytest.raises(MediaMissing, match="no such upload"):
        media.photo("/data/upload/1/none.png")
    media.close()
    studio.close()


@pytest.mark.parametrize("presign", [True, False], ids=["presigned", "proxied"])
def test_a_bucket_that_only_label_studio_can_read_is_read_through_it(
    studio, project, s3_server, tmp_path, presign, label_studio
):
    bucket = s3_server.make_bucket()
    client = s3_server.client()
    out = io.BytesIO()
    Image.new("RGB", (50, 40), "red").save(out, "PNG")
    client.put_object(Bucket=bucket, Key="photos/a b.png", Body=out.getvalue(), ContentType="image/png")
    login = {"aws_access_key_id": s3_server.key, "aws_secret_access_key": s3_server.secret}
    place = {"bucket": bucket, "s3_endpoint": s3_server.endpoint, "region_name": "us-east-1", "use_blob_urls": True}
    studio.request("POST", "api/storages/s3/", json={"project": project, "presign": presign, **login, **place})

    url = f"s3://{bucket}/photos/a b.png"
    [task] = studio.import_tasks(project, [{"image": url}])
    assert studio.task(project, task).data["image"] == url
    media = Media(Settings(home=tmp_path, media_hosts=("127.0.0.1",)), studio)
    assert media.photo(url, task_id=task).pixels[0, 0].tolist() == [255, 0, 0]
    coded = base64.urlsafe_b64encode(url.encode()).decode()
    resolved = f"{label_studio.url}/tasks/{task}/resolve/?fileuri={coded}"
    assert httpx.get(resolved).status_code == 401
    assert media.size(resolved) == (50, 40)
    with pytest.raises(MediaMissing, match="Cloud Storage"):
        media.photo("s3://another-bucket/a.png", task_id=task)
    media.close()

    direct = Media(s3_server.settings(tmp_path / "direct"), None)
    assert direct.size(url) == (50, 40)
    with pytest.raises(MediaMissing, match="NoSuchKey"):
        direct.size(f"s3://{bucket}/none.png")
    direct.close()
