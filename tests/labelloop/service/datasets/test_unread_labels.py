"""Unreadable labels are never an empty annotation: the image has none, and a problem names them."""

import json

import pytest

from labelloop.service.datasets import DatasetProblem, open_source, read_dataset
from labelloop.service.settings import Settings
from tests import dataset_makers as makers


@pytest.fixture
def read(tmp_path):
    """(images by file name, problems) of a source."""

    def read(source, kind="auto"):
        items = list(read_dataset(open_source(str(source), Settings(home=tmp_path / "home")), kind).images())
        photos = {item.name.rpartition("/")[2]: item for item in items if not isinstance(item, DatasetProblem)}
        return photos, [item for item in items if isinstance(item, DatasetProblem)]

    return read


YOLO_FILES = {
    "its only row has four numbers": b"0 .5 .5 .1\n",
    "its only row has a word": b"car .5 .5 .1 .1\n",
    "a class that does not exist": b"9 .5 .5 .1 .1\n",
    "commas for decimals": b"0 0,5 0,5 0,1 0,1\n",
    "DOTA, as Roboflow writes labelTxt": b"10 10 50 10 50 40 10 40 car 0\n",
    "a caption": b"a red car in front of a house\n",
    "binary": b"\x00\x01\xfe\xff\x80" * 20,
    "another encoding": "0 .5 .5 .1 .1 caf\u00e9\n".encode("latin-1"),
    "not a number": b"0 nan .5 .1 .1\n",
    "no area": b"0 .5 .5 0 .1\n",
}


@pytest.mark.parametrize("task", ["detect", "segment", "obb", "pose"])
@pytest.mark.parametrize("fault", YOLO_FILES)
def test_a_yolo_file_that_cannot_be_read_annotates_nothing(read, tmp_path, task, fault):
    makers.make_yolo(tmp_path, task)
    (tmp_path / "labels/a.txt").write_bytes(YOLO_FILES[fault])
    photos, problems = read(tmp_path, f"yolo-{task}")
    assert not photos["a.jpg"].annotated
    assert [problem.item.partition(",")[0] for problem in problems] == ["labels/a.txt"]
    assert photos["empty.jpg"].annotated  # an empty file says that nothing is on it


def test_a_photo_without_a_label_file_is_not_labelled(read, tmp_path):
    makers.make_yolo(tmp_path, "detect")
    (tmp_path / "labels/a.txt").unlink()
    photos, problems = read(tmp_path)
    assert (photos["a.jpg"].annotated, problems) == (False, [])


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_yolo_rows_are_read_whatever_mark_they_begin_with(read, tmp_path, encoding):
    makers.make_yolo(tmp_path, "detect")
    file = tmp_path / "labels/a.txt"
    file.write_text(file.read_text(), encoding=encoding)
    photos, problems = read(tmp_path)
    assert (len(photos["a.jpg"].objects), problems) == (2, [])


@pytest.mark.parametrize("sheet", [True, False])
def test_a_folder_of_label_txt_is_dota(read, tmp_path, sheet):
    for split in ("train", "valid"):
        makers.make_photos(tmp_path / split / "images", ("a.jpg",))
        (tmp_path / split / "labelTxt").mkdir()
        (tmp_path / split / "labelTxt/a.txt").write_text("10 10 50 10 50 40 10 40 car 0\n1 1 9 1 9 9 1 9 bus 1\n")
    (tmp_path / "README.roboflow.txt").write_text("About this data set\n")
    if sheet:
        (tmp_path / "data.yaml").write_text("nc: 2\nnames: [bus, car]\ntrain: ../train/images\n")
    photos, problems = read(tmp_path)
    assert problems == []
    assert [[obj.label for obj in photo.objects] for photo in photos.values()] == [["car", "bus"]]


COCO_ONLY = {
    "no such category": {"category_id": 99},
    "a box of text": {"bbox": ["1", 2, 3, 4]},
    "no box": {"bbox": None},
    "a box without area": {"bbox": [1, 2, 0, 4]},
    "a damaged mask": {"segmentation": {"size": [251, 333], "counts": "\u00ff~"}},
    "no image": {"image_id": None},
    "an image of letters": {"image_id": "fourteen"},
    "a list for an image": {"image_id": [14]},
    "an image that is not listed": {"image_id": 99},
}


@pytest.mark.parametrize("fault", COCO_ONLY)
def test_a_coco_photo_whose_only_object_is_broken_is_not_annotated(read, tmp_path, fault):
    sheet = makers.coco_sheet()
    sheet["annotations"][-1] |= {"segmentation": [], "keypoints": None} | COCO_ONLY[fault]
    photos, problems = read(makers.make_coco(tmp_path, sheet))
    assert not photos["ünï côde.jpg"].annotated
    assert len(problems) == 1
    assert photos["a.jpg"].annotated


def test_a_photo_may_lack_what_an_annotation_of_no_image_says(read, tmp_path):
    sheet = makers.coco_sheet()
    sheet["annotations"][-1]["image_id"] = 99
    photos, _ = read(makers.make_coco(tmp_path, sheet))
    assert [name for name, photo in photos.items() if not photo.annotated] == ["empty.jpg", "ünï côde.jpg"]


@pytest.mark.parametrize("without", ["annotations", "both"])
def test_a_coco_file_without_annotations_labels_nothing(read, tmp_path, without):
    sheet = makers.coco_sheet() | {"annotations": []}
    del sheet["annotations" if without == "annotations" else "categories"]
    photos, problems = read(makers.make_coco(tmp_path, sheet))
    assert not any(photo.annotated for photo in photos.values())
    assert problems == []


def test_python_nan_in_coco_costs_its_annotation_alone(read, tmp_path):
    sheet = makers.coco_sheet()
    sheet["annotations"][0]["area"] = float("nan")
    sheet["annotations"][-1] |= {"bbox": [float("nan"), 1, 5, float("inf")]}
    photos, problems = read(makers.make_coco(tmp_path, sheet))
    assert len(photos["a.jpg"].objects) == 4
    assert not photos["ünï côde.jpg"].annotated
    assert len(problems) == 1


OBJECT = "<object><name>car</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
PAGE = "<annotation><filename>a.jpg</filename><size><width>640</width><height>360</height></size>{}</annotation>"
VOC_FILES = {
    "no XML": "<annotation",
    "nothing": "",
    "no name": PAGE.format(OBJECT.replace("car", "")),
    "no box": PAGE.format("<object><name>car</name></object>"),
    "a polygon": PAGE.format("<object><name>car</name><polygon><pt><x>1</x><y>1</y></pt></polygon></object>"),
    "a box turned round": PAGE.format(OBJECT.replace("<xmax>9", "<xmax>-9")),
    "a box of text": PAGE.format(OBJECT.replace("<xmax>9", "<xmax>wide")),
    "a box that is not a number": PAGE.format(OBJECT.replace("<xmax>9", "<xmax>nan")),
    "objects of another name": PAGE.format(OBJECT.replace("object>", "item>")),
    "objects in capitals": PAGE.format(OBJECT.replace("object>", "Object>")),
    "objects in a list": PAGE.format(f"<objects>{OBJECT}</objects>"),
    "an entity": '<!DOCTYPE a [<!ENTITY b "c">]>' + PAGE.format(OBJECT.replace("car", "&b;")),
    "an encoding that does not exist": '<?xml version="1.0" encoding="nope"?>' + PAGE.format(OBJECT),
}


@pytest.mark.parametrize("fault", VOC_FILES)
def test_a_voc_file_that_cannot_be_read_annotates_nothing(read, tmp_path, fault):
    makers.make_voc(tmp_path)
    (tmp_path / "Annotations/a.xml").write_text(VOC_FILES[fault])
    photos, problems = read(tmp_path)
    assert not photos["a.jpg"].annotated
    assert [problem.item.partition(",")[0] for problem in problems] == ["Annotations/a.xml"]
    assert photos["empty.jpg"].annotated


@pytest.mark.parametrize("filename", ["other.jpg", "", None])
def test_a_voc_image_is_found_by_its_xml_file_name(read, tmp_path, filename):
    makers.make_voc(tmp_path)
    file = tmp_path / "Annotations/a.xml"
    name = "" if filename is None else f"<filename>{filename}</filename>"
    file.write_text(file.read_text().replace("<filename>a.jpg</filename>", name))
    photos, problems = read(tmp_path)
    assert (len(photos["a.jpg"].objects), problems) == (2, [])


def test_voc_masks_that_cannot_be_read_are_named(read, tmp_path):
    makers.make_voc(tmp_path)
    (tmp_path / "SegmentationObject").mkdir()
    (tmp_path / "SegmentationObject/a.png").write_bytes(b"no image")
    photos, problems = read(tmp_path)
    assert len(photos["a.jpg"].objects) == 2  # the boxes
    assert [problem.item for problem in problems] == ["SegmentationObject/a.png"]


NDJSON_ROWS = {
    "a class too many": {"boxes": [[9, 0.5, 0.5, 0.1, 0.1]]},
    "a row that is none": {"boxes": [None]},
    "rows that are none": {"boxes": 7},
    "text": "boxes",
    "a list": [[0, 0.5, 0.5, 0.1, 0.1]],
    "a key that is not known": {"circles": [[0, 0.5, 0.5, 0.1]]},
    "a word in a row": {"boxes": [["car", 0.5, 0.5, 0.1, 0.1]]},
}


@pytest.mark.parametrize("fault", NDJSON_ROWS)
def test_an_ndjson_photo_that_cannot_be_read_is_not_annotated(read, tmp_path, fault):
    rows = [
        {"type": "dataset", "class_names": {"0": "car"}},
        {"file": "a.jpg", "width": 9, "height": 9, "annotations": NDJSON_ROWS[fault]},
        {"file": "b.jpg", "width": 9, "height": 9, "annotations": {"boxes": []}},
        {"file": "c.jpg", "width": 9, "height": 9},
    ]
    (tmp_path / "x.ndjson").write_text("\n".join(map(json.dumps, rows)))
    photos, problems = read(tmp_path / "x.ndjson")
    assert {name: photo.annotated for name, photo in photos.items()} == {"a.jpg": False, "b.jpg": True, "c.jpg": False}
    assert [problem.item.partition(",")[0] for problem in problems] == ["line 2 (a.jpg)"]


def test_a_photo_in_no_folder_of_a_class_has_no_class(read, tmp_path):
    makers.make_classes(tmp_path)
    makers.make_photos(tmp_path / "train", ("a.jpg",))
    (tmp_path / "train/a.jpg").rename(tmp_path / "train/alone.jpg")
    photos, problems = read(tmp_path, "yolo-classify")
    assert not photos["alone.jpg"].annotated
    assert [problem.item for problem in problems] == ["train/alone.jpg"]


def test_a_model_whose_results_cannot_be_read_has_not_found_nothing(read, tmp_path):
    results = [{"image_id": n, "category_id": 1, "bbox": box, "score": 0.5} for n, box in ((1, [1, 2, 3, 4]), (2, [1]))]
    (tmp_path / "r.json").write_text(json.dumps(results))
    photos, problems = read(tmp_path / "r.json")
    assert {name: photo.annotated for name, photo in photos.items()} == {"task 1": True, "task 2": False}
    assert len(problems) == 1


def test_plain_photos_are_not_annotated_and_what_lies_beside_is_named(tmp_path):
    makers.make_photos(tmp_path)
    (tmp_path / "labels.csv").write_text("image,label\na.jpg,car\n")
    data = read_dataset(open_source(str(tmp_path), Settings(home=tmp_path / "home")))
    assert not any(photo.annotated for photo in data.images())
    assert "labels.csv" in data.notes[0]


def test_names_that_are_no_utf_8_are_told(read, tmp_path):
    makers.make_photos(tmp_path)
    (tmp_path / "empty.jpg").rename(tmp_path.as_posix() + "/caf\udce9.jpg")
    photos, problems = read(tmp_path)
    assert len(photos) == len(makers.SIZES) - 1
    assert "UTF-8" in problems[0].reason
    problems[0].item.encode()


def test_a_class_that_no_label_can_have_is_named(read, tmp_path):
    from labelloop.service.datasets import DatasetError

    makers.make_yolo(tmp_path, "detect")
    (tmp_path / "data.yaml").write_text('names: ["car\\u0001", b, c]')
    with pytest.raises(DatasetError, match=r"x01"):
        read(tmp_path)
