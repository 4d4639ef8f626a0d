"""Where tasks come from, and which of their images are meant."""

import json

import pytest

from exporters.errors import BadOption, ExportError, SourceNotFound
from exporters.pipeline.export import export
from exporters.sources import open_source
from tests.wrong_files import WRONG_FILES

TWO_IMAGES = """<View><Image name="left" value="$one"/><Image name="right" value="$two"/>
<RectangleLabels name="label" toName="left,right"><Label value="car"/></RectangleLabels></View>"""
MANY_IMAGES = """<View><Image name="image" valueList="$pages"/><Text name="t" value="$caption"/>
<RectangleLabels name="label" toName="image"><Label value="car"/></RectangleLabels></View>"""


def test_project_uses_its_own_config_and_title(build, config, settings, fake_studio):
    tasks = [build.task(n, build.annotation(build.box(1, 1, 5, 5, "dog"))) for n in (1, 2)]
    calls = []
    report = export(
        "7",
        settings=settings,
        studio=fake_studio(tasks, config("car", "dog"), title="Cars / Löwen"),
        fetch=False,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert report.classes == {"car": 1, "dog": 2}
    assert report.url.endswith("/store/Cars_L%C3%B6wen") or report.url.endswith("/store/Cars_Löwen")
    assert calls[-2:] == [(1, 2), (2, 2)]


def test_task_with_two_images_gives_both_with_their_own_regions(run, build):
    box = {"original_width": 100, "original_height": 100}
    task = build.task(
        5,
        build.annotation(
            build.box(10, 10, 10, 10, to_name="right", id="r", **box),
            build.box(20, 20, 10, 10, to_name="left", id="l", **box),
        ),
        one="s3://b/one.jpg",
        two="s3://b/two.jpg",
    )
    out = run([task], label_config=TWO_IMAGES)
    images = {image["id"]: image["file_name"] for image in out.instances()["images"]}
    assert sorted(images.values()) == ["one.jpg", "two.jpg"]
    assert 5 in images
    assert {
        annotation["region_id"]: images[annotation["image_id"]] for annotation in out.instances()["annotations"]
    } == {
        "l": "one.jpg",
        "r": "two.jpg",
    }


def test_list_of_images_gives_each_its_regions(run, build):
    # W34: a second data key ruled these formats out, or the caption was taken for the image
    sizes = {0: (100, 100), 1: (200, 50), 2: (40, 80)}
    results = [
        build.box(10, 10, 10, 10, id=f"r{n}", item_index=n, original_width=w, original_height=h)
        for n, (w, h) in sizes.items()
    ]
    task = build.task(
        3, build.annotation(*results), pages=[f"s3://b/{n}.jpg" for n in sizes], caption="s3://b/text.jpg"
    )
    del task["data"]["image"]
    out = run([task], label_config=MANY_IMAGES)
    assert {image["file_name"]: (image["width"], image["height"]) for image in out.instances()["images"]} == {
        f"{n}.jpg": size for n, size in sizes.items()
    }
    assert [len(out.yolo(str(n))) for n in sizes] == [1, 1, 1]
    assert [row["item_index"] for row in out.catalogue] == [0, 1, 2]


@pytest.mark.parametrize(
    "data",
    [
        {"image": "s3://b/x.jpg", "caption": "a car"},
        {"caption": "a car. jpg", "photo": "https://h/x.jpg?sig=1", "id": 7},
        {"url": "s3://b/x"},
        {"zz": "s3://b/x.jpg", "text": "hello"},
    ],
)
def test_image_is_found_without_a_config(run, build, data):
    # W34
    task = build.task(1, build.annotation(build.box(1, 1, 5, 5)))
    task["data"] = data
    out = run([task])
    assert [image["file_name"] for image in out.instances()["images"]] == ["x.jpg"]


def test_no_photo_is_asked_for_when_sizes_are_known(run, build, monkeypatch):
    # W31: VOC fetched every image, 2,000 unreachable ones took six minutes
    from labelloop.service.media import Media

    def fetch(self, url, **options):
        raise AssertionError(url)

    monkeypatch.setattr(Media, "size", fetch)
    monkeypatch.setattr(Media, "path", fetch)
    tasks = [
        build.task(n, build.annotation(build.box(1, 1, 5, 5)), image=f"https://gone.invalid/{n}.jpg") for n in (1, 2)
    ]
    assert run(tasks, fetch=True).report.accounts.images.kept == 2


@pytest.mark.parametrize("form", ["array", "lines", "indented"])
def test_every_form_of_file_gives_the_same(run, build, tmp_path, form):
    tasks = [build.task(n, build.annotation(build.box(n, 1, 5, 5))) for n in range(1, 5)]
    path = tmp_path / "tasks.txt"
    path.write_text(
        {
            "array": json.dumps(tasks),
            "lines": "\n".join(map(json.dumps, tasks)),
            "indented": json.dumps(tasks, indent=2),
        }[form]
    )
    assert run(path, to="one").files() == run(tasks, to="two").files()


@pytest.mark.parametrize("source", ["nothing.json", "s3://", "s3:///folder/"])
def test_source_that_is_not_there_is_said(settings, source):
    with pytest.raises(SourceNotFound, match=source.rstrip("/")):
        open_source(source, settings=settings)


def test_label_config_that_is_none_is_said(settings, tmp_path):
    with pytest.raises(BadOption, match="--label-config"):
        open_source("x.json", settings=settings, label_config="<View>")


@pytest.mark.parametrize(
    "options", [{"disputed": "maybe"}, {"max_errors": 2}, {"formats": ("coco", "no-such-format")}, {"split": "x"}]
)
def test_wrong_option_makes_no_version(run, build, options, tmp_path):
    with pytest.raises(BadOption):
        run([build.task(1, build.annotation(build.box(1, 1, 5, 5)))], **options)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("name", WRONG_FILES)
def test_file_that_is_not_an_export_is_refused(run, tmp_path, name):
    data, message = WRONG_FILES[name]
    path = tmp_path / "export.json"
    path.write_bytes(data)
    with pytest.raises(ExportError) as error:
        run(path)
    assert "export.json" in error.value.message
    assert message in str(error.value)
    assert not (tmp_path / "set").exists()


def test_project_without_tasks_makes_no_version(run):
    report = run([]).report
    assert not report.published
    assert not report.version


def test_label_config_without_an_image_is_told_at_once(run, build, tmp_path):
    with pytest.raises(ExportError, match="<Image>") as refused:
        run([build.task(1)], label_config='<View><Text name="text" value="$text"/></View>', formats=("coco", "voc"))
    assert "--format tasks-jsonl" in refused.value.fix
    assert not (tmp_path / "set").exists()
