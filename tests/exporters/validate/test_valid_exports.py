"""Whatever an export publishes passes `dataset validate`: any regions, any labels, every case of the matrix."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from exporters.dataset.pull import pull
from exporters.errors import BadOption, NearDuplicateLabels
from exporters.formats import FORMATS
from exporters.model.class_map import parse_renames
from exporters.pipeline.export import export
from exporters.validate import validate, verify
from exporters.validate.folder import VALIDATED_FORMATS
from labelloop.service.settings import Settings
from labelloop.service.store import open_store
from tests.exporters import matrix
from tests.exporters.conftest import Build

BUILD = Build()
EVERY = tuple(name for name in FORMATS if name != "yolo-classify")


def flaws(tasks: list, root: Path, xml: str | None = None, **options) -> list[str]:
    """What `dataset validate` finds in every format of an export of the tasks."""
    (root / "tasks.json").write_text(json.dumps(tasks))
    own = Settings(home=root / "home", label_studio_api_key="")
    to = f"file://{root / 'set'}"
    options = {"split": "train=.5,val=.5", "max_errors": 1.0, "fetch": False, "formats": EVERY} | options
    report = export(root / "tasks.json", settings=own, to=to, label_config=xml, **options)
    assert report.accounts.balanced
    store = open_store(to, own)
    manifest, problems = verify(store)
    assert manifest is not None
    pull(store, manifest, to=root / "out", formats=[name for name in manifest.formats if name in VALIDATED_FORMATS])
    validate(root / "out", problems)
    return [f"{issue.flaw} {issue.file} {issue.where} {issue.detail}" for issue in problems.issues]


@pytest.mark.parametrize("case", matrix.cases(BUILD))
def test_every_case_of_the_matrix_has_no_flaw(tmp_path, case):
    labels = matrix.LABELS if case != "names" else (*matrix.ODD_LABELS, *matrix.LABELS)
    folders = matrix.make(matrix.cases(BUILD)[case], BUILD, tmp_path, labels=labels)
    for name in VALIDATED_FORMATS:
        assert validate(folders[name]).issues == [], name


percent = st.one_of(
    st.sampled_from([0, 100, 50, -1e-7, 100.000001, 99.9999]),
    st.floats(-30, 130, allow_subnormal=False),
    st.floats(0, 100, allow_subnormal=False),
    st.integers(0, 100),
)
length = st.one_of(
    st.sampled_from([0, 1e-9, 1e-5, 1e-3, 0.0016, 100, -20]),
    st.floats(0, 110, allow_subnormal=False),
    st.floats(0, 1, allow_subnormal=False),
)
turn = st.one_of(st.just(0), st.sampled_from([90, 180, 360, -45, 1e-9]), st.floats(-400, 400, allow_subnormal=False))
points = st.one_of(
    st.lists(st.tuples(percent, percent), min_size=0, max_size=9),
    st.tuples(percent, percent, st.floats(0, 1e-4, allow_subnormal=False)).map(
        lambda at: [(at[0], at[1]), (at[0] + 40, at[1] + 40), (at[0] + 40 + at[2], at[1] + 40)]  # a sliver
    ),
)


@st.composite
def results(draw) -> list[dict]:
    """The results of an annotation, some of them twice."""
    regions: list[dict] = []
    for number in range(draw(st.integers(0, 5))):
        kind = draw(st.sampled_from(["box", "box", "polygon", "ellipse", "brush", "keypoint", "again"]))
        name, label = f"r{number}", draw(st.sampled_from(["car", "bus"]))
        if kind == "box":
            where = draw(percent), draw(percent), draw(length), draw(length)
            regions.append(BUILD.box(*where, label, rotation=draw(turn), id=name))
        elif kind == "polygon":
            regions.append(BUILD.polygon([list(point) for point in draw(points)], label, id=name))
        elif kind == "ellipse":
            regions.append(BUILD.ellipse(draw(percent), draw(percent), draw(length), draw(length), draw(turn), id=name))
        elif kind == "brush":
            pixels = np.zeros((BUILD.height, BUILD.width), bool)
            for _ in range(draw(st.integers(0, 3))):
                x, y = draw(st.integers(0, BUILD.width - 1)), draw(st.integers(0, BUILD.height - 1))
                pixels[y : y + draw(st.integers(1, 60)), x : x + draw(st.integers(1, 60))] ^= True
            regions.append(BUILD.brush(pixels, id=name))
        elif kind == "keypoint":
            regions.append(BUILD.keypoint(draw(percent), draw(percent), id=name, parentID="r0"))
        elif regions:
            regions.append(draw(st.sampled_from(regions)) | {"id": f"{name}-again"})
    return regions


def one_bus(*regions: dict) -> list[list[dict]]:
    return [list(regions)]


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(results(), min_size=3, max_size=12))
@example(one_bus(BUILD.polygon([[10, 10], [50, 50], [50.0000001, 50]], id="sliver")))
@example(one_bus(BUILD.polygon([[0, 0], [40, 40], [40.000003, 40]], id="a line once its numbers are rounded")))
@example(one_bus(BUILD.polygon([[9, 9], [9.01, 9.01], [9.01, 9], [9, 9.01]], id="crosses itself in a pixel")))
@example(one_bus(BUILD.polygon([[9, 9], [9.01, 9.01], [9.01, 9], [9, 9.01]], id="crowd", meta={"text": ["crowd"]})))
@example(one_bus(BUILD.box(10, 10, 5, 5, " ", id="blank"), BUILD.box(10, 10, 5, 5, "", id="none")))
@example(one_bus(BUILD.box(10, 10, 5, 5, "a\x7fb"), BUILD.box(10, 10, 5, 5, "c\u2028d\x85", id="r2")))
def test_export_of_any_regions_has_no_issue(tmp_path_factory, annotations):
    good = [BUILD.box(10, 10, 20, 20, "car", id="good")]  # without any object nothing is published
    tasks = [
        BUILD.task(number, BUILD.annotation(*regions, number=number))
        for number, regions in enumerate([good, *annotations], start=1)
    ]
    found = flaws(tasks, tmp_path_factory.mktemp("any"))
    # a split without objects is named: no way to write its columns gives them a type
    assert [flaw for flaw in found if not flaw.startswith("imagefolder-split")] == []


@pytest.mark.parametrize("ways", ["columns", "one by one"])
def test_identical_rows_are_written_once_and_counted(run, ways):
    odd = {} if ways == "columns" else {"score": 0.5, "item_index": 0, "meta": {"text": ["a note"]}}
    box = BUILD.box(10, 20, 30, 40, "car") | odd
    near = box | {"id": "near", "value": box["value"] | {"x": 10 + 1e-9}}
    other = BUILD.box(50, 50, 10, 10, "car", id="other")
    rows = [box, box | {"id": "twin"}, other, near, BUILD.box(10, 20, 30, 40, "bus", id="bus")]
    names = ("coco", "voc", "voc-masks", "yolo-detect", "yolo-segment", "yolo-obb", "ndjson-detect")
    out = run([BUILD.task(1, BUILD.annotation(*rows))], formats=names)
    assert out.yolo("1")[:, 0].tolist() == [0, 0, 1]
    for name in names:
        count = out.report.accounts.formats[name]
        assert (count.regions, count.objects) == (3, 3)
        assert count.dropped == {"the same row as another object's of its image": 2}
    assert [annotation["region_id"] for annotation in out.instances()["annotations"]] == [box["id"], "other", "bus"]
    assert [name for name, *_ in out.voc_boxes("1")] == ["car", "car", "bus"]
    assert validate(out.folder).issues == []
    assert {(loss["region"], loss["format"]) for loss in out.losses} >= {
        ("twin", "yolo-detect"),
        ("near", "yolo-detect"),
    }


def test_objects_of_two_annotators_are_two_annotations_and_one_row(run):
    box = BUILD.box(10, 20, 30, 40, "car")
    task = BUILD.task(1, BUILD.annotation(box), BUILD.annotation(box, number=2, completed_by=2))
    out = run([task], annotation="all")
    assert [annotation["annotator"] for annotation in out.instances()["annotations"]] == [1, 2]
    assert (len(out.voc_boxes("1")), len(out.yolo("1"))) == (1, 1)
    assert validate(out.folder).issues == []


def test_two_masks_with_one_box_are_two_objects(run):
    left, right = (np.zeros((BUILD.height, BUILD.width), bool) for _ in range(2))
    left[10:50, 10:12] = left[10:12, 10:50] = left[49, 49] = True
    right[10:50, 48:50] = right[48:50, 10:50] = right[10, 10] = True
    task = BUILD.task(1, BUILD.annotation(BUILD.brush(left, id="a"), BUILD.brush(right, id="b")))
    out = run([task], formats=("voc", "voc-masks", "coco"))
    objects = {name: count.objects for name, count in out.report.accounts.formats.items()}
    assert objects == {"coco": 2, "voc": 1, "voc-masks": 2}
    assert validate(out.folder).issues == []


def test_region_with_one_repeated_label_keeps_the_other(run):
    twice = [BUILD.box(10, 20, 30, 40, "car"), BUILD.box(10, 20, 30, 40, "car", "taxi", id="r2")]
    out = run([BUILD.task(1, BUILD.annotation(*twice))], formats=("yolo-detect",))
    count = out.report.accounts.formats["yolo-detect"]
    assert (count.regions, count.objects, count.dropped) == (2, 2, {})
    assert sum(number for what, number in count.converted.items() if "same row" in what) == 1


ALIKE = [("Butterfly", "butterfly"), ("traffic light", "traffic_light"), ("left-hand", "Left  Hand")]


def choices(*labels: str) -> list[dict]:
    return [
        BUILD.task(n, BUILD.annotation(BUILD.box(5, 5, 9, 9, label), number=n))
        for n, label in enumerate(labels, start=1)
    ]


@pytest.mark.parametrize("pair", ALIKE)
@pytest.mark.parametrize("where", ["config", "tasks"])
def test_labels_written_two_ways_are_refused_by_name(run, config, tmp_path, pair, where):
    with pytest.raises(NearDuplicateLabels, match="--rename") as refused:
        run(choices(*pair), label_config=config(*pair) if where == "config" else None)
    assert all(repr(label) in str(refused.value) for label in pair)
    assert not list((tmp_path / "set").glob("versions/*"))
    assert not (tmp_path / "set/HEAD.json").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_renamed_label_counts_as_the_other(run, config, workers):
    out = run(
        choices("Butterfly", "butterfly", "moth"),
        label_config=config("Butterfly", "butterfly", "moth"),
        rename=("butterfly=Butterfly",),
        formats=("coco", "voc", "yolo-detect"),
        workers=workers,
    )
    assert out.report.classes == {"Butterfly": 1, "moth": 2}
    assert [annotation["category_id"] for annotation in out.instances()["annotations"]] == [1, 1, 2]
    assert [out.voc_boxes(stem)[0][0] for stem in "123"] == ["Butterfly", "Butterfly", "moth"]
    assert out.report.accounts.notes == {}
    assert validate(out.folder).issues == []


def test_choices_written_two_ways_are_refused_as_classes_of_images(run, config):
    label_config = config("car").replace('<Choice value="night"/>', '<Choice value="Day"/>')
    answer = BUILD.result("choices", {"choices": ["Day"]}, id="c", from_name="weather")
    tasks = [BUILD.task(1, BUILD.annotation(BUILD.box(1, 1, 5, 5, "car"), answer))]
    with pytest.raises(NearDuplicateLabels, match="'day' and 'Day'"):
        run(tasks, label_config=label_config, formats=("yolo-classify",))
    out = run(tasks, label_config=label_config, formats=("yolo-classify",), rename=("Day=day",))
    assert "1.jpg,train,day,day" in (out.folder / "yolo-classify/labels.csv").read_text()


def test_single_letters_of_both_cases_are_two_classes(run, config):
    assert run(choices("a", "A"), label_config=config("a", "A")).report.classes == {"a": 1, "A": 2}


def test_data_set_that_has_both_labels_already_is_extended(run, config, tmp_path):
    first = run(choices("moth"))
    classes = first.root / "classes.json"
    classes.write_text(json.dumps({"names": ["moth", "Butterfly", "butterfly"], "format": "labelloop-classes/1"}))
    out = run(choices("moth", "butterfly", "Butterfly"))
    assert out.report.published
    assert out.report.classes == {"moth": 1, "Butterfly": 2, "butterfly": 3}
    with pytest.raises(NearDuplicateLabels, match="Moth"):
        run(choices("moth", "butterfly", "Moth"))


@pytest.mark.parametrize("text", ["a", "=b", "a=", "a=b a=c", "a=b b=c"])
def test_renaming_that_says_two_things_is_refused(text):
    with pytest.raises(BadOption, match="--rename"):
        parse_renames(text.split())
