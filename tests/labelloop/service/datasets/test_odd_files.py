"""Data sets as other programs write them, beside their standard: read alike, or named with the item and the fix."""

import json

import pytest
from PIL import Image

from labelloop.service.datasets import DatasetError, open_source, read_dataset
from labelloop.service.datasets.coco import IDS_AS_NUMBERS
from labelloop.service.datasets.model import DatasetImage
from labelloop.service.settings import Settings

IMAGE = {"id": 1, "file_name": "a.jpg", "width": 64, "height": 48}
CATEGORY = {"id": 1, "name": "car"}
ANNOTATION = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 10, 10]}
RING = [1, 1, 20, 1, 10, 30]
XML = "<annotation><filename>a.jpg</filename><object><name>{name}</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>20</xmax><ymax>30</ymax></bndbox></object></annotation>"  # noqa: E501


def images_of(path):
    return list(read_dataset(open_source(str(path), Settings())).images())


def coco(folder, *, image=IMAGE, category=CATEGORY, annotation=ANNOTATION, **more):
    content = {"images": [image], "categories": [category], "annotations": [annotation]} | more
    (folder / "instances.json").write_text(json.dumps(content))
    return folder / "instances.json"


@pytest.mark.parametrize(
    "entries",
    [
        {"image": IMAGE | {"id": "1"}},
        {"image": IMAGE | {"id": 1.0}, "annotation": ANNOTATION | {"image_id": "1"}},
        {"category": CATEGORY | {"id": "1"}},
        {"annotation": ANNOTATION | {"category_id": "1", "image_id": 1.0}},
    ],
)
def test_ids_are_numbers_however_they_are_written(tmp_path, entries):
    data = read_dataset(open_source(str(coco(tmp_path, **entries)), Settings()))
    (image,) = data.images()
    assert [drawn.label for drawn in image.objects] == ["car"]
    assert data.counts[IDS_AS_NUMBERS] >= 1


@pytest.mark.parametrize("text", ["01", "9" * 5000])
def test_ids_that_are_texts_stay_texts(tmp_path, text):
    path = coco(tmp_path, image=IMAGE | {"id": text}, annotation=ANNOTATION | {"image_id": text})
    assert [len(image.objects) for image in images_of(path)] == [1]
    _, image = images_of(coco(tmp_path, image=IMAGE | {"id": text}))
    assert not image.objects  # "01" is not 1


@pytest.mark.parametrize("size", [{"width": 64.0, "height": 48.0}, {"width": "64", "height": "48"}])
def test_sizes_are_whole_numbers_however_they_are_written(tmp_path, size):
    (image,) = images_of(coco(tmp_path, image=IMAGE | size, annotation=ANNOTATION | {"segmentation": [RING]}))
    assert (image.width, image.height) == (64, 48)
    assert len(image.objects) == 1


@pytest.mark.parametrize(
    ("segmentation", "shape"), [([[]], "Rectangle"), ([[], []], "Rectangle"), ([], "Rectangle"), (RING, "Polygon")]
)
def test_empty_polygons_leave_the_box_and_a_bare_one_counts(tmp_path, segmentation, shape):
    (image,) = images_of(coco(tmp_path, annotation=ANNOTATION | {"segmentation": segmentation}))
    assert [type(drawn.geometry).__name__ for drawn in image.objects] == [shape]


def test_a_name_that_is_a_number_is_its_text(tmp_path):
    (image,) = images_of(coco(tmp_path, category=CATEGORY | {"name": 7}))
    assert [drawn.label for drawn in image.objects] == ["7"]


def test_no_annotations_are_no_negatives(tmp_path):
    (image,) = images_of(coco(tmp_path, annotations=None))
    assert not image.labelled


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        (json.dumps({"images": [IMAGE], "categories": {"1": "car"}}).encode(), "lists of images"),
        ('{"images": [{"id": 1, "file_name": "é.jpg"}]}'.encode("latin-1"), "UTF-8"),
        (json.dumps({"images": [IMAGE]}).encode()[:-1] + b",}", "json.tool"),
    ],
)
def test_a_file_that_cannot_be_decoded_is_refused_with_its_fix(tmp_path, text, fix):
    (tmp_path / "instances.json").write_bytes(text)
    with pytest.raises(DatasetError) as refused:
        images_of(tmp_path / "instances.json")
    assert fix in refused.value.fix


@pytest.mark.parametrize("encoding", ["gbk", "GB2312", "gb18030", "big5", "Shift_JIS", "euc-jp", "iso-8859-1", "utf-8"])
def test_xml_is_read_in_its_declared_encoding(tmp_path, encoding):
    name = "é" if encoding == "iso-8859-1" else "中"
    text = f'<?xml version="1.0" encoding="{encoding}"?>\n{XML.format(name=name)}'
    (tmp_path / "a.xml").write_bytes(text.encode(encoding))
    (image,) = images_of(tmp_path)
    assert [drawn.label for drawn in image.objects] == [name]


def test_xml_that_is_not_in_its_declared_encoding_is_a_problem(tmp_path):
    (tmp_path / "a.xml").write_bytes(b'<?xml version="1.0" encoding="gbk"?>' + XML.format(name="x").encode() + b"\xff")
    items = images_of(tmp_path)
    assert not any(isinstance(item, DatasetImage) and item.objects for item in items)
    assert any("not valid XML" in item.reason for item in items if not isinstance(item, DatasetImage))


@pytest.mark.parametrize("key", ["1", "'1'"])
def test_class_numbers_may_be_quoted(tmp_path, key):
    (tmp_path / "data.yaml").write_text(f"names:\n  {key}: car\n")
    Image.new("RGB", (64, 48)).save(tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_text("1 .5 .5 .2 .2\n")
    (image,) = images_of(tmp_path)
    assert [drawn.label for drawn in image.objects] == ["car"]


def test_folders_that_may_be_classes_are_said_to_be_none(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (64, 48)).save(tmp_path / name / "a.jpg")
    data = read_dataset(open_source(str(tmp_path), Settings()))
    assert not any(image.labelled for image in data.images())
    assert [note for note in data.notes if "`--format yolo-classify`" in note]
    data = read_dataset(open_source(str(tmp_path), Settings()), "yolo-classify")
    assert [image.choices for image in data.images()] == [("cat",), ("dog",)]


@pytest.mark.parametrize("number", [1, 1.0, "1"])
def test_captions_results_and_panoptic_read_ids_alike(tmp_path, number):
    annotation = {"id": 1, "image_id": number, "caption": "a cat"}
    (tmp_path / "captions.json").write_text(json.dumps({"images": [IMAGE], "annotations": [annotation]}))
    (image,) = images_of(tmp_path / "captions.json")
    assert image.texts == ("a cat",)
    result = {"image_id": number, "category_id": number, "bbox": [1, 2, 3, 4], "score": 0.5}
    (tmp_path / "results.json").write_text(json.dumps([result]))
    (image,) = images_of(tmp_path / "results.json")
    assert (image.task, [drawn.label for drawn in image.objects]) == (1, ["#1"])
    folder = tmp_path / "panoptic"
    (folder / "panoptic").mkdir(parents=True)
    Image.new("RGB", (64, 48), (1, 0, 0)).save(folder / "panoptic" / "a.png")
    segments = [{"id": number, "category_id": number}]
    content = {
        "images": [IMAGE],
        "annotations": [{"image_id": number, "file_name": "a.png", "segments_info": segments}],
        "categories": [{"id": number, "name": "sky", "isthing": 0}],
    }
    (folder / "panoptic.json").write_text(json.dumps(content))
    (image,) = images_of(folder)
    assert [drawn.label for drawn in image.objects] == ["sky"]


@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_metadata_of_imagefolder_may_be_a_table(tmp_path, start):
    (tmp_path / "train").mkdir()
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (64, 48)).save(tmp_path / "train" / name)
    text = f'{start}file_name,label,text\r\na.jpg,cat,"two\nlines"\r\nb.jpg,,\r\n'
    (tmp_path / "train" / "metadata.csv").write_bytes(text.encode())
    cat, unlabelled = images_of(tmp_path)
    assert (cat.choices, cat.texts, cat.split, cat.width) == (("cat",), ("two", "lines"), "train", 64)
    assert not unlabelled.labelled
    assert [image.choices for image in images_of(tmp_path / "train" / "metadata.csv")] == [("cat",), ()]


@pytest.mark.parametrize(
    ("rows", "fault", "texts"),
    [
        ("a.jpg,A dog, running\nb.jpg,x\n", "line 2: more cells than columns", [("x",)]),
        (f"b.jpg,x\na.jpg,{'x' * 140_000}\n", "line 3: this row and those after it are not read", [("x",)]),
        ('b.jpg,x\na.jpg,"unclosed\nc.jpg,y\n', "line 3: this row and those after it are not read", [("x",)]),
        ("a.jpg, x\rb.jpg,y\r", "", [("x",), ("y",)]),
    ],
    ids=["commas", "long", "unclosed", "returns"],
)
def test_rows_of_a_table_that_cannot_be_read_are_named(tmp_path, rows, fault, texts):
    (tmp_path / "metadata.csv").write_bytes(f"file_name, text\n{rows}".encode())
    items = images_of(tmp_path)
    problems = [
        f"{item.item.partition(', ')[2]}: {item.reason}" for item in items if not isinstance(item, DatasetImage)
    ]
    assert len(problems) == bool(fault)
    assert fault in "".join(problems)
    assert [item.texts for item in items if isinstance(item, DatasetImage)] == texts


def test_a_table_beside_lines_is_said_not_to_be_read(tmp_path):
    (tmp_path / "metadata.csv").write_text("file_name,label\na.jpg,cat\n")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "b.jpg", "label": "dog"}\n')
    data = read_dataset(open_source(str(tmp_path), Settings()))
    assert [image.choices for image in data.images()] == [("dog",)]
    assert any("metadata.csv is not read" in note for note in data.notes)


def test_a_table_without_file_names_is_no_metadata(tmp_path):
    Image.new("RGB", (64, 48)).save(tmp_path / "a.jpg")
    (tmp_path / "metadata.csv").write_text("camera,lens\n1,2\n")
    data = read_dataset(open_source(str(tmp_path), Settings()))
    assert data.format == "images"
    assert any("metadata.csv" in note for note in data.notes)
