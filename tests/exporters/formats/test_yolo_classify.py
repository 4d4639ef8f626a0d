"""YOLO classify: photos in the folders of their classes, as torchvision's ImageFolder and Ultralytics number them."""

import csv

import pytest

from exporters.dataset.pull import pull
from exporters.dataset.versions import read_version
from exporters.errors import BadOption
from labelloop.service.media import Media
from labelloop.service.store import open_store

CONFIG = """<View><Image name="image" value="$image"/>
<RectangleLabels name="label" toName="image"><Label value="car"/></RectangleLabels>
<Choices name="broken" toName="image" perRegion="true"><Choice value="yes"/></Choices>
<Choices name="kind" toName="image"><Choice value="cat"/><Choice value="a/b: dog"/></Choices>
<Choices name="weather" toName="image"><Choice value="cat"/></Choices></View>"""


def choice(name, *values, **fields):
    base = {"id": f"c-{name}", "from_name": name, "to_name": "image", "type": "choices"}
    return base | {"value": {"choices": list(values)}} | fields


@pytest.fixture
def exported(run, build, photos):
    results = {
        "cat.jpg": [choice("weather", "cat"), choice("kind", "cat")],
        "dog.jpg": [choice("kind", "a/b: dog"), build.box(1, 1, 5, 5)],
        "cat2.jpg": [choice("kind", "cat")],
        "none.jpg": [choice("weather", "cat")],
        "both.jpg": [choice("kind", "cat", "a/b: dog")],
    }
    tasks = [
        build.task(n, build.annotation(*item), image=photos(name))
        for n, (name, item) in enumerate(results.items(), start=1)
    ]
    return run(tasks, label_config=CONFIG, formats=("yolo-classify",), fetch=True)


def test_photos_lie_in_the_folder_of_their_class(exported, settings, tmp_path):
    store = open_store(f"file://{exported.root}", settings)
    media = Media(settings, None)
    pulled = pull(store, read_version(store), to=tmp_path / "out", media=media)
    media.close()
    assert not pulled.missing
    paths = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.jpg")}
    assert paths == {"train/cat/cat.jpg", "train/cat/cat2.jpg", "train/a_b_ dog/dog.jpg"}
    # Ultralytics and torchvision number the classes by the sorted names of the folders
    assert sorted(path.name for path in (tmp_path / "out/train").iterdir()) == ["a_b_ dog", "cat"]


def test_the_sheet_tells_what_the_folders_cannot(exported):
    with (exported.folder / "yolo-classify/labels.csv").open(newline="") as file:
        rows = [tuple(row.values()) for row in csv.DictReader(file)]
    assert rows == [
        ("cat.jpg", "train", "cat", "cat"),
        ("dog.jpg", "train", "a/b: dog", "a_b_ dog"),
        ("cat2.jpg", "train", "cat", "cat"),
    ]


def test_images_without_one_class_and_shapes_are_accounted_for(exported):
    bill = exported.report.accounts.formats["yolo-classify"]
    assert bill.converted == {"image without a class, left out": 1, "image of several classes, left out": 1}
    assert bill.dropped == {"a class of a whole image has no shapes": 1}
    assert exported.report.accounts.balanced


def test_each_image_of_a_task_has_its_own_class(run, build, photos):
    config = CONFIG.replace('value="$image"', 'valueList="$images"')
    both = [choice("kind", "cat", item_index=0), choice("kind", "a/b: dog", id="d", item_index=1)]
    task = build.task(1, build.annotation(*both), images=[photos("a.jpg"), photos("b.jpg")])
    del task["data"]["image"]
    out = run([task], label_config=config, formats=("yolo-classify",), fetch=True)
    with (out.folder / "yolo-classify/labels.csv").open(newline="") as file:
        assert [(row["file"], row["class"]) for row in csv.DictReader(file)] == [
            ("a.jpg", "cat"),
            ("b.jpg", "a/b: dog"),
        ]


def test_config_without_image_choices_leaves_the_format_out(run, build):
    boxes = CONFIG.replace('<Choices name="kind"', '<Choices perRegion="true" name="kind"').replace(
        '<Choices name="weather"', '<Choices perRegion="true" name="weather"'
    )
    tasks = [build.task(1, build.annotation(build.box(1, 1, 5, 5)))]
    out = run(tasks, label_config=boxes, formats=("coco", "yolo-classify"))
    assert out.manifest["formats"] == ["coco"]
    assert "Choices" in out.report.left_out["yolo-classify"]
    assert out.losses == []
    with pytest.raises(BadOption, match="yolo-classify"):
        run(tasks, label_config=boxes, formats=("yolo-classify",))
