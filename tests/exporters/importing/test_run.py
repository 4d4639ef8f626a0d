"""An import makes no annotation of what it cannot read, says so, and leaves nothing of what came to nothing."""

import json
from pathlib import Path

import pytest

from exporters.cli.import_dataset import import_dataset, summary
from exporters.errors import BadOption, ImportFailed
from exporters.importing.run import UNNAMED, ImportOptions, run_import
from labelloop.service.datasets import DatasetError
from labelloop.service.settings import Settings
from labelloop.service.studio import Studio, StudioRefused
from tests import dataset_makers as makers
from tests.exporters.fake_studio import ImportStudio


@pytest.fixture
def studio(monkeypatch, tmp_path):
    studio = ImportStudio()
    monkeypatch.setattr(Studio, "from_settings", lambda _: studio)
    monkeypatch.setenv("LABELLOOP_HOME", str(tmp_path / "home"))
    return studio


@pytest.fixture
def bring(studio, tmp_path):
    """Import into a new or an existing project; return the report."""

    def bring(source, **options):
        import_options = ImportOptions(source=str(source), title="cars", **options)
        return run_import(import_options, settings=Settings(home=tmp_path / "home"), studio=studio)

    return bring


def yolo(folder: Path, **rows: str) -> Path:
    makers.make_yolo(folder, "detect")
    for name, text in rows.items():
        (folder / f"labels/{name}.txt").write_text(text)
    return folder


def test_an_image_with_unreadable_labels_gets_no_annotation(bring, studio, tmp_path):
    report = bring(yolo(tmp_path / "set", a="0 .5 .5 .1\n"))
    assert studio.results() == {"a.jpg": [], "b.png": [1], "empty.jpg": [0], "ünï côde.jpg": [0]}
    assert (report.tasks_made, report.added, report.empty, report.unlabelled) == (4, 3, 2, 1)
    assert [problem.item for problem in report.problems] == ["labels/a.txt, line 1"]
    assert "1 image imported without an annotation" in summary(report, studio.url)


@pytest.mark.parametrize(("skip_incomplete", "results"), [(False, [2]), (True, [])])
def test_an_image_with_malformed_rows_is_kept_or_skipped(bring, studio, tmp_path, skip_incomplete, results):
    valid_rows = (yolo(tmp_path / "set") / "labels/a.txt").read_text()
    report = bring(yolo(tmp_path / "other", a=f"{valid_rows}0 .5 .5 .1\n"), skip_incomplete=skip_incomplete)
    assert studio.results()["a.jpg"] == results
    assert [problem.item for problem in report.problems] == ["labels/a.txt, line 3"]
    assert any("--incomplete skip" in note for note in report.notes)


def test_corrected_labels_reach_the_same_task(bring, studio, tmp_path):
    bring(yolo(tmp_path / "set", a="0 .5 .5 .1\n"))
    report = bring(yolo(tmp_path / "corrected"), project=1)
    assert studio.results() == {"a.jpg": [2], "b.png": [1], "empty.jpg": [0], "ünï côde.jpg": [0]}
    assert (report.tasks_made, report.added, report.there) == (0, 1, 3)


@pytest.mark.parametrize("crowds", [False, True])
def test_a_photo_with_only_a_crowd_is_no_negative(bring, studio, tmp_path, crowds):
    sheet = makers.coco_sheet()
    sheet["annotations"][-1]["iscrowd"] = 1
    bring(makers.make_coco(tmp_path / "set", sheet), crowds=crowds)
    assert studio.results()["ünï côde.jpg"] == ([1] if crowds else [])
    assert studio.results()["empty.jpg"] == [0]


def test_predictions_that_cannot_be_read_are_not_sent_empty(bring, studio, tmp_path):
    bring(yolo(tmp_path / "set", a="0 .5 .5 .1\n"), labels_as="predictions", version="net-1")
    images = [task["data"]["image"] for task in studio.tasks_by_id.values() if task["predictions"]]
    assert len(images) == 3
    assert not any("a.jpg" in image for image in images)


def test_results_of_a_class_that_is_unknown_are_not_sent_empty(bring, studio, tmp_path):
    bring(yolo(tmp_path / "set"))
    results = [{"image_id": n, "category_id": kind, "bbox": [1, 2, 3, 4], "score": 0.5} for n, kind in ((1, 1), (2, 9))]
    (tmp_path / "r.json").write_text(json.dumps(results))
    report = bring(tmp_path / "r.json", project=1, labels_as="predictions", version="net-1")
    assert [len(task["predictions"]) for task in studio.tasks_by_id.values()] == [1, 0, 0, 0]
    assert (report.added, report.unlabelled, len(report.problems)) == (1, 1, 1)


def test_an_xml_of_the_same_photo_twice_annotates_it_once(bring, studio, tmp_path):
    makers.make_voc(tmp_path / "set")
    (tmp_path / "set/Annotations/z.xml").write_text((tmp_path / "set/Annotations/a.xml").read_text())
    report = bring(tmp_path / "set")
    assert studio.results()["a.jpg"] == [2]
    assert [problem.reason for problem in report.problems] == ["it is listed twice; the first labels count"]


def test_nothing_is_created_without_any_image(bring, studio, tmp_path):
    source = makers.make_coco(tmp_path / "set")
    for path in (tmp_path / "set/images").rglob("*.*"):
        path.unlink()
    makers.make_photos(tmp_path / "set", ("a.jpg",))
    (tmp_path / "set/a.jpg").rename(tmp_path / "set/another.jpg")
    with pytest.raises(ImportFailed, match="None of the 4 images"):
        bring(source)
    assert not studio.projects_by_id


def test_a_new_project_without_images_is_deleted(bring, studio, tmp_path):
    makers.make_photos(tmp_path / "set", ("a.jpg",))
    (tmp_path / "set/a.jpg").write_bytes(b"no photo")
    report = bring(tmp_path / "set")
    assert (report.project, report.tasks_made, len(report.problems)) == (0, 0, 1)
    assert not studio.projects_by_id
    assert "no project was created" in summary(report, studio.url)


REFUSALS = {
    ("create_project", 400, "the title is odd"): "--project NUMBER",
    ("upload_files", 403, "no permission"): "LABELLOOP_LABEL_STUDIO_API_KEY",
    ("import_tasks", 500, "(a web page: Server Error)"): "log",
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_refusals_of_label_studio_have_a_fix(bring, studio, tmp_path, refusal):
    call, status, words = refusal
    studio.refuse[call] = StudioRefused(f"POST /api/{call}", status, words)
    with pytest.raises(ImportFailed) as caught:
        bring(yolo(tmp_path / "set"))
    assert words in caught.value.message
    assert REFUSALS[refusal] in caught.value.fix
    assert not studio.projects_by_id


def test_images_without_an_address_leave_no_project(bring, studio, tmp_path):
    with pytest.raises(ImportFailed, match="is unknown"):
        bring(yolo(tmp_path / "set"), images="reference")
    assert not studio.projects_by_id


@pytest.mark.parametrize(("folder", "title"), [("ab", "Imported ab"), ("abc", "abc"), ("ü" * 80, "ü" * 50)])
def test_any_folder_name_becomes_a_valid_title(studio, tmp_path, folder, title):
    makers.make_photos(tmp_path / folder)
    assert import_dataset(str(tmp_path / folder), project="new") == 0
    assert studio.projects_by_id[1]["title"] == title


@pytest.mark.parametrize("folder", [".", "../ab", "./"])
def test_a_relative_folder_gives_its_own_name(studio, tmp_path, monkeypatch, folder):
    makers.make_photos(tmp_path / "ab")
    monkeypatch.chdir(tmp_path / "ab")
    assert import_dataset(folder, project="new") == 0
    assert studio.projects_by_id[1]["title"] == "Imported ab"


@pytest.mark.parametrize("title", ["ab", " ab ", "x" * 51])
def test_an_invalid_title_is_refused_first(studio, tmp_path, title):
    makers.make_photos(tmp_path / "photos")
    with pytest.raises(BadOption, match="3 to 50 characters"):
        import_dataset(str(tmp_path / "photos"), project="new", title=title)
    assert not studio.projects_by_id


def test_a_dry_run_counts_unlabelled_images(studio, tmp_path, capsys):
    assert import_dataset(str(yolo(tmp_path / "set", a="0 .5 .5 .1\n")), project="new", dry_run=True) == 0
    out = capsys.readouterr().out
    assert "1 image without readable labels" in out
    assert "2 images without objects" in out
    assert not studio.projects_by_id


WRONG = {
    "tasks": ([{"id": 1, "data": {"image": "a.jpg"}, "annotations": []}], "Label Studio's own JSON", "export --from"),
    "an object of tasks": ({"tasks": [{"data": {}}]}, "Label Studio's own JSON", "export --from"),
    "predictions": ([{"task": 1, "result": [], "model_version": "x"}], "predictions", "import/predictions"),
    "labelbox": ([{"ID": "x", "Labeled Data": "u", "Label": {}}], "Labelbox", "COCO"),
    "labelbox lines": ({"data_row": {"id": "x"}, "projects": {}}, "Labelbox", "COCO"),
    "json-min": ([{"image": "x", "annotation_id": 1, "annotator": 1}], "JSON-MIN", "export --from"),
    "supervisely": ({"objects": [], "size": {}}, "Supervisely", "COCO"),
    "no objects": ([None, 1], "a list without objects", ""),
    "text": ("x", "JSON", ""),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_of_another_format_is_named(bring, studio, tmp_path, name):
    value, what, fix = WRONG[name]
    (tmp_path / "file.json").write_text(json.dumps(value))
    with pytest.raises(DatasetError) as caught:
        bring(tmp_path / "file.json")
    assert what in caught.value.message
    assert fix in caught.value.fix
    assert not studio.projects_by_id


@pytest.mark.parametrize("form", ["coco", "voc"])
def test_images_without_labels_are_counted(bring, studio, tmp_path, form):
    source = makers.make_coco(tmp_path / "set") if form == "coco" else makers.make_voc(tmp_path / "set")
    folder = source if source.is_dir() else source.parent
    first = bring(source)
    for name in ("more/x.jpg", "SegmentationObject/a.png", "masks/a.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(next(folder.rglob("a.jpg")).read_bytes())
    report = bring(source, project=1)
    assert (first.notes.get(UNNAMED), report.notes.get(UNNAMED)) == (None, 1)
    assert report.tasks_made == 0
    plain = bring(folder / "more", project=1, format="images")
    assert (plain.tasks_made, UNNAMED in plain.notes) == (1, False)


def test_a_dry_run_counts_crowds_and_images_without_labels(studio, tmp_path, capsys):
    sheet = makers.coco_sheet()
    sheet["annotations"][-1]["iscrowd"] = 1
    del sheet["images"][2]
    source = makers.make_coco(tmp_path / "set", sheet)
    assert import_dataset(str(source), project="new", title="cars", dry_run=True) == 0
    output = capsys.readouterr().out
    assert f"{UNNAMED}: 1" in output
    assert "1 image without readable labels" in output


def test_boxes_of_shapes_without_area_are_listed(bring, studio, tmp_path):
    makers.make_photos(tmp_path, ("a.jpg",))
    shapes = '<points label="dot" points="5,6"/><polygon label="car" points="0,0;9,0;9,9"/>'
    (tmp_path / "a.xml").write_text(
        f'<annotations><image name="a.jpg" width="640" height="360">{shapes}</image></annotations>'
    )
    report = bring(tmp_path, boxes=True)
    assert (report.regions, report.failed_share) == (1, 0)
    assert ["has no box" in problem.reason for problem in report.problems] == [True]
