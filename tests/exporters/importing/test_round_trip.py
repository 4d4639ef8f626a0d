"""Attributes, crowds, categories and metadata of a data set survive an import and an export."""

import io
import json
import xml.etree.ElementTree as ET
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from exporters.cli.import_dataset import summary
from exporters.dataset.pull import pull
from exporters.dataset.versions import read_version
from exporters.errors import BadOption
from exporters.formats import FORMATS
from exporters.importing.report import ImportReport
from exporters.importing.run import ImportOptions, run_import
from exporters.pipeline.export import export
from exporters.validate import validate
from exporters.validate.folder import VALIDATED_FORMATS
from labelloop.labeling.geometry.shapes import Rectangle
from labelloop.labeling.region import Region
from labelloop.labeling.result import Result
from labelloop.labeling.studio.region_attributes import ObjectAttributes, read_object_attributes, to_meta
from labelloop.service.settings import Settings
from labelloop.service.store import open_store
from tests import dataset_makers as makers
from tests.fake_label_studio import FakeLabelStudio

WIDTH, HEIGHT = 64, 48


class ImportedProject(FakeLabelStudio):
    """A Label Studio whose project 1 takes the import."""

    def __init__(self, xml: str = "") -> None:
        super().__init__()
        if xml:
            self.put_project(1, label_config=xml)

    @property
    def xml(self) -> str:
        return self.projects_by_id[1]["label_config"]

    @property
    def stored(self) -> list[dict]:
        return list(self.tasks_by_id.values())


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(home=tmp_path / "home", label_studio_api_key="", local_files_root=tmp_path)


@pytest.fixture
def bring(tmp_path, settings):
    """Import a data set: ``bring(folder, **options)`` returns the report and the project."""

    def bring(source: Path, xml: str = "", **options) -> tuple[ImportReport, ImportedProject]:
        studio = ImportedProject(xml)
        project = 1 if xml else None
        order = ImportOptions(source=str(source), project=project, title="cars", images="reference", **options)
        return run_import(order, settings=settings, studio=studio), studio

    return bring


@pytest.fixture
def take(tmp_path, settings):
    """Export the imported tasks in every format and pull them: (format -> folder, report of the export)."""

    def take(studio: ImportedProject, to: str = "set", **options) -> tuple[dict[str, Path], object]:
        (tmp_path / "tasks.json").write_text(json.dumps(studio.stored))
        options = {"split": "train=1", "formats": tuple(FORMATS), "max_errors": 0.0} | options
        report = export(
            tmp_path / "tasks.json", settings=settings, to=f"file://{tmp_path / to}", label_config=studio.xml, **options
        )
        assert report.accounts.balanced
        store = open_store(report.url, settings)
        folders = pull(store, read_version(store), to=tmp_path / f"{to}-out").folders
        for name in folders.keys() & set(VALIDATED_FORMATS):
            assert validate(folders[name]).issues == [], name
        return folders, report

    return take


def sheet(*annotations: dict, **more) -> dict:
    images = [{"id": 7, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT}]
    numbered = [
        {"id": number, "image_id": 7, "category_id": 18, "iscrowd": 0} | annotation
        for number, annotation in enumerate(annotations, 1)
    ]
    return {"images": images, "annotations": numbered, "categories": [{"id": 18, "name": "dog"}]} | more


def box(x=4, y=4, width=20, height=10, **more) -> dict:
    return {"bbox": [x, y, width, height], "area": width * height, "segmentation": []} | more


def pixels(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[y0:y1, x0:x1] = 1
    return mask


def crowd(*where: int, **more) -> dict:
    mask = pixels(*where)
    x, y, width, height = makers.bounds(makers.uncompressed(mask))
    return {
        "bbox": [x, y, width, height],
        "area": float(mask.sum()),
        "segmentation": makers.uncompressed(mask),
        "iscrowd": 1,
    } | more


def write(folder: Path, content: dict) -> Path:
    (folder / "images").mkdir(parents=True)
    for image in content["images"]:
        Image.new("RGB", (image["width"], image["height"])).save(folder / "images" / image["file_name"])
    (folder / "instances_train.json").write_text(json.dumps(content))
    return folder


def read(folders: dict[str, Path]) -> dict:
    return json.loads((folders["coco"] / "annotations/instances_train.json").read_text())


# ---- crowds


def test_crowds_without_the_option_are_not_failures(bring, tmp_path):
    content = sheet(box(), *(crowd(1, 1, 9 + n, 9) for n in range(5)))
    report, studio = bring(write(tmp_path / "coco", content))
    assert report.failed_share == 0
    assert [problem.failed for problem in report.problems] == [False] * 5
    assert report.regions == 1
    assert "5 excluded by the options" in summary(report, "http://ls")
    assert "BrushLabels" not in studio.xml


def test_an_image_with_only_crowds_is_not_a_negative(bring, take, tmp_path):
    report, studio = bring(write(tmp_path / "coco", sheet(crowd(1, 1, 9, 9))))
    assert studio.stored[0].get("annotations", []) == []
    assert (report.failed_share, report.added) == (0, 0)
    assert "a.jpg: it has only crowds: imported without an annotation" in summary(report, "http://ls")


def test_crowd_comes_back_as_a_crowd(bring, take, tmp_path):
    content = sheet(box(30, 4), crowd(2, 20, 40, 44))
    report, studio = bring(write(tmp_path / "coco", content), crowds=True)
    assert report.problems == []
    folders, exported = take(studio)
    single, group = read(folders)["annotations"]
    assert (single["iscrowd"], group["iscrowd"]) == (0, 1)
    assert group["segmentation"] == content["annotations"][1]["segmentation"]
    assert (group["bbox"], group["area"]) == (content["annotations"][1]["bbox"], content["annotations"][1]["area"])
    for name in ("yolo-detect", "yolo-segment", "yolo-obb", "ndjson-detect", "voc-masks"):
        count = exported.accounts.formats[name]
        assert (count.regions, count.objects) == (1, 1), name
        assert count.dropped == {"a crowd: the format has no regions to ignore": 1}
    root = ET.parse(folders["voc"] / "Annotations/a.xml")
    assert [element.findtext("difficult") for element in root.iter("object")] == ["0", "1"]
    assert exported.accounts.formats["voc"].converted["crowd -> difficult object"] == 1


def judged(path: Path, guesses: list[dict], kind: str) -> float:
    with redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        judge = COCOeval(truth, truth.loadRes(guesses), kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return float(judge.stats[0])


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_pycocotools_ignores_what_a_crowd_covers(bring, take, tmp_path, kind):
    content = sheet(box(42, 4), crowd(2, 20, 40, 44))
    _, studio = bring(write(tmp_path / "coco", content), crowds=True)
    folders, _ = take(studio)
    exported = read(folders)
    image, category = exported["images"][0]["id"], exported["categories"][0]["id"]

    def guess(score: float, *where: int) -> dict:
        x0, y0, x1, y1 = where
        return {
            "image_id": image,
            "category_id": category,
            "score": score,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "segmentation": makers.compressed(pixels(*where)),
        }

    inside = [guess(0.9, 4, 22, 12, 30), guess(0.8, 20, 30, 30, 40), guess(0.5, 42, 4, 62, 14)]
    path = folders["coco"] / "annotations/instances_train.json"
    assert judged(path, inside, kind) == pytest.approx(1.0)
    exported["annotations"][1]["iscrowd"] = 0
    (tmp_path / "wrong.json").write_text(json.dumps(exported))
    assert judged(tmp_path / "wrong.json", inside, kind) < 0.5


@pytest.mark.parametrize(
    "mark",
    [
        {"meta": {"text": ["Crowd"]}},
        {"meta": {"text": ["a queue, iscrowd"]}},
        {"meta": {"attributes": {"iscrowd": 1}}},
        "answer",
    ],
)
def test_region_that_is_marked_as_a_crowd_is_one(run, build, mark):
    results = [build.box(10, 10, 30, 30, "car")]
    if mark == "answer":
        results.append(results[0] | {"type": "choices", "from_name": "kind", "value": {"choices": ["crowd"]}})
    else:
        results[0] |= mark
    out = run([build.task(1, build.annotation(*results, build.box(50, 50, 9, 9, id="one")))])
    assert [annotation["iscrowd"] for annotation in out.instances()["annotations"]] == [1, 0]
    rle = out.instances()["annotations"][0]["segmentation"]
    assert out.coco().annToMask(out.coco().loadAnns(out.coco().getAnnIds())[0]).sum() == sum(rle["counts"][1::2])
    assert out.yolo("1").shape == (1, 5)


# ---- flags and attributes


FLAGGED = """<annotation><filename>a.jpg</filename><size><width>64</width><height>48</height></size>
<object><name>dog</name><pose>Left</pose><truncated>1</truncated><difficult>0</difficult><occluded>1</occluded>
<bndbox><xmin>5</xmin><ymin>5</ymin><xmax>20</xmax><ymax>20</ymax></bndbox>
<attributes><attribute><name>colour</name><value>red</value></attribute>
<attribute><name>age</name><value>3</value></attribute></attributes></object>
<object><name>dog</name><pose>Unspecified</pose><truncated>0</truncated><difficult>1</difficult>
<bndbox><xmin>30</xmin><ymin>5</ymin><xmax>50</xmax><ymax>20</ymax></bndbox>
<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part></object>
<object><name>dog</name><bndbox><xmin>30</xmin><ymin>30</ymin><xmax>50</xmax><ymax>40</ymax></bndbox></object>
</annotation>"""


@pytest.fixture
def flagged(tmp_path) -> Path:
    folder = tmp_path / "voc"
    for name in ("Annotations", "JPEGImages"):
        (folder / name).mkdir(parents=True)
    (folder / "Annotations/a.xml").write_text(FLAGGED)
    Image.new("RGB", (64, 48)).save(folder / "JPEGImages/a.jpg")
    return folder


def flags(folders: dict[str, Path]) -> list[dict]:
    root = ET.parse(folders["voc"] / "Annotations/a.xml")
    return [
        {key: obj.findtext(key, "0") for key in ("pose", "truncated", "difficult", "occluded")}
        | {attribute.findtext("name"): attribute.findtext("value") for attribute in obj.iter("attribute")}
        for obj in root.iter("object")
    ]


BACK = [
    {"pose": "Left", "truncated": "1", "difficult": "0", "occluded": "1", "colour": "red", "age": "3"},
    {"pose": "Unspecified", "truncated": "0", "difficult": "1", "occluded": "0"},
    {"pose": "Unspecified", "truncated": "0", "difficult": "0", "occluded": "0"},
]


def test_flags_of_voc_come_back(bring, take, flagged):
    report, studio = bring(flagged)
    assert report.notes["<part> of objects, not imported: 1"] == 1
    first, second, third = studio.stored[0]["annotations"][0]["result"]
    assert first["meta"] == {
        "text": ["truncated, occluded, pose: Left"],
        "attributes": {"colour": "red", "age": 3},
    }
    assert second["meta"] == {"text": ["difficult"]}
    assert "meta" not in third
    folders, exported = take(studio)
    assert flags(folders) == BACK
    converted = exported.accounts.formats["yolo-detect"].converted
    assert converted["regions whose flags the format has no place for"] == 2
    assert converted["regions whose attributes the format has no place for"] == 1
    attributes = [annotation.get("attributes") for annotation in read(folders)["annotations"]]
    assert attributes[0] == {"colour": "red", "age": 3, "truncated": True, "occluded": True, "pose": "Left"}
    assert attributes[1:] == [{"difficult": True}, None]


CHOICES = """<View><Image name="image" value="$image"/><RectangleLabels name="box" toName="image"><Label value="dog"/>
</RectangleLabels><Choices name="state" toName="image" perRegion="true" choice="multiple"><Choice value="Truncated"/>
<Choice value="occluded"/></Choices><Choices name="difficult" toName="image" perRegion="true"><Choice value="yes"/>
<Choice value="no"/></Choices><Choices name="colour" toName="image" perRegion="true"><Choice value="red"/></Choices>
</View>"""


def test_flags_become_per_region_choices(bring, take, flagged):
    _, studio = bring(flagged, CHOICES)
    results = studio.stored[0]["annotations"][0]["result"]
    answers = [(result["from_name"], result["value"]["choices"]) for result in results if result["type"] == "choices"]
    assert sorted(answers) == [("colour", ["red"]), ("difficult", ["yes"]), ("state", ["occluded", "Truncated"])]
    folders, _ = take(studio)
    first, *others = flags(folders)
    assert others == BACK[1:]
    assert {**first, "state": ""} == {**BACK[0], "state": ""}


def test_a_choice_overrides_the_note(run, build):
    drawn = build.box(10, 10, 30, 30, "car", meta={"text": ["truncated", "look here"]})
    no = drawn | {"type": "choices", "from_name": "truncated", "value": {"choices": ["no"]}}
    out = run([build.task(1, build.annotation(drawn, no))])
    assert out.voc("1").findtext("object/truncated") == "0"
    assert out.instances()["annotations"][0]["meta"] == {"text": ["look here"]}


def test_notes_and_flags_are_one_editable_text():
    attributes = ObjectAttributes(
        frozenset({"crowd", "truncated"}), "Left", {"a": 1}, {}, {"text": ["ask Ann", "b, truncated"], "x": 2}
    )
    meta = to_meta(attributes)
    assert meta == {"text": ["ask Ann\nb, truncated\ncrowd, pose: Left"], "attributes": {"a": 1}, "x": 2}
    region = Region(
        Rectangle(0, 0, 1, 1), (), "r", "b", "i", "rectangle", None, 0, 9, 9, result=(Result({"meta": meta}),)
    )
    restored = read_object_attributes(region)
    assert restored == ObjectAttributes(
        attributes.flags, "Left", {"a": 1}, {}, {"text": ["ask Ann\nb, truncated"], "x": 2}
    )
    assert to_meta(restored) == meta


ATTRIBUTES = {"occluded": False, "truncated": True, "colour": "red", "track_id": 7, "parts": ["a", "b"], "size": None}


def test_attributes_and_unknown_fields_of_coco_come_back(bring, take, tmp_path):
    content = sheet(box(attributes=ATTRIBUTES, source="cvat", group={"id": 3}), box(30, 20))
    _, studio = bring(write(tmp_path / "coco", content))
    folders, exported = take(studio)
    first, second = read(folders)["annotations"]
    assert first["attributes"] == ATTRIBUTES
    assert (first["source"], first["group"]) == ("cvat", {"id": 3})
    assert not second.keys() & {"attributes", "meta", "source"}
    assert (
        exported.accounts.formats["voc"].converted["regions whose notes and further fields the format has no place for"]
        == 1
    )


def test_notes_of_annotators_are_written_and_read(bring, take, tmp_path, run, build):
    out = run([build.task(1, build.annotation(build.box(10, 10, 30, 30, "dog", meta={"text": ["ask Ann"], "x": 1})))])
    exported = out.instances()
    assert exported["annotations"][0]["meta"] == {"text": ["ask Ann"], "x": 1}
    exported["images"][0] |= {"file_name": "a.jpg"}
    _, studio = bring(write(tmp_path / "coco", exported))
    assert studio.stored[0]["annotations"][0]["result"][0]["meta"] == {"text": ["ask Ann"], "x": 1}
    assert studio.stored[0]["meta"]["labelloop_import"].keys() == {"id", "name"}


# ---- categories, licenses, info, images


EXTRAS = {
    "info": {"description": "Dogs", "year": 2017, "url": "http://dogs.org", "version": "1.0"},
    "licenses": [{"id": 3, "name": "CC BY", "url": "http://cc/by"}, {"id": 9, "name": "none"}],
    "categories": [
        {"id": 18, "name": "dog", "supercategory": "animal"},
        {
            "id": 1,
            "name": "person",
            "supercategory": "person",
            "keypoints": ["a", "b", "c"],
            "skeleton": [[1, 2], [3, 2]],
        },
        {"id": 90, "name": "hair drier", "supercategory": "indoor"},
    ],
    "images": [
        {"id": 7, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT, "license": 9, "date_captured": "2013-11-14"},
        {
            "id": 8,
            "file_name": "b.jpg",
            "width": WIDTH,
            "height": HEIGHT,
            "license": 3,
            "coco_url": "http://images.cocodataset.org/b.jpg",
            "flickr_url": "http://flickr/b.jpg",
            "camera": {"iso": 100},
        },
    ],
}


@pytest.fixture
def extras(bring, tmp_path) -> ImportedProject:
    content = sheet(box(), box(30, 20, category_id=90, image_id=8), **EXTRAS)
    report, studio = bring(write(tmp_path / "coco", content), images_from=str(tmp_path / "coco/images"))
    assert report.problems == []
    return studio


@pytest.mark.parametrize("path", ["columns", "one by one"])
def test_coco_metadata_of_images_and_categories_comes_back(extras, take, path):
    if path == "one by one":
        for task in extras.stored:
            for result in task["annotations"][0]["result"]:
                result["meta"] = {"text": ["a note"]}
    folders, exported = take(extras)
    content = read(folders)
    assert content["info"] == EXTRAS["info"]
    assert content["licenses"] == EXTRAS["licenses"]
    for image, original in zip(content["images"], EXTRAS["images"], strict=True):
        assert {key: image[key] for key in original if key != "id"} == {k: v for k, v in original.items() if k != "id"}
    names = {category["name"]: category for category in content["categories"]}
    assert {name: category["supercategory"] for name, category in names.items()} == {
        "dog": "animal",
        "person": "person",
        "hair drier": "indoor",
    }
    assert names["person"]["skeleton"] == [[1, 2], [3, 2]]
    assert [category["id"] for category in content["categories"]] == [1, 2, 3]
    count = exported.accounts.formats
    assert count["voc"].converted["images whose further fields the format has no place for"] == 2
    assert not any("images whose" in what for what in count["coco"].converted)


@pytest.mark.parametrize("path", ["columns", "one by one"])
def test_original_category_ids_on_request(extras, take, path):
    results = [
        result for task in extras.stored for annotation in task["annotations"] for result in annotation["result"]
    ]
    for result in results if path == "one by one" else ():
        result["meta"] = {"text": ["a note"]}
    unmapped = json.loads(json.dumps(results[0])) | {"id": "strange"}
    unmapped["value"] |= {"rectanglelabels": ["moon"], "x": 1, "y": 1}
    extras.stored[0]["annotations"][0]["result"].append(unmapped)
    folders, exported = take(extras, category_ids="original")
    content = read(folders)
    numbers = {category["name"]: category["id"] for category in content["categories"]}
    assert numbers == {"person": 1, "dog": 18, "hair drier": 90, "moon": 94}
    assert [annotation["category_id"] for annotation in content["annotations"]] == [18, 94, 90]
    assert exported.classes == {"person": 1, "dog": 2, "hair drier": 3, "moon": 4}
    rows = (folders["yolo-detect"] / "labels/train/a.txt").read_text().splitlines()
    assert [row.split()[0] for row in rows] == ["1", "3"]


def test_original_category_ids_need_a_label_config_with_them(run, build, config):
    tasks = [build.task(1, build.annotation(build.box(1, 1, 5, 5, "car")))]
    with pytest.raises(BadOption, match="coco_id"):
        run(tasks, label_config=config("car"), category_ids="original")
    same = config("car", "bus").replace('value="car"', 'value="car" coco_id="3"').replace('"bus"', '"bus" coco_id="3"')
    with pytest.raises(BadOption, match="both have 3"):
        run(tasks, label_config=same, category_ids="original")


def test_licenses_of_two_data_sets_stay_separate(run, build):
    fields_of_images = [
        {"license": {"id": 1, "name": "MIT"}, "info": {"description": "one"}},
        {"license": {"id": 1, "name": "CC"}, "info": {"description": "two"}},
        {"license": {"id": 1, "name": "MIT"}},
        {},
    ]
    tasks = [
        build.task(n, build.annotation(build.box(1, 1, 5, 5)), image=f"s3://b/{n}.jpg")
        | {"meta": {"labelloop_import": {"coco": fields}}}
        for n, fields in enumerate(fields_of_images, start=1)
    ]
    exported = run(tasks).instances()
    assert exported["licenses"] == [{"id": 1, "name": "MIT"}, {"id": 2, "name": "CC"}]
    assert [image.get("license") for image in exported["images"]] == [1, 2, 1, None]
    assert exported["info"]["sources"] == [{"description": "one"}, {"description": "two"}]


def test_categories_missing_in_the_project_are_counted(bring, tmp_path):
    content = sheet(box(), **{key: EXTRAS[key] for key in ("categories", "info")})
    xml = CHOICES.replace(
        '<Label value="dog"/>', '<Label value="dog"/><Label value="person"/><Label value="hair drier"/>'
    )
    points = "".join(f'<Label value="{name}"/>' for name in "abc")
    joints = f'<KeyPointLabels name="p" toName="image">{points}</KeyPointLabels>'
    report, _ = bring(write(tmp_path / "coco", content), xml.replace("</View>", f"{joints}</View>"))
    assert report.notes["categories whose id or supercategory is not in the project's labels: not kept"] == 3
