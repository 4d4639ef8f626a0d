"""All formats yield the same images and boxes; skipped items and read errors are reported."""

import json

import numpy as np
import pytest
from PIL import Image

from labelloop.service.datasets import DatasetError
from ml_backend.errors import DatasetUnreadable
from ml_backend.training.datasets import read_labelled

DRAWN = {"a": [((10, 20, 30, 60), "cat"), ((0, 0, 50, 40), "dog")], "b": []}


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in DRAWN:
        Image.fromarray(np.zeros((80, 100, 3), np.uint8)).save(folder / f"{name}.jpg")
    return folder


def write_voc(folder):
    for name, drawn in DRAWN.items():
        objects = "".join(
            f"<object><name>{label}</name><bndbox><xmin>{b[0]}</xmin><ymin>{b[1]}</ymin><xmax>{b[2]}</xmax>"
            f"<ymax>{b[3]}</ymax></bndbox></object>"
            for b, label in drawn
        )
        (folder / f"{name}.xml").write_text(f"<annotation>{objects}</annotation>")
    return folder


def write_yolo(folder):
    (folder / "classes.txt").write_text("cat\ndog\n")
    for name, drawn in DRAWN.items():
        lines = [
            f"{['cat', 'dog'].index(label)} {(b[0] + b[2]) / 200} {(b[1] + b[3]) / 160} "
            f"{(b[2] - b[0]) / 100} {(b[3] - b[1]) / 80}"
            for b, label in drawn
        ]
        (folder / f"{name}.txt").write_text("\n".join(lines))
    return folder


def write_coco(folder):
    images = [{"id": index, "file_name": f"images/{name}.jpg"} for index, name in enumerate(DRAWN)]
    annotations = [
        {"image_id": index, "category_id": ("cat", "dog").index(label), "bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]]}
        for index, drawn in enumerate(DRAWN.values())
        for b, label in drawn
    ]
    categories = [{"id": number, "name": name} for number, name in enumerate(("cat", "dog"))]
    file = folder / "all.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return file


WRITERS = {"voc": write_voc, "yolo": write_yolo, "coco": write_coco}


@pytest.mark.parametrize("form", WRITERS)
def test_every_format_gives_the_same_boxes(form, images, tmp_path):
    folder = tmp_path / form
    folder.mkdir()
    dataset = read_labelled(images, WRITERS[form](folder))
    assert [photo.name for photo in dataset.images] == ["a.jpg", "b.jpg"]
    assert [photo.labels for photo in dataset.images] == [("cat", "dog"), ()]
    np.testing.assert_allclose(
        dataset.images[0].boxes, [box for box, _ in DRAWN["a"]], atol=1.01 if form == "voc" else 1e-6
    )
    assert not dataset.problems


@pytest.mark.parametrize(
    "row",
    [
        "0 0.1 0.25 0.3 0.25 0.2 0.75",  # a polygon
        "0 0.1 0.25 0.3 0.25 0.3 0.75 0.1 0.75",  # a polygon or a rotated box
    ],
)
def test_yolo_polygon_becomes_its_bounding_box(row, images, tmp_path):
    folder = tmp_path / "labels"
    folder.mkdir()
    (folder / "a.txt").write_text(row)
    a, b = read_labelled(images, folder).images
    np.testing.assert_allclose(a.boxes, [(10, 20, 30, 60)])
    assert (a.labels, b.labels) == (("class 0",), ())


def test_class_names_are_read_from_data_yaml(images, tmp_path):
    folder = tmp_path / "labels" / "train"
    folder.mkdir(parents=True)
    (folder.parent / "data.yaml").write_text("names: {0: cat, 1: dog}")
    (folder / "a.txt").write_text("1 0.5 0.5 0.2 0.2")
    assert read_labelled(images, folder.parent).images[0].labels == ("dog",)


@pytest.mark.parametrize(
    ("name", "text"), [("b.xml", "<annotation><object>"), ("b.txt", "0 1 2"), ("c.txt", "0 1 1 1 1")]
)
def test_malformed_items_are_skipped_and_reported(name, text, images, tmp_path):
    folder = tmp_path / "some"
    folder.mkdir()
    (write_voc if name.endswith("xml") else write_yolo)(folder)
    (folder / name).write_text(text)
    dataset = read_labelled(images, folder)
    assert dataset.images[0].labels == ("cat", "dog")
    [problem] = dataset.problems
    assert problem.item.startswith(name)


def test_equal_names_in_two_folders_are_distinct(images, tmp_path):
    (images / "a.jpg").unlink()
    labels = tmp_path / "labels"
    for split, kind in (("train", 0), ("val", 1)):
        (images / split).mkdir()
        Image.fromarray(np.zeros((80, 100, 3), np.uint8)).save(images / split / "a.jpg")
        (labels / split).mkdir(parents=True)
        (labels / split / "a.txt").write_text(f"{kind} 0.5 0.5 0.2 0.2")
    dataset = read_labelled(images, labels)
    assert [(photo.name, photo.labels) for photo in dataset.images if photo.labels] == [
        ("train/a.jpg", ("class 0",)),
        ("val/a.jpg", ("class 1",)),
    ]
    (tmp_path / "test.txt").write_text("val/a.jpg\na\n")
    assert dataset.listed(tmp_path / "test.txt") == ({"val/a.jpg"}, ["a"])


def test_missing_or_empty_data_sets_raise(images, tmp_path):
    folder = tmp_path / "some"
    folder.mkdir()
    with pytest.raises(DatasetError, match="the folder does not exist"):
        read_labelled(images, tmp_path / "nothing")
    with pytest.raises(DatasetError, match="the folder does not exist"):
        read_labelled(tmp_path / "nothing", write_voc(folder))
    with pytest.raises(DatasetUnreadable, match="no image"):
        read_labelled(folder, folder)
    (folder / "a.xml").unlink()
    with pytest.raises(DatasetUnreadable, match="none of its images has a box"):
        read_labelled(images, folder)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(DatasetError, match="broken"):
        read_labelled(images, tmp_path / "broken.json")


def test_list_accepts_names_without_folder_or_extension(images, tmp_path):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(images / "photo.v2.jpg")
    (tmp_path / "voc").mkdir()
    dataset = read_labelled(images, write_voc(tmp_path / "voc"))
    file = tmp_path / "test.txt"
    file.write_text("images/a.jpg\n\nphoto.v2\n  b \nwho\n")
    assert dataset.listed(file) == ({"a.jpg", "photo.v2.jpg", "b.jpg"}, ["who"])


@pytest.mark.parametrize(
    ("form", "name", "text"), [("yolo", "b.txt", "0 1 2"), ("voc", "b.xml", "<annotation><object>")]
)
def test_image_with_unreadable_labels_is_not_a_negative(form, name, text, images, tmp_path):
    folder = tmp_path / "some"
    folder.mkdir()
    WRITERS[form](folder)
    (folder / name).write_text(text)
    dataset = read_labelled(images, folder)
    assert [photo.name for photo in dataset.images] == ["a.jpg"]
    assert len(dataset.problems) == 1


def test_image_with_only_a_crowd_is_not_a_negative(images, tmp_path):
    folder = tmp_path / "some"
    folder.mkdir()
    file = write_coco(folder)
    coco = json.loads(file.read_text())
    image = next(entry["id"] for entry in coco["images"] if entry["file_name"] == "images/b.jpg")
    crowd = {"id": 99, "image_id": image, "category_id": coco["categories"][0]["id"], "bbox": [1, 1, 9, 9]}
    file.write_text(json.dumps(coco | {"annotations": [*coco["annotations"], crowd | {"iscrowd": 1}]}))
    dataset = read_labelled(images, file)
    assert [photo.name for photo in dataset.images] == ["a.jpg"]
    assert "crowd" in dataset.problems[0].reason


@pytest.mark.parametrize(
    ("size", "images", "problem"),
    [((200, 160), 2, ""), ((80, 100), 1, "its EXIF rotation is not applied in the labels"), ((500, 80), 1, "for 500")],
)
def test_labels_for_another_size_are_scaled_or_named(size, images, problem, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a", "b"):
        Image.fromarray(np.zeros((80, 100, 3), np.uint8)).save(folder / f"{name}.jpg")
    stated = {"a": size, "b": (100, 80)}
    record = {
        "images": [
            {"id": index, "file_name": f"{name}.jpg", "width": stated[name][0], "height": stated[name][1]}
            for index, name in enumerate(stated)
        ],
        "annotations": [
            {"id": index + 1, "image_id": index, "category_id": 1, "bbox": [20, 20, 40, 40]} for index in range(2)
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }
    file = tmp_path / "all.json"
    file.write_text(json.dumps(record))
    dataset = read_labelled(folder, file)
    assert len(dataset.images) == images
    assert dataset.scaled == (size == (200, 160))
    if problem:
        assert problem in dataset.problems[0].reason
    else:
        assert dataset.images[0].boxes == ((10.0, 10.0, 30.0, 30.0),)
