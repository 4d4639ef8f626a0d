"""A data set in Google's and Azure's store: made by the command line, read by the vendor's own client and loaders."""

import io
import json
import subprocess
import sys

import httpx
import numpy as np
import pytest
from PIL import Image

from exporters.dataset.versions import versions
from exporters.importing.run import ImportOptions, run_import
from exporters.pipeline.export import export
from exporters.validate.folder import validate
from labelloop.cli.main import main
from labelloop.service.datasets import open_source, read_dataset
from labelloop.service.settings import Settings
from labelloop.service.store import open_bucket, open_store
from labelloop.service.store.addresses import to_studio_url
from labelloop.service.store.cloud import CloudStore
from tests.exporters.fake_studio import ImportStudio
from tests.system.test_bucket import STRANGER
from tests.system.test_export import BOXES, CONFIG, HEIGHT, WIDTH, task
from tests.system.test_stores import CLOUDS, cloud_bucket, service_account

pytestmark = pytest.mark.system


@pytest.fixture(params=list(CLOUDS))
def bucket(request, monkeypatch, tmp_path):
    """A bucket with three photographs and a JSON export, whose tasks name them as Label Studio does."""
    monkeypatch.setenv("LABELLOOP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LABELLOOP_LABEL_STUDIO_API_KEY", "")
    url = cloud_bucket(request.param, request, monkeypatch)
    rng = np.random.default_rng(1)
    opened = open_bucket(url)
    for photo in BOXES:
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(file, "JPEG", quality=60)
        opened.write(f"photos/{photo}", file.getvalue(), content_type="image/jpeg")
    write_tasks(url)
    return url


def write_tasks(url, moved=0.0):
    """The JSON export; ``moved`` shifts a box of the first task, in percent."""
    tasks = [task(n, "", name, boxes) for n, (name, boxes) in enumerate(BOXES.items(), start=1)]
    for one in tasks:
        one["data"]["image"] = to_studio_url(f"{url}/photos/{one['data']['image'].rpartition('/')[2]}")
    tasks[0]["annotations"][0]["result"][0]["value"]["x"] += moved
    open_bucket(url).write("export.json", json.dumps(tasks).encode(), content_type="application/json")


def labelloop(*words, status=0):
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert (ended.value.code or 0) == status


def loaded(url, folder):
    """What the vendor's client and other people's loaders find: {image: boxes}."""
    done = subprocess.run(
        [sys.executable, "-I", STRANGER, url, folder], capture_output=True, text=True, cwd=folder.parent, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def boxes_in_coco(store):
    """{image: left and top of each box} in the newest COCO files."""
    found = {name: [] for name in BOXES}
    for key in store.list("latest/coco/annotations/"):
        sheet = json.loads(store.get(key))
        names = {image["id"]: image["file_name"].rpartition("/")[2] for image in sheet["images"]}
        for one in sheet["annotations"]:
            found[names[one["image_id"]]].append(one["bbox"][:2])
    return found


def test_command_line_exports_to_a_cloud_and_strangers_load_it(bucket, tmp_path, capsys):
    config = tmp_path / "config.xml"
    config.write_text(CONFIG)
    cars = f"{bucket}/sets/cars"
    words = ("export", f"{bucket}/export.json", "--to", cars, "--label-config", config, "--copy-images")
    labelloop(*words, "--split", "train=.5,val=.5", "--format", "coco,voc,yolo-detect,ndjson-detect")
    found = loaded(cars, tmp_path / "first")
    assert set(found) == set(BOXES)
    readme = (tmp_path / "first/latest/README.md").read_text()
    assert ("gcloud storage rsync" if bucket.startswith("gs:") else "az storage blob download-batch") in readme
    copies = list((tmp_path / "first/latest/yolo-detect/images").rglob("first.jpg"))
    assert [copy.read_bytes() for copy in copies] == [open_bucket(bucket).read("photos/first.jpg")[0]]

    write_tasks(bucket, moved=5)
    told = ("--json", tmp_path / "report.json")
    labelloop(*words, "--split", "train=.5,val=.5", "--format", "coco,voc,yolo-detect,ndjson-detect", *told)
    files = json.loads((tmp_path / "report.json").read_bytes())["latest_files"]
    assert files["unverified"] == 0
    assert files["same"] > files["written"]
    moved = boxes_in_coco(open_store(cars, Settings()))
    left = min(box[0] for box in found["first.jpg"])
    assert min(box[0] for box in moved["first.jpg"]) == pytest.approx(left + WIDTH * 0.05, abs=0.3)
    assert np.allclose(moved["second.jpg"], [[box[0], box[1]] for box in found["second.jpg"]], atol=0.02)

    capsys.readouterr()
    labelloop("dataset", "list", cars)
    assert "v000002" in capsys.readouterr().out
    labelloop("dataset", "diff", cars, "1", "2")
    labelloop("dataset", "validate", cars)
    labelloop("dataset", "verify", cars, "--version", "1")
    labelloop("dataset", "pull", cars, "--format", "yolo-detect", "--to", tmp_path / "pulled")
    assert len(list((tmp_path / "pulled").rglob("*.jpg"))) == len(BOXES)
    labelloop("dataset", "gc", cars, "--keep", "1", "--delete", "--grace", "0")
    assert not list(open_store(cars, Settings()).list("versions/v000001/"))
    labelloop("dataset", "latest", cars)
    labelloop("dataset", "validate", cars)


def test_server_copies_files_of_the_parent_version_that_are_intact(bucket, tmp_path, monkeypatch):
    config = tmp_path / "config.xml"
    config.write_text(CONFIG)
    cars = f"{bucket}/sets/cars"
    words = ("export", f"{bucket}/export.json", "--to", cars, "--label-config", config, "--no-latest")
    options = ("--split", "train=.5,val=.5", "--format", "coco,voc")
    labelloop(*words, *options)
    store, copied = open_store(cars, Settings()), []
    (version,) = versions(store)
    assert version.files
    store.put("versions/v000001/voc.zip", b"damaged")
    copy = CloudStore.copy
    monkeypatch.setattr(CloudStore, "copy", lambda self, key, to: (copy(self, key, to), copied.append(to)))
    labelloop(*words, *options)
    texts = {"README.md", "report.html"}
    assert set(copied) == {f"versions/v000002/{file.path}" for file in version.files if file.path not in texts} - {
        "versions/v000002/voc.zip"
    }
    labelloop("dataset", "verify", cars, "--version", "2")
    labelloop("dataset", "verify", cars, "--version", "1", status=1)


def test_link_lets_anybody_fetch_the_images(bucket, tmp_path, capsys, monkeypatch):
    options = {"settings": Settings(), "label_config": CONFIG, "formats": ["ndjson-detect"], "copy_images": True}
    assert export(f"{bucket}/export.json", to=f"{bucket}/sets/cars", **options).published
    if bucket.startswith("gs:"):
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(service_account(tmp_path)))
    capsys.readouterr()
    labelloop("dataset", "link", f"{bucket}/sets/cars")
    lines = httpx.get(capsys.readouterr().out.split()[-1]).text.splitlines()
    images = [json.loads(line)["url"] for line in lines[1:]]
    assert len(images) == len(BOXES)
    for address in images:
        assert httpx.get(address).content[:2] == b"\xff\xd8"


def test_exports_at_once_get_a_version_each(bucket, tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    options = {"settings": Settings(), "label_config": CONFIG, "formats": ["coco"], "to": f"{bucket}/sets/cars"}

    def run(number):
        file = tmp_path / f"{number}.json"
        write_tasks(bucket, moved=number)
        file.write_bytes(open_bucket(bucket).read("export.json")[0])
        return export(str(file), **options)

    with ThreadPoolExecutor(3) as threads:
        reports = list(threads.map(run, range(3)))
    assert sorted(report.version for report in reports) == ["v000001", "v000002", "v000003"]
    head = json.loads(open_bucket(bucket).read("sets/cars/HEAD.json")[0])
    assert head["version"] == "v000003"
    assert loaded_version(bucket) == "v000003"


def loaded_version(bucket):
    state = json.loads(open_bucket(bucket).read("sets/cars/latest/VERSION.json")[0])
    assert state["state"] == "complete"
    return state["version"]


@pytest.mark.parametrize("bucket", ["gs"], indirect=True)  # of the other only the time would differ
def test_model_versions_live_in_a_cloud(bucket, tmp_path, monkeypatch):
    from ml_backend.inference.detector import embedded_model, load_detector
    from ml_backend.serving.active_versions import read_pointer
    from ml_backend.serving.model_cache import ModelCache
    from ml_backend.serving.registry import Registry

    monkeypatch.setenv("LABELLOOP_STORE_URL", f"{bucket}/models")
    labelloop("models", "add", embedded_model(), "--activate")
    labelloop("models", "list")
    registry = Registry(open_store(f"{bucket}/models", Settings()))
    (manifest,) = registry.versions()
    assert read_pointer(registry.store)[0].active() == manifest.version
    assert load_detector(ModelCache(tmp_path / "another machine").fetch(registry, manifest)).version == manifest.version


def test_data_set_and_annotations_of_label_studio_are_read_from_a_cloud(bucket, tmp_path):
    options = {"settings": Settings(), "label_config": CONFIG, "formats": ["coco"], "copy_images": True}
    for n, (name, boxes) in enumerate(BOXES.items(), start=1):  # as a target storage of Label Studio has them
        whole = task(n, "", name, boxes)
        whole["data"]["image"] = to_studio_url(f"{bucket}/photos/{name}")
        (annotation,) = whole.pop("annotations")
        data = json.dumps({**annotation, "task": whole}).encode()
        open_bucket(bucket).write(f"target/{n}", data, content_type="application/json")
    report = export(f"{bucket}/target/", to=f"{bucket}/sets/cars", split="train=1", **options)
    assert report.published
    source = open_source(f"{bucket}/sets/cars/latest/coco", Settings())
    found = {image.name: image for image in read_dataset(source).images()}
    assert len(found) == len(BOXES)
    assert source.files.url("a.jpg") == to_studio_url(f"{bucket}/sets/cars/latest/coco/a.jpg")
    assert validate(f"{bucket}/sets/cars/latest/coco").counts.total() == 0


def test_import_refers_to_images_as_label_studio_reads_them(bucket, tmp_path):
    studio = ImportStudio()
    run_import(ImportOptions(source=f"{bucket}/photos", title="cars"), settings=Settings(), studio=studio)
    images = {task["data"]["image"] for task in studio.tasks_by_id.values()}
    assert images == {to_studio_url(f"{bucket}/photos/{name}") for name in BOXES}
