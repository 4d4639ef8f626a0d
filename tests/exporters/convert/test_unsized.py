"""Images of unknown size: formats in shares of the image hold them, the others say that they leave them out."""

import numpy as np
import pytest

from exporters.dataset.versions import read_version
from exporters.pipeline import fast_converter
from exporters.report.page import html_report
from labelloop.service.store import open_store
from tests.exporters.convert.test_fast_decoder import check_both_ways

UNSIZED = {"original_width": None, "original_height": None}
FORMATS = ("coco", "voc", "yolo-detect", "yolo-segment", "yolo-obb")


@pytest.fixture
def tasks(build):
    box = build.box(10, 10, 20, 20, id="box", **UNSIZED)
    polygon = build.polygon([[0, 0], [50, 0], [50, 40]], id="polygon", **UNSIZED)
    return [build.task(1, build.annotation(box, polygon)), build.task(2, build.annotation(build.box(10, 10, 20, 20)))]


def test_shares_of_an_image_need_no_size(run, tasks):
    out = run(tasks, formats=FORMATS, max_errors=0.0)
    assert out.report.published
    assert np.allclose(out.yolo("1"), [[0, 0.2, 0.2, 0.2, 0.2], [0, 0.25, 0.2, 0.5, 0.4]])
    segments = (out.folder / "yolo-segment/labels/train/1.txt").read_text().splitlines()
    assert segments == ["0 0.1 0.1 0.3 0.1 0.3 0.3 0.1 0.3", "0 0.0 0.0 0.5 0.0 0.5 0.4"]
    assert (out.folder / "yolo-obb/labels/train/1.txt").read_text() == "0 0.1 0.1 0.3 0.1 0.3 0.3 0.1 0.3\n"


def test_format_that_needs_the_size_says_what_it_leaves_out(run, tasks):
    out = run(tasks, formats=FORMATS)
    for name in ("coco", "voc"):
        account = out.report.accounts.formats[name]
        assert account.dropped == {"its image's size is not known, and the format needs it": 2}
        assert account.converted["image of unknown size, left out"] == 1
    assert [image["task_id"] for image in out.instances()["images"]] == [2]
    assert [path.stem for path in (out.folder / "voc/Annotations").iterdir()] == ["2"]
    assert out.report.accounts.formats["yolo-obb"].dropped == {
        "its image's size is not known, and the format needs it": 1  # the smallest turned box around a polygon
    }
    assert out.report.accounts.balanced


def test_key_points_need_no_size(run, build):
    label_config = """<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">
    <Label value="car"/></RectangleLabels><KeyPointLabels name="part" toName="image"><Label value="nose"/>
    </KeyPointLabels></View>"""
    box = build.box(10, 10, 40, 40, id="box", **UNSIZED)
    point = build.keypoint(20, 30, id="point", from_name="part", parentID="box", **UNSIZED)
    out = run([build.task(1, build.annotation(box, point))], formats=["yolo-pose"], label_config=label_config)
    assert (out.folder / "yolo-pose/labels/train/1.txt").read_text() == "0 0.3 0.3 0.4 0.4 0.2 0.3 2\n"


@pytest.mark.parametrize("shape", ["turned box", "mask"])
def test_shape_that_depends_on_the_size_fails_without_it(run, build, shape):
    results = {
        "turned box": build.box(30, 30, 20, 20, id="turned", rotation=30, **UNSIZED),
        "mask": build.brush(np.ones((4, 6)), id="mask") | UNSIZED,
    }
    tasks = [build.task(1, build.annotation(build.box(10, 10, 20, 20, id="box", **UNSIZED), results[shape]))]
    out = run(tasks, formats=["yolo-detect"])
    assert out.report.accounts.failed == 1
    assert out.report.accounts.regions.kept == 1


def test_without_such_a_format_the_image_fails_as_before(run, build, tasks):
    out = run(tasks, formats=["coco", "voc"])
    assert out.report.accounts.failed == 2  # its two regions
    assert out.report.accounts.images.dropped == {"its size is not known": 1}


def test_empty_image_that_cannot_be_fetched_fails_once(run, build):
    boxes = [build.box(n % 9, 1, 5, 5, id=f"r{n}") for n in range(594)]
    tasks = [build.task(200, build.annotation(*boxes))]
    tasks += [build.task(n, build.annotation(), image=f"https://gone.invalid/{n}.jpg") for n in range(1, 7)]
    out = run(tasks, max_errors=0.01)
    assert out.report.accounts.failed == 6
    assert out.report.published


@pytest.mark.parametrize("formats", [("coco",), ("coco", "yolo-detect")])
def test_unknown_size_is_looked_up_again_by_the_next_export(run, tasks, photos, formats):
    tasks[0]["data"]["image"] = "/data/local-files/?d=late.jpg"
    options = {"formats": formats, "fetch": True, "max_errors": 1.0, "allow_shrink": True}
    assert len(run(tasks, **options).instances()["images"]) == 1
    photos("late.jpg")
    assert len(run(tasks, **options).instances()["images"]) == 2


def test_image_without_a_size_keeps_its_class(run, build):
    answer = build.result("choices", {"choices": ["day"]}, from_name="weather", **UNSIZED)
    out = run([build.task(1, build.annotation(answer))], formats=["yolo-classify"], max_errors=0.0)
    assert out.report.published
    assert "1.jpg,train,day,day" in (out.folder / "yolo-classify/labels.csv").read_text()


def test_report_page_passes_over_images_without_a_size(run, tasks, settings):
    out = run(tasks, formats=["coco", "yolo-detect"])
    store = open_store(f"file://{out.root}", settings)
    assert html_report(store, read_version(store))


def answer(build, number, **fields):
    kind = "choices" if number % 5 else "textarea"
    value = {"choices": ["car" if number % 3 else "bus"]} if kind == "choices" else {"text": [f"no {number}"]}
    result = {"id": f"a{number}", "type": kind, "from_name": kind, "to_name": "image", "value": value, **fields}
    return build.task(number, build.annotation(result, number=number))


@pytest.mark.parametrize("formats", [("yolo-classify",), ("coco", "yolo-classify"), ("voc", "yolo-detect")], ids=str)
@pytest.mark.parametrize("fetch", [False, True])
def test_answers_without_shapes_are_read_alike_both_ways(run, build, monkeypatch, tmp_path, formats, fetch):
    sizes = [{}, {"original_width": 640, "original_height": 360}, {"original_width": 640}]
    tasks = [answer(build, number, **sizes[number % 3]) for number in range(1, 30)]
    tasks += [build.task(30, build.annotation()), build.task(31, build.annotation(build.box(1, 1, 9, 9)))]
    for number, data in enumerate([{"width": 64, "height": 48}, {"width": 64, "height": 0}, {"width": "64"}], 32):
        task = answer(build, number)
        tasks += [task | {"data": task["data"] | data}]
    predicted = {"result": [build.box(1, 1, 9, 9)], "model_version": "1"}
    tasks += [answer(build, number) | {"predictions": [predicted]} for number in (40, 41)]
    monkeypatch.setattr("exporters.convert.task_images.ImageSizes.from_header", lambda *_: "away")
    without, in_columns = fast_converter._without_objects, []
    monkeypatch.setattr(fast_converter, "_without_objects", lambda task: (in_columns.append(task), without(task))[1])
    assert check_both_ways(run, monkeypatch, tmp_path, tasks, formats=formats, fetch=fetch) == 1
    assert len(in_columns) == (33 if formats == ("yolo-classify",) else 11 if fetch else 29)
