"""The readers that import, validation and reports share: positions, raw texts and numbers."""

import json

import pytest

from exporters.validate import validate
from labelloop.service.datasets import DatasetProblem, open_source, read_dataset
from labelloop.service.datasets.errors import MalformedData
from labelloop.service.datasets.ndjson import parse_ndjson
from labelloop.service.datasets.text import parse_floats
from labelloop.service.datasets.voc_xml import NotAnAnnotation, parse_annotation
from labelloop.service.datasets.yolo_config import KeypointShape, parse_keypoint_shape
from labelloop.service.datasets.yolo_rows import keypoint_values, split_rows
from labelloop.service.settings import Settings


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        (["1", "x", "9e9"], "'x' is not a number"),
        (["1", "9e9", "x"], "'9e9' is out of range"),
        (["nan"], "'nan' is out of range"),
        (["-1e6"], "'-1e6' is out of range"),
    ],
)
def test_first_invalid_number_is_named(cells, reason):
    with pytest.raises(MalformedData, match=f"^{reason}$"):
        parse_floats(cells, 1e6)


def test_yolo_rows_keep_line_numbers_and_text():
    rows = list(split_rows("\n0 .5 .5 .1 .1 \n \n1\t.5"))
    assert [(row.line, row.text, row.cells) for row in rows] == [
        (2, "0 .5 .5 .1 .1 ", ["0", ".5", ".5", ".1", ".1"]),
        (4, "1\t.5", ["1", ".5"]),
    ]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [([2, 3], KeypointShape(2, 3)), ([2, 4], None), ([0, 3], None), ([True, 3], None), ("2, 3", None), (None, None)],
)
def test_keypoint_shape_is_parsed_or_none(shape, expected):
    assert parse_keypoint_shape(shape) == expected


def test_pose_row_is_split_into_key_points():
    values = [0.5, 0.5, 0.1, 0.1, 1, 2, 3, 4]
    assert keypoint_values(values, KeypointShape(2, 2)) == [[1, 2], [3, 4]]


def test_voc_texts_are_stripped_and_empty_if_missing():
    annotation = parse_annotation(
        b"<annotation><filename> a.jpg </filename><object><name> car </name><bndbox><xmin> 1 </xmin></bndbox>"
        b"<object><name>part</name></object></object></annotation>"
    )
    (obj,) = annotation.objects
    assert (annotation.filename, annotation.size) == ("a.jpg", ("", ""))
    assert (obj.name, obj.raw_name, obj.edges) == ("car", " car ", ("1", "", "", ""))
    assert [nested.name for nested in annotation.nested_objects] == ["car", "part"]


def test_xml_with_another_root_names_its_root():
    with pytest.raises(NotAnAnnotation, match="<svg>"):
        parse_annotation(b"<svg/>")


def test_ndjson_records_keep_line_numbers():
    file = parse_ndjson(b'\n{"type": "dataset"}\n\n{"file": "a.jpg"}\n[]\n')
    assert file.header == {"type": "dataset"}
    assert not file.starts_on_first_line
    assert list(file.records()) == [(4, {"file": "a.jpg"}), (5, None)]


def test_import_and_validation_name_the_same_yolo_line(tmp_path):
    from PIL import Image

    (tmp_path / "labels").mkdir()
    (tmp_path / "images").mkdir()
    (tmp_path / "data.yaml").write_text("names: [car]")
    (tmp_path / "labels/a.txt").write_text("0 .5 .5 .1 .1\n\n0 .5 .5 .2 x\n")
    Image.new("RGB", (10, 10)).save(tmp_path / "images/a.jpg")
    (issue,) = validate(tmp_path).issues
    items = list(read_dataset(open_source(str(tmp_path), Settings())).images())
    (problem,) = (item for item in items if isinstance(item, DatasetProblem))
    assert f"{issue.file}, {issue.where}" == problem.item == "labels/a.txt, line 3"


@pytest.mark.parametrize(("keypoints", "reported"), [({}, True), ({"keypoints": None}, False)])
def test_missing_coco_key_points_differ_from_null(tmp_path, keypoints, reported):
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "area": 25, "iscrowd": 0}
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 10, "height": 10}],
        "categories": [{"id": 1, "name": "car", "keypoints": ["nose"]}],
        "annotations": [annotation | keypoints],
    }
    (tmp_path / "x.json").write_text(json.dumps(content))
    assert set(validate(tmp_path / "x.json").counts) == ({"coco-keypoints"} if reported else set())
    (image,) = read_dataset(open_source(str(tmp_path / "x.json"), Settings())).images()
    assert image.objects[0].keypoints == ()
