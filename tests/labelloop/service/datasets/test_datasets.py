"""Data sets of every format are read into one in-memory form; malformed items are skipped and located."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as masks

from labelloop.labeling.geometry.shapes import Mask, Polygon, Rectangle
from labelloop.service.datasets import READERS, DatasetError, DatasetProblem, open_source, read_dataset
from labelloop.service.datasets.coco import IDS_NOT_KEPT
from labelloop.service.datasets.shapes import decode_rle, rectangle_or_polygon
from labelloop.service.settings import Settings
from tests import dataset_makers as makers


@pytest.fixture
def read(tmp_path):
    """(images by name, problems, the data set) of a source."""

    def read(source, kind="auto", images=""):
        data = read_dataset(open_source(str(source), Settings(home=tmp_path / "home"), images=str(images)), kind)
        items = list(data.images())
        problems = [item for item in items if isinstance(item, DatasetProblem)]
        return {item.name: item for item in items if not isinstance(item, DatasetProblem)}, problems, data

    return read


def test_coco_shapes(read, tmp_path):
    photos, problems, data = read(makers.make_coco(tmp_path))
    assert not problems
    assert (data.format, data.labels, data.keypoint_names) == ("coco", makers.LABELS, makers.JOINTS)
    box, polygon, turned, mask = photos["a.jpg"].objects
    assert box.geometry == Rectangle(10.5, 20.25, 100, 50.5)
    assert polygon.geometry == Polygon(((400.5, 100), (500, 120.25), (470, 300), (390.75, 250.5)))
    assert isinstance(turned.geometry, Rectangle)
    assert turned.geometry.rotation == pytest.approx(33, abs=0.01)
    assert [(joint.name, joint.hidden) for joint in turned.keypoints] == [("nose", False), ("right eye", True)]
    np.testing.assert_array_equal(mask.geometry.array(), makers.holed_mask(640, 360) == 1)
    uncompressed, rings = photos["sub/b.png"].objects
    np.testing.assert_array_equal(uncompressed.geometry.array(), makers.holed_mask(200, 320) == 1)
    assert isinstance(rings.geometry, Mask)
    assert photos["empty.jpg"].objects == ()


def sheet_of(names, category=1, label="car"):
    return {
        "images": [{"id": n, "file_name": name, "width": 640, "height": 360} for n, name in enumerate(names, 1)],
        "annotations": [{"id": 1, "image_id": 1, "category_id": category, "bbox": [1, 2, 30, 40]}],
        "categories": [{"id": category, "name": label}],
    }


@pytest.mark.parametrize(
    "names", [("instances_{}.json",), ("instances_{}2017.json", "captions_{}2017.json"), ("{}.json",)]
)
def test_the_coco_files_of_splits_are_one_data_set(read, tmp_path, names):
    (tmp_path / "annotations").mkdir()
    for split, photo, label in (("train", "a.jpg", "car"), ("val", "b.jpg", "dog")):
        for name in names:
            content = sheet_of([photo], label=label) if "captions" not in name else {"images": [], "annotations": []}
            (tmp_path / "annotations" / name.format(split)).write_text(json.dumps(content))
    photos, problems, data = read(tmp_path)
    assert {name: photo.objects[0].label for name, photo in photos.items()} == {"a.jpg": "car", "b.jpg": "dog"}
    assert problems == []
    assert {name: photo.split for name, photo in photos.items()} == {"a.jpg": "train", "b.jpg": "val"}
    assert data.labels == ("car", "dog")  # both are number 1 in their own file


def test_images_of_one_name_in_two_splits_differ(read, tmp_path):
    for split in ("train", "val"):
        (tmp_path / f"images/{split}").mkdir(parents=True)
        (tmp_path / f"images/{split}/1.jpg").write_bytes(b"")
        (tmp_path / f"instances_{split}.json").write_text(json.dumps(sheet_of(["1.jpg"])))
    photos, _, _ = read(tmp_path)
    assert set(photos) == {"train/1.jpg", "val/1.jpg"}


def test_coco_files_of_split_folders_are_one_data_set(read, tmp_path):
    for split in ("train", "valid"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "1.jpg").write_bytes(b"")
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(sheet_of(["1.jpg"])))
    photos, _, _ = read(tmp_path)
    assert {name: photo.split for name, photo in photos.items()} == {"train/1.jpg": "train", "valid/1.jpg": "val"}


def test_a_file_beside_the_coco_files_is_told_and_left_out(read, tmp_path):
    for name in ("train", "val"):
        (tmp_path / f"{name}.json").write_text(json.dumps(sheet_of([f"{name}.jpg"])))
    (tmp_path / "notes.json").write_text("{}")
    photos, _, data = read(tmp_path)
    assert set(photos) == {"train.jpg", "val.jpg"}
    assert any("notes.json" in note for note in data.notes)


def test_what_is_no_data_set_is_named_for_what_it_is(read, tmp_path):
    (tmp_path / "tasks.json").write_text('[{"id": 1, "data": {"image": "a.jpg"}, "annotations": []}]')
    with pytest.raises(DatasetError, match="Label Studio's own JSON"):
        read(tmp_path / "tasks.json")
    (tmp_path / "versions/v000001").mkdir(parents=True)
    for name in ("HEAD.json", "classes.json", "versions/v000001/manifest.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(DatasetError, match="dataset pull"):
        read(tmp_path)


BROKEN = {
    "no such category": {"category_id": 99},
    "no such image": {"image_id": 99},
    "a box without area": {"bbox": [1, 2, 0, 4]},
    "a box of text": {"bbox": ["1", 2, 3, 4]},
    "no box": {"bbox": None},
    "a ring of two points": {"segmentation": [[1, 2, 3, 4]]},
    "half a point": {"segmentation": [[1, 2, 3, 4, 5, 6, 7]]},
    "a segmentation of another kind": {"segmentation": 7},
    "a mask of another size": {"segmentation": {"size": [3, 3], "counts": [9]}},
    "run lengths that do not fill": {"segmentation": {"size": [360, 640], "counts": [5, 5]}},
    "negative run lengths": {"segmentation": {"size": [360, 640], "counts": [-1, 360 * 640 + 1]}},
    "damaged counts": {"segmentation": {"size": [360, 640], "counts": "\u00ff~"}},
    "an empty mask": {"segmentation": {"size": [360, 640], "counts": [360 * 640]}},
    "infinite": {"bbox": [1e300, 2, 3, 4]},
    "the wrong number of key points": {"category_id": 7, "keypoints": [1, 2, 2]},
    "an odd visibility": {"category_id": 7, "keypoints": [1, 2, 5, 0, 0, 0, 0, 0, 0]},
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_malformed_annotation_is_skipped_alone(read, tmp_path, fault):
    sheet = makers.coco_sheet()
    sheet["annotations"].insert(1, {"id": 666, "image_id": 11, "category_id": 3, "bbox": [1, 2, 3, 4]} | BROKEN[fault])
    photos, problems, _ = read(makers.make_coco(tmp_path, sheet))
    assert len(problems) == 1
    assert "666" in problems[0].item
    assert len(photos) == 4
    assert len(photos["a.jpg"].objects) == 4


def test_images_and_categories_that_are_there_twice_are_told(read, tmp_path):
    sheet = makers.coco_sheet()
    sheet["images"] += [sheet["images"][0] | {"id": 77}, "nothing", {"id": 12, "file_name": "z.jpg"}]
    sheet["categories"] += [{"id": 3, "name": "again"}, {"id": 9}]
    photos, problems, data = read(makers.make_coco(tmp_path, sheet))
    assert len(photos) == 4
    assert len(problems) == 5
    assert data.labels == makers.LABELS


@pytest.mark.parametrize("text", ["", "[1, 2", "{}", '{"images": 3}', "null", '"x"'])
def test_what_is_no_coco_file_says_so(read, tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DatasetError, match="x"):
        read(tmp_path / "x.json", "coco")


@pytest.mark.parametrize("seed", range(20))
def test_compressed_counts_are_read_as_pycocotools_reads_them(seed):
    rng = np.random.default_rng(seed)
    pixels = (rng.random((37, 53)) < rng.random()).astype(np.uint8)
    pixels[0, 0] = 1
    mask = decode_rle(makers.compressed(pixels), 53, 37)
    np.testing.assert_array_equal(mask.array(), pixels == 1)
    assert mask.rle == masks.encode(np.asfortranarray(pixels))["counts"]


@pytest.mark.parametrize("degrees", [0, 12.5, 90, 135, 180, 271.25, 359])
@pytest.mark.parametrize("reverse", [False, True])
def test_four_corners_of_a_rotated_box_are_that_box(degrees, reverse):
    ring = makers.ring_of(50, 60, 40, 20, degrees)
    ring = [ring[0], *reversed(ring[1:])] if reverse else ring
    shape = rectangle_or_polygon(ring, upright=False)
    assert isinstance(shape, Rectangle)
    assert shape.corners[0] == pytest.approx(ring[0])
    assert {(round(x, 6), round(y, 6)) for x, y in shape.corners} == {(round(x, 6), round(y, 6)) for x, y in ring}


def test_four_corners_that_are_no_rectangle_stay_a_polygon():
    ring = makers.ring_of(50, 60, 40, 20, 30)
    ring[2] = (ring[2][0] + 0.2, ring[2][1])
    assert rectangle_or_polygon(ring, upright=False) == Polygon(tuple(ring))


@pytest.mark.parametrize("task", ["detect", "segment", "pose"])
def test_the_yolo_task_is_detected(read, tmp_path, task):
    photos, problems, data = read(makers.make_yolo(tmp_path, task))
    assert not problems
    assert (data.format, data.labels) == (f"yolo-{task}", makers.LABELS)
    assert {name: len(photo.objects) for name, photo in photos.items()} == {
        f"images/{name}": len(makers.YOLO[task].get(name, ())) for name in makers.SIZES
    }


def test_obb_and_segment_rows_of_four_corners_are_ambiguous(read, tmp_path):
    makers.make_yolo(tmp_path, "obb")
    with pytest.raises(DatasetError, match="yolo-obb"):
        read(tmp_path)
    photos, _, _ = read(tmp_path, "yolo-obb")
    first = photos["images/a.jpg"].objects[0].geometry
    assert (first.width, first.height, first.rotation) == pytest.approx((180, 70, 25))


ROWS = {
    "detect": ("9 .5 .5 .1 .1", "0 .5 .5 .1", "x .5 .5 .1 .1", "0 .5 .5 0 .1", "0.5 .5 .5 .1 .1", "0 nan .5 .1 .1"),
    "segment": ("0 .1 .1 .2 .2 .3 .3", "0 .1", "-1 .1 .1 .2 .2 .3 .5"),
    "obb": ("0 .1 .1 .2 .1 .2 .2", "0 .1 .1 .1 .1 .1 .1 .1 .1"),
    "pose": ("0 .5 .5 .1 .1 .2 .2 2",),
}


@pytest.mark.parametrize(("task", "row"), [(task, row) for task, rows in ROWS.items() for row in rows])
def test_a_malformed_row_is_skipped_alone(read, tmp_path, task, row):
    makers.make_yolo(tmp_path, task)
    file = tmp_path / "labels/a.txt"
    file.write_text(f"{row}\n" + file.read_text())
    photos, problems, _ = read(tmp_path, f"yolo-{task}")
    assert [problem.item for problem in problems] == ["labels/a.txt, line 1"]
    assert len(photos["images/a.jpg"].objects) == len(makers.YOLO[task]["a.jpg"])


def test_classes_may_have_gaps_in_their_numbers(read, tmp_path):
    makers.make_yolo(tmp_path, "detect")
    (tmp_path / "data.yaml").write_text("names: {0: car, 2: person}")
    (tmp_path / "labels/empty.txt").write_text("1 .5 .5 .1 .1\n")
    photos, problems, data = read(tmp_path)
    assert data.labels == ("car", "person")
    assert [obj.label for obj in photos["images/a.jpg"].objects] == ["car", "person"]
    assert [problem.reason for problem in problems] == ["class 1 has no name"]


def test_rows_of_predictions_have_scores(read, tmp_path):
    makers.make_yolo(tmp_path, "segment")
    (tmp_path / "labels/a.txt").write_text("0 .1 .1 .5 .2 .4 .9 0.75\n2 .5 .5 .2 .2 0.5\n")
    photos, problems, _ = read(tmp_path)
    assert not problems
    assert [obj.score for obj in photos["images/a.jpg"].objects] == [0.75, 0.5]


@pytest.mark.parametrize("first", [0, 1])
def test_voc_starts_at_one_unless_a_box_starts_at_zero(read, tmp_path, first):
    photos, problems, data = read(makers.make_voc(tmp_path, first))
    assert not problems
    assert photos["a.jpg"].objects[1].geometry == Rectangle(10, 20, 100, 50)
    assert photos["a.jpg"].objects[1].remarks.flags == {"difficult"}
    assert photos["b.png"].objects[0].geometry == Rectangle(4, 5, 3, 3)
    assert str(first) in data.notes[0]


def test_voc_masks_match_object_numbers(read, tmp_path):
    makers.make_voc(tmp_path)
    pixels = np.zeros((360, 640), dtype=np.uint8)
    pixels[20:40, 30:60] = 2
    pixels[10:12, 10:12] = 255
    (tmp_path / "SegmentationObject").mkdir()
    Image.fromarray(pixels, "L").save(tmp_path / "SegmentationObject/a.png")
    photos, problems, _ = read(tmp_path)
    assert not problems
    box, mask = photos["a.jpg"].objects
    assert isinstance(box.geometry, Rectangle)
    np.testing.assert_array_equal(mask.geometry.array(), pixels == 2)


@pytest.mark.parametrize("text", ["<annotation", "<x/>", '<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>'])
def test_a_broken_xml_leaves_its_photo_unlabelled(read, tmp_path, text):
    makers.make_voc(tmp_path)
    (tmp_path / "Annotations/a.xml").write_text(text)
    photos, problems, _ = read(tmp_path)
    assert [problem.item for problem in problems] == ["Annotations/a.xml"]
    assert {name for name, photo in photos.items() if photo.annotated} == {"b.png", "empty.jpg"}
    assert set(photos) == {"b.png", "empty.jpg", "JPEGImages/a.jpg"}


def test_folders_are_classes(read, tmp_path):
    photos, problems, data = read(makers.make_classes(tmp_path))
    assert not problems
    assert (data.format, data.choices) == ("yolo-classify", ("cat", "dog"))
    assert photos["train/cat/a.jpg"].choices == ("cat",)


def test_plain_photos_are_photos(read, tmp_path):
    photos, _, data = read(makers.make_photos(tmp_path))
    assert data.format == "images"
    assert set(photos) == set(makers.SIZES)


def test_ndjson_is_read_with_its_rows(read, tmp_path):
    rows = [
        {"type": "dataset", "task": "pose", "class_names": {"0": "car", "1": "x"}, "kpt_shape": [1, 3]},
        {"type": "image", "file": "a.jpg", "url": "https://h/a.jpg?sig=1", "width": 640, "height": 360, "split": "val"}
        | {"annotations": {"pose": [[0, 0.5, 0.5, 0.5, 0.5, 0.25, 0.5, 1], [7, 0.5, 0.5, 0.5, 0.5, 0, 0, 0]]}},
        {"type": "image"},
    ]
    (tmp_path / "x.ndjson").write_text("\n".join(map(json.dumps, rows)))
    photos, problems, _ = read(tmp_path / "x.ndjson")
    photo = photos["val/a.jpg"]
    assert photo.url == "https://h/a.jpg?sig=1"
    assert photo.objects[0].geometry == Rectangle(160, 90, 320, 180)
    assert [(joint.x, joint.y, joint.hidden) for joint in photo.objects[0].keypoints] == [(160, 180, True)]
    assert [problem.item.partition(",")[0] for problem in problems] == ["line 2 (a.jpg)", "line 3"]


def test_photos_are_found_by_the_longest_ending_that_fits(tmp_path):
    for name in ("x/train/a.jpg", "x/val/a.jpg", "x/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    photos = open_source(str(tmp_path), Settings(home=tmp_path / "h")).images
    assert photos.find("val/a.jpg") == "x/val/a.jpg"
    assert photos.find("C:\\data\\train\\a.jpg") == "x/train/a.jpg"
    assert photos.find("a.jpg") is None
    assert photos.find("b") == "x/b.png"
    assert photos.find("b.jpg") == "x/b.png"
    assert photos.find("c.jpg") is None


@pytest.mark.parametrize("kind", READERS)
def test_an_empty_folder_is_no_data_set(read, tmp_path, kind):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError):
        read(tmp_path / "empty", kind)


def test_classes_of_voc_are_in_the_order_of_its_label_map(read, tmp_path):
    (tmp_path / "Annotations").mkdir()
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
        for name in ("car", "zebra", "other")
    )
    page = (
        f"<annotation><filename>a.jpg</filename><size><width>20</width><height>20</height></size>{objects}</annotation>"
    )
    (tmp_path / "Annotations/a.xml").write_text(page)
    label_map = "# label:color_rgb:parts:actions\nbackground:0,0,0::\nzebra:128,0,0::\na: b:0,128,0::\ncar:0,0,128::\n"
    (tmp_path / "labelmap.txt").write_text(label_map)
    _, _, data = read(tmp_path)
    assert data.labels == ("zebra", "a: b", "car", "other")


def test_the_lists_of_voc_say_the_split(read, tmp_path):
    for folder in ("Annotations", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    size = "<size><width>20</width><height>20</height></size>"
    for name in ("a", "b", "c"):
        page = f"<annotation><filename>{name}.jpg</filename>{size}</annotation>"
        (tmp_path / f"Annotations/{name}.xml").write_text(page)
    for split, names in {"train": "a", "val": "b", "trainval": "a\nb", "car_train": "a 1"}.items():
        (tmp_path / f"ImageSets/Main/{split}.txt").write_text(names)
    photos, _, _ = read(tmp_path)
    assert {name: photo.split for name, photo in photos.items()} == {"a.jpg": "train", "b.jpg": "val", "c.jpg": ""}


@pytest.mark.parametrize("text", ["about these photos.txt", "labels.txt", "notes/2024.txt"])
def test_text_that_is_of_none_of_the_photos_makes_no_labels(read, tmp_path, text):
    makers.make_photos(tmp_path)
    (tmp_path / text).parent.mkdir(exist_ok=True)
    (tmp_path / text).write_text("0 .5 .5 .1 .1\n")
    photos, problems, data = read(tmp_path)
    assert (data.format, set(photos), problems) == ("images", set(makers.SIZES), [])
    with pytest.raises(DatasetError) as error:
        read(tmp_path, "yolo")
    assert "a.txt" in error.value.fix


def test_unread_voc_tags_of_an_image_are_counted(read, tmp_path):
    makers.make_voc(tmp_path)
    for name, source in (("a", "Flickr"), ("b", "Unknown"), ("empty", "labelloop")):
        file = tmp_path / f"Annotations/{name}.xml"
        if file.exists():
            extra = (
                f"<source><database>{source}</database></source><owner><name/></owner><folder>x</folder></annotation>"
            )
            file.write_text(file.read_text().replace("</annotation>", extra))
    assert [note for note in read(tmp_path)[2].notes if "of images" in note] == ["<source> of images, not imported: 1"]


def test_ids_of_coco_annotations_are_counted_as_not_kept(read, tmp_path):
    for split, annotations in (("train", 7), ("val", 14)):
        (tmp_path / f"instances_{split}.json").write_text(json.dumps(makers.coco_sheet()))
        assert dict(read(tmp_path)[2].counts) == {IDS_NOT_KEPT: annotations}
