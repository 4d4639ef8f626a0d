"""Class numbers: appended to, never moved."""

import json

import pytest

from exporters.errors import ClassMapChanged, DatasetDamaged
from exporters.model.class_map import ClassMap, config_labels, load_classes, save_classes
from labelloop.labeling.studio.config import LabelConfig
from labelloop.service.store import open_store


@pytest.fixture
def store(tmp_path, settings):
    return open_store(f"file://{tmp_path / 'set'}", settings)


def test_new_label_moves_no_class_number(run, build, config):
    # W5: adding `bus` moved `dog` from 1 to 2
    tasks = [build.task(1, build.annotation(build.box(1, 1, 5, 5, "dog")))]
    first = run(tasks, label_config=config("car", "dog"))
    second = run(tasks, label_config=config("bus", "dog", "car"))
    third = run(tasks, label_config=config("dog"))
    assert first.report.classes == {"car": 1, "dog": 2}
    assert second.report.classes == third.report.classes == {"car": 1, "dog": 2, "bus": 3}
    assert {out.instances()["annotations"][0]["category_id"] for out in (first, second, third)} == {2}
    assert {out.yolo("1")[0][0] for out in (first, second, third)} == {1}


def test_classes_follow_the_config_not_the_alphabet(run, build, config):
    out = run([build.task(1, build.annotation(build.box(1, 1, 5, 5, "ant")))], label_config=config("zebra", "ant"))
    assert list(out.report.classes) == ["zebra", "ant"]


def test_without_a_config_used_labels_are_the_classes(run, build):
    tasks = [
        build.task(n, build.annotation(build.box(1, 1, 5, 5, label))) for n, label in ((1, "b"), (2, "a"), (3, "b"))
    ]
    assert run(tasks).report.classes == {"b": 1, "a": 2}


def test_only_controls_that_draw_on_images_give_classes():
    # W8
    config = LabelConfig.parse("""<View><Image name="i" value="$image"/><Text name="t" value="$text"/>
        <RectangleLabels name="a" toName="i"><Label value="car"/><Label value="dog" alias="hund"/></RectangleLabels>
        <Labels name="b" toName="t"><Label value="PERSON"/></Labels>
        <Choices name="c" toName="i"><Choice value="day"/></Choices>
        <PolygonLabels name="d" toName="i"><Label value="roof"/><Label value="car"/></PolygonLabels></View>""")
    assert ClassMap(config_labels(config)).names == ("car", "hund", "roof")


def test_second_of_two_concurrent_appends_agrees_or_fails(store):
    save_classes(store, ClassMap(["car"]))
    own, other = load_classes(store)[0], load_classes(store)[0]
    other.id("bus")
    save_classes(store, other)
    save_classes(store, own)  # knows less: nothing to do
    assert load_classes(store)[0].names == ("car", "bus")
    own.id("dog")  # number 2 here, which is the bus there
    with pytest.raises(ClassMapChanged):
        save_classes(store, own)


def test_export_is_retried_when_another_numbered_a_label_first(run, build, monkeypatch):
    from exporters.pipeline import export_run as module

    once = module.load_classes
    calls = []

    def load_and_lose_the_race(store):
        classes = once(store)
        if not calls:
            save_classes(store, ClassMap(["bus"]))  # another exporter, just after we looked
        calls.append(1)
        return classes

    monkeypatch.setattr(module, "load_classes", load_and_lose_the_race)
    out = run([build.task(1, build.annotation(build.box(1, 1, 5, 5, "car")))])
    assert len(calls) == 2
    assert out.report.classes == {"bus": 1, "car": 2}
    assert out.instances()["annotations"][0]["category_id"] == 2
    assert [path.name for path in out.root.glob("versions/*/manifest.json")] == ["manifest.json"]


@pytest.mark.parametrize("data", [b"", b"[]", b'{"names": 3}', b"\xff"])
def test_damaged_class_map_stops_the_export(store, data):
    # numbering afresh would change the meaning of every class id of every version
    store.put("classes.json", data)
    with pytest.raises(DatasetDamaged, match=r"classes\.json"):
        load_classes(store)


def test_class_map_is_a_file_that_people_can_read(run, build):
    out = run([build.task(1, build.annotation(build.box(1, 1, 5, 5)))])
    assert json.loads((out.root / "classes.json").read_bytes())["names"] == ["car"]
