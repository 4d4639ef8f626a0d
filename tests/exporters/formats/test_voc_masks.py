"""Pascal VOC with masks: pixel for pixel what was drawn, and read again by `labelloop import`."""

import numpy as np
import pytest
from PIL import Image

from exporters.formats.voc import colormap
from labelloop.labeling.geometry.shapes import Mask, Rectangle
from labelloop.service.datasets import open_source, read_dataset
from labelloop.service.settings import Settings


@pytest.fixture
def drawn():
    pixels = np.zeros((360, 640), bool)
    pixels[40:200, 60:300] = True
    pixels[100:140, 120:200] = False
    return pixels


@pytest.fixture
def folder(run, build, config, drawn):
    task = build.task(
        1,
        build.annotation(
            build.box(62.5, 50, 25, 25, "dog", id="r1"),  # 400, 180 to 560, 270
            build.brush(drawn, id="m"),
            build.box(12.5, 20, 5, 5, "dog", id="small"),  # 80, 72 to 112, 90: on the mask
        ),
    )
    out = run(
        [task, build.task(2, build.annotation(), width=64, height=48)],
        label_config=config("car", "dog"),
        formats=("voc-masks",),
    )
    return out.folder / "voc-masks"


def read(path):
    with Image.open(path) as image:
        assert image.mode == "P"
        assert image.getpalette()[: 3 * 6] == [value for colour in COLOURS for value in colour]
        return np.asarray(image)


COLOURS = [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128]]
"""The first of the development kit's, as its web page shows them."""


def test_pixels_are_those_that_were_drawn(folder, drawn):
    objects = np.zeros((360, 640), np.uint8)
    objects[drawn] = 2
    objects[180:270, 400:560] = 1
    objects[72:90, 80:112] = 3  # the smaller one is on top
    np.testing.assert_array_equal(read(folder / "SegmentationObject/1.png"), objects)
    np.testing.assert_array_equal(read(folder / "SegmentationClass/1.png"), np.array([0, 2, 1, 2])[objects])
    assert colormap(6).tolist() == COLOURS


def test_lists_name_the_images_that_have_masks(folder):
    assert (folder / "ImageSets/Segmentation/train.txt").read_text() == "1\n"
    assert (folder / "ImageSets/Main/train.txt").read_text() == "1\n2\n"
    assert (folder / "labelmap.txt").read_text().splitlines()[1:] == [
        "background:0,0,0::",
        "car:128,0,0::",
        "dog:0,128,0::",
    ]
    assert "<segmented>1" in (folder / "Annotations/1.xml").read_text()
    assert not (folder / "SegmentationClass/2.png").exists()


def test_import_reads_the_masks_again(folder, tmp_path, drawn):
    data = read_dataset(open_source(str(folder), Settings(home=tmp_path)))
    photo = next(image for image in data.images() if image.name == "1.jpg")
    assert [obj.label for obj in photo.objects] == ["dog", "car", "dog"]
    assert not any(isinstance(obj.geometry, Rectangle) for obj in photo.objects)
    box, mask, small = (obj.geometry for obj in photo.objects)
    drawn[72:90, 80:112] = False
    np.testing.assert_array_equal(mask.array(), drawn)
    assert isinstance(box, Mask)
    assert (box.bounds, small.bounds) == ((400, 180, 560, 270), (80, 72, 112, 90))


def test_more_objects_than_a_byte_can_tell_are_accounted_for(run, build, config):
    boxes = [build.box(n % 20 * 5, n // 20 * 5, 4, 4, "car", id=f"b{n}") for n in range(260)]
    out = run([build.task(1, build.annotation(*boxes))], label_config=config("car"), formats=("voc-masks",))
    bill = out.report.accounts.formats["voc-masks"]
    assert (bill.objects, bill.converted["object -> mask"]) == (254, 254)
    assert bill.dropped == {"a mask image holds 254 objects, and objects of 254 classes": 6}
    assert read(out.folder / "voc-masks/SegmentationObject/1.png").max() == 254


def test_crossing_polygon_of_a_gigantic_image_costs_its_mask_alone(run, build, config):
    # out, around, and around again inside: it crosses itself at the way in, and the middle is a hole
    ring = "10,10 90,10 90,90 10,90 10,14 32,30 70,30 70,70 30,70 30,34 36,28"
    star = [[float(number) for number in point.split(",")] for point in ring.split()]
    huge = {"original_width": 90_000, "original_height": 90_000}
    polygon = build.polygon(star, "dog", id="star", from_name="shape", **huge)
    xml = config("car").replace(
        "</View>", '<PolygonLabels name="shape" toName="image"><Label value="dog"/></PolygonLabels></View>'
    )
    out = run(
        [
            build.task(1, build.annotation(polygon)),
            build.task(2, build.annotation(build.box(10, 10, 20, 20, "car", id="box"))),
        ],
        label_config=xml,
        formats=("voc-masks", "coco", "yolo-segment"),
        max_errors=1,
    )
    bill = out.report.accounts.formats["voc-masks"]
    assert (bill.objects, bill.dropped) == (1, {"a mask image holds 256 million pixels": 1})
    (loss,) = [loss for loss in out.losses if loss["region"] == "star"]
    assert (loss["task"], loss["reason"]) == (1, "a mask image holds 256 million pixels")
    coco = out.report.accounts.formats["coco"]
    assert coco.objects == 2
    assert coco.converted["outline with holes of a very large image -> polygon, holes joined by bridges"] == 1
    star = next(annotation for annotation in out.instances()["annotations"] if annotation["region_id"] == "star")
    (flat,) = star["segmentation"]
    # the even-odd rule sees what was drawn: Gauss' area formula over the bridged ring
    x, y = np.array(flat[::2]), np.array(flat[1::2])
    assert abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2 == pytest.approx(star["area"], rel=1e-6)
