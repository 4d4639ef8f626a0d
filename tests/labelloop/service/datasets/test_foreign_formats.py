"""LabelMe, CVAT, Create ML, DOTA, Open Images, captions and masks: shapes in pixels; a bad item costs itself alone."""

import base64
import io
import json
import math
import struct
import tracemalloc
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import shapely
from PIL import Image

from exporters.validate import validate
from labelloop.labeling.geometry.shapes import Ellipse, KeyPoint, Mask, Polygon, Rectangle, Vector
from labelloop.service.datasets import DatasetError, DatasetProblem, open_images, open_source, read_dataset
from labelloop.service.datasets.files import FolderFiles, is_image_name
from labelloop.service.settings import Settings

SIZE = (100, 80)
RING = np.array([[0, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 1]], bool)  # a hole at the bottom


@pytest.fixture
def read(tmp_path):
    """(images by name, problems, the data set) of a folder or file."""

    def read(source=tmp_path, kind="auto"):
        data = read_dataset(open_source(str(source), Settings(home=tmp_path / ".home")), kind)
        items = list(data.images())
        problems = [item for item in items if isinstance(item, DatasetProblem)]
        return {item.name: item for item in items if not isinstance(item, DatasetProblem)}, problems, data

    return read


@pytest.fixture
def photo(tmp_path):
    def make(name="a.jpg", size=SIZE):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(path)
        return path

    return make


def png(pixels):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def labelme(folder, shapes, name="a", **more):
    content = {"version": "5.4", "flags": {}, "shapes": shapes, "imagePath": f"{name}.jpg", "imageData": None}
    content |= {"imageWidth": SIZE[0], "imageHeight": SIZE[1]} | more
    (folder / f"{name}.json").write_text(json.dumps(content))


def shape(kind, points, label="car", **more):
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, "flags": {}} | more


def test_labelme_shapes(read, tmp_path, photo):
    photo()
    mask = base64.b64encode(png(RING)).decode()
    turned = list(Rectangle(40, 20, 20, 10, 30).corners)
    labelme(
        tmp_path,
        [
            shape("rectangle", [[30, 40], [10, 5]]),
            shape("polygon", [[0, 0], [10, 0], [10, 10], [0, 10]]),
            shape("circle", [[50, 40], [53, 44]]),
            shape("linestrip", [[1, 2], [3, 4], [5, 6]]),
            shape("point", [[7, 8]]),
            shape("mask", [[20, 30], [23, 32]], mask=mask),
            shape("rotation", turned, difficult=True, attributes={"colour": "red"}, description="dirty"),
        ],
        flags={"night": True, "rain": False},
    )
    photos, problems, data = read()
    assert (problems, data.format, data.choices) == ([], "labelme", ("night",))
    box, polygon, circle, line, point, mask, rotated = (obj.geometry for obj in photos["a.jpg"].objects)
    assert box == Rectangle(10, 5, 20, 35)
    assert polygon == Polygon(((0, 0), (10, 0), (10, 10), (0, 10)))  # drawn as a polygon, so it stays one
    assert circle == Ellipse(50, 40, 5, 5)
    assert isinstance(line, Vector)
    assert [(vertex.x, vertex.y) for vertex in line.vertices] == [(1, 2), (3, 4), (5, 6)]
    assert not line.closed
    assert point == KeyPoint(7, 8)
    assert mask.area == RING.sum()
    np.testing.assert_array_equal(mask.array()[30:33, 20:24], RING)
    assert rotated.rotation == pytest.approx(30)
    remarks = photos["a.jpg"].objects[-1].remarks
    assert (remarks.flags, remarks.attributes, remarks.meta["text"]) == ({"difficult"}, {"colour": "red"}, ["dirty"])
    assert photos["a.jpg"].choices == ("night",)


def test_labelme_groups_are_one_object(read, tmp_path, photo):
    photo()
    square = [[0, 0], [10, 0], [10, 10], [0, 10]]
    far = [[x + 30, y] for x, y in square]
    labelme(
        tmp_path,
        [
            shape("polygon", square, group_id=1),
            shape("polygon", far, group_id=1),
            shape("rectangle", [[50, 50], [60, 60]], "dog", group_id=2),
            shape("point", [[55, 55]], "nose", group_id=2),
        ],
    )
    photos, problems, data = read()
    parts, dog = photos["a.jpg"].objects
    assert not problems
    assert isinstance(parts.geometry, Mask)
    assert parts.geometry.area == 200
    assert [(keypoint.name, keypoint.x) for keypoint in dog.keypoints] == [("nose", 55)]
    assert sum(data.counts.values()) == 1


def test_bad_labelme_files_and_shapes_cost_themselves_alone(read, tmp_path, photo):
    for name in ("a", "b", "c"):
        photo(f"{name}.jpg")
    bad = [
        shape("polygon", [[1, 1], [2, 2]]),
        shape("cube", []),
        shape("point", [["x", 1]]),
        7,
        shape("mask", [[0, 0]]),
    ]
    bad += [shape("mask", [[97, 75]], mask=base64.b64encode(png(RING)).decode()), shape("circle", [[1, 1], [1, 1]])]
    labelme(tmp_path, [*bad, shape("rectangle", [[1, 1], [5, 5]])])
    labelme(tmp_path, [], "b")
    (tmp_path / "c.json").write_bytes((tmp_path / "a.json").read_bytes()[:-40])
    photos, problems, _ = read()
    assert len(photos["a.jpg"].objects) == 1
    assert photos["a.jpg"].unread == len(bad)
    assert photos["b.jpg"].annotated
    assert not photos["c.jpg"].annotated
    assert any("c.json" in problem.item and "LabelMe" in problem.reason for problem in problems)


def cvat(images, meta=""):
    return f'<?xml version="1.0"?><annotations><version>1.1</version>{meta}{images}</annotations>'


LABELS = "<meta><task><labels>{}</labels></task></meta>".format(
    "".join(f"<label><name>{name}</name></label>" for name in ("zebra", "car", "day"))
)


def png_head(width, height):
    """A PNG that states a size and has no pixels."""
    head, body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0), b"IDAT"
    chunks = [struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data)) for data in (head, body)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_huge_labelme_masks_cost_themselves_alone(read, tmp_path, photo):
    photo()
    mask = base64.b64encode(png_head(30_000, 30_000)).decode()
    box = shape("rectangle", [[50, 50], [60, 60]])
    labelme(tmp_path, [box, shape("mask", [[0, 0], [5, 5]], mask=mask)])
    parts = [shape("polygon", [[x, 0], [x + 9, 0], [x, 9]], group_id=1) for x in (0, 30)]
    labelme(tmp_path, [box, *parts], "b", imageWidth=9_000_000, imageHeight=9_000_000)
    photos, problems, _ = read()
    assert [len(image.objects) for image in photos.values()] == [1, 1]
    assert ["30000 x 30000" in problem.reason for problem in problems] == [True, False]


def test_cvat_shapes(read, tmp_path):
    counts = ", ".join(map(str, (1, 2, 1, 5, 2, 1)))  # row by row, as RING
    (tmp_path / "annotations.xml").write_text(
        cvat(
            '<image id="0" name="x/a.jpg" width="100" height="80" subset="Train">'
            '<box label="car" occluded="1" xtl="10" ytl="20" xbr="50" ybr="40" rotation="90.0" z_order="0">'
            '<attribute name="colour">red</attribute><attribute name="new">true</attribute></box>'
            '<polygon label="car" points="0,0;10,0;10,10"/><polyline label="lane" points="1,2;3,4"/>'
            '<points label="dot" points="5,6;7,8"/><ellipse label="car" cx="50" cy="40" rx="9" ry="4" rotation="30"/>'
            f'<mask label="car" rle="{counts}" left="20" top="30" width="4" height="3"/><tag label="day"/>'
            '<skeleton label="man"><points label="head" outside="0" occluded="1" points="1,2"/>'
            '<points label="foot" outside="0" points="5,9"/><points label="hand" outside="1" points="0,0"/></skeleton>'
            "</image>",
            LABELS,
        )
    )
    photos, problems, data = read()
    image = photos["x/a.jpg"]
    box, polygon, line, first, second, ellipse, mask, man = (obj.geometry for obj in image.objects)
    assert (problems, data.format, image.split, image.choices) == ([], "cvat", "train", ("day",))
    assert data.labels[:2] == ("zebra", "car")
    assert "day" not in data.labels
    # turned by 90 degrees about its centre (30, 30): 20 wide, 40 high
    assert shapely.Polygon(box.corners).bounds == pytest.approx((20, 10, 40, 50))
    assert box.rotation == 90
    assert (polygon.area, first, second, ellipse) == (50, KeyPoint(5, 6), KeyPoint(7, 8), Ellipse(50, 40, 9, 4, 30))
    assert line.bounds == (1, 2, 3, 4)
    np.testing.assert_array_equal(mask.array()[30:33, 20:24], RING)
    assert man == Rectangle(1, 2, 4, 7)
    assert [(point.name, point.hidden) for point in image.objects[-1].keypoints] == [("head", True), ("foot", False)]
    assert image.objects[0].remarks.flags == {"occluded"}
    assert image.objects[0].remarks.attributes == {"colour": "red", "new": True}


@pytest.mark.parametrize(
    ("element", "reason"),
    [
        ('<cuboid label="car" xtl1="1"/>', "no shape for it"),
        ('<box label="car" xtl="9" ytl="1" xbr="5" ybr="9"/>', "a box of -4"),
        ('<box label="car" xtl="x" ytl="1" xbr="5" ybr="9"/>', "its xtl is 'x'"),
        ('<polygon label="car" points="1,2;nan,4;5,6"/>', "out of range"),
        ('<polygon points="1,2;3,4;5,7"/>', "no label"),
        ('<mask label="car" rle="1, 99999999999" left="0" top="0" width="2" height="2"/>', "run lengths"),
        ('<mask label="car" rle="0, 4" left="99" top="0" width="2" height="2"/>', "exceeds its image"),
        ('<mask label="car" rle="0, 4" left="0" top="0" width="99999999" height="99999999"/>', "pixels"),
        ('<ellipse label="car" cx="1" cy="1" rx="0" ry="4"/>', "radii"),
    ],
)
def test_bad_cvat_element_costs_itself_alone(read, tmp_path, element, reason):
    good = '<box label="car" xtl="1" ytl="2" xbr="5" ybr="9"/>'
    (tmp_path / "a.xml").write_text(cvat(f'<image name="a.jpg" width="100" height="80">{element}{good}</image>'))
    photos, problems, _ = read(tmp_path / "a.xml")
    assert len(photos["a.jpg"].objects) == 1
    assert [reason in problem.reason for problem in problems] == [True]


BOMB = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "{}">]><annotations><image name="&b;"/></annotations>'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (cvat('<image name="a.jpg" width="9" height="9"></image>')[:-20], "truncated"),
        (BOMB.format("x" * 99), "entities"),
        (cvat('<track id="0" label="car"/>'), "tracks of a video"),
    ],
    ids=["truncated", "entities", "video"],
)
def test_cvat_file_that_cannot_be_read_names_the_fix(read, tmp_path, text, reason):
    (tmp_path / "annotations.xml").write_text(text)
    with pytest.raises(DatasetError, match=reason) as caught:
        read()
    assert caught.value.fix
    (tmp_path / "good.xml").write_text(cvat('<image name="b.jpg" width="9" height="9"/>'))
    photos, problems, _ = read()
    assert list(photos) == ["b.jpg"]
    assert [problem.item for problem in problems] == ["annotations.xml"]


def test_create_ml_boxes_are_by_their_centres(read, tmp_path, photo):
    photo("train/a.jpg")
    photo("train/b.jpg")
    box = {"x": 50, "y": 40, "width": 20, "height": 10}
    rows = [
        {"image": "a.jpg", "annotations": [{"label": "car", "coordinates": box}, {"label": "car"}, 3]},
        {"image": "b.jpg", "annotations": []},
        {"annotations": []},
    ]
    (tmp_path / "train/_annotations.createml.json").write_text(json.dumps(rows))
    photos, problems, data = read()
    assert (data.format, data.labels) == ("createml", ("car",))
    assert photos["train/a.jpg"].objects[0].geometry == Rectangle(40, 35, 20, 10)
    assert (photos["train/a.jpg"].split, photos["train/b.jpg"].annotated, len(problems)) == ("train", True, 3)


@pytest.mark.parametrize("separator", [" ", ", "])
def test_dota_rows(read, tmp_path, photo, separator):
    photo("train/images/a.png")
    corners = Rectangle(40, 20, 20, 10, 30).corners
    turned = separator.join(f"{value:.4f}" for point in corners for value in point)
    rows = ["imagesource:GoogleEarth", "gsd:0.1", f"{turned}{separator}small-vehicle{separator}1"]
    rows += [
        separator.join(["0", "0", "10", "1", "12", "9", "1", "10", "plane", "0"]),
        "1 2 3 car 0",
        "1 1 x 2 3 4 5 6 car 0",
    ]
    (tmp_path / "train/labelTxt").mkdir()
    (tmp_path / "train/labelTxt/a.txt").write_text("\n".join(rows))
    photos, problems, data = read()
    vehicle, plane = photos["train/images/a.png"].objects
    assert (data.format, len(problems)) == ("dota", 2)
    assert vehicle.geometry.rotation == pytest.approx(30, abs=0.01)
    assert math.isclose(vehicle.geometry.area, 200, rel_tol=1e-3)
    assert (vehicle.label, vehicle.remarks.flags, plane.remarks.flags) == ("small-vehicle", {"difficult"}, frozenset())
    assert isinstance(plane.geometry, Polygon)


OPEN_IMAGES = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside\n"
)


def test_open_images_rows(read, tmp_path, photo):
    photo("images/abc.jpg")
    rows = [
        "abc,xclick,/m/1,1,0.1,0.5,0.25,0.5,1,0,0,1,-1",
        "abc,xclick,/m/1,1,0,1,0,1,0,1,1,0,0",
        "elsewhere,xclick,/m/1,1,0,1,0,1,0,0,0,0,0",
        "abc,x,/m/2,1,10,50,20,40,0,0,0,0,0",
        ",,,,,,,,,,,,",
    ]
    (tmp_path / "train-annotations-bbox.csv").write_text(OPEN_IMAGES + "\n".join(rows))
    (tmp_path / "class-descriptions.csv").write_text("/m/2,Bus\n/m/1,Car\n")
    labels = "ImageID,Source,LabelName,Confidence\nabc,verification,/m/2,1\nabc,verification,/m/1,0\n"
    (tmp_path / "train-annotations-human-imagelabels.csv").write_text(labels)
    photos, problems, data = read()
    image = photos["images/abc.jpg"]
    assert (data.format, image.choices, image.split) == ("open-images", ("Bus",), "train")
    assert image.objects[0].geometry == Rectangle(10, 20, 40, 20)
    assert image.objects[0].remarks.flags == {"occluded"}
    assert image.objects[0].remarks.attributes == {"is_depiction": True}
    assert [obj.crowd for obj in image.objects] == [False, True]
    assert [problem.item for problem in problems] == ["train-annotations-bbox.csv, line 5"]
    assert "share" in problems[0].reason
    assert any("not in the folder" in note for note in data.counts)


def test_open_images_of_other_folders_take_no_memory(tmp_path):
    rows = [f"{number:016x},xclick,/m/1,1,0,1,0,1,0,0,0,0,0" for number in range(9_000)]
    (tmp_path / "a.csv").write_text(OPEN_IMAGES + "\n".join(rows))
    nowhere = SimpleNamespace(find=lambda _: None)
    tracemalloc.start()
    try:
        found, counts, _ = open_images._read_rows(FolderFiles(tmp_path), ["a.csv"], nowhere)
        assert tracemalloc.get_traced_memory()[1] < 300_000
    finally:
        tracemalloc.stop()
    assert (found, sum(counts.values())) == ({}, 9_000)


def test_open_images_classes_of_a_model_are_counted(read, tmp_path, photo):
    photo("abc.jpg")
    labels = "ImageID,Source,LabelName,Confidence\nabc,machine,/m/2,0.6\nabc,verification,/m/3,1\n"
    (tmp_path / "train-annotations-machine-imagelabels.csv").write_text(labels)
    photos, _, data = read()
    assert photos["abc.jpg"].choices == ("/m/2", "/m/3")
    assert [number for note, number in data.counts.items() if "Confidence below 1" in note] == [1]


def test_panoptic_entries_of_one_id_are_named(read, tmp_path, photo):
    photo("val/a.jpg", (2, 1))
    folder = tmp_path / "annotations/panoptic_val"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(png(np.array([[[1, 0, 0], [2, 0, 0]]], np.uint8)))
    image = {"id": 1, "file_name": "a.jpg", "width": 2, "height": 1}
    segments = [{"id": 1, "category_id": 1}, {"id": 1, "category_id": 1}]
    annotation = {"image_id": 1, "file_name": "a.png", "segments_info": segments}
    content = {"images": [image, image], "annotations": [annotation, annotation]}
    content["categories"] = [{"id": 1, "name": "car"}]
    folder.with_suffix(".json").write_text(json.dumps(content))
    photos, problems, _ = read()
    assert len(photos["a.jpg"].objects) == 1
    assert [problem.reason for problem in problems] == [
        "another annotation is of the same image, 1",
        "another segment of the image has the same id",
        "1 ids of its PNG are not in segments_info",
        "another image has the same id, 1",
    ]


def test_image_folder_objects_may_be_listed_one_by_one(read, tmp_path, photo):
    photo("train/a.jpg")
    photo("train/b.jpg")
    objects = [{"bbox": [1, 2, 3, 4], "category": "car"}, {"bbox": [5, 6, 7, 8], "category": "bus", "iscrowd": 1}]
    rows = [{"file_name": "a.jpg", "objects": objects}, {"file_name": "b.jpg", "objects": []}]
    (tmp_path / "train/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    photos, problems, _ = read()
    assert not problems
    read_objects = [(obj.geometry, obj.label, obj.crowd) for obj in photos["train/a.jpg"].objects]
    assert read_objects == [(Rectangle(1, 2, 3, 4), "car", False), (Rectangle(5, 6, 7, 8), "bus", True)]
    assert photos["train/b.jpg"].annotated


def test_damaged_mask_is_a_label_not_an_image(read, tmp_path, photo):
    photo("images/train/a.jpg", (2, 1))
    (tmp_path / "masks/train").mkdir(parents=True)
    (tmp_path / "masks/train/a.png").write_bytes(b"damaged")
    (tmp_path / "classes.json").write_text('{"classes": [{"id": 1, "name": "car"}]}')
    photos, problems, _ = read()
    assert photos["images/train/a.jpg"].unread == 1
    assert [is_image_name(problem.item) for problem in problems] == [False]


def test_open_images_without_images_says_why(read, tmp_path):
    (tmp_path / "x-annotations-bbox.csv").write_text(OPEN_IMAGES)
    with pytest.raises(DatasetError, match="no images") as caught:
        read()
    assert "--images-from" in caught.value.fix


def captions(*rows):
    images = [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 80}, {"id": 2, "file_name": "b.jpg"}]
    return json.dumps({"images": images, "annotations": [{"id": n, **row} for n, row in enumerate(rows)]})


@pytest.mark.parametrize("name", ["captions_val2017.json", "mine.json"])
def test_captions_are_texts_of_their_image(read, tmp_path, name):
    rows = [
        {"image_id": 1, "caption": " a dog "},
        {"image_id": 1, "caption": "two dogs"},
        {"image_id": 9, "caption": "x"},
    ]
    (tmp_path / name).write_text(captions(*rows, {"image_id": 1, "caption": 3}))
    photos, problems, data = read()
    assert data.format == "coco-captions"
    assert photos["a.jpg"].texts == ("a dog", "two dogs")
    assert not photos["b.jpg"].labelled
    assert len(problems) == 2


def test_other_labels_of_a_folder_are_named(read, tmp_path, photo):
    photo()
    labelme(tmp_path, [shape("rectangle", [[1, 1], [5, 5]])])
    (tmp_path / "captions_val.json").write_text(captions({"image_id": 1, "caption": "a dog"}))
    _, _, data = read()
    assert data.format == "labelme"
    assert any("--format coco-captions" in note for note in data.notes)


def test_coco_beside_labelme_is_named(read, tmp_path, photo):
    photo()
    labelme(tmp_path, [shape("rectangle", [[1, 1], [5, 5]])])
    (tmp_path / "b.json").write_text('{"shapes": [], "imagePath"')  # damaged: of either
    assert not any("--format coco" in note for note in read()[2].notes)
    coco = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [], "categories": []}
    (tmp_path / "instances.json").write_text(json.dumps(coco))
    _, _, data = read()
    assert data.format == "labelme"
    assert any("--format coco" in note for note in data.notes)


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("boxes.csv", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        ("boxes.csv", b"image,xmin,ymin,xmax,ymax,label\n", "not JSON"),
        ("a.txt", b"1 2 3 4 5 6 7 8 car 0\n", "one label file"),
    ],
)
def test_file_that_is_no_data_set_is_named(read, tmp_path, name, content, what):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetError, match=what) as caught:
        read(tmp_path / name)
    assert caught.value.fix


def test_validate_names_what_is_wrong_in_foreign_files(tmp_path, photo):
    photo("here.jpg", (50, 50))
    box = '<box label="car" xtl="90" ytl="2" xbr="105" ybr="9"/>'
    (tmp_path / "a.xml").write_text(
        cvat(
            f'<image name="here.jpg" width="100" height="80">{box}{box}<cuboid label="car"/></image>'
            '<image name="gone.jpg" width="100" height="80"/><image name="gone.jpg" width="100" height="80"/>'
        )
    )
    report = validate(tmp_path)
    assert dict(report.counts) == {
        "label-unread": 1,
        "photo-size": 1,
        "object-outside": 2,
        "object-twice": 1,
        "image-missing": 2,
        "image-twice": 1,
    }
