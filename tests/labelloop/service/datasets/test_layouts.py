"""Layouts of other tools, zipped or not, are detected and read; unsupported ones are named."""

import json
import zipfile

import numpy as np
import pytest

from exporters.validate import validate
from labelloop.labeling.geometry.shapes import Polygon, Rectangle
from labelloop.labeling.studio.sniff import KINDS
from labelloop.service.datasets import DatasetError, DatasetProblem, open_source, read_dataset
from labelloop.service.settings import Settings
from tests import dataset_makers as makers


def read(source, kind="auto", images=""):
    """(images by file name, problems, the data set) of a source."""
    data = read_dataset(open_source(str(source), Settings(), images=str(images)), kind)
    items = list(data.images())
    photos = {item.name.rpartition("/")[2]: item for item in items if not isinstance(item, DatasetProblem)}
    return photos, [item for item in items if isinstance(item, DatasetProblem)], data


def packed(folder, *, under=""):
    """A zip of a folder, next to it; ``under`` is its top folder in the archive."""
    file = folder.with_suffix(".zip")
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, under + path.relative_to(folder).as_posix())
    return file


NAMES = ("0a1b2c3d-a.jpg", "1b2c3d4e-empty.jpg")
NOTES = {"info": {"year": 2026, "version": "1.0", "contributor": "Label Studio"}}
ROWS = {  # as label_studio_sdk 2.1.2 writes them
    "yolo-detect": ["2 0.25 0.325 0.3 0.25", "0 0.65 0.325 0.3 0.25"],
    "yolo-obb": [
        "2 0.1 0.2 0.4 0.2 0.4 0.45 0.1 0.45",
        "0 0.5 0.2 0.7598076 0.4666667 0.6894951 0.6831730 0.4296875 0.4165064",
    ],
    "yolo-segment": ["2 0.25 0.325 0.3 0.25", "0 0.01 0.01 0.3 0.02 0.2 0.4"],
    "yolo-pose": ["2 0.25 0.325 0.3 0.25 0.12 0.22 2 0.13 0.25 2", "0 0.65 0.325 0.3 0.25 0.0 0.0 0 0.0 0.0 0"],
}


def label_studio_yolo(folder, kind, joints=("nose", "tail"), photos=True):
    """What Label Studio exports as YOLO, YOLO_OBB, YOLO_WITH_IMAGES and YOLO_OBB_WITH_IMAGES."""
    (folder / "images").mkdir(parents=True)
    for name, old in zip(NAMES, ("a.jpg", "empty.jpg"), strict=True):
        if photos:
            makers.make_photos(folder / "images", (old,))
            (folder / "images" / old).rename(folder / "images" / name)
    (folder / "labels").mkdir()
    (folder / "labels/0a1b2c3d-a.txt").write_text("\n".join(ROWS[kind]))
    (folder / "labels/1b2c3d4e-empty.txt").touch()
    (folder / "classes.txt").write_text("Zebra\napple pie\ncar\n")
    kinds = [{"id": number, "name": name} for number, name in enumerate(("Zebra", "apple pie", "car"))]
    if kind == "yolo-pose":
        kinds = [category | {"keypoints": list(joints)} for category in kinds]
    (folder / "notes.json").write_text(json.dumps({"categories": kinds} | NOTES, indent=2))
    return folder


@pytest.mark.parametrize("form", ["folder", "zip", "zip of a folder"])
@pytest.mark.parametrize("kind", ROWS)
def test_label_studios_yolo_is_read(tmp_path, kind, form):
    source = label_studio_yolo(tmp_path / "project", kind)
    if form != "folder":
        source = packed(source, under="project-1/" if form != "zip" else "")
    photos, problems, data = read(source)
    assert (data.format, data.labels, problems) == (kind, ("Zebra", "apple pie", "car"), [])
    assert [obj.label for obj in photos[NAMES[0]].objects] == ["car", "Zebra"]
    assert photos[NAMES[0]].objects[0].geometry == Rectangle(64, 72, 192, 90)
    assert photos[NAMES[1]].annotated
    assert {flaw for flaw in validate(source).counts if flaw != "yolo-mixed"} == set()


def test_rotated_boxes_of_label_studio_stay_rotated(tmp_path):
    photos, _, _ = read(label_studio_yolo(tmp_path / "project", "yolo-obb"))
    rotated = photos[NAMES[0]].objects[1].geometry
    assert (rotated.width, rotated.height, rotated.rotation) == pytest.approx((192, 90, 30))


def test_polygons_among_rotated_boxes_are_kept(tmp_path):
    folder = label_studio_yolo(tmp_path / "project", "yolo-obb")
    with (folder / "labels/0a1b2c3d-a.txt").open("a") as file:
        file.write("\n1 0.01 0.01 0.3 0.02 0.2 0.4\n")
    photos, problems, _ = read(folder)
    assert isinstance(photos[NAMES[0]].objects[2].geometry, Polygon)
    assert problems == []


def test_key_points_without_a_model_index_have_numbers_for_names(tmp_path):
    photos, problems, data = read(label_studio_yolo(tmp_path / "p", "yolo-pose", joints=("nose", "tail", "ear")))
    assert (data.keypoint_names, problems) == (("point 0", "point 1"), [])
    assert len(photos[NAMES[0]].objects[0].keypoints) == 2
    assert validate(tmp_path / "p").issues == []


def test_label_studios_yolo_finds_the_original_images(tmp_path):
    source = packed(label_studio_yolo(tmp_path / "project", "yolo-detect", photos=False))
    with pytest.raises(DatasetError, match="--images-from"):
        read(source)
    makers.make_photos(tmp_path / "photos", ("a.jpg", "empty.jpg"))  # as they were before they were uploaded
    photos, _, _ = read(source, images=tmp_path / "photos")
    assert [len(photos[name].objects) for name in ("a.jpg", "empty.jpg")] == [2, 0]


def test_label_studios_coco_finds_its_images(tmp_path):
    makers.make_photos(tmp_path / "images", ("a.jpg",))
    (tmp_path / "images/a.jpg").rename(tmp_path / f"images/{NAMES[0]}")
    image = {"id": 0, "width": 640, "height": 360, "file_name": f"..\\/media\\/upload\\/3\\/{NAMES[0]}"}
    sheet = {
        "images": [image | {"file_name": image["file_name"].replace("\\", "")}],
        "categories": [{"id": 0, "name": "car"}],
    }
    box = {"id": 0, "image_id": 0, "category_id": 0, "segmentation": [], "bbox": [64.0, 72.0, 192.0, 90.0]}
    sheet["annotations"] = [box | {"ignore": 0, "iscrowd": 0, "area": 17280.0}]
    (tmp_path / "result.json").write_text(json.dumps(sheet))
    source = open_source(str(tmp_path), Settings())
    (photo,) = read_dataset(source).images()
    assert photo.objects[0].geometry == Rectangle(64, 72, 192, 90)
    assert source.images.find(photo.name) == f"images/{NAMES[0]}"
    assert set(validate(tmp_path).counts) == {"coco-image-name", "coco-annotation-id"}  # it leads out; it is 0


DARKNET = {"names": ("obj.names", "data/obj.names", "data/voc.names", "obj_train_data/classes.txt")}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("names", DARKNET["names"])
def test_darknet_is_read_with_its_lists(tmp_path, names, zipped):
    folder = tmp_path / "set"
    makers.make_photos(folder / "obj_train_data", ("a.jpg", "empty.jpg"))
    (folder / "obj_train_data/a.txt").write_text("1 0.5 0.5 0.25 0.5\n")
    (folder / "obj_train_data/empty.txt").touch()
    (folder / names).parent.mkdir(exist_ok=True)
    (folder / names).write_text("bus\ncar\n")
    (folder / "obj.data").write_text(f"classes = 2\ntrain = data/train.txt\nnames = data/{names}\nbackup = backup/\n")
    (folder / "train.txt").write_text("data/obj_train_data/a.jpg\n")
    (folder / "valid.txt").write_text("data/obj_train_data/empty.jpg\n")
    source = packed(folder) if zipped else folder
    photos, problems, data = read(source)
    assert (data.labels, problems) == (("bus", "car"), [])
    assert [obj.label for obj in photos["a.jpg"].objects] == ["car"]
    assert {name: photo.split for name, photo in photos.items()} == {"a.jpg": "train", "empty.jpg": "val"}
    report = validate(source)
    assert report.issues == []
    assert report.checked["label files"] == 2


def test_every_layout_that_is_read_is_validated(tmp_path):
    makers.make_coco(tmp_path / "coco")
    makers.make_voc(tmp_path / "voc")
    makers.make_yolo(tmp_path / "yolo", "detect")
    makers.make_classes(tmp_path / "classes")
    (tmp_path / "results.json").write_text('[{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]')
    (tmp_path / "nd").mkdir()
    (tmp_path / "nd/x.ndjson").write_text('{"type": "dataset", "class_names": {"0": "car"}}\n')
    for name in ("coco", "voc", "yolo", "classes", "nd"):
        places = [tmp_path / name, packed(tmp_path / name)]
        assert validate(places[0]).checked == validate(places[1]).checked
    assert +validate(tmp_path / "classes").checked == {"images": 3, "photos": 3}
    assert validate(tmp_path / "results.json").checked["objects"] == 1
    assert validate(tmp_path / "yolo/data.yaml").checked["label files"] == 4


def test_what_an_import_cannot_read_is_never_called_good(tmp_path):
    makers.make_voc(tmp_path)
    file = tmp_path / "Annotations/a.xml"
    file.write_text(file.read_text().replace("object>", "Object>"))
    (tmp_path / "ImageSets/Main").mkdir(parents=True)
    (tmp_path / "ImageSets/Main/train.txt").write_text("a\nb\nempty\n")
    assert [issue.flaw for issue in validate(tmp_path).issues] == ["label-unread"]


def test_several_data_sets_in_a_folder_are_validated_and_asked_about(tmp_path):
    makers.make_voc(tmp_path / "one")
    makers.make_yolo(tmp_path / "two", "detect")
    with pytest.raises(DatasetError, match="one, two"):
        read(tmp_path)
    assert {"VOC files", "label files"} <= set(validate(tmp_path).checked)


def test_an_empty_line_in_a_list_of_classes_is_a_number_of_no_class(tmp_path):
    folder = label_studio_yolo(tmp_path / "project", "yolo-detect")
    (folder / "classes.txt").write_text("Zebra\n\ncar\n\n")
    photos, problems, data = read(folder)
    assert [obj.label for obj in photos[NAMES[0]].objects] == ["car", "Zebra"]
    assert (data.labels, problems) == (("Zebra", "car"), [])


@pytest.mark.parametrize("kind", ["coco", "voc", "yolo"])
def test_images_outside_the_label_folder_are_found(tmp_path, kind):
    make = {"coco": makers.make_coco, "voc": makers.make_voc, "yolo": lambda to: makers.make_yolo(to, "detect")}[kind]
    make(tmp_path / "labels of it")
    photos = next(path for name in ("images", "JPEGImages") if (path := tmp_path / "labels of it" / name).is_dir())
    photos.rename(tmp_path / "photos")
    if kind == "coco":
        (tmp_path / "labels of it/annotations").mkdir()
        (tmp_path / "labels of it/instances.json").rename(tmp_path / "labels of it/annotations/instances.json")
    source = open_source(str(tmp_path), Settings())
    items = [item for item in read_dataset(source).images() if not isinstance(item, DatasetProblem)]
    assert sum(len(item.objects) for item in items) == {"coco": 7, "voc": 3, "yolo": 3}[kind]
    assert all(source.images.find(item.name) for item in items)
    assert validate(tmp_path).checked["photos"] == len(items)


def test_a_folder_of_labels_alone_asks_for_the_photos(tmp_path):
    makers.make_yolo(tmp_path, "detect")
    with pytest.raises(DatasetError, match="--images-from"):
        read(tmp_path / "labels")


def test_a_zip_that_is_damaged_or_locked_is_told(tmp_path):
    good = packed(makers.make_yolo(tmp_path / "set", "detect"))
    data = good.read_bytes()
    cut = tmp_path / "cut.zip"
    for broken in (b"", b"no zip", data[: len(data) // 2], data.replace(b"0 0.5 0.5", b"0 0.6 0.5", 1)):
        cut.write_bytes(broken)
        with pytest.raises(DatasetError, match="cut"):
            read(cut)
    locked = bytearray(data)
    for start in (data.index(b"PK\x01\x02") + 8, data.index(b"PK\x03\x04") + 6):
        locked[start] |= 1  # the flag of a password
    cut.write_bytes(bytes(locked))
    with pytest.raises(DatasetError, match="encrypted"):
        read(cut)


def test_a_zip_larger_than_the_disk_is_not_unpacked(tmp_path, monkeypatch):
    from labelloop.service.datasets import files

    archive = packed(makers.make_yolo(tmp_path / "set", "detect"))
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: files.shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(DatasetError, match="free"):
        read(archive)


def test_unpacked_files_are_deleted_with_the_source(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    source = open_source(str(packed(makers.make_yolo(tmp_path / "set", "detect"))), Settings())
    assert list((tmp_path / "temporary").iterdir())
    del source
    assert not list((tmp_path / "temporary").iterdir())


def test_names_in_a_zip_stay_in_its_folder(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in ("../../out.txt", "/abs.txt", "set\\images\\a.jpg", "set\\labels\\a.txt", "__MACOSX/set/._a.jpg"):
            archive.writestr(name, b"")
    source = open_source(str(tmp_path / "x.zip"), Settings())
    assert not (tmp_path.parent / "out.txt").exists()
    assert "set/images/a.jpg" in source.files.names or "images/a.jpg" in source.files.names


SAMPLES = {
    "label studio": [{"tasks": []}, [{"data": {}, "annotations": []}], [{"data": {"image": "x"}, "predictions": []}]],
    "label studio predictions": [[{"task": 1, "result": [], "model_version": "a"}]],
    "label studio annotation": [{"id": 3, "result": [], "task": {}}],
    "annotations alone": [[{"result": [], "completed_by": 1}]],
    "predictions alone": [[{"result": [], "score": 0.5}]],
    "ml backend": [{"results": [], "model_version": "a"}],
    "label studio list": [{"task_ids": [1], "tasks": []}],
    "cvat": [{"shapes": [], "tracks": []}],
    "label studio plain predictions": [[{"task": 1, "result": []}]],
    "label studio min": [[{"image": "x", "annotation_id": 1, "annotator": 1}]],
    "label studio data": [[{"id": 1, "data": {"image": "x"}}]],
    "labelbox": [[{"Labeled Data": "x"}], {"data_row": {}}],
    "via": [{"_via_img_metadata": {}}, {"a.jpg9": {"filename": "a.jpg", "regions": []}}],
    "datumaro": [{"items": [], "categories": {}}],
    "supervisely": [{"objects": [], "size": {}}],
    "geojson": [{"type": "FeatureCollection", "features": []}],
    "ground truth": [{"source-ref": "s3://b/a.jpg"}],
    "vertex": [{"imageGcsUri": "gs://b/a.jpg"}],
    "darwin": [{"item": {}, "annotations": []}],
}


def test_every_foreign_kind_has_a_sample():
    assert set(SAMPLES) == {name for name, kind in KINDS.items() if kind.fix_for_data_set}


@pytest.mark.parametrize("name", ["file.json", "file.jsonl", "file.ndjson", "forced"])
@pytest.mark.parametrize(("kind", "value"), [(kind, value) for kind, values in SAMPLES.items() for value in values])
def test_files_of_other_tools_are_named_with_a_fix(tmp_path, kind, value, name):
    file = tmp_path / ("file.json" if name == "forced" else name)
    file.write_text(json.dumps(value))
    with pytest.raises(DatasetError) as caught:
        read(file, "coco" if name == "forced" else "auto")
    assert KINDS[kind].what in caught.value.message
    assert caught.value.fix == KINDS[kind].fix_for_data_set


def test_photos_beside_labels_of_another_tool_are_not_taken_for_plain(tmp_path):
    makers.make_photos(tmp_path)
    (tmp_path / "a.json").write_text(json.dumps({"objects": [], "size": {}}))
    with pytest.raises(DatasetError, match="Supervisely"):
        read(tmp_path)


@pytest.mark.parametrize("damaged", [b"", b"\0" * 99, b"\x1f\x8b\x08 packed", b'{"images": [', b"<html>"])
def test_one_damaged_coco_file_among_others_is_no_data_set(tmp_path, damaged):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(makers.coco_sheet()))
    (tmp_path / "val/_annotations.coco.json").write_bytes(damaged)
    makers.make_photos(tmp_path / "train")
    with pytest.raises(DatasetError, match=r"val/_annotations\.coco\.json"):
        read(tmp_path)


@pytest.mark.parametrize("text", ['{"images": [', '{"images": 3}', ""])
def test_photos_beside_a_broken_coco_file_are_not_taken_for_plain(tmp_path, text):
    makers.make_photos(tmp_path)
    (tmp_path / "instances.json").write_text(text)
    with pytest.raises(DatasetError, match="instances"):
        read(tmp_path)


def test_a_broken_coco_file_of_a_split_is_no_data_set_without_it(tmp_path):
    (tmp_path / "instances_train.json").write_text(json.dumps(makers.coco_sheet()))
    (tmp_path / "instances_val.json").write_text('{"images": [{"id": 1, "file')
    with pytest.raises(DatasetError, match="instances_val"):
        read(tmp_path)


def test_xml_of_cvat_is_named(tmp_path):
    (tmp_path / "annotations.xml").write_text("<annotations><version>1.1</version></annotations>")
    with pytest.raises(DatasetError, match="CVAT"):
        read(tmp_path)


@pytest.mark.parametrize("names", ["[yes, no]", "[car, null]", "[[car]]", "3", "{0: {a: b}}", "&a [*a]"])
def test_classes_that_are_no_texts_are_named(tmp_path, names):
    makers.make_yolo(tmp_path, "detect")
    (tmp_path / "data.yaml").write_text(f"names: {names}\n")
    with pytest.raises(DatasetError, match="names"):
        read(tmp_path)
    assert "yolo-sheet" in validate(tmp_path).counts


def test_archives_in_a_bucket_are_refused():
    with pytest.raises(DatasetError, match="local disk only"):
        open_source("s3://bucket/set.zip", Settings())


def test_yolo_of_many_splits_finds_each_photos_own_labels(tmp_path):
    for split, row in (("train", "0 .5 .5 .1 .1"), ("valid", "1 .5 .5 .1 .1")):
        makers.make_photos(tmp_path / split, ("a.jpg",))
        (tmp_path / split / "a.txt").write_text(row)
        (tmp_path / split / "_darknet.labels").write_text("car\nbus\n")
    photos, problems, data = read(tmp_path)
    assert (data.labels, problems) == (("car", "bus"), [])
    kinds = [item.objects[0].label for item in data.images()]
    assert kinds == ["car", "bus"]
    assert np.array_equal(photos["a.jpg"].objects[0].geometry.bounds, (288, 162, 352, 198))
