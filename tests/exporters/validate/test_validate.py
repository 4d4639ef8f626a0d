"""Validating: a good data set has no fault, each broken one exactly its own."""

import json
import shutil

import numpy as np
import pytest
from cyclopts import App
from PIL import Image

from exporters.cli.validate import dataset_validate, dataset_verify
from exporters.errors import DatasetNotFound
from exporters.formats import FORMATS
from exporters.validate import ISSUE_KINDS, validate
from exporters.validate.folder import VALIDATED_FORMATS

# ---- COCO: the eight broken files that loaders read, and more. What each does to a good sheet.


SIZES = {"a.jpg": (100, 80), "b.jpg": (50, 60)}


def sheet():
    box = {"bbox": [10, 10, 20, 30], "area": 600, "iscrowd": 0, "segmentation": [[10, 10, 30, 10, 30, 40, 10, 40]]}
    return {
        "images": [
            {"id": 1, "file_name": "a.jpg", "width": 100, "height": 80},
            {"id": 2, "file_name": "b.jpg", "width": 50, "height": 60},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, **box},
            {"id": 2, "image_id": 2, "category_id": 2, **box},
        ],
        "categories": [{"id": 1, "name": "car"}, {"id": 2, "name": "dog"}],
    }


def change(path, value):
    def changed(good):
        *way, last = path
        for step in way:
            good = good[step]
        good[last] = value

    return changed


def drop(*path):
    def changed(good):
        *way, last = path
        for step in way:
            good = good[step]
        del good[last]

    return changed


BROKEN_COCO = {
    "dup_image": (lambda good: good["images"].append(good["images"][0] | {"id": 3}), {"coco-image-name": "image id 3"}),
    "null_size": (change(("images", 0, "width"), None), {"coco-image-size": "image id 1"}),
    "orphan": (change(("annotations", 1, "image_id"), 99), {"coco-orphan": "annotation id 2"}),
    "unknown_cat": (change(("annotations", 1, "category_id"), 9), {"coco-category": "annotation id 2"}),
    "ann_id_0": (change(("annotations", 0, "id"), 0), {"coco-annotation-id": "annotation id 0"}),
    "dup_category": (change(("categories", 1, "name"), "car"), {"coco-category-twice": "categories[1]"}),
    "negative_origin": (change(("annotations", 0, "bbox"), [-5, 10, 20, 30]), {"coco-box-outside": "annotation id 1"}),
    "out_of_bounds": (change(("annotations", 1, "bbox"), [40, 10, 20, 30]), {"coco-box-outside": "annotation id 2"}),
    "image id twice": (
        change(("images", 1, "id"), 1),
        {"coco-image-id": "image id 1", "coco-orphan": "annotation id 2"},
    ),
    "annotation id twice": (change(("annotations", 1, "id"), 1), {"coco-annotation-id": "annotations[1]"}),
    "the same twice": (
        lambda good: good["annotations"].append(good["annotations"][0] | {"id": 3, "region_id": "x"}),
        {"coco-twice": "annotation id 3"},
    ),
    "category id twice": (change(("categories", 1, "id"), 1), {"coco-category-twice": "", "coco-category": ""}),
    "negative size": (change(("annotations", 0, "bbox"), [10, 10, 20, -60]), {"coco-box": "annotation id 1"}),
    "box of three": (change(("annotations", 0, "bbox"), [1, 2, 3]), {"coco-box": "annotation id 1"}),
    "no area": (drop("annotations", 0, "area"), {"coco-field": "annotation id 1"}),
    "no iscrowd": (drop("annotations", 0, "iscrowd"), {"coco-field": "annotation id 1"}),
    "two points": (change(("annotations", 0, "segmentation"), [[1, 1, 2, 2]]), {"coco-outline": "annotation id 1"}),
    "mask of another size": (
        change(("annotations", 0, "segmentation"), {"size": [100, 80], "counts": "abc"}),
        {"coco-outline": "annotation id 1"},
    ),
    "key points short": (
        change(("annotations", 0, "keypoints"), [1, 2]),
        {"coco-keypoints": "annotation id 1"},
    ),
    "key points counted wrong": (
        lambda good: good["annotations"][0].update(keypoints=[1, 2, 2], num_keypoints=3),
        {"coco-keypoints": "annotation id 1"},
    ),
    "category with key points, annotation without": (
        change(("categories", 0, "keypoints"), ["nose"]),
        {"coco-keypoints": "annotation id 1"},
    ),
    "area over the box": (change(("annotations", 0, "area"), 999), {"coco-field": "annotation id 1"}),
    "outline outside": (
        change(("annotations", 0, "segmentation"), [[10, 10, 300, 10, 30, 40]]),
        {"coco-outline": "annotation id 1"},
    ),
    "run lengths that do not fill": (
        change(("annotations", 0, "segmentation"), {"size": [80, 100], "counts": [5, 5]}),
        {"coco-outline": "annotation id 1"},
    ),
    "damaged run lengths": (
        change(("annotations", 0, "segmentation"), {"size": [80, 100], "counts": "zz"}),
        {"coco-outline": "annotation id 1"},
    ),
    "key point outside": (
        lambda good: good["annotations"][0].update(keypoints=[500, 2, 2], num_keypoints=1),
        {"coco-keypoints": "annotation id 1"},
    ),
    "visibility 3": (
        lambda good: good["annotations"][0].update(keypoints=[1, 2, 3], num_keypoints=1),
        {"coco-keypoints": "annotation id 1"},
    ),
    "name that leads out": (change(("images", 0, "file_name"), "../../a.jpg"), {"coco-image-name": "image id 1"}),
    "an id that is a list": (change(("annotations", 0, "id"), [1]), {"coco-annotation-id": "annotations[0]"}),
    "no lists": (change(("images",), None), {"coco-unreadable": ""}),
}


@pytest.mark.parametrize("name", BROKEN_COCO)
def test_broken_coco_file_has_its_fault_and_no_other(tmp_path, name):
    broken = sheet()
    spoil, expected = BROKEN_COCO[name]
    spoil(broken)
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(broken))
    report = validate(path)
    assert set(report.counts) == set(expected)
    for problem in report.issues:
        assert problem.file == "instances.json"
        assert expected[problem.flaw] in problem.where


def test_good_coco_file_has_no_fault(tmp_path):
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(sheet()))
    report = validate(path)
    assert not report
    assert report.checked == {"COCO files": 1, "images": 2, "annotations": 2}


def test_text_that_is_no_json_is_said(tmp_path):
    (tmp_path / "x.json").write_text("{")
    assert set(validate(tmp_path / "x.json").counts) == {"coco-unreadable"}


def test_image_in_two_splits_and_missing_image(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "images/val").mkdir(parents=True)
    for split in ("train", "val"):
        (tmp_path / f"annotations/instances_{split}.json").write_text(json.dumps(sheet()))
    for name, size in SIZES.items():
        Image.new("RGB", size).save(tmp_path / "images/val" / name)
    report = validate(tmp_path)
    assert {(issue.flaw, issue.file.rpartition("_")[2]) for issue in report.issues} == {
        ("coco-image-missing", "train.json"),
        ("coco-image-name", "val.json"),
    }


@pytest.mark.parametrize("layout", ["images/train", "train", "images"])
@pytest.mark.parametrize(
    ("photo", "flaw"),
    [((100, 80), ""), ((80, 100), "photo-size"), ((99, 80), "photo-size"), (b"no photo", "photo-unreadable")],
)
def test_wrong_image_size_and_unreadable_image_are_reported(tmp_path, layout, photo, flaw):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances_train.json").write_text(json.dumps(sheet()))
    (tmp_path / layout).mkdir(parents=True)
    Image.new("RGB", SIZES["b.jpg"]).save(tmp_path / layout / "b.jpg")
    if isinstance(photo, bytes):
        (tmp_path / layout / "a.jpg").write_bytes(photo)
    else:
        Image.new("RGB", photo).save(tmp_path / layout / "a.jpg")
    assert [issue.flaw for issue in validate(tmp_path).issues] == [flaw] * bool(flaw)


def test_photo_that_lies_on_its_side_is_told(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "annotations").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # a phone held upright
    Image.new("RGB", (100, 80)).save(tmp_path / "images/a.jpg", exif=exif)
    Image.new("RGB", SIZES["b.jpg"]).save(tmp_path / "images/b.jpg")
    (tmp_path / "annotations/instances_train.json").write_text(json.dumps(sheet()))
    (report,) = validate(tmp_path).issues
    assert "EXIF" in report.detail


def test_a_coco_file_in_each_split_folder_is_checked(tmp_path):
    for split in ("train", "valid"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(sheet()))
        for name, size in SIZES.items():
            Image.new("RGB", size).save(tmp_path / split / name)
    assert {issue.flaw for issue in validate(tmp_path).issues} == {"coco-image-name"}  # one image in two splits


# ---- YOLO

SHEET = "train: images/train\nnc: 2\nnames: [car, dog]\n"
POSE = "nc: 2\nnames: [car, dog]\nkpt_shape: [2, 3]\nflip_idx: [1, 0]\n"

BROKEN_YOLO = {
    "good boxes": (SHEET, ["0 .5 .5 .2 .2", "1 .1 .1 .2 .2"], {}),
    "good points": (SHEET, ["0 .1 .1 .2 .1 .2 .2", "1 .1 .1 .2 .1 .2 .2 .1 .2"], {}),
    "good turned box over the edge": (SHEET, ["0 .9 .5 1.05 .6 .95 .7 .8 .6"], {}),
    "good pose": (POSE, ["0 .5 .5 .2 .2 .5 .5 2 0 0 0"], {}),
    "good empty": (SHEET, [], {}),
    "mixed rows": (SHEET, ["0 .5 .5 .2 .2", "0 .1 .1 .2 .1 .2 .2"], {"yolo-mixed"}),
    "class of nc": (SHEET, ["2 .5 .5 .2 .2"], {"yolo-class"}),
    "class no whole number": (SHEET, ["0.5 .5 .5 .2 .2"], {"yolo-class"}),
    "negative class": (SHEET, ["-1 .5 .5 .2 .2"], {"yolo-class"}),
    "outside": (SHEET, ["0 .95 .5 .2 .2"], {"yolo-outside"}),
    "outline outside": (SHEET, ["0 .1 .1 1.2 .1 .2 .2"], {"yolo-outside"}),
    "four columns": (SHEET, ["0 .5 .5 .2"], {"yolo-columns"}),
    "six columns": (SHEET, ["0 .5 .5 .2 .2 .9"], {"yolo-columns"}),
    "even coordinates": (SHEET, ["0 .1 .1 .2 .1 .2 .2 .3"], {"yolo-columns"}),
    "no number": (SHEET, ["0 .5 .5 .2 x"], {"yolo-columns"}),
    "nan": (SHEET, ["0 .5 .5 .2 nan"], {"yolo-columns"}),
    "no width": (SHEET, ["0 .5 .5 0 .2"], {"yolo-size"}),
    "negative height": (SHEET, ["0 .5 .5 .2 -.6"], {"yolo-size"}),
    "twice": (SHEET, ["0 .5 .5 .2 .2", "0 .5 .5 .2 .2"], {"yolo-twice"}),
    "nc is not the names": (SHEET.replace("2", "3"), [], {"yolo-sheet"}),
    "gap in names": ("names: {0: car, 2: dog}\n", [], {"yolo-sheet"}),
    "no yaml": ("names: [", [], {"yolo-sheet"}),
    "flip_idx of another length": (POSE.replace("[1, 0]", "[0]"), [], {"yolo-sheet"}),
    "pose row without key points": (POSE, ["0 .5 .5 .2 .2"], {"yolo-columns"}),
    "visibility 3": (POSE, ["0 .5 .5 .2 .2 .5 .5 3 0 0 0"], {"yolo-columns"}),
    "key point outside": (POSE, ["0 .5 .5 .2 .2 1.5 .5 2 0 0 0"], {"yolo-outside"}),
}


@pytest.mark.parametrize("name", BROKEN_YOLO)
def test_broken_yolo_folder_has_its_fault_and_no_other(tmp_path, name):
    yaml, rows, expected = BROKEN_YOLO[name]
    (tmp_path / "labels/train").mkdir(parents=True)
    (tmp_path / "data.yaml").write_text(yaml)
    (tmp_path / "labels/train/a.txt").write_text("\n".join(rows))
    report = validate(tmp_path)
    assert set(report.counts) == set(expected)
    if report and "yolo-sheet" not in expected:
        assert report.issues[0].file == "labels/train/a.txt"
        assert expected == {"yolo-mixed"} or report.issues[0].where == f"line {len(rows)}"


def test_files_of_boxes_among_files_of_points(tmp_path):
    (tmp_path / "labels").mkdir()
    (tmp_path / "data.yaml").write_text(SHEET)
    for number in range(3):
        (tmp_path / f"labels/{number}.txt").write_text("0 .1 .1 .2 .1 .2 .2")
    (tmp_path / "labels/odd.txt").write_text("0 .5 .5 .2 .2")
    assert [(issue.flaw, issue.file) for issue in validate(tmp_path).issues] == [("yolo-mixed", "labels/odd.txt")]


def test_images_and_labels_that_have_no_partner(tmp_path):
    for name in ("images/train/a.jpg", "images/train/b.JPG", "labels/train/b.txt", "labels/train/c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    Image.new("RGB", (100, 80)).save(tmp_path / "images/train/b.JPG")
    (tmp_path / "data.yaml").write_text(SHEET)
    assert [(issue.flaw, issue.file) for issue in validate(tmp_path).issues] == [
        ("yolo-image-unlabelled", "images/train/a"),
        ("yolo-label-alone", "labels/train/c.txt"),
    ]


def test_folders_of_splits_with_one_sheet_are_looked_through(tmp_path):
    (tmp_path / "data.yaml").write_text(SHEET)
    for split, row in (("train", "0 .5 .5 .2 .2"), ("valid", "7 .5 .5 .2 .2")):
        for name in ("labels", "images"):
            (tmp_path / split / name).mkdir(parents=True)
        (tmp_path / split / "labels/a.txt").write_text(row)
        Image.new("RGB", (100, 80)).save(tmp_path / split / "images/a.jpg")
    Image.new("RGB", (100, 80)).save(tmp_path / "valid/images/b.jpg")
    report = validate(tmp_path)
    assert [(issue.flaw, issue.file) for issue in report.issues] == [
        ("yolo-class", "valid/labels/a.txt"),
        ("yolo-image-unlabelled", "valid/images/b"),
    ]
    assert report.checked["label files"] == 2


# ---- Pascal VOC

BROKEN_VOC = {
    "good": (("car", 1, 1, 100, 80), {}),
    "counted from 0": (("car", 0, 0, 50, 50), {"voc-box-outside"}),
    "over the edge": (("car", 10, 10, 101, 50), {"voc-box-outside"}),
    "turned round": (("car", 50, 10, 10, 50), {"voc-box"}),
    "no name": (("", 1, 1, 5, 5), {"voc-box"}),
    "no number": (("car", "x", 1, 5, 5), {"voc-box"}),
}


def voc(folder, name, box, size=(100, 80)):
    label, *edges = box
    tags = "".join(f"<{tag}>{edge}</{tag}>" for tag, edge in zip(("xmin", "ymin", "xmax", "ymax"), edges, strict=True))
    (folder / "Annotations").mkdir(parents=True, exist_ok=True)
    (folder / f"Annotations/{name}.xml").write_text(
        f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>"
        f"<object><name>{label}</name><bndbox>{tags}</bndbox></object></annotation>"
    )


def lists(folder, **names):
    (folder / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
    for split, stems in names.items():
        (folder / f"ImageSets/Main/{split}.txt").write_text("\n".join(stems))


@pytest.mark.parametrize("name", BROKEN_VOC)
def test_broken_voc_file_has_its_fault_and_no_other(tmp_path, name):
    box, expected = BROKEN_VOC[name]
    voc(tmp_path, "a", box)
    lists(tmp_path, train=["a"])
    report = validate(tmp_path)
    assert set(report.counts) == set(expected)
    assert all((issue.file, issue.where) == ("Annotations/a.xml", "object 1") for issue in report.issues)


def test_voc_object_that_is_there_twice_is_found(tmp_path):
    voc(tmp_path, "a", ("car", 1, 1, 5, 5))
    path = tmp_path / "Annotations/a.xml"
    text = path.read_text()
    element = text[text.index("<object>") : text.index("</object>") + len("</object>")]
    path.write_text(text.replace(element, element + element))
    assert [issue.where for issue in validate(tmp_path).issues if issue.flaw == "voc-twice"] == ["object 2"]


def test_voc_without_lists_or_with_wrong_ones(tmp_path):
    voc(tmp_path, "a", ("car", 1, 1, 5, 5))
    voc(tmp_path, "b", ("car", 1, 1, 5, 5), size=(0, "x"))
    (tmp_path / "Annotations/c.xml").write_text("<annotation>")
    assert validate(tmp_path).counts == {"voc-size": 1, "voc-unreadable": 1, "voc-imagesets": 1}
    lists(tmp_path, train=["a", "gone"], val=["a"], test=["c"])
    faults = {(issue.file, issue.where) for issue in validate(tmp_path).issues if issue.flaw == "voc-imagesets"}
    assert faults == {
        ("ImageSets/Main/train.txt", "gone"),
        ("ImageSets/Main/train.txt", "a"),
        ("Annotations/b.xml", ""),
    }
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "JPEGImages/b.jpg").touch()
    assert validate(tmp_path).counts["voc-image-missing"] == 1


# ---- what we write, in every format


@pytest.fixture
def ours(run, build, photos):
    pixels = np.zeros((360, 640), bool)
    pixels[50:150, 100:300] = True
    pixels[80:120, 150:200] = False
    everything = [
        build.box(-5, -10, 20, 30, id="over the edge"),
        build.box(50, 50, 30, 40, "dog", rotation=30, id="turned"),
        build.box(90, 85, 30, 30, rotation=50, id="turned over the edge"),
        build.polygon([[-20, 20], [50, 20], [50, 120], [-20, 120]], id="polygon"),
        build.polygon([[10, 10], [50, 50], [50, 10], [10, 50]], id="crossing"),
        build.polygon([[0, 0], [4, 0], [100, 96], [100, 100], [96, 100], [0, 4]], id="across"),
        build.ellipse(50, 50, 10, 5, 30, id="ellipse"),
        build.brush(pixels, id="brush"),
        build.keypoint(20, 20, "nose", parentID="turned", id="nose"),
    ]
    config = (
        '<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image"><Label value="car"/>'
        '</RectangleLabels><KeyPointLabels name="part" toName="image"><Label value="nose"/></KeyPointLabels></View>'
    )
    tasks = [
        build.task(1, build.annotation(*everything), image=photos("1.jpg")),
        build.task(2, build.annotation(), image=photos("2.jpg")),
    ]
    return run(tasks, formats=tuple(FORMATS), label_config=config, fetch=True, copy_images=True)


@pytest.fixture
def app(tmp_path, monkeypatch):
    monkeypatch.setenv("LABELLOOP_HOME", str(tmp_path / "home"))
    app = App(result_action="return_value")
    app.command(dataset_validate, name="validate")
    app.command(dataset_verify, name="verify")
    return app


def test_our_own_data_set_has_no_issue(app, ours, capsys):
    assert app(["validate", f"file://{ours.root}"]) == 0
    out = capsys.readouterr().out
    assert "no problems found" in out
    assert "4 VOC files" in out
    assert app(["verify", f"file://{ours.root}"]) == 0
    assert app(["validate", str(ours.root)]) == 0  # a plain path does too


def test_version_of_one_format_is_checked(app, run, build, capsys):
    out = run([build.task(1, build.annotation(build.box(1, 1, 5, 5)))], formats=("coco",))
    assert app(["validate", f"file://{out.root}"]) == 0
    assert "1 annotations" in capsys.readouterr().out


@pytest.mark.parametrize("name", VALIDATED_FORMATS)
def test_pulled_format_has_no_fault_with_its_photos(ours, settings, tmp_path, name):
    from exporters.dataset.pull import pull
    from exporters.dataset.versions import read_version
    from labelloop.service.store import open_store

    store = open_store(f"file://{ours.root}", settings)
    pull(store, read_version(store), to=tmp_path / "pulled", formats=[name])
    report = validate(tmp_path / "pulled")
    assert report.issues == []
    assert report.checked


def voc_shard(ours):
    (shard,) = ours.manifest["generations"][0]["tables"]["voc"]
    return ours.root / "objects" / shard["sha256"][:2] / shard["sha256"]


def spoil_bytes(ours):
    voc_shard(ours).write_bytes(voc_shard(ours).read_bytes().replace(b"car", b"cat"))


DAMAGES = {
    "a changed byte": (spoil_bytes, "version-file", "SHA-256"),
    "an object gone": (lambda ours: voc_shard(ours).unlink(), "version-file", "not there"),
    "an object cut": (lambda ours: voc_shard(ours).write_bytes(b"<"), "version-file", "bytes"),
    "the manifest": (
        lambda ours: ours.manifest_path.write_bytes(ours.manifest_path.read_bytes() + b" "),
        "version-manifest",
        "checksum",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("command", ["verify", "validate"])
def test_damaged_version_ends_with_status_one(app, ours, capsys, damage, command):
    spoil, flaw, detail = DAMAGES[damage]
    spoil(ours)
    assert app([command, f"file://{ours.root}", "--json", "-"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["counts"] == {flaw: 1}
    assert detail in report["problems"][0]["detail"]


def test_numbers_of_the_manifest_are_checked(ours, settings, tmp_path):
    from exporters.dataset.versions import manifest_key
    from exporters.validate import verify
    from labelloop.service.store import open_store

    store = open_store(f"file://{ours.root}", settings)
    key = manifest_key(ours.report.version)
    manifest = ours.manifest | {"splits": {"train": 5}, "classes": {"car": 1, "dog": 3}}
    store.put(key, json.dumps(manifest).encode())
    _, report = verify(store, ours.report.version)
    assert {issue.where for issue in report.issues} == {"splits", "classes"}


def test_findings_name_file_place_effect_and_fix(app, tmp_path, capsys):
    broken = sheet()
    BROKEN_COCO["ann_id_0"][0](broken)
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(broken))
    assert app(["validate", str(path)]) == 1
    out = capsys.readouterr().out
    assert "instances.json: annotation id 0" in out
    assert ISSUE_KINDS["coco-annotation-id"].fix in out
    assert ISSUE_KINDS["coco-annotation-id"].effect in out


def test_location_without_a_data_set_is_refused(tmp_path):
    with pytest.raises(DatasetNotFound, match="no data set of a known format"):
        validate(tmp_path)
    (tmp_path / "gone").mkdir()
    shutil.rmtree(tmp_path / "gone")
    with pytest.raises(DatasetNotFound):
        validate(tmp_path / "gone")


HEAD = '{"type": "dataset", "task": "detect", "class_names": {"0": "car"}}'
ROW = '{"type":"image","file":"a.jpg","url":"https://h/a.jpg","split":"train","annotations":{"boxes":[%s]}}'
NDJSON = {
    "a head that is none": (["{}"], "yolo-sheet"),
    "a class too many": ([HEAD, ROW % "[3,0.5,0.5,0.1,0.1]"], "yolo-class"),
    "a box outside": ([HEAD, ROW % "[0,0.99,0.5,0.1,0.1]"], "yolo-outside"),
    "too few numbers": ([HEAD, ROW % "[0,0.5,0.5,0.1]"], "yolo-columns"),
    "a row that is there twice": ([HEAD, ROW % "[0,0.5,0.5,0.1,0.1],[0,0.5,0.5,0.1,0.1]"], "yolo-twice"),
    "no JSON": ([HEAD, "{"], "yolo-columns"),
    "a split of no name": ([HEAD, (ROW % "").replace("train", "mine")], "yolo-columns"),
    "a URL that cannot be fetched": ([HEAD, (ROW % "").replace("https", "s3")], "yolo-label-alone"),
}


@pytest.mark.parametrize("fault", NDJSON)
def test_faults_of_ndjson_are_found(tmp_path, fault):
    lines, flaw = NDJSON[fault]
    (tmp_path / "x.ndjson").write_text("\n".join(lines))
    assert [problem.flaw for problem in validate(tmp_path / "x.ndjson").issues] == [flaw]


def test_a_good_ndjson_file_has_no_fault(tmp_path):
    (tmp_path / "x.ndjson").write_text(f"{HEAD}\n{ROW % '[0,0.5,0.5,0.1,0.1]'}\n{ROW % ''}\n")
    assert validate(tmp_path).issues == []


@pytest.mark.parametrize(
    "line", ['{"file": 5}', "no json", '{"file": "a.jpg", "split": "train", "annotations": {"boxes": 7}}']
)
def test_broken_line_of_ndjson_costs_itself_alone(tmp_path, line):
    head = '{"type": "dataset", "class_names": {"0": "a"}}'
    rows = '"annotations": {"boxes": [[0, 0.5, 0.5, 0.1, 0.1]]}'
    good = f'{{"file": "b.jpg", "url": "https://h/b.jpg", "split": "train", {rows}}}'
    (tmp_path / "d.ndjson").write_text(f"{head}\n{line}\n{good}")
    report = validate(tmp_path)
    assert {issue.file for issue in report.issues} == {"d.ndjson, line 2"}
    assert report.checked["rows"] == 1


def test_ndjson_that_is_no_text_is_said(tmp_path):
    (tmp_path / "d.ndjson").write_bytes(b"\xff\xfe\x00")
    assert set(validate(tmp_path).counts) == {"yolo-sheet"}


ALIKE = {
    "case": (["car", "Car"], "'Car' and 'car'"),
    "spaces": (["traffic light", "traffic  light "], "'traffic  light ' and 'traffic light'"),
    "signs": (["traffic_light", "traffic-light"], "'traffic-light' and 'traffic_light'"),
    "letters may": (["a", "A"], ""),
    "others": (["car", "cart"], ""),
}


@pytest.mark.parametrize("name", ALIKE)
def test_similar_class_names_are_reported_in_every_format(tmp_path, name):
    labels, expected = ALIKE[name]
    good = sheet() | {"categories": [{"id": number, "name": label} for number, label in enumerate(labels, start=1)]}
    (tmp_path / "coco/annotations").mkdir(parents=True)
    (tmp_path / "coco/annotations/instances_train.json").write_text(json.dumps(good))
    (tmp_path / "yolo/labels").mkdir(parents=True)
    (tmp_path / "yolo/data.yaml").write_text(json.dumps({"names": labels}))
    voc(tmp_path / "voc", "a", (labels[0], 1, 1, 5, 5))
    voc(tmp_path / "voc", "b", (labels[1], 1, 1, 5, 5))
    lists(tmp_path / "voc", train=["a", "b"])
    (tmp_path / "ndjson").mkdir()
    head = {"type": "dataset", "class_names": dict(enumerate(labels))}
    (tmp_path / "ndjson/d.ndjson").write_text(json.dumps(head))
    report = [issue for issue in validate(tmp_path).issues if issue.flaw == "class-alike"]
    assert [issue.file.split("/")[0] for issue in report] == (["coco", "ndjson", "voc", "yolo"] if expected else [])
    assert {tuple(sorted(issue.detail.split(" and "))) for issue in report} == (
        {tuple(sorted(expected.split(" and ")))} if expected else set()
    )


def test_label_files_that_two_images_share_are_found(tmp_path):
    folder = tmp_path / "yolo"
    for name in ("images/train", "labels/train", "labels/val", "images/val"):
        (folder / name).mkdir(parents=True)
    for name in ("train/a.jpg", "train/a.png", "train/b.jpg", "val/a.jpg"):
        Image.new("RGB", (10, 10)).save(folder / "images" / name)
    for name in ("train/a.txt", "train/b.txt", "val/a.txt"):
        (folder / "labels" / name).write_text("0 .5 .5 .2 .2\n")
    (folder / "data.yaml").write_text("names: [car]")
    voc(tmp_path / "voc", "a", ("car", 1, 1, 5, 5))
    lists(tmp_path / "voc", train=["a"])
    (tmp_path / "voc/JPEGImages").mkdir()
    for name in ("a.jpg", "a.webp"):
        Image.new("RGB", (100, 80)).save(tmp_path / "voc/JPEGImages" / name)
    report = [(issue.flaw, issue.file, issue.detail) for issue in validate(tmp_path).issues]
    assert report == [
        ("labels-shared", "voc/Annotations/a.xml", "a.jpg and a.webp"),
        ("labels-shared", "yolo/labels/train/a.txt", "a.jpg and a.png"),
    ]
