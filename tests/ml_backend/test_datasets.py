"""The same photos and boxes come out of every format; what cannot be read says which file and why."""

import json

import numpy as np
import pytest
from PIL import Image

from ml_backend.datasets import READERS, read_dataset, read_list
from ml_backend.errors import DatasetUnreadable

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
        {"image_id": index, "category_id": label, "bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]]}
        for index, drawn in enumerate(DRAWN.values())
        for b, label in drawn
    ]
    categories = [{"id": name, "name": name} for name in ("cat", "dog")]
    file = folder / "all.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return file


WRITERS = {"voc": write_voc, "yolo": write_yolo, "coco": write_coco}


@pytest.mark.parametrize("form", READERS)
def test_every_format_gives_the_same_boxes(form, images, tmp_path):
    folder = tmp_path / form
    folder.mkdir()
    found = read_dataset(images, WRITERS[form](folder))
    assert [photo.name for photo in found] == ["a", "b"]
    assert [photo.labels for photo in found] == [("cat", "dog"), ()]
    np.testing.assert_allclose(found[0].boxes, [box for box, _ in DRAWN["a"]], atol=1e-6)


def test_a_polygon_of_yolo_becomes_the_box_around_it(images, tmp_path):
    (tmp_path / "a.txt").write_text("0 0.1 0.25 0.3 0.25 0.2 0.75")
    [photo] = read_dataset(images, tmp_path)
    np.testing.assert_allclose(photo.boxes, [(10, 20, 30, 60)])
    assert photo.labels == ("0",)


@pytest.mark.parametrize(("name", "text"), [("a.xml", "<annotation><object>"), ("a.txt", "0 1 2"), ("a.json", "[]")])
def test_a_malformed_file_is_named(name, text, images, tmp_path):
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(DatasetUnreadable) as caught:
        read_dataset(images, file if name.endswith("json") else tmp_path)
    assert caught.value.path == file


def test_what_is_no_data_set_says_so(images, tmp_path):
    with pytest.raises(DatasetUnreadable, match="no photo"):
        read_dataset(tmp_path / "nothing", tmp_path)
    with pytest.raises(DatasetUnreadable, match="neither"):
        read_dataset(images, tmp_path / "nothing")


def test_a_list_names_photos_with_or_without_folder_and_ending(tmp_path):
    file = tmp_path / "test.txt"
    file.write_text("images/a.jpg\n\nphoto.v2\n  b \n")
    assert read_list(file) == {"a", "photo.v2", "b"}
