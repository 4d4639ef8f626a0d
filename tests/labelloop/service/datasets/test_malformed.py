"""A malformed field is an error or a counted problem: no traceback, no empty annotation."""

import copy
import json
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exporters.importing.label_config import new_label_config
from exporters.importing.region_writer import RegionWriter
from exporters.importing.requirements import scan
from exporters.validate import validate
from labelloop.labeling.studio.config import LabelConfig
from labelloop.service.datasets import DatasetProblem, open_source, read_dataset
from labelloop.service.errors import LabelloopError
from labelloop.service.settings import Settings
from tests import dataset_makers as makers

MANY = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
DEEP = "@deep@"
ODD = st.sampled_from(
    [
        *(None, "", " ", "x", "\0", "../../a", "a" * 5000, "1", "<b>", "&amp;", "\u202e"),
        *(True, False, 0, -1, 1.5, 10**30, 2**63, 1e300, -5e-324, float("nan"), float("inf"), -float("inf")),
        *([None], [[1]], [1, 2, 3, 4], ["nose"] * 3, {"x": 1}, {"id": 1}, {"size": [1, 2], "counts": "zz"}, DEEP),
    ]
)


def spots(value, path=()):
    """Every place in a JSON value, as the keys that lead there."""
    if path:
        yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from spots(value[key], (*path, key))


@st.composite
def spoilt(draw, good):
    """JSON text of a value with one field replaced or left out."""
    value = copy.deepcopy(good)
    *way, last = draw(st.sampled_from(list(spots(good))))
    at = value
    for key in way:
        at = at[key]
    if isinstance(at, dict) and draw(st.integers(0, 3)) == 0:
        del at[last]
    else:
        at[last] = draw(ODD)
    return as_json(value)


def as_json(value):
    return json.dumps(value).replace(f'"{DEEP}"', "[" * 4000 + "]" * 4000)


def check(source, objects, kind="auto"):
    """Read and validate a source; ``objects`` are the images that have some."""
    problems = []
    try:
        data = read_dataset(open_source(str(source), Settings()), kind)
        items = list(data.images())
        problems = [item for item in items if isinstance(item, DatasetProblem)]
        photos = [item for item in items if not isinstance(item, DatasetProblem)]
        config = LabelConfig.parse(new_label_config(scan(data)))
        writer = RegionWriter(config, config.images[0], crowds=True, report=problems.append)
        for photo in photos:
            assert not (photo.annotated and not photo.objects and Path(photo.name).name in objects), problems
            if photo.objects and photo.width:
                json.dumps(writer.write(photo, "x").results, allow_nan=False)
    except LabelloopError as error:
        assert Path(source).name in str(error) or str(Path(source).parent) in str(error)  # noqa: PT017
        assert len(str(error)) < 1000  # noqa: PT017
    with suppress(LabelloopError):
        assert validate(source) or not problems or kind != "auto" or str(source).endswith(".ndjson")


@pytest.fixture
def coco(tmp_path):
    return makers.make_coco(tmp_path / "coco")


@MANY
@given(text=spoilt(makers.coco_sheet()))
def test_any_field_of_coco(coco, text):
    coco.write_text(text)
    check(coco, {"a.jpg", "b.png", "ünï côde.jpg"})


def test_number_beyond_double_precision_costs_its_annotation(tmp_path):
    annotations = [{"id": n, "image_id": 1, "category_id": 1, "bbox": [n, 1, 2, 2], "x": n} for n in (1, 2)]
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 10, "height": 10}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "c"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content).replace('"x": 1}', '"x": 1e400}'))
    problem, image = read_dataset(open_source(str(tmp_path / "a.json"), Settings()), "auto").images()
    assert "'x' cannot be read" in problem.reason
    assert len(image.objects) == image.unread == 1


RESULTS = [
    {"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5},
    {"image_id": 2, "category_id": 3, "segmentation": {"size": [2, 2], "counts": [1, 2, 1]}, "score": 0.4},
]


@MANY
@given(text=spoilt(RESULTS))
def test_any_field_of_coco_results(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    check(tmp_path / "results.json", {"task 1", "task 2"})


LINES = [
    {"type": "dataset", "task": "pose", "class_names": {"0": "car"}, "kpt_shape": [1, 3], "kpt_names": {"0": ["nose"]}},
    {"type": "image", "file": "a.jpg", "url": "https://h/a.jpg", "width": 640, "height": 360, "split": "val"}
    | {"annotations": {"pose": [[0, 0.5, 0.5, 0.5, 0.5, 0.25, 0.5, 1]]}},
]


@MANY
@given(data=st.data(), line=st.integers(0, 1))
def test_any_field_of_ndjson(tmp_path, data, line):
    texts = [as_json(record) for record in LINES]
    texts[line] = data.draw(spoilt(LINES[line]))
    (tmp_path / "x.ndjson").write_text("\n".join(texts))
    # without its key, "annotations" says that nothing is there
    check(tmp_path / "x.ndjson", {"a.jpg"} if '"pose": [' in texts[1] else set())


@pytest.fixture(params=["detect", "segment", "obb", "pose"])
def yolo(tmp_path, request):
    return request.param, makers.make_yolo(tmp_path / "yolo", request.param)


@MANY
@given(data=st.data())
def test_any_field_of_data_yaml(yolo, data):
    task, folder = yolo
    sheet = yaml.safe_load(makers.make_yolo_sheet(task))
    # PyYAML looks 1,024 characters ahead in each of nested brackets: 4,000 take a second, and 600 are refused alike.
    text = data.draw(spoilt(sheet)).replace("[" * 3400, "").replace("]" * 3400, "")
    (folder / "data.yaml").write_text(text)
    check(folder, {"a.jpg"}, f"yolo-{task}")


CELLS = ("", "x", "nan", "inf", "-1", "1e999", "0.5.5", "0,5", "\u0663", "9" * 5000, "True", "None", "0x1", "-0")


@MANY
@given(cell=st.integers(0, 60), value=st.sampled_from(CELLS))
def test_any_cell_of_a_yolo_row(yolo, cell, value):
    task, folder = yolo
    rows = [[str(number) for number in row] for row in makers.YOLO[task]["a.jpg"]]
    flat = [(row, column) for row, cells in enumerate(rows) for column in range(len(cells))]
    row, column = flat[cell % len(flat)]
    rows[row][column] = value
    (folder / "labels/a.txt").write_text("\n".join(" ".join(cells) for cells in rows))
    check(folder, {"a.jpg"}, f"yolo-{task}")


@MANY
@given(cut=st.integers(1, 200), junk=st.sampled_from([b"", b"\xff", b"\0", b"\xff\xfe", b"\x1b[2J", b"\xef\xbb\xbf"]))
def test_any_bytes_in_a_yolo_file(yolo, cut, junk):
    task, folder = yolo
    text = "\n".join(" ".join(map(str, row)) for row in makers.YOLO[task]["a.jpg"]).encode()
    cut = min(cut, len(text))
    (folder / "labels/a.txt").write_bytes(junk + text[:cut] + junk)
    check(folder, {"a.jpg"}, f"yolo-{task}")


@pytest.fixture
def voc(tmp_path):
    folder = makers.make_voc(tmp_path / "voc")
    return folder, (folder / "Annotations/a.xml").read_text()


TAGS = ("filename", "size", "width", "height", "object", "name", "difficult", "bndbox", "xmin", "ymin", "xmax", "ymax")
TEXTS = ("", "x", "nan", "inf", "-1", "1e999", "9" * 5000, "<b/>", "&b;", "&amp;", "\u202e", "<![CDATA[1]]>", "0")


@MANY
@given(tag=st.sampled_from(TAGS), text=st.sampled_from(TEXTS), rename=st.sampled_from(["", "", "Other", "object"]))
def test_any_element_of_a_voc_file(voc, tag, text, rename):
    folder, good = voc
    start, _, rest = good.partition(f"<{tag}>")
    _, end, after = rest.partition(f"</{tag}>")
    named = rename or tag
    page = f"{start}<{named}>{text}{end.replace(tag, named)}{after}"
    (folder / "Annotations/a.xml").write_text(page)
    check(folder, {"a.jpg"})


@MANY
@given(cut=st.integers(0, 500), junk=st.sampled_from([b"", b"\xff", b"\0", b"<a>" * 20_000]))
def test_any_bytes_in_a_voc_file(voc, cut, junk):
    folder, good = voc
    (folder / "Annotations/a.xml").write_bytes(good.encode()[:cut] + junk)
    check(folder, {"a.jpg"})


@settings(MANY, max_examples=25)
@given(name=st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=60))
def test_any_name_of_a_class_folder(tmp_path, name):
    folder = tmp_path / "classes"
    try:
        makers.make_photos(folder / "train" / name, ("a.jpg",))
    except OSError:  # the file system does not take it
        return
    check(folder, set())
    shutil.rmtree(folder)
