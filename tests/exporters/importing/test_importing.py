"""Interfaces that are written or extended for a data set, addresses of photos, and what tells a task from another."""

import json

import msgspec
import pytest

from exporters.errors import ImportFailed
from exporters.importing.class_ids import class_names_by_id, with_class_names
from exporters.importing.existing_tasks import ExistingTasks
from exporters.importing.image_locations import ImageLocator
from exporters.importing.label_config import extend_label_config, missing_labels, new_label_config
from exporters.importing.region_writer import RegionWriter
from exporters.importing.requirements import LabelConfigRequirements, scan
from exporters.model.file_names import IMPORT_META
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.reading import read_annotation
from labelloop.labeling.studio.task import Task, read_task
from labelloop.service.datasets import DatasetImage, DatasetProblem, open_source, read_dataset
from labelloop.service.settings import Settings
from tests import dataset_makers as makers


@pytest.fixture
def zoo(tmp_path):
    """A COCO data set with every kind of shape: (source, data set)."""
    source = open_source(str(makers.make_coco(tmp_path / "zoo")), Settings(home=tmp_path / "home"))
    return source, read_dataset(source)


def test_a_new_label_config_lacks_nothing(zoo):
    requirements = scan(zoo[1])
    config = LabelConfig.parse(new_label_config(requirements))
    assert missing_labels(requirements, config, "image") == []
    for control in config.controls_of("RectangleLabels", "PolygonLabels", "BrushLabels"):
        assert tuple(label.value for label in control.labels) == makers.LABELS
    assert next(control.tag for control in config.controls.values()) == "RectangleLabels"


@pytest.mark.parametrize(
    "label", ['<b>&"quotes"', "5", "ünï", "a,b", "  spaced  inside", "x" * 300], ids=lambda text: text[:9]
)
def test_labels_of_any_characters_survive_the_label_config(label):
    requirements = LabelConfigRequirements(
        shapes={"rectangle": (label,)}, labels=(label,), choices=(label,), keypoint_names=(label,)
    )
    config = LabelConfig.parse(new_label_config(requirements))
    assert [control.labels[0].stored for control in config.controls.values()] == [label] * 3
    assert missing_labels(requirements, config, "image") == []


OURS = """<View><!-- keep me --><Header value="$title"/><Image name="photo" value="$img"/>
<RectangleLabels name="box" toName="photo"><Label value="Car" background="red"/></RectangleLabels>
<Labels name="kind" toName="photo"><Label value="person"/></Labels><Polygon name="poly" toName="photo"/></View>"""


def test_only_missing_labels_are_added(zoo):
    requirements = scan(zoo[1])
    before = LabelConfig.parse(OURS)
    missing = missing_labels(requirements, before, "photo")
    xml = extend_label_config(OURS, missing, "photo")
    after = LabelConfig.parse(xml)
    assert missing_labels(requirements, after, "photo") == []
    assert "<!-- keep me -->" in xml
    assert list(after.controls)[:3] == list(before.controls)
    assert [label.value for label in after.controls["box"].labels] == ["Car", "person"]
    assert 'background="red"' in xml
    assert extend_label_config(xml, missing_labels(requirements, after, "photo"), "photo") == xml


def test_results_round_trip(zoo):
    _, data = zoo
    config = LabelConfig.parse(new_label_config(scan(data)))
    writer = RegionWriter(config, config.images[0], crowds=False, report=pytest.fail)
    for image in data.images():
        written = writer.write(image, "identity")
        annotation = read_task({"data": {}, "annotations": [{"result": written.results}]}).annotations[0]
        reading = read_annotation(annotation, task=Task(data={}), config=config)
        assert not reading.errors
        shapes = [region for region in reading.regions if region.type != "keypointlabels"]
        assert [region.labels for region in shapes] == [(obj.label,) for obj in image.objects]
        for region, obj in zip(shapes, image.objects, strict=True):
            assert region.geometry.bounds == pytest.approx(obj.geometry.bounds)
            assert region.geometry.area == pytest.approx(obj.geometry.area)
        assert written.ids == writer.write(image, "identity").ids
        assert not written.ids & writer.write(image, "another").ids


def test_a_separate_labels_control_uses_its_shape_tag(zoo):
    config = LabelConfig.parse(OURS)
    writer = RegionWriter(config, config.images[0], crowds=False, report=lambda _: None)
    image = next(item for item in zoo[1].images() if item.name == "a.jpg")
    rotated = msgspec.structs.replace(image.objects[1], label="person")
    results = writer.write(msgspec.structs.replace(image, objects=(rotated,)), "x").results
    assert [(result["type"], result["from_name"]) for result in results] == [("polygon", "poly"), ("labels", "kind")]


def test_crowds_are_left_out_and_reported(zoo):
    problems = []
    config = LabelConfig.parse(new_label_config(scan(zoo[1])))
    image = DatasetImage("a", 10, 10, (next(zoo[1].images()).objects[0],))
    crowd = msgspec.structs.replace(image, objects=(msgspec.structs.replace(image.objects[0], crowd=True),))
    assert RegionWriter(config, config.images[0], crowds=False, report=problems.append).write(crowd, "x").regions == 0
    assert "crowd" in problems[0].reason
    imported = RegionWriter(config, config.images[0], crowds=True, report=pytest.fail).write(crowd, "x")
    assert imported.results[0]["meta"] == {"text": ["crowd"]}


def locate(source, mode, name="a.jpg", existing_tasks=None, **options):
    options = {"base_url": "", "local_root": None, "media": None} | options
    locator = ImageLocator(source, existing_tasks or ExistingTasks([], "image"), mode, **options)
    return locator.find(DatasetImage(name, 640, 360))


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("s3://bucket/cars/", "s3://bucket/cars/images/ünï côde.jpg"),
        ("https://h/x", "https://h/x/images/%C3%BCn%C3%AF%20c%C3%B4de.jpg"),
        ("/data/local-files/?d=", "/data/local-files/?d=images/%C3%BCn%C3%AF%20c%C3%B4de.jpg"),
    ],
)
def test_addresses_are_written_as_label_studio_reads_them(zoo, base, url):
    locator = ImageLocator(zoo[0], ExistingTasks([], "image"), "reference", base_url=base, local_root=None, media=None)
    assert locator.find(DatasetImage("ünï côde.jpg")).url == url


def test_an_image_of_another_size_than_stated_is_left_out(zoo):
    problem = locate(zoo[0], "upload", "empty.jpg")
    assert isinstance(problem, DatasetProblem)
    assert "160 x 120" in problem.reason


def test_local_files_need_an_address_to_be_referenced(zoo, tmp_path):
    with pytest.raises(ImportFailed, match=r"a\.jpg"):
        locate(zoo[0], "reference")
    assert locate(zoo[0], "reference", local_root=tmp_path).url == "/data/local-files/?d=zoo/images/a.jpg"


def test_existing_tasks_are_found_by_id_address_and_name(zoo):
    tasks = [
        Task(id=7, data={"image": "/data/upload/3/0a1b2c3d-a.jpg"}),
        Task(id=8, data={"image": "s3://bucket/x/empty.jpg"}),
        Task(id=9, data={"image": "s3://bucket/y/empty.jpg"}),
        Task(
            id=10,
            data={"image": "/data/upload/3/11111111-x_y.jpg"},
            meta={IMPORT_META: {"id": "q", "name": "val/x y.jpg"}},
        ),
    ]
    existing_tasks = ExistingTasks(tasks, "image")
    assert locate(zoo[0], "existing", "photos/A.png", existing_tasks).existing_task.task == 7
    assert locate(zoo[0], "existing", "x y.jpg", existing_tasks).existing_task.task == 10
    assert isinstance(locate(zoo[0], "existing", "empty.jpg", existing_tasks), DatasetProblem)
    assert existing_tasks.by_id(9).task == 9
    assert existing_tasks.find("", "s3://bucket/y/empty.jpg").task == 9
    assert existing_tasks.find("q").task == 10


def test_class_names_come_from_coco_a_class_map_or_a_list(tmp_path, zoo):
    (tmp_path / "coco.json").write_text(json.dumps({"categories": [{"id": 90, "name": "cat"}]}))
    (tmp_path / "classes.json").write_text(json.dumps({"names": ["dog", "cat"], "format": "x"}))
    (tmp_path / "names.txt").write_text("dog\n\ncat\n")
    (tmp_path / "bad.json").write_text("{}")
    assert class_names_by_id(tmp_path / "coco.json", None) == {90: "cat"}
    assert class_names_by_id(tmp_path / "classes.json", None) == {1: "dog", 2: "cat"}
    assert class_names_by_id(tmp_path / "names.txt", None) == {1: "dog", 2: "cat"}
    assert class_names_by_id(None, LabelConfig.parse(OURS)) == {1: "Car", 2: "person"}
    with pytest.raises(ImportFailed):
        class_names_by_id(tmp_path / "bad.json", None)
    results = [{"image_id": 5, "category_id": n, "bbox": [1, 2, 3, 4], "score": 0.5} for n in (90, 91)]
    (tmp_path / "r.json").write_text(json.dumps(results))
    data = read_dataset(open_source(str(tmp_path / "r.json"), Settings(home=tmp_path)))
    problem, image = with_class_names(data, {90: "cat"}).images()
    assert "91" in problem.reason
    assert [obj.label for obj in image.objects] == ["cat"]
