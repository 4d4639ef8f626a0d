"""The fast decoder and the general one give the same data set, to the byte."""

import json
import random
from collections import Counter

import msgspec
import numpy as np
import pytest
import shapely

from exporters.columnar.columns import NOT_VECTORISED, clip_batch, percent_to_pixels
from exporters.convert.annotation_policy import latest
from exporters.convert.columnar_builder import build_columns
from exporters.convert.fast_decoder import FastTaskDecoder
from exporters.convert.options import ConversionOptions
from exporters.convert.task_assembler import TaskAssembler
from exporters.formats import FORMATS
from exporters.model.class_map import ClassMap, save_classes
from exporters.model.clipping import ShapeRejected, ring_areas
from exporters.model.clipping import clip_to_image as fit_one
from exporters.model.splits import SplitPolicy
from exporters.pipeline import fast_converter
from exporters.pipeline.converter import GeneralConverter
from labelloop.labeling.geometry.shapes import Ellipse, Polygon, Rectangle
from labelloop.service.store.local import FolderStore
from tests.exporters.conftest import Build

CONFIG = """<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">
<Label value="car"/><Label value="bus"/></RectangleLabels>
<PolygonLabels name="shape" toName="image"><Label value="car"/></PolygonLabels>
<EllipseLabels name="round" toName="image"><Label value="car"/></EllipseLabels>
<Choices name="weather" toName="image"><Choice value="day"/></Choices><TextArea name="caption" toName="image"/>
{more}</View>"""


IMAGE_FORMATS = (
    "coco", "voc", "voc-masks", "yolo-detect", "yolo-segment", "yolo-obb", "yolo-pose", "yolo-classify", "webdataset",
    "ndjson-pose",
)  # fmt: skip


def mixture(build, seed):
    """Tasks most of which are usual; the others differ from them in one way each."""
    rng = random.Random(seed)

    def percent():
        return rng.choice([0, 100, rng.uniform(-15, 110), rng.uniform(5, 70), rng.uniform(5, 70)])

    def shape(name):
        box = build.box(
            percent(), percent(), rng.uniform(0.1, 40), rng.uniform(0.1, 40), rng.choice(["car", "bus"]), id=name
        )
        ring = [[percent(), percent()] for _ in range(rng.randrange(3, 8))]
        return rng.choice(
            [
                box,
                box,
                box | {"value": box["value"] | {"rotation": rng.choice([0, 30.5, 360, -720, 90, -45])}},
                box | {"value": box["value"] | {"x": rng.randrange(50), "width": rng.choice([1e-5, 5e-4])}},
                box | {"score": rng.choice([0.5, 1, None])},
                box | {"meta": rng.choice([{}, None])},
                build.box(20, 20, 20, 20 + rng.choice([0, 1e-9]), id=name),  # many of an image are the same
                build.polygon(ring, id=name, from_name="shape"),
                build.polygon([[20, 20], [60, 25], [40, 70 + rng.random()]], id=name, from_name="shape"),
            ]
        )

    def odd(name):
        box = build.box(10, 10, 20, 20, id=name)
        return rng.choice(
            [
                box | {"value": box["value"] | {"height": -5}},
                box | {"value": box["value"] | {"rectanglelabels": ["car", "bus"]}},
                box | {"value": box["value"] | {"rectanglelabels": ["new"]}},
                box | {"value": {"rectanglelabels": ["car"], "x": 5}},
                box | {"type": "polygonlabels"},
                box | {"original_width": 100},
                box | {"item_index": 1},
                box | {"from_name": "gone"},
                box | {"id": "r0"},
                box | {"id": "long" * 60},
                box | {"meta": {"text": rng.choice([["truncated"], ["crowd"], ["a note"]])}},
                box | {"value": box["value"] | {"rectanglelabels": [" "]}},
                build.polygon([[1, 1], [9, 9], [1, 1]], id=name, from_name="shape"),
                build.ellipse(30, 30, 10, 5, id=name),
                build.result("choices", {"choices": ["day"]}, id=name, from_name="weather"),
                build.keypoint(5, 5, id=name),
                build.ellipse(30, 30, 10, 5, id=name, from_name="round"),
                build.result("textarea", {"text": ["a caption"]}, id=name, from_name="caption"),
                {"type": "relation", "from_id": "r0", "to_id": "r1", "direction": "right"},
                {key: value for key, value in box.items() if key != "from_name"},
            ]
        )

    tasks = []
    for number in range(1, 60):
        results = [shape(f"r{n}") for n in range(rng.randrange(3))] + [odd("x") for _ in range(rng.random() < 0.2)]
        if rng.random() < 0.2:  # in a wide one a thin shape has an area, and a share that is next to nothing
            width = rng.choice([90_000, 99_999, 100_000])
            results = [result | {"original_width": width, "original_height": 20} for result in results]
        annotation = build.annotation(*results, number=number, was_cancelled=rng.random() < 0.05)
        more = [build.annotation(shape("r0"), number=900 + number, day=2)] if rng.random() < 0.2 else []
        more += [build.annotation(odd("r0"), shape("x"), number=800 + number)] if rng.random() < 0.2 else []
        for other in more:
            other.update(rng.choice([{}, {"completed_by": {"id": 5}}, {"id": None}, {"was_cancelled": True}]))
        image = rng.choice(
            [None, None, None, f"https://h/{number}.jpg?X-Amz-Signature=a", "s3://b/same.jpg", "", "s3://b/é.jpg"]
        )
        about = rng.choice([{}, {}, {"license": {"id": 4, "name": "x"}, "info": {"year": 1}, "date_captured": "now"}])
        task = build.task(
            rng.choice([number, number, number, 3, None]), annotation, *more, image=image, qc_status="agreed"
        )
        tasks.append(task | {"meta": {"labelloop_import": {"id": "i", "name": "n.jpg", "coco": about}}})
    return tasks


ANSWERED = CONFIG.format(
    more="""<KeyPointLabels name="point" toName="image"><Label value="nose"/><Label value="left eye"/>
<Label value="right eye"/></KeyPointLabels><Labels name="kind" toName="image"><Label value="car"/><Label value="bus"/>
</Labels><Rectangle name="bbox" toName="image"/><Polygon name="poly" toName="image"/>
<Choices name="state" toName="image" perRegion="true"><Choice value="parked"/></Choices>
<Choices name="occluded" toName="image" perRegion="true"><Choice value="yes"/></Choices>
<TextArea name="text" toName="image" perRegion="true"/><Rating name="stars" toName="image" perRegion="true"/>"""
)


def answered(build, seed):
    """Tasks whose regions have answers, labels of a control of their own, notes and key points."""
    rng = random.Random(seed)

    def attach(shape, kind, control, **value):
        drawn = {key: item for key, item in shape["value"].items() if not key.endswith("labels")}
        result = shape | {"type": kind, "from_name": control, "value": drawn | value}
        return rng.choice([result, result, {key: result[key] for key in ("id", "type", "from_name", "value")}])

    def region(name):
        x, y = rng.uniform(-20, 95), rng.uniform(-20, 95)
        turn = rng.choice([0, 0, rng.uniform(-400, 400), 90, 45])
        shape = build.box(x, y, rng.uniform(1, 60), rng.uniform(1, 60), rotation=turn, id=name)
        ring = [[rng.uniform(-30, 130), rng.uniform(-30, 130)] for _ in range(rng.choice([3, 3, 4, 5]))]
        shape = rng.choice([shape, shape, build.polygon(ring, id=name, from_name="shape")])
        if rng.random() < 0.1:
            shape = build.box(20, 20, 30, 30, id=name)  # many of an image are the same
        kind = shape["type"].removesuffix("labels")
        own = shape | {"type": kind, "from_name": {"rectangle": "bbox", "polygon": "poly"}[kind]}
        own["value"] = {key: item for key, item in shape["value"].items() if not key.endswith("labels")}
        results = rng.choice([[shape], [own, attach(own, "labels", "kind", labels=["bus"])]])
        if rng.random() < 0.5:
            results.append(attach(shape, "choices", "state", choices=[rng.choice(["parked", "crowd", "Truncated"])]))
        if rng.random() < 0.2:
            results.append(attach(shape, "choices", "occluded", choices=rng.choice([["yes"], ["no"], [], "yes"])))
        if rng.random() < 0.3:
            texts = [["a b"], "é <&> \u2028", ["difficult"], ["1", "2"], ["pose: left"], ["x" * 300]]
            results.append(attach(shape, "textarea", "text", text=rng.choice(texts)))
        if rng.random() < 0.2:
            stars = rng.choice([3, 3.0, 4.5])
            results.append(attach(shape, "rating", "stars", rating=stars) | {"score": rng.choice([None, 0.25])})
        if rng.random() < 0.2:
            results[0]["value"] |= {shape["type"]: ["car", "bus", "new"]} if len(results) == 1 else {}
            several = [["car", "bus"], ["bus", "bus"], ["bus", "new"], []]
            results[-1]["value"] |= {"labels": rng.choice(several)} if results[-1]["type"] == "labels" else {}
        if rng.random() < 0.15:
            meta = rng.choice(
                [{"text": ["a note"]}, {"text": ["difficult, pose: Left"], "key": 1}, {"attributes": {"a": 1}}]
            )
            results[0] = results[0] | {"meta": meta}
        if rng.random() < 0.3:
            rng.shuffle(results)
        return results

    def points(parents):
        results = []
        for number in range(rng.randrange(6)):
            at = rng.choice([(rng.uniform(0, 100), rng.uniform(0, 100)), (rng.uniform(-5, 110), 3), (100, 0)])
            label = rng.choice(["nose", "left eye", "right eye", "right eye", "gone"])
            point = build.keypoint(*at, label, id=f"k{number}", from_name="point")
            if parents and rng.random() < 0.9:
                point["parentID"] = rng.choice(parents)
            results.append(point)
            if rng.random() < 0.2:
                results.append(attach(point, "choices", "state", choices=[rng.choice(["hidden", "parked"])]))
            if rng.random() < 0.1:
                del point["value"]["width"]
        return results

    tasks = []
    for number in range(1, 70):
        regions = [region(f"r{n}") for n in range(rng.randrange(4))]
        parents = [f"r{n}" for n in range(len(regions))] + ["gone"] * (rng.random() < 0.1)
        results = [result for results in regions for result in results]
        results += points(rng.choice([parents, parents, []])) if rng.random() < 0.5 else []
        if rng.random() < 0.3:
            rng.shuffle(results)
        if rng.random() < 0.1:
            results.append(build.result("choices", {"choices": ["day"]}, id="c", from_name="state"))
        if rng.random() < 0.2:
            results.append(build.result("choices", {"choices": ["day"]}, id="d", from_name="weather"))
        if rng.random() < 0.1 and len(results) > 1:
            results[1] |= {"id": "r0"}
        tasks.append(build.task(number, build.annotation(*results, number=number)))
    return tasks


def general_converter(rules, classes, *, registry, sizes, copier=None):
    """Convert every task by the general path."""
    return GeneralConverter(TaskAssembler(rules, classes=classes, sizes=sizes, registry=registry), copier)


# Values of a result, and of its value, of which most occur in no file of Label Studio.
NUMBERS = (0, 5, 20.5, -3, 1e-5, 100, 360, -90)
NAMES = ([], ["car"], ["bus", "car"], ["car", "car"], [" "], ["", "bus"], None)
IN_VALUE = {
    **dict.fromkeys(("x", "y", "width", "height", "rotation", "radiusX", "radiusY", "rating"), NUMBERS),
    **dict.fromkeys(("labels", "rectanglelabels", "polygonlabels", "ellipselabels", "keypointlabels"), NAMES),
    **dict.fromkeys(("rectangle", "polygon", "ellipse", "keypoint"), NAMES),
    "points": ([[0, 0], [10, 0], [10, 10]], [[5, 5], [50, 50], [5, 50], [50, 5]], []),
    "choices": (["day"], [], ["crowd"], [["a", "b"], "c"], "x"),
    "text": (["t"], "t", [], ["pose: left"], None),
    "rle": ([1, 2], None),
}
IN_RESULT = {
    "id": ("r0", "x", "", "new", 7),
    "type": ("labels", "choices", "textarea", "relation", "ellipse", "rectangle", "polygonlabels", "keypoint"),
    "from_name": ("label", "shape", "round", "weather", "caption", "kind", "state", "bbox"),
    "score": (0.5, 1, None, "x"),
    "meta": ({}, {"text": ["n"]}, {"text": "difficult"}, {"coco": {"a": 1}}, {"pose": "x"}, None),
    "parentID": ("r0", "", None),
    "item_index": (0, 1, None),
    "original_width": (640, 1, 640.0),
}


def changed(tasks, seed):
    """The tasks with one field changed in each annotation, or one result taken out or written twice."""
    rng = random.Random(seed)
    tasks = json.loads(json.dumps(tasks))
    for annotation in [annotation for task in tasks for annotation in task["annotations"] if annotation["result"]]:
        index = rng.randrange(len(annotation["result"]))
        result = annotation["result"][index]
        fields, values = rng.choice([(result, IN_RESULT), (result.get("value", {}), IN_VALUE)])
        kind = rng.random()
        if kind < 0.7:
            name = rng.choice(list(values))
            fields[name] = rng.choice(values[name])
        elif kind < 0.8:
            fields.pop(rng.choice(list(fields) or ["id"]), None)
        elif kind < 0.9:
            annotation["result"].append(json.loads(json.dumps(result)))
        else:
            annotation["result"].pop(index)
    return tasks


def check_both_ways(run, monkeypatch, tmp_path, tasks, **options):
    """Export tasks both ways, compare every table, and return how many are converted in columns."""
    for name in ("usual", "exact"):  # a task with a new label is converted by the general path
        save_classes(FolderStore("", tmp_path / name), ClassMap(("car", "bus")))
    converted = []
    with monkeypatch.context() as patch:
        patch.setattr(
            fast_converter, "build_columns", lambda *args: (converted.extend(args[1]), build_columns(*args))[1]
        )
        usual = run(tasks, to="usual", **options)
    with monkeypatch.context() as patch:
        patch.setattr("exporters.pipeline.task_converter.make_converter", general_converter)
        exact = run(tasks, to="exact", **options)
    assert usual.report.accounts == exact.report.accounts
    assert usual.report.classes == exact.report.classes
    tables = [out.manifest["generations"][0]["tables"] for out in (usual, exact)]
    for name in tables[0]:
        lines = [
            b"".join(
                (out.root / "objects" / row["sha256"][:2] / row["sha256"]).read_bytes()
                for row in tables_of_export[name]
            )
            for out, tables_of_export in zip((usual, exact), tables, strict=True)
        ]
        assert lines[0].splitlines() == lines[1].splitlines(), name
    assert usual.manifest["generations"] == exact.manifest["generations"]
    return len(converted)


CONFIGURED = [
    (CONFIG.format(more=""), mixture, {}),
    (None, mixture, {"group_by": "folder"}),
    (ANSWERED, answered, {}),
    (None, answered, {"annotation": "user:1"}),
]
CONFIGURED_IDS = ["config", "no config", "answered", "answered, no config"]


@pytest.mark.parametrize(("config", "made", "more"), CONFIGURED, ids=CONFIGURED_IDS)
def test_both_ways_give_the_same_bytes(run, build, monkeypatch, tmp_path, config, made, more):
    formats = [name for name in FORMATS if name in IMAGE_FORMATS and (made is answered or "pose" not in name)]
    formats.remove("voc" if config else "voc-masks")  # masks take most of the time
    options = {"label_config": config, "formats": tuple(formats), "split": "train=.5,val=.3,test=.2"} | more
    columnar = check_both_ways(run, monkeypatch, tmp_path, made(build, 0), **options)
    assert columnar > (30 if made is answered else 10)


@pytest.mark.parametrize(("config", "made", "more"), CONFIGURED, ids=CONFIGURED_IDS)
def test_both_ways_read_odd_fields_alike(run, build, monkeypatch, tmp_path, config, made, more):
    tasks = []
    for seed in range(1, 4):
        tasks += changed(made(build, seed), seed)
    for number, task in enumerate(tasks, 1):
        task["id"] = number
    options = {"label_config": config, "formats": ("coco", "yolo-classify"), "split": "train=.5,val=.5"} | more
    assert check_both_ways(run, monkeypatch, tmp_path, tasks, **options) > 30


def _odd_values(build):
    """Results as other programs write them, each with whether its task is decoded in columns."""
    box, own = build.box(10, 10, 20, 20, id="b"), build.box(60, 60, 20, 20, id="b") | {"type": "rectangle"}
    del own["value"]["rectanglelabels"]
    ellipse = build.ellipse(30, 30, 10, 5, id="e")
    point = build.keypoint(99, 99, id="k")

    def labels(control, *names):
        return own | {"type": "labels", "from_name": control, "value": {"labels": list(names)}}

    def valued(result, **fields):
        return result | {"value": result["value"] | fields}

    state = build.result("choices", {"choices": ["day"]}, id="gone", from_name="weather")
    return {
        "ellipse with the sides of a box": ([ellipse | {"value": box["value"]}, box | {"id": "c"}], False),
        "ellipse with radii and sides": ([valued(ellipse, width=1, height=2)], True),
        "box with radii": ([ellipse, box | {"value": ellipse["value"] | {"rectanglelabels": ["car"]}}], False),
        "no labels of its own, but others": ([valued(box, rectanglelabels=[], labels=["bus"])], True),
        "labels that are null": ([valued(box, rectanglelabels=None, labels=["bus"])], False),
        "labels under the name of the shape": ([valued(own, rectangle=["car"]), labels("kind", "bus")], False),
        "labels of a second control": ([own, labels("kind"), labels("other", "bus"), box | {"id": "c"}], True),
        "point with a height, over the edge": ([box, valued(point, width=5, height=5)], True),
        "answer about a mask that is gone": ([box, valued(state, rle=[1, 2])], False),
    }


@pytest.mark.parametrize("case", list(_odd_values(Build())))
def test_values_of_other_programs_are_read_alike(run, build, monkeypatch, tmp_path, case):
    results, in_columns = _odd_values(build)[case]
    tasks = [build.task(1, build.annotation(*results)), build.task(2, build.annotation(build.box(1, 1, 9, 9)))]
    assert check_both_ways(run, monkeypatch, tmp_path, tasks, formats=("coco", "yolo-classify")) == 1 + in_columns


def test_ellipses_are_written_alike(run, build, monkeypatch, tmp_path):
    rng = random.Random(9)
    tasks = []
    for number in range(1, 41):
        results = [build.box(1, 1, 9, 9, id="b")]
        for index in range(rng.randrange(1, 5)):
            x, y, rx, ry = rng.uniform(-5, 105), rng.uniform(-5, 105), rng.choice([9.5, 0.0005, 30]), rng.uniform(1, 30)
            drawn = build.ellipse(x, y, rx, ry, rng.choice([0, 360, rng.uniform(-180, 360)]), id=f"e{index}")
            drawn["value"]["ellipselabels"] = rng.choice([["car"], ["bus"], ["car", "bus"]])
            results += [drawn, drawn | {"id": f"twin{index}"}][: rng.choice([1, 1, 2])]
        tasks.append(build.task(number, build.annotation(*results)))
    formats = ("coco", "voc", "yolo-detect", "yolo-segment", "yolo-obb", "ndjson-segment")
    assert check_both_ways(run, monkeypatch, tmp_path, tasks, formats=formats) == len(tasks)


def test_labels_beyond_the_numbers_of_a_task(build, monkeypatch):
    monkeypatch.setattr("exporters.convert.fast_decoder.OBJECTS_A_TASK", 4)
    boxes = [build.box(10, 10, 20, 20, "car", "bus", id=name) for name in "ab"]
    texts = [json.dumps(build.task(number, build.annotation(*boxes[:number]))).encode() for number in (1, 2)]
    rules = ConversionOptions(latest, SplitPolicy.parse("train=1"), "out", None, frozenset())
    in_columns = FastTaskDecoder(rules, ClassMap(("car", "bus"))).decode(texts).tasks
    assert [task is not None for task in in_columns] == [True, False]


def test_columns_fit_as_one_shape_does():
    rng = np.random.default_rng(3)
    rows = 3000
    boxes = np.column_stack(
        (rng.uniform(-20, 110, (rows, 2)), rng.uniform(0.001, 60, (rows, 2)), rng.choice([0, 17.3, -90], rows))
    )
    ring = rng.random(rows) < 0.4
    ellipse = ~ring & (rng.random(rows) < 0.4)
    counts = rng.integers(3, 9, ring.sum())
    points = rng.uniform(-10, 110, (counts.sum(), 2))
    sizes = rng.integers(50, 4000, (rows, 2)).astype(float)
    shapes = percent_to_pixels(boxes, points, counts.tolist(), ring, sizes, ellipse=ellipse)
    fits = clip_batch(shapes)
    ends = np.cumsum(counts)
    vectorised = Counter[type]()
    for row in range(rows):
        width, height = sizes[row]
        if ring[row]:
            ring_index = int(ring[: row + 1].sum()) - 1
            ring_points = points[ends[ring_index] - counts[ring_index] : ends[ring_index]].tolist()
            shape = Polygon(tuple((x * width / 100, y * height / 100) for x, y in ring_points))
        else:
            x, y, w, h, turn = boxes[row].tolist()
            kind = Ellipse if ellipse[row] else Rectangle
            shape = kind(x * width / 100, y * height / 100, w * width / 100, h * height / 100, turn)
        assert shapes.geometry(row) == shape
        if fits.kinds[row] == NOT_VECTORISED:
            continue
        vectorised[type(shape)] += 1
        clipped = fit_one(shape, int(width), int(height))
        assert fits.shape(row) == clipped
        if ellipse[row]:
            drawn = int(np.searchsorted(fits.rings.rows, row))
            outline = fits.rings.points[fits.rings.first[drawn] : fits.rings.first[drawn + 1]]
            np.testing.assert_array_equal(outline, shape.points)
    assert min(vectorised[kind] for kind in (Rectangle, Polygon, Ellipse)) > rows / 60


def test_areas_of_rings_are_shapelys():
    rng = np.random.default_rng(5)
    rings = []
    for _ in range(50):
        turns = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 30)))
        rings.append(np.column_stack((np.cos(turns), np.sin(turns))) * rng.uniform(5, 90, (len(turns), 1)))
    first = np.cumsum([0, *map(len, rings[:-1])])
    truth = [shapely.Polygon(ring).area for ring in rings]
    np.testing.assert_allclose(ring_areas(np.concatenate(rings), first), truth, rtol=1e-9)


def test_rejected_shapes_have_equal_reasons(run, build):
    out = run([build.task(1, build.annotation(build.box(120, 10, 5, 5), build.box(1, 1, 5, 5, id="good")))])
    assert [loss["reason"] for loss in out.losses] == ["outside the image"]
    with pytest.raises(ShapeRejected, match="outside the image"):
        fit_one(Rectangle(700, 10, 5, 5), 640, 360)


def test_invalid_json_goes_to_the_general_decoder():
    usual = FastTaskDecoder(
        ConversionOptions(latest, SplitPolicy.parse("train=1"), "out", None, frozenset()), ClassMap()
    )
    good = {"id": 1, "data": {"image": "s3://b/1.jpg"}, "annotations": []}
    texts = [b"{", b"\xff", b"[]", msgspec.json.encode(good), json.dumps(good | {"id": "x"}).encode(), None]
    assert usual.decode(texts).tasks == [None] * 6
