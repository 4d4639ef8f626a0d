"""What goes in comes out the same: data sets imported into stock Label Studio, exported, and compared in pixels."""

import json
import re
import secrets
import zipfile

import httpx
import numpy as np
import pytest
from pycocotools.coco import COCO

from exporters.dataset.pull import pull
from exporters.dataset.versions import read_version
from exporters.errors import ImportFailed
from exporters.importing import run as importing
from exporters.importing.run import ImportOptions, run_import
from exporters.pipeline.export import export
from exporters.validate import validate
from labelloop.service.media import Media
from labelloop.service.settings import SecretStr, Settings
from labelloop.service.store import open_store
from labelloop.service.studio import Studio
from tests import dataset_makers as makers

pytestmark = pytest.mark.system


@pytest.fixture
def settings(label_studio, tmp_path):
    return Settings(
        home=tmp_path / "home",
        label_studio_url=label_studio.url,
        label_studio_api_key=SecretStr(label_studio.admin_token),
    )


@pytest.fixture
def studio(settings):
    studio = Studio.from_settings(settings)
    yield studio
    studio.close()


@pytest.fixture
def bring(settings, studio, tmp_path):
    """Imports into a new project and gives the report; ``out(formats)`` exports it and gives the pulled folder."""

    class Bring:
        def __call__(self, source, **order):
            order = {"title": title()} | order
            return run_import(ImportOptions(source=str(source), **order), settings=settings, studio=studio)

        def out(self, project, *formats):
            to = f"file://{tmp_path}/out-{project}-{'-'.join(formats)}"
            report = export(str(project), settings=settings, formats=formats, to=to, split="train=1", max_errors=0)
            assert report.published
            store = open_store(to, settings)
            pulled = pull(store, read_version(store), to=tmp_path / f"pulled-{project}-{'-'.join(formats)}")
            return dict(pulled.folders)

    return Bring()


def title():
    return f"import {secrets.token_hex(8)}"


def by_photo(coco: COCO) -> dict:
    """Photo -> its annotations in order, with their masks, whatever the ids are."""
    found = {}
    for image in coco.loadImgs(coco.getImgIds()):
        rows = sorted(coco.loadAnns(coco.getAnnIds(image["id"])), key=lambda row: row["id"])
        found[makers_name(image["file_name"])] = [
            (coco.cats[row["category_id"]]["name"], row, coco.annToMask(row) if row["segmentation"] else None)
            for row in rows
        ]
    return found


def makers_name(name):
    """A photo's name as Label Studio takes it: without folders and spaces."""
    return re.sub(r"[^\w.]", "_", name.rpartition("/")[2])


def test_coco_comes_back_with_the_same_pixels(bring, studio, tmp_path):
    source = makers.make_coco(tmp_path / "set")
    report = bring(source)
    assert (report.tasks_made, report.added, report.regions, report.problems) == (4, 4, 7, [])
    before = by_photo(COCO(str(source)))
    folder = bring.out(report.project, "coco")["coco"]
    after = by_photo(COCO(str(folder / "annotations/instances_train.json")))
    assert set(after) == set(before)
    for photo, rows in before.items():
        assert [row[0] for row in after[photo]] == [row[0] for row in rows]
        for (_, old, old_mask), (_, new, new_mask) in zip(rows, after[photo], strict=True):
            # several rings become the pixels that they fill, whose box is a pixel's edge away from the rings' own
            whole = isinstance(old["segmentation"], list) and len(old["segmentation"]) > 1
            np.testing.assert_allclose(new["bbox"], old["bbox"], atol=1.001 if whole else 1e-3)
            if old_mask is not None:
                np.testing.assert_array_equal(new_mask, old_mask)
            if "keypoints" in old:
                np.testing.assert_allclose(new["keypoints"], old["keypoints"], atol=1e-3)
                assert new["num_keypoints"] == old["num_keypoints"]
    sheet = json.loads((folder / "annotations/instances_train.json").read_text())
    assert [each["name"] for each in sheet["categories"]] == list(makers.LABELS)


@pytest.mark.parametrize("task", ["detect", "segment", "obb", "pose"])
def test_yolo_comes_back_row_by_row(bring, tmp_path, task):
    makers.make_yolo(tmp_path / "set", task)
    report = bring(tmp_path / "set", format=f"yolo-{task}")
    assert (report.tasks_made, report.added, report.problems) == (4, 4, [])
    folder = bring.out(report.project, f"yolo-{task}")[f"yolo-{task}"]
    found = {makers_name(path.stem): path.read_text() for path in (folder / "labels/train").iterdir()}
    assert len(found) == len(makers.SIZES)
    for name in makers.SIZES:
        rows = makers.YOLO[task].get(name, ())
        lines = found[makers_name(name).rpartition(".")[0]].splitlines()
        assert len(lines) == len(rows)
        for line, row in zip(lines, rows, strict=True):
            np.testing.assert_allclose([float(cell) for cell in line.split()], row, atol=2e-8)


def test_classes_of_photos_come_back_as_folders(bring, settings, studio, tmp_path):
    report = bring(makers.make_classes(tmp_path / "set"))
    assert (report.format, report.tasks_made, report.added, report.problems) == ("yolo-classify", 3, 3, [])
    to = f"file://{tmp_path}/out"
    export(str(report.project), settings=settings, formats=("yolo-classify",), to=to, split="train=1", studio=studio)
    media = Media(settings, studio)
    store = open_store(to, settings)
    assert pull(store, read_version(store), to=tmp_path / "pulled", media=media).missing == ()
    media.close()
    before, after = (
        sorted((path.parent.name, path.read_bytes()) for path in (tmp_path / name).rglob("*.jpg"))
        for name in ("set", "pulled")
    )
    assert [kind for kind, _ in before] == ["cat", "cat", "dog"]
    assert after == before


def test_voc_comes_back_from_pixels_that_count_from_one(bring, tmp_path):
    makers.make_voc(tmp_path / "set")
    report = bring(tmp_path / "set")
    assert report.problems == []
    folder = bring.out(report.project, "coco")["coco"]
    after = by_photo(COCO(str(folder / "annotations/instances_train.json")))
    for name, drawn in makers.VOC.items():
        boxes = [(label, row["bbox"]) for label, row, _ in after[makers_name(name)]]
        assert boxes == [
            (label, pytest.approx([left - 1, top - 1, right - left + 1, bottom - top + 1], abs=1e-3))
            for label, left, top, right, bottom in drawn
        ]


def test_a_second_import_adds_nothing_and_a_stopped_one_goes_on(bring, studio, settings, tmp_path, monkeypatch):
    source = makers.make_coco(tmp_path / "set")
    monkeypatch.setattr(importing, "BATCH", 1)
    order = ImportOptions(source=str(source), title=title())
    first = run_import(order, settings=settings, studio=studio, stop=lambda: True)
    assert (first.stopped, first.tasks_made) == (True, 1)
    with pytest.raises(ImportFailed, match="exists already"):
        run_import(order, settings=settings, studio=studio)
    second = bring(source, project=first.project)
    assert (second.tasks_made, second.tasks_there, second.added, second.there) == (3, 1, 3, 1)
    third = bring(source, project=first.project)
    assert (third.tasks_made, third.added, third.there) == (0, 0, 4)
    tasks = list(studio.tasks(first.project))
    assert [len(task.annotations) for task in tasks] == [1, 1, 1, 1]
    assert not any(annotation.ground_truth for task in tasks for annotation in task.annotations)


def test_photos_are_shown_by_label_studio_as_they_were(bring, studio, label_studio, tmp_path):
    makers.make_photos(tmp_path / "photos")
    report = bring(tmp_path / "photos")
    assert (report.format, report.tasks_made, report.added) == ("images", 4, 0)
    originals = {(tmp_path / "photos" / name).read_bytes() for name in makers.SIZES}
    header = {"Authorization": studio.authorization()}
    shown = {
        httpx.get(label_studio.url + task.data["image"], headers=header).content
        for task in studio.tasks(report.project)
    }
    assert shown == originals


def test_a_models_results_become_predictions_of_the_tasks_that_they_are_of(bring, studio, tmp_path):
    source = makers.make_coco(tmp_path / "set")
    project = bring(source).project
    folder = bring.out(project, "coco")["coco"]
    sheet = folder / "annotations/instances_train.json"
    truth = json.loads(sheet.read_text())
    results = [
        {"image_id": row["image_id"], "category_id": row["category_id"], "bbox": row["bbox"], "score": 0.5}
        for row in truth["annotations"]
    ] + [{"image_id": 999999, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]
    (tmp_path / "results.json").write_text(json.dumps(results))
    order = {"project": project, "labels_as": "predictions", "version": "net-1", "classes": sheet}
    report = bring(tmp_path / "results.json", **order)
    assert (report.tasks_made, report.added, report.regions) == (0, 3, 7)
    assert [problem.item for problem in report.problems] == ["task 999999"]
    again = bring(tmp_path / "results.json", **order)
    assert (again.added, again.there) == (0, 3)
    for task in studio.tasks(project):
        wanted = [row["bbox"] for row in truth["annotations"] if row["image_id"] == task.id]
        assert [each.model_version for each in task.predictions] == ["net-1"] * bool(wanted)
        values = [result.value for each in task.predictions for result in each.results]
        size = [(result.original_width, result.original_height) for each in task.predictions for result in each.results]
        boxes = [
            [v["x"] * w / 100, v["y"] * h / 100, v["width"] * w / 100, v["height"] * h / 100]
            for v, (w, h) in zip(values, size, strict=True)
        ]
        np.testing.assert_allclose(np.array(boxes).reshape(-1, 4), np.array(wanted).reshape(-1, 4), atol=1e-3)


def test_labels_that_a_project_lacks_are_told_and_added_when_asked(bring, studio, tmp_path):
    config = """<View><!-- ours --><Image name="photo" value="$img"/>
    <RectangleLabels name="what" toName="photo"><Label value="car" background="red"/></RectangleLabels></View>"""
    project = studio.create_project(title=title(), label_config=config)["id"]
    source = makers.make_coco(tmp_path / "set")
    with pytest.raises(ImportFailed) as told:
        bring(source, project=project)
    assert "PolygonLabels" in str(told.value)
    assert not list(studio.tasks(project))
    report = bring(source, project=project, extend_labels=True)
    assert (report.added, report.regions, report.problems) == (4, 7, [])
    now = studio.project(project)["label_config"]
    assert "<!-- ours -->" in now
    assert 'background="red"' in now
    assert all("img" in task.data for task in studio.tasks(project))


def test_only_known_labels_leaves_the_rest_out_and_lists_it(bring, studio, tmp_path):
    config = """<View><Image name="image" value="$image"/><RectangleLabels name="box" toName="image">
    <Label value="Car"/></RectangleLabels></View>"""
    project = studio.create_project(title=title(), label_config=config)["id"]
    makers.make_yolo(tmp_path / "set", "detect")
    report = bring(tmp_path / "set", project=project, known_only=True)
    assert (report.added, report.regions) == (4, 1)
    assert len(report.problems) == 2
    assert all("'person'" in problem.reason for problem in report.problems)


def test_photos_in_a_bucket_are_referenced(settings, studio, s3_server, tmp_path):
    client = s3_server.client()
    bucket = s3_server.make_bucket()
    makers.make_yolo(tmp_path / "set", "detect")
    for path in (tmp_path / "set").rglob("*"):
        if path.is_file():
            client.put_object(Bucket=bucket, Key=f"cars/{path.relative_to(tmp_path / 'set')}", Body=path.read_bytes())
    ours = settings.replace(
        s3_endpoint_url=s3_server.endpoint,
        s3_access_key_id=s3_server.key,
        s3_secret_access_key=SecretStr(s3_server.secret),
    )
    order = ImportOptions(source=f"s3://{bucket}/cars", title=title())
    report = run_import(order, settings=ours, studio=studio)
    assert (report.tasks_made, report.regions, report.problems) == (4, 3, [])
    urls = {task.data["image"] for task in studio.tasks(report.project)}
    assert urls == {f"s3://{bucket}/cars/images/{name}" for name in makers.SIZES}
    again = run_import(
        ImportOptions(source=f"s3://{bucket}/cars", project=report.project), settings=ours, studio=studio
    )
    assert (again.tasks_made, again.added) == (0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["YOLO_WITH_IMAGES", "YOLO_OBB_WITH_IMAGES", "COCO_WITH_IMAGES", "VOC"])
def test_exports_of_label_studio_itself_are_imported_as_they_come(bring, studio, tmp_path, kind):
    source = makers.make_coco(tmp_path / "set", boxes_alone(makers.coco_sheet()))
    first = bring(source, boxes=True)
    packed = tmp_path / "project-1-at-2026.zip"
    path = f"api/projects/{first.project}/export"
    packed.write_bytes(studio.content("GET", path, params={"exportType": kind, "download_all_tasks": True}))
    assert zipfile.is_zipfile(packed)
    report = bring(packed)
    assert all("%C3" in problem.item for problem in report.problems)  # it packs no photo whose name is not ASCII
    old, new = (boxes_of(studio, each.project) for each in (first, report))
    assert {name: labels for name, (labels, _) in new.items()} == {
        name: labels
        for name, (labels, _) in old.items()
        if "%" not in name and (labels or kind != "VOC")  # which leaves photos without objects out
    }
    for name, (_, boxes) in new.items():
        np.testing.assert_allclose(boxes, old[name][1], atol=1.5 if kind == "VOC" else 0.01)
    validated = validate(packed)
    assert validated.checked["photos"] == len(new)
    assert {flaw for flaw in validated.counts if flaw.startswith("yolo-")} <= {"yolo-label-alone"}  # that photo


def boxes_alone(sheet):
    """Without crowds and key points, which these formats write in their own ways."""
    for each in sheet["annotations"]:
        each.pop("keypoints", None), each.pop("num_keypoints", None)
    for each in sheet["categories"]:
        each.pop("keypoints", None), each.pop("skeleton", None)
    return sheet


def boxes_of(studio, project):
    """Photo -> the labels of its boxes, and their corners in percent."""
    found = {}
    for task in studio.tasks(project):
        results = [result for annotation in task.annotations for result in annotation.results]
        rows = sorted(
            (
                result.value["rectanglelabels"][0],
                [result.value[key] for key in ("x", "y", "width", "height")],
            )
            for result in results
        )
        name = re.sub(r"^([0-9a-f]{8}-)+", "", task.data["image"].rpartition("/")[2])
        found[name] = ([label for label, _ in rows], np.array([box for _, box in rows]).reshape(-1, 4))
    return found


CVAT = """<annotations><image id="0" name="a.jpg" width="640" height="360">
<box label="car" occluded="1" xtl="100" ytl="50" xbr="220" ybr="110" rotation="30">
<attribute name="colour">red</attribute></box>
<polygon label="car" points="300,100;420,110;400,200"/><polyline label="lane" points="10,300;200,310;300,350"/>
<points label="corner" points="600,20"/><ellipse label="wheel" cx="500" cy="250" rx="60" ry="30" rotation="20"/>
<mask label="hole" rle="1, 2, 1, 5, 2, 1" left="20" top="30" width="4" height="3"/><tag label="day"/>
</image></annotations>"""


def test_labels_of_other_tools_are_drawn_and_come_back(bring, studio, tmp_path):
    source = tmp_path / "cvat"
    makers.make_photos(source, ("a.jpg",))
    (source / "annotations.xml").write_text(CVAT)
    report = bring(source)
    assert (report.format, report.regions, report.problems) == ("cvat", 6, [])
    [task] = map(json.loads, studio.raw_tasks(report.project))
    kinds = "rectanglelabels polygonlabels vectorlabels keypointlabels ellipselabels brushlabels choices"
    assert {result["type"] for result in task["annotations"][0]["result"]} == set(kinds.split())
    folders = bring.out(report.project, "coco", "dota", "semantic-png", "imagefolder", "coco-panoptic")
    rows = by_photo(COCO(str(folders["coco"] / "annotations/instances_train.json")))["a.jpg"]
    areas = {label: row["area"] for label, row, _ in rows if label != "car"}
    assert areas == pytest.approx({"wheel": np.pi * 60 * 30, "hole": 8}, rel=1e-3)
    assert rows[0][1]["attributes"] == {"colour": "red", "occluded": True}
    for name in ("dota", "semantic-png", "imagefolder", "coco-panoptic"):
        again = bring(folders[name], images_from=str(source))
        assert (again.format, again.tasks_made, again.added, again.problems) == (name, 1, 1, [])
        assert again.regions == (3 if name == "semantic-png" else 4)  # two cars are one mask of a class
    images = [{"id": 1, "file_name": "a.jpg", "width": 640, "height": 360}]
    annotations = [{"id": n, "image_id": 1, "caption": text} for n, text in enumerate(("a cat", "two cats"), start=1)]
    (source / "captions_train.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    captions = bring(source / "captions_train.json")
    assert (captions.format, captions.added, captions.problems) == ("coco-captions", 1, [])
    [task] = map(json.loads, studio.raw_tasks(captions.project))
    assert task["annotations"][0]["result"][0]["value"]["text"] == ["a cat", "two cats"]
