"""Each format by its own rules: ids, classes, empty images, sizes, provenance."""

import json

import pytest
import yaml
from pycocotools.cocoeval import COCOeval

from exporters.errors import BadOption
from exporters.formats import DEFAULT_FORMATS
from exporters.tasks.table import format_names


def average_precision(coco, kind):
    truth = [
        {key: annotation[key] for key in ("image_id", "category_id", "bbox", "segmentation")} | {"score": 0.9}
        for annotation in coco.dataset["annotations"]
    ]
    judge = COCOeval(coco, coco.loadRes(truth), kind)
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    return judge.stats[0]


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("boxes", [1, 2, 10])
def test_ground_truth_scored_against_itself_is_perfect(run, build, boxes, kind):
    # W3: annotation id 0 gave AP 0.0 for one box, 0.25 for two, 0.81 for ten
    results = [build.box(5 + 9 * n, 10, 6, 30, rotation=3 * n, id=f"r{n}") for n in range(boxes)]
    coco = run([build.task(1, build.annotation(*results))]).coco()
    assert min(coco.getAnnIds()) >= 1
    assert average_precision(coco, kind) == pytest.approx(1.0)


def test_category_and_image_ids_start_at_one(run, build, config):
    # W4
    out = run([build.task(1, build.annotation(build.box(1, 1, 5, 5, "dog")))], label_config=config("car", "dog"))
    instances = out.instances()
    assert [(category["id"], category["name"]) for category in instances["categories"]] == [(1, "car"), (2, "dog")]
    assert instances["annotations"][0]["category_id"] == 2
    assert instances["images"][0]["id"] == 1


def test_class_number_outside_the_list_cannot_be(run, build):
    # W6: an attribute category="5" put class 5 in a set of three classes
    labels = '<Label value="car"/><Label value="dog" category="5"/><Label value="cat" category="1"/>'
    control = f'<RectangleLabels name="label" toName="image">{labels}</RectangleLabels>'
    config = f'<View><Image name="image" value="$image"/>{control}</View>'
    task = build.task(1, build.annotation(build.box(1, 1, 5, 5, "dog"), build.box(1, 1, 5, 5, "cat", id="r2")))
    out = run([task], label_config=config)
    sheet = yaml.safe_load((out.folder / "yolo-detect/data.yaml").read_text())
    assert sheet["names"] == {0: "car", 1: "dog", 2: "cat"}
    assert sheet["nc"] == 3
    assert out.yolo("1")[:, 0].tolist() == [1, 2]


def test_label_missing_in_the_config_gets_a_number(run, build, config):
    # W7: it shared id 1 with another class
    task = build.task(1, build.annotation(build.box(1, 1, 5, 5, "moon"), build.box(1, 1, 5, 5, "car", id="r2")))
    out = run([task], label_config=config("car"))
    assert out.report.classes == {"car": 1, "moon": 2}
    assert [annotation["category_id"] for annotation in out.instances()["annotations"]] == [2, 1]
    assert out.yolo("1")[:, 0].tolist() == [1, 0]
    assert "regions with a label that the label config does not have" in out.report.accounts.notes


def test_choices_are_no_classes(run, build, config):
    # W8
    day = build.result("choices", {"choices": ["day"]}, id="c1", from_name="weather", original_width=None)
    occluded = build.result("choices", {"choices": ["yes"]}, from_name="weather")
    task = build.task(1, build.annotation(build.box(1, 1, 5, 5), occluded, day))
    out = run([task], label_config=config("car"))
    assert list(out.report.classes) == ["car"]
    assert out.instances()["annotations"][0]["attributes"] == {"weather": ["yes"]}
    assert out.report.accounts.other_results == {"choices": 1}


def test_empty_image_is_kept_with_its_size(run, build, config):
    # W26 (COCO wrote null), W19 (VOC wrote no file); an image that shows nothing teaches too
    out = run([build.task(1, build.annotation(), width=320, height=200)], label_config=config("car"))
    assert (out.instances()["images"][0]["width"], out.instances()["images"][0]["height"]) == (320, 200)
    assert out.voc("1").findtext("size/width") == "320"
    assert out.voc_boxes("1") == []
    assert (out.folder / "yolo-detect/labels/train/1.txt").read_bytes() == b""
    assert (out.folder / "voc/ImageSets/Main/train.txt").read_text() == "1\n"
    assert (out.folder / "yolo-detect/train.txt").read_text() == "./images/train/1.jpg\n"


def test_whole_image_is_one_to_width_in_voc(run, build):
    # W19: the development kit counts pixels from 1, the last included
    out = run(
        [build.task(1, build.annotation(build.box(0, 0, 100, 100), build.box(50.05, 50.1, 0.01, 0.02, id="dot")))]
    )
    assert out.voc_boxes("1")[0] == ("car", 1, 1, 640, 360)
    _, left, top, right, bottom = out.voc_boxes("1")[1]  # a box of a sixteenth of a pixel is a pixel
    assert (right, bottom) == (left, top)


def test_voc_lists_every_split(run, build):
    tasks = [build.task(n, build.annotation(build.box(1, 1, 5, 5))) for n in range(1, 61)]
    out = run(tasks, split="train=.5,val=.3,test=.2")
    lists = {
        name: (out.folder / f"voc/ImageSets/Main/{name}.txt").read_text().split()
        for name in ("train", "val", "trainval", "test")
    }
    assert all(lists.values())
    assert sorted(lists["trainval"]) == sorted(lists["train"] + lists["val"])
    assert sorted(lists["trainval"] + lists["test"]) == sorted(str(n) for n in range(1, 61))
    assert {name: len(lists[name]) for name in ("train", "val", "test")} == out.report.images
    for split in ("train", "val", "test"):
        assert {image["file_name"][:-4] for image in out.instances(split)["images"]} == set(lists[split])
        assert {path.stem for path in (out.folder / f"yolo-detect/labels/{split}").iterdir()} == set(lists[split])


def test_region_with_several_labels_is_one_object_per_label(run, build):
    # W20: COCO took the first, YOLO took all
    out = run([build.task(1, build.annotation(build.box(10, 10, 20, 20, "car", "taxi", "car")))])
    annotations = out.instances()["annotations"]
    assert [annotation["category_id"] for annotation in annotations] == [1, 2]
    assert len({annotation["id"] for annotation in annotations}) == 2
    assert out.yolo("1")[:, 0].tolist() == [0, 1]
    assert [box[0] for box in out.voc_boxes("1")] == ["car", "taxi"]
    assert {count.regions for count in out.report.accounts.formats.values()} == {1}


def test_labels_beside_the_shape_belong_to_it(run, build):
    # W21: <Labels> with <Polygon> was dropped, or killed the export
    points = {"points": [[10, 10], [30, 10], [30, 40]], "closed": True}
    shape = build.result("polygon", points, from_name="shape")
    labels = build.result("labels", points | {"labels": ["car"]}, from_name="label")
    out = run([build.task(1, build.annotation(shape, labels))])
    assert out.instances()["annotations"][0]["bbox"] == pytest.approx([64, 36, 128, 108])
    assert len(out.yolo("1")) == len(out.voc_boxes("1")) == 1


def test_missing_image_size_comes_from_the_task(run, build):
    # W22: image and boxes vanished, or the export crashed
    bare = {"original_width": None, "original_height": None}
    tasks = [
        build.task(1, build.annotation(build.box(10, 10, 10, 10, **bare), build.box(50, 50, 10, 10, id="r2"))),
        build.task(2, build.annotation(build.box(10, 10, 10, 10, **bare)), width=1000, height=500),
        build.task(3, build.annotation(build.box(10, 10, 10, 10, **bare))),
    ]
    out = run(tasks, formats=("coco",))
    assert [annotation["bbox"] for annotation in out.instances()["annotations"]] == [
        pytest.approx([64, 36, 64, 36]),
        pytest.approx([320, 180, 64, 36]),
        pytest.approx([100, 50, 100, 50]),
    ]
    assert out.report.accounts.images.dropped == {"its size is not known": 1}
    assert out.report.accounts.tasks.dropped == {"no image with a known size": 1}


def test_missing_image_size_is_read_from_the_photos_header(run, build, photos):
    # W22, W26
    bare = {"original_width": None, "original_height": None}
    tasks = [
        build.task(1, build.annotation(build.box(10, 10, 10, 10, **bare)), image=photos("a.png", 400, 300)),
        build.task(2, build.annotation(), image=photos("b.png", 50, 70)),
    ]
    out = run(tasks, fetch=True)
    images = {image["file_name"]: (image["width"], image["height"]) for image in out.instances()["images"]}
    assert images == {"a.png": (400, 300), "b.png": (50, 70)}
    assert out.instances()["annotations"][0]["bbox"] == pytest.approx([40, 30, 40, 30])


def test_coco_says_where_each_annotation_is_from(run, build):
    # W28
    note = build.result("textarea", {"text": ["wet"]}, from_name="note", id="abc")
    out = run([build.task(7, build.annotation(build.box(1, 1, 5, 5, id="abc"), note, number=31, completed_by=4))])
    instances = out.instances()
    (annotation,) = instances["annotations"]
    assert (annotation["region_id"], annotation["annotation_id"], annotation["annotator"]) == ("abc", 31, 4)
    assert annotation["attributes"] == {"note": ["wet"]}
    assert (instances["images"][0]["task_id"], instances["images"][0]["coco_url"]) == (7, "s3://photos/7.jpg")
    assert "ignore" not in annotation


def test_key_point_is_no_box_and_is_listed(run, build):
    # W16, W17: key points crashed the export or became rows of their own
    out = run([build.task(1, build.annotation(build.box(1, 1, 5, 5), build.keypoint(50, 50, id="k")))])
    assert len(out.yolo("1")) == len(out.voc_boxes("1")) == len(out.instances()["annotations"]) == 1
    assert {loss["format"] for loss in out.losses} == set(DEFAULT_FORMATS) - {"coco"}  # COCO has key points
    assert out.report.accounts.formats["voc"].dropped == {"a shape without an area has no box": 1}
    assert out.report.accounts.formats["coco"].dropped == {}
    assert out.report.accounts.formats["coco"].converted["key points given to the image's only object"] == 1


def test_rectangle_without_a_rotation_is_upright(run, build):
    # W23
    box = build.box(10, 10, 10, 10)
    del box["value"]["rotation"]
    assert run([build.task(1, build.annotation(box))]).instances()["annotations"][0]["bbox"] == [64.0, 36.0, 64.0, 36.0]


@pytest.mark.parametrize("label", ["yes", "1.0", "null", "# no", "a: b", '"q"', "日本", "<b>&amp;", "tab\there", "{x}"])
def test_any_label_survives_every_format(run, build, label):
    out = run([build.task(1, build.annotation(build.box(1, 1, 5, 5, label)))])
    assert yaml.safe_load((out.folder / "yolo-detect/data.yaml").read_text())["names"] == {0: label}
    assert out.voc_boxes("1")[0][0] == label
    assert out.instances()["categories"][0]["name"] == label


def test_only_the_formats_asked_for_are_written(run, build):
    out = run([build.task(1, build.annotation(build.box(1, 1, 5, 5)))], formats=("voc",))
    assert {path.name for path in out.folder.iterdir()} == {"voc", "images.jsonl", "dropped.jsonl"}
    assert out.manifest["formats"] == ["voc"]
    assert set(out.manifest["generations"][0]["tables"]) == {"images", "voc"}


def test_unknown_format_is_refused_by_name():
    with pytest.raises(BadOption, match="tfrecord"):
        format_names("coco,tfrecord")
    assert format_names(" coco, VOC ,coco") == ("coco", "voc")


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_split_without_images_is_still_a_file(run, build, split):
    out = run([build.task(1, build.annotation(build.box(1, 1, 5, 5)))], split="train=.8,val=.1,test=.1")
    assert json.loads(out.coco_path(split).read_bytes())["categories"]


def test_data_yaml_always_has_train_and_val(run, build):
    tasks = [build.task(1, build.annotation(build.box(10, 10, 20, 20)))]
    for split, wanted in (("train=1", "images/train"), ("test=1", "images/test"), ("train=.5,val=.5", "images/val")):
        out = run(tasks, split=split, formats=("yolo-detect",))
        sheet = yaml.safe_load((out.folder / "yolo-detect/data.yaml").read_text())
        assert sheet["val"] == wanted
        assert sheet["train"] == f"images/{split.partition('=')[0]}"
