"""Interfaces that are written or extended for a data set, addresses of photos, and what tells a task from another."""

import json

import msgspec
import pytest

from exporters.importing.class_ids import class_numbers, named
from exporters.importing.errors import ImportFailed
from exporters.importing.existing_tasks import ExistingTasks
from exporters.importing.image_locations import Locator
from exporters.importing.label_config import extended, lacks, new_interface
from exporters.importing.region_writer import RegionWriter
from exporters.importing.requirements import LabelConfigRequirements, scan
from exporters.model.originals import META
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.regions import read_annotation
from labelloop.labeling.studio.task import Task, read_task
from labelloop.service.datasets import LabelledPhoto, Problem, open_place, read_dataset
from labelloop.service.settings import Settings
from tests import dataset_makers as makers


@pytest.fixture
def zoo(tmp_path):
    """A COCO data set with every kind of shape: (place, data set)."""
    place = open_place(str(makers.make_coco(tmp_path / "zoo")), Settings(home=tmp_path / "home"))
    return place, read_dataset(place)


def test_a_new_interface_has_a_place_for_everything(zoo):
    needs = scan(zoo[1])
    config = LabelConfig.parse(new_interface(needs))
    assert lacks(needs, config, "image") == []
    for control in config.controls_of("RectangleLabels", "PolygonLabels", "BrushLabels"):
        assert tuple(label.value for label in control.labels) == makers.LABELS
    assert next(control.tag for control in config.controls.values()) == "RectangleLabels"


@pytest.mark.parametrize(
    "label", ['<b>&"quotes"', "5", "ünï", "a,b", "  spaced  inside", "x" * 300], ids=lambda text: text[:9]
)
def test_labels_of_any_letters_survive_the_interface(label):
    needs = LabelConfigRequirements(shapes={"rectangle": (label,)}, labels=(label,), choices=(label,), joints=(label,))
    config = LabelConfig.parse(new_interface(needs))
    assert [control.labels[0].stored for control in config.controls.values()] == [label] * 3
    assert lacks(needs, config, "image") == []


OURS = """<View><!-- keep me --><Header value="$title"/><Image name="photo" value="$img"/>
<RectangleLabels name="box" toName="photo"><Label value="Car" background="red"/></RectangleLabels>
<Labels name="kind" toName="photo"><Label value="person"/></Labels><Polygon name="poly" toName="photo"/></View>"""


def test_only_what_is_missing_is_added_and_nothing_moves(zoo):
    needs = scan(zoo[1])
    before = LabelConfig.parse(OURS)
    missing = lacks(needs, before, "photo")
    xml = extended(OURS, missing, "photo")
    after = LabelConfig.parse(xml)
    assert lacks(needs, after, "photo") == []
    assert "<!-- keep me -->" in xml
    assert list(after.controls)[:3] == list(before.controls)
    assert [label.value for label in after.controls["box"].labels] == ["Car", "person"]
    assert 'background="red"' in xml
    assert extended(xml, lacks(needs, after, "photo"), "photo") == xml


def test_results_say_the_same_when_they_are_read_again(zoo):
    _, data = zoo
    config = LabelConfig.parse(new_interface(scan(data)))
    placer = RegionWriter(config, config.images[0], crowds=False, tell=pytest.fail)
    for photo in data.photos():
        placed = placer.place(photo, "identity")
        annotation = read_task({"data": {}, "annotations": [{"result": placed.results}]}).annotations[0]
        reading = read_annotation(annotation, task=Task(data={}), config=config)
        assert not reading.errors
        shapes = [region for region in reading.regions if region.type != "keypointlabels"]
        assert [region.labels for region in shapes] == [(each.label,) for each in photo.drawn]
        for region, each in zip(shapes, photo.drawn, strict=True):
            assert region.geometry.bounds == pytest.approx(each.geometry.bounds)
            assert region.geometry.area == pytest.approx(each.geometry.area)
        assert placed.ids == placer.place(photo, "identity").ids
        assert not placed.ids & placer.place(photo, "another").ids


def test_a_separate_labels_control_is_drawn_by_its_shape(zoo):
    config = LabelConfig.parse(OURS)
    placer = RegionWriter(config, config.images[0], crowds=False, tell=lambda _: None)
    photo = next(each for each in zoo[1].photos() if each.name == "a.jpg")
    turned = msgspec.structs.replace(photo.drawn[1], label="person")
    results = placer.place(msgspec.structs.replace(photo, drawn=(turned,)), "x").results
    assert [(each["type"], each["from_name"]) for each in results] == [("polygon", "poly"), ("labels", "kind")]


def test_crowds_are_left_out_and_told(zoo):
    told = []
    config = LabelConfig.parse(new_interface(scan(zoo[1])))
    photo = LabelledPhoto("a", 10, 10, (next(zoo[1].photos()).drawn[0],))
    crowd = msgspec.structs.replace(photo, drawn=(msgspec.structs.replace(photo.drawn[0], crowd=True),))
    assert RegionWriter(config, config.images[0], crowds=False, tell=told.append).place(crowd, "x").regions == 0
    assert "crowd" in told[0].reason
    kept = RegionWriter(config, config.images[0], crowds=True, tell=pytest.fail).place(crowd, "x")
    assert kept.results[0]["meta"] == {"text": ["crowd"]}


def locate(place, images, name="a.jpg", board=None, **options):
    options = {"base": "", "local_root": None, "media": None} | options
    return Locator(place, board or ExistingTasks([], "image"), images, **options).find(LabelledPhoto(name, 640, 360))


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("s3://bucket/cars/", "s3://bucket/cars/images/ünï côde.jpg"),
        ("https://h/x", "https://h/x/images/%C3%BCn%C3%AF%20c%C3%B4de.jpg"),
        ("/data/local-files/?d=", "/data/local-files/?d=images/%C3%BCn%C3%AF%20c%C3%B4de.jpg"),
    ],
)
def test_addresses_are_written_as_label_studio_reads_them(zoo, base, url):
    locator = Locator(zoo[0], ExistingTasks([], "image"), "reference", base=base, local_root=None, media=None)
    assert locator.find(LabelledPhoto("ünï côde.jpg")).url == url


def test_a_photo_of_another_size_than_its_labels_is_left_out(zoo):
    found = locate(zoo[0], "upload", "empty.jpg")
    assert isinstance(found, Problem)
    assert "160 x 120" in found.reason


def test_files_of_this_machine_need_an_address_to_be_referenced(zoo, tmp_path):
    with pytest.raises(ImportFailed, match=r"a\.jpg"):
        locate(zoo[0], "reference")
    assert locate(zoo[0], "reference", local_root=tmp_path).url == "/data/local-files/?d=zoo/images/a.jpg"


def test_existing_tasks_are_found_by_number_address_and_name(zoo):
    tasks = [
        Task(id=7, data={"image": "/data/upload/3/0a1b2c3d-a.jpg"}),
        Task(id=8, data={"image": "s3://bucket/x/empty.jpg"}),
        Task(id=9, data={"image": "s3://bucket/y/empty.jpg"}),
        Task(id=10, data={"image": "/data/upload/3/11111111-x_y.jpg"}, meta={META: {"id": "q", "name": "val/x y.jpg"}}),
    ]
    board = ExistingTasks(tasks, "image")
    assert locate(zoo[0], "existing", "photos/A.png", board).known.task == 7
    assert locate(zoo[0], "existing", "x y.jpg", board).known.task == 10
    assert isinstance(locate(zoo[0], "existing", "empty.jpg", board), Problem)
    assert board.number(9).task == 9
    assert board.made_from("", "s3://bucket/y/empty.jpg").task == 9
    assert board.made_from("q").task == 10


def test_numbers_of_classes_come_from_a_coco_file_a_class_map_or_a_list(tmp_path, zoo):
    (tmp_path / "coco.json").write_text(json.dumps({"categories": [{"id": 90, "name": "cat"}]}))
    (tmp_path / "classes.json").write_text(json.dumps({"names": ["dog", "cat"], "format": "x"}))
    (tmp_path / "names.txt").write_text("dog\n\ncat\n")
    (tmp_path / "bad.json").write_text("{}")
    assert class_numbers(tmp_path / "coco.json", None) == {90: "cat"}
    assert class_numbers(tmp_path / "classes.json", None) == {1: "dog", 2: "cat"}
    assert class_numbers(tmp_path / "names.txt", None) == {1: "dog", 2: "cat"}
    assert class_numbers(None, LabelConfig.parse(OURS)) == {1: "Car", 2: "person"}
    with pytest.raises(ImportFailed):
        class_numbers(tmp_path / "bad.json", None)
    results = [{"image_id": 5, "category_id": n, "bbox": [1, 2, 3, 4], "score": 0.5} for n in (90, 91)]
    (tmp_path / "r.json").write_text(json.dumps(results))
    data = read_dataset(open_place(str(tmp_path / "r.json"), Settings(home=tmp_path)))
    problem, photo = named(data, {90: "cat"}).photos()
    assert "91" in problem.reason
    assert [each.label for each in photo.drawn] == ["cat"]
