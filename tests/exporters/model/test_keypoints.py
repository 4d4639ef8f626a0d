"""Key points: per object by parentID, in the order of the label config, seen or hidden, in COCO and YOLO pose."""

import json

import numpy as np
import pytest
import yaml
from pycocotools.cocoeval import COCOeval

from exporters.errors import BadOption
from exporters.model.keypoints import Skeleton

W, H = 640, 360
NAMES = ("nose", "left_eye", "right_eye")


def pose_config(*names, extra=""):
    labels = "".join(f'<Label value="{name}"{extra}/>' for name in names)
    return (
        '<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image"><Label value="person"/>'
        f'</RectangleLabels><KeyPointLabels name="part" toName="image">{labels}</KeyPointLabels>'
        '<Choices name="sight" toName="image" perRegion="true"><Choice value="Occluded"/></Choices></View>'
    )


def point(build, x, y, name, parent=None, **fields):
    return build.keypoint(x, y, name, from_name="part", parentID=parent, **{"id": f"{name}-{parent}"} | fields)


@pytest.fixture
def two_people(build):
    """Written in another order than the config's; the second has one eye, hidden."""
    hidden = build.result("choices", {"choices": ["Occluded"]}, from_name="sight", id="right_eye-b")
    return [
        point(build, 22, 20, "right_eye", "a"),
        build.box(10, 10, 20, 40, "person", id="a"),
        point(build, 20, 25, "nose", "a"),
        point(build, 18, 20, "left_eye", "a"),
        build.box(50, 10, 20, 40, "person", id="b"),
        point(build, 62, 20, "right_eye", "b"),
        hidden,
    ]


@pytest.fixture
def posed(run, build, photos, two_people):
    task = build.task(1, build.annotation(*two_people), image=photos("1.jpg", W, H))
    formats = ("coco", "yolo-pose")
    return run([task], formats=formats, label_config=pose_config(*NAMES), copy_images=True, fetch=True)


def test_each_person_has_its_own_key_points(posed):
    # W16: one annotation for the whole image, the second person overwrote the first
    first, second = posed.instances()["annotations"]
    assert first["keypoints"] == pytest.approx([128, 90, 2, 115.2, 72, 2, 140.8, 72, 2])
    assert second["keypoints"] == pytest.approx([0, 0, 0, 0, 0, 0, 396.8, 72, 1])
    assert (first["num_keypoints"], second["num_keypoints"]) == (3, 1)
    assert (first["bbox"], first["area"]) == (pytest.approx([64, 36, 128, 144]), pytest.approx(128 * 144))
    (category,) = posed.instances()["categories"]
    assert (category["name"], category["keypoints"]) == ("person", list(NAMES))


def test_key_points_scored_against_themselves_are_perfect(posed):
    coco = posed.coco()
    guesses = [
        {name: annotation[name] for name in ("image_id", "category_id", "keypoints")} | {"score": 0.9}
        for annotation in coco.dataset["annotations"]
    ]
    judge = COCOeval(coco, coco.loadRes(guesses), "keypoints")
    judge.params.kpt_oks_sigmas = np.full(len(NAMES), 0.05)
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    assert judge.stats[0] == pytest.approx(1.0)


def test_rows_of_pose_are_box_and_key_points(posed):
    lines = (posed.folder / "yolo-pose/labels/train/1.txt").read_text().splitlines()
    first, second = (np.array(list(map(float, line.split()))) for line in lines)
    assert first == pytest.approx([0, 0.2, 0.3, 0.2, 0.4, 0.2, 0.25, 2, 0.18, 0.2, 2, 0.22, 0.2, 2])
    assert second == pytest.approx([0, 0.6, 0.3, 0.2, 0.4, 0, 0, 0, 0, 0, 0, 0.62, 0.2, 1])
    sheet = yaml.safe_load((posed.folder / "yolo-pose/data.yaml").read_text())
    assert (sheet["kpt_shape"], sheet["flip_idx"], sheet["nc"]) == ([3, 3], [0, 2, 1], 1)
    assert sheet["kpt_names"] == {0: list(NAMES)}
    assert sheet["names"] == {0: "person"}  # key points are no classes


def test_ultralytics_has_no_complaint(posed, ultralytics):
    assert ultralytics(posed.folder / "images/train", posed.folder / "yolo-pose/labels/train", 1, len(NAMES)) == []


def test_object_without_key_points_stays_and_is_counted(run, build):
    task = build.task(1, build.annotation(build.box(10, 10, 20, 40, "person")))
    out = run([task], formats=("coco", "yolo-pose"), label_config=pose_config(*NAMES))
    assert out.instances()["annotations"][0]["keypoints"] == [0] * 9
    assert len((out.folder / "yolo-pose/labels/train/1.txt").read_text().split()) == 5 + 9
    assert out.report.accounts.formats["yolo-pose"].converted == {
        "object without key points -> all of them not drawn": 1
    }


def test_key_points_without_a_parent_are_the_only_objects(run, build):
    # W17: they were written as all-zero
    results = [build.box(10, 10, 20, 40, "person"), point(build, 20, 25, "nose", id="n")]
    out = run([build.task(1, build.annotation(*results))], formats=("coco",), label_config=pose_config(*NAMES))
    assert out.instances()["annotations"][0]["keypoints"][:3] == [128, 90, 2]
    assert out.report.accounts.formats["coco"].converted["key points given to the image's only object"] == 1


@pytest.mark.parametrize(
    ("results", "reason"),
    [
        (
            lambda b: [
                b.box(10, 10, 20, 40, "person", id="a"),
                b.box(50, 10, 20, 40, "person", id="b"),
                point(b, 20, 25, "nose"),
            ],
            "a key point that belongs to no region with an area",
        ),
        (
            lambda b: [b.box(10, 10, 20, 40, "person", id="a"), point(b, 20, 25, "nose", "gone")],
            "a key point that belongs to no region with an area",
        ),
        (
            lambda b: [
                b.box(10, 10, 20, 40, "person", id="a"),
                point(b, 20, 25, "nose", "a"),
                point(b, 21, 25, "nose", "a", id="again"),
            ],
            "a second key point of its label on one object",
        ),
        (
            lambda b: [b.box(10, 10, 20, 40, "person", id="a"), point(b, 20, 25, "tail", "a")],
            "a key point whose label is no key point of the label config",
        ),
    ],
    ids=["two people, no parent", "parent gone", "twice", "unknown label"],
)
def test_key_point_that_fits_nowhere_is_listed(run, build, results, reason):
    task = build.task(1, build.annotation(*results(build)))
    out = run([task], formats=("coco", "yolo-pose"), label_config=pose_config(*NAMES))
    for name in ("coco", "yolo-pose"):
        assert out.report.accounts.formats[name].dropped == {reason: 1}
    assert {loss["format"] for loss in out.losses} == {"coco", "yolo-pose"}


def test_pose_needs_the_names_of_the_key_points(run, build, config, tmp_path):
    task = build.task(1, build.annotation(build.box(1, 1, 5, 5)))
    with pytest.raises(BadOption, match="yolo-pose"):
        run([task], formats=("yolo-pose",), label_config=config("car"))
    assert not (tmp_path / "set").exists() or not list((tmp_path / "set").glob("[!.]*"))


def test_without_key_points_only_pose_formats_are_left_out(run, build, config):
    task = build.task(1, build.annotation(build.box(1, 1, 5, 5)))
    for options in ({"label_config": config("car")}, {}):
        out = run([task], formats=("coco", "yolo-pose"), to=f"set{len(options)}", **options)
        assert set(out.report.accounts.formats) == {"coco"}
        assert "key points" in out.report.left_out["yolo-pose"]


def test_without_a_config_used_key_points_keep_their_indices(run, build):
    def person(number, *parts):
        points = [build.keypoint(12, 12, part, id=part, parentID="p") for part in parts]
        return build.task(number, build.annotation(build.box(10, 10, 20, 40, "person", id="p"), *points))

    formats = ("coco", "yolo-pose")
    run([person(1, "nose", "left_eye")], formats=formats)
    out = run([person(2, "tail", "left_eye"), person(1, "nose")], formats=formats)
    (category,) = out.instances()["categories"]
    assert (category["name"], category["keypoints"]) == ("person", ["nose", "left_eye", "tail"])
    rows = (out.folder / "yolo-pose/labels/train/2.txt").read_text().split()
    assert rows[7::3] == ["0", "2", "2"]
    assert out.report.accounts.regions.dropped == {}


def skeleton(*names, attributes=None):
    from labelloop.labeling.studio.config import LabelConfig

    xml = pose_config(*names)
    for name, index in (attributes or {}).items():
        xml = xml.replace(f'"{name}"', f'"{name}" model_index="{index}"')
    return Skeleton.from_config(LabelConfig.parse(xml))


@pytest.mark.parametrize(
    ("names", "flip"),
    [
        (("nose", "left_eye", "right_eye"), (0, 2, 1)),
        (("Left Ear", "Right Ear", "tail"), (1, 0, 2)),
        (("leftHip", "rightHip"), (1, 0)),
        (("L-wing", "R-wing", "beak"), (1, 0, 2)),
        (("nose",), (0,)),
        (("left_eye", "nose"), None),  # its right one is missing
        (("front", "back"), None),  # no sides in the names
    ],
)
def test_mirrored_key_points_are_known_by_left_and_right(names, flip):
    assert skeleton(*names).flip_indices == flip


def test_order_is_the_configs_or_its_model_index():
    # W17: without `model_index` the export crashed
    assert skeleton(*NAMES).names == NAMES
    order = {"nose": 2, "left_eye": 0, "right_eye": 1}
    assert skeleton(*NAMES, attributes=order).names == ("left_eye", "right_eye", "nose")
    assert skeleton(*NAMES, attributes={"nose": 5}).names == NAMES  # given for some only: no order
    assert json.dumps(skeleton().names if skeleton() else None) == "null"


POINTS = '<KeyPointLabels name="part" toName="image"><Label value="nose"/></KeyPointLabels>'


@pytest.mark.parametrize("points", ["", POINTS])
def test_a_conversion_is_counted_once_with_key_points_or_without(run, build, points):
    config = f"""<View><Image name="image" value="$image"/>
    <RectangleLabels name="label" toName="image"><Label value="car"/></RectangleLabels>{points}</View>"""
    results = [build.box(10, 10, 20, 20), build.box(50, 50, 20, 20, rotation=30, id="r2")]
    out = run([build.task(1, build.annotation(*results))], label_config=config, formats=("coco", "webdataset"))
    for count in out.report.accounts.formats.values():
        assert count.converted == {"rectangle -> polygon": 1, "rotated rectangle -> polygon": 1}


BOXES = '<RectangleLabels name="label" toName="image"><Label value="cat"/></RectangleLabels>'
BOTH = '<Labels name="part" toName="image"><Label value="cat"/><Label value="tail"/><Label value="nose"/></Labels>'
POINT = '<Labels name="part" toName="image"><Label value="nose"/><Label value="tail"/></Labels>'
SEPARATE = {
    # labels of points beside labels of boxes; and one control for both, whose points are those that tasks have
    "of their own": (f'{BOXES}{POINT}<KeyPoint name="dot" toName="image"/>', ["nose", "tail"], ["cat"]),
    "shared with boxes": (
        f'{BOTH}<Rectangle name="box" toName="image"/><KeyPoint name="dot" toName="image"/>',
        ["nose"], ["cat", "tail", "nose"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("which", SEPARATE)
def test_points_with_labels_of_a_separate_control(which, run, build):
    tags, names, classes = SEPARATE[which]
    value = {"x": 20, "y": 25, "width": 1}
    sides = {"x": 10, "y": 10, "width": 20, "height": 40, "rotation": 0}
    results = [
        build.result("keypoint", value, from_name="dot", id="n", parentID="a"),
        build.result("labels", {**value, "labels": ["nose"]}, from_name="part", id="n", parentID="a"),
    ]
    if "<Rectangle " in tags:
        results.append(build.result("rectangle", sides, from_name="box", id="a"))
        results.append(build.result("labels", {**sides, "labels": ["cat"]}, from_name="part", id="a"))
    else:
        results.append(build.box(10, 10, 20, 40, "cat", id="a"))
    config = f'<View><Image name="image" value="$image"/>{tags}</View>'
    out = run([build.task(1, build.annotation(*results))], formats=("coco", "yolo-pose"), label_config=config)
    (annotation,) = out.instances()["annotations"]
    assert annotation["keypoints"][:3] == [128, 90, 2]
    categories = out.instances()["categories"]
    assert [category["name"] for category in categories] == classes
    assert categories[0]["keypoints"] == names
    assert not out.report.accounts.formats["yolo-pose"].dropped
