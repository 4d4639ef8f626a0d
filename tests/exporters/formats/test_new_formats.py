"""Semantic and panoptic masks, DOTA and ImageFolder: pixels by other code, and the same objects when imported again."""

import json

import numpy as np
import pytest
import shapely
from PIL import Image, ImageDraw

from exporters.formats.label_maps import COVERED
from exporters.formats.semantic_png import IGNORE_8, IGNORE_16
from exporters.pipeline.export import export
from exporters.validate import validate
from labelloop.labeling.geometry.shapes import Rectangle
from labelloop.service.datasets import DatasetProblem, open_source, read_dataset
from labelloop.service.settings import Settings
from tests.exporters.conftest import ONE_SPLIT, Exported

FORMATS = ("semantic-png", "coco-panoptic", "dota", "imagefolder")
NAMES = ("car", "big bus", "sky", "void")
WIDTH, HEIGHT = 640, 360


def make_tasks(build):
    """Overlaps, a turned box, a mask with a hole, void, a crowd, captions, an image without objects."""
    pixels = np.zeros((HEIGHT, WIDTH), bool)
    pixels[100:200, 300:500] = True
    pixels[130:150, 350:400] = False
    text = {"id": "t", "from_name": "caption", "to_name": "image", "type": "textarea", "value": {"text": ["a", "b"]}}
    annotations = [
        build.annotation(
            build.box(0, 0, 100, 100, "sky"),
            build.box(10, 10, 50, 50, "car", id="r2"),
            build.box(20, 20, 10, 10, "big bus", id="r3", rotation=30),
            build.box(70, 70, 20, 20, "void", id="r4"),
            build.box(15, 40, 10, 10, "sky", id="r5"),
        ),
        build.annotation(build.brush(pixels), text),
        build.annotation(),
        build.annotation(build.box(5, 5, 9, 9, "car", meta={"text": ["crowd"]})),
    ]
    return [
        build.task(number, annotation, image=f"/data/local-files/?d={number}.jpg")
        for number, annotation in enumerate(annotations, start=1)
    ]


@pytest.fixture(scope="module")
def exported(build, tmp_path_factory):
    root = tmp_path_factory.mktemp("new")
    for number in range(1, 5):
        Image.new("RGB", (WIDTH, HEIGHT), (number, 0, 0)).save(root / f"{number}.jpg")
    (root / "tasks.json").write_text(json.dumps(make_tasks(build)))
    labels = "".join(
        f'<Label value="{name}" isthing="0"/>' if name == "sky" else f'<Label value="{name}"/>' for name in NAMES
    )
    config = (
        f'<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">{labels}'
        '</RectangleLabels><TextArea name="caption" toName="image"/></View>'
    )
    settings = Settings(home=root / "home", label_studio_api_key="", local_files_root=root)
    options = {"label_config": config, "formats": FORMATS, "copy_images": True, "split": ONE_SPLIT}
    report = export(root / "tasks.json", settings=settings, to=f"file://{root / 'set'}", **options)
    assert report.accounts.balanced
    return Exported(report, root / "set")


def read(folder, tmp_path):
    data = read_dataset(open_source(str(folder), Settings(home=tmp_path / "h")))
    items = list(data.images())
    assert not [item for item in items if isinstance(item, DatasetProblem)]
    return {item.name.rpartition("/")[2]: item for item in items}


def expected_map():
    """The classes of task 1's pixels, painted by Pillow from the largest shape to the smallest."""
    canvas = Image.new("L", (WIDTH, HEIGHT))
    draw = ImageDraw.Draw(canvas)
    for value, x, y, w, h in (
        (3, 0, 0, 640, 360),
        (1, 64, 36, 320, 180),
        (255, 448, 252, 128, 72),
        (3, 96, 144, 64, 36),
    ):
        draw.rectangle((x, y, x + w - 1, y + h - 1), fill=value)
    return np.array(canvas)


def test_semantic_mask_has_the_smaller_object_on_top(exported):
    folder = exported.folder / "semantic-png"
    image = Image.open(folder / "masks/train/1.png")
    mask, expected = np.asarray(image), expected_map()
    bus = Rectangle(128, 72, 64, 36, 30).polygon()
    away = np.ones_like(mask, bool)  # the edge of a turned shape is rounded differently by each rasteriser
    top, bottom, left, right = 70, 140, 105, 190
    away[top:bottom, left:right] = False
    np.testing.assert_array_equal(mask[away], expected[away])
    assert (mask == 2).sum() == pytest.approx(bus.area, rel=0.01)
    assert image.getpalette()[3:6] == [128, 0, 0]
    assert not np.asarray(Image.open(folder / "masks/train/3.png")).any()
    sheet = json.loads((folder / "classes.json").read_text())
    assert [(entry["id"], entry["name"]) for entry in sheet["classes"]] == list(
        enumerate(("background", "car", "big bus", "sky"))
    )
    assert (sheet["ignore_index"], sheet["ignored_labels"]) == (IGNORE_8, ["void"])


def test_more_classes_than_a_byte_have_sixteen_bits(run, build, config):
    labels = [f"class {number}" for number in range(300)]
    tasks = [
        build.task(
            1, build.annotation(build.box(0, 0, 50, 50, labels[0]), build.box(60, 60, 9, 9, "class 299", id="b"))
        ),
        build.task(2, build.annotation(build.box(0, 0, 50, 50, labels[4]))),
    ]
    out = run(tasks, label_config=config(*labels), formats=("semantic-png",))
    masks = [np.asarray(Image.open(out.folder / f"semantic-png/masks/train/{number}.png")) for number in (1, 2)]
    assert [set(np.unique(mask).tolist()) for mask in masks] == [{0, 1, 300}, {0, 5}]
    assert json.loads((out.folder / "semantic-png/classes.json").read_text())["ignore_index"] == IGNORE_16


def test_panoptic_pixels_and_segments_agree(exported):
    folder = exported.folder / "coco-panoptic/annotations"
    sheet = json.loads((folder / "panoptic_train.json").read_text())
    assert [entry["isthing"] for entry in sheet["categories"]] == [1, 1, 0]
    for annotation in sheet["annotations"]:
        colours = np.asarray(Image.open(folder / "panoptic_train" / annotation["file_name"])).astype(int)
        ids = colours[..., 0] + 256 * colours[..., 1] + 256**2 * colours[..., 2]
        segments = {segment["id"]: segment for segment in annotation["segments_info"]}
        assert set(np.unique(ids).tolist()) - {0} == set(segments)
        for number, segment in segments.items():
            ys, xs = np.nonzero(ids == number)
            assert segment["area"] == len(xs)
            box = [xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1]
            assert segment["bbox"] == [int(value) for value in box]
    first = sheet["annotations"][0]["segments_info"]
    assert sorted(segment["category_id"] for segment in first) == [1, 2, 3]  # the two regions of sky are one segment
    assert [segment["iscrowd"] for segment in sheet["annotations"][3]["segments_info"]] == [1]


def test_dota_rows_are_corners_class_and_flag(exported):
    folder = exported.folder / "dota/train"
    rows = [row.split() for row in (folder / "labelTxt/1.txt").read_text().splitlines()]
    assert [row[8:] for row in rows[:3]] == [["sky", "0"], ["car", "0"], ["big-bus", "0"]]
    corners = np.array(rows[2][:8], float).reshape(4, 2)
    assert shapely.Polygon(corners).equals_exact(shapely.Polygon(Rectangle(128, 72, 64, 36, 30).corners), 1e-3)
    assert (folder / "labelTxt/4.txt").read_text().split()[8:] == ["car", "1"]
    assert (folder / "labelTxt/3.txt").read_text() == ""
    assert (folder / "images/3.jpg").is_file()


def test_image_folder_rows_have_one_type_in_every_column(exported):
    lines = (exported.folder / "imagefolder/train/metadata.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["file_name"] for row in rows] == ["1.jpg", "2.jpg", "4.jpg", "3.jpg"]  # those with objects first
    assert rows[0]["objects"]["category_name"] == ["sky", "car", "big bus", "void", "sky"]
    assert rows[0]["objects"]["category"] == [2, 0, 1, 3, 2]
    assert all(isinstance(value, float) for row in rows for box in row["objects"]["bbox"] for value in box)
    assert [row["text"] for row in rows] == ["", "a\nb", "", ""]
    assert "label" not in rows[0]
    assert all((exported.folder / "imagefolder/train" / row["file_name"]).is_file() for row in rows)


@pytest.mark.parametrize("name", FORMATS)
def test_export_is_valid_and_imported_with_the_same_objects(exported, tmp_path, name):
    folder = exported.folder / name
    assert validate(folder).issues == []
    images = read(folder, tmp_path)
    assert sorted(images) == (["1.jpg", "2.jpg", "3.jpg", "4.jpg"])
    labels = sorted({obj.label for obj in images["1.jpg"].objects})
    void = [] if name == "coco-panoptic" else ["void"]
    assert labels == sorted(["car", "big-bus" if name == "dota" else "big bus", "sky", *void])
    hole = images["2.jpg"].objects[0].geometry
    area = 200 * 100 if name in {"dota", "imagefolder"} else 200 * 100 - 20 * 50
    assert hole.area == pytest.approx(area)
    assert hole.bounds == pytest.approx((300, 100, 500, 200))
    assert images["3.jpg"].annotated


def test_covered_region_is_left_out_and_counted(run, build):
    regions = [build.box(0, 0, 50, 50, "car"), build.box(0, 0, 25, 50, "dog", id="b"), build.box(25, 0, 25, 50, id="c")]
    out = run([build.task(1, build.annotation(*regions))], formats=("semantic-png", "coco-panoptic"))
    for name in ("semantic-png", "coco-panoptic"):
        assert out.report.accounts.formats[name].dropped == {COVERED: 1}
