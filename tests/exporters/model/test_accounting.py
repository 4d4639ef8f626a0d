"""Nothing is lost in silence: every task, annotation and region is in the data set or listed with a reason."""

import json
import random

import pytest

from exporters.cli.export_summary import summary
from exporters.formats import FORMATS
from exporters.model.accounting import Count

GOOD = {"x": 10, "y": 10, "width": 10, "height": 10, "rotation": 0, "rectanglelabels": ["car"]}


def broken(**changes):
    return {name: value for name, value in (GOOD | changes).items() if value != "absent"}


MALFORMED_RESULTS = {
    "no value": {"value": None},
    "value is a text": {"value": "x"},
    "null coordinate": {"value": broken(x=None)},
    "text coordinate": {"value": broken(x="ten")},
    "no width": {"value": broken(width="absent")},
    "zero width with rotation": {"value": broken(width=0, rotation=45)},
    "empty polygon": {"type": "polygonlabels", "value": {"points": [], "polygonlabels": ["car"]}},
    "null polygon": {"type": "polygonlabels", "value": {"points": None, "polygonlabels": ["car"]}},
    "point of three": {"type": "polygonlabels", "value": {"points": [[1, 2, 3]] * 3, "polygonlabels": ["car"]}},
    "broken mask": {"type": "brushlabels", "value": {"format": "rle", "rle": [1, 2, 3], "brushlabels": ["car"]}},
    "labels are numbers": {"value": broken(rectanglelabels=[1])},
    "no label": {"value": broken(rectanglelabels=[])},
    "labels missing": {"value": broken(rectanglelabels="absent")},
    "infinite": {"value": broken(x=float("inf"))},
    "not a number": {"value": broken(height=float("nan"))},
    "another image": {"item_index": 3},
}


@pytest.mark.parametrize("name", MALFORMED_RESULTS)
def test_one_bad_region_costs_itself_alone(run, build, name):
    # W29: 32 of 53 such exports crashed, good tasks with them
    bad = build.box(1, 1, 5, 5, id="bad") | MALFORMED_RESULTS[name]
    tasks = [
        build.task(1, build.annotation(bad, build.box(20, 20, 5, 5, id="good"))),
        build.task(2, build.annotation(build.box(30, 30, 5, 5, id="other"))),
    ]
    out = run(tasks)
    assert [annotation["region_id"] for annotation in out.instances()["annotations"]] == ["good", "other"]
    (loss,) = out.losses
    assert (loss["kind"], loss["task"], loss["annotation"], loss["region"]) == ("region", 1, 1, "bad")
    assert loss["reason"]
    assert out.report.accounts.regions.input == 3
    assert out.report.accounts.failed == 1


def malformed_tasks(build):
    good = build.task(1, build.annotation(build.box(20, 20, 5, 5, id="good")))
    return {
        "no data": {"id": 5, "annotations": []},
        "data is a list": {"id": 5, "data": []},
        "no image": {"id": 5, "data": {"caption": "x"}, "annotations": good["annotations"]},
        "image is a number": build.task(5, *good["annotations"], image=3),
        "image is a list of numbers": build.task(5, *good["annotations"], image=[1, 2]),
        "image is empty": build.task(5, *good["annotations"], image=""),
        "annotation is a text": build.task(5, "x"),
        "results are a text": build.task(5, {"id": 1, "result": "x"}),
        "result is a number": build.task(5, {"id": 1, "result": [3]}),
        "annotations are null": build.task(5) | {"annotations": None},
        "no annotations": {"id": 5, "data": {"image": "s3://b/5.jpg"}},
        "the same id twice": build.task(1, build.annotation(build.box(1, 1, 5, 5))),
        "an enormous id": build.task(10**12, build.annotation(build.box(1, 1, 5, 5))),
        "not an object": 7,  # last: tasks after it cannot be separated
    }


@pytest.mark.parametrize("name", list(range(14)))
def test_one_bad_task_costs_itself_alone(run, build, name):
    # W29
    bad = list(malformed_tasks(build).values())[name]
    good = [build.task(n, build.annotation(build.box(20, 20, 5, 5, id=f"good{n}"))) for n in (1, 2)]
    lines = [good[0], bad, good[1]] if not isinstance(bad, int) else [good[0], good[1], bad]
    out = run(lines)
    assert [annotation["region_id"] for annotation in out.instances()["annotations"]] == ["good1", "good2"]
    assert out.losses
    assert out.report.accounts.tasks.input == out.report.accounts.tasks.kept + 1


def test_task_without_an_id_is_numbered_by_its_place(run, build):
    # W29: the converter crashed on it
    tasks = [build.task(None, build.annotation(build.box(1, 1, 5, 5)), image=f"s3://b/{n}.jpg") for n in range(3)]
    out = run(tasks)
    assert [image["id"] for image in out.instances()["images"]] == [1, 2, 3]


def test_json_lines_go_on_after_a_line_that_is_broken(run, build, tmp_path):
    tasks = [json.dumps(build.task(n, build.annotation(build.box(1, 1, 5, 5)))) for n in (1, 2)]
    path = tmp_path / "export.jsonl"
    path.write_text("\n".join([tasks[0], '{"id": 9, "data": {', tasks[1]]))
    out = run(path)
    assert len(out.instances()["images"]) == 2
    assert out.report.accounts.tasks.dropped == {"malformed": 1}


def test_control_that_is_gone_from_the_config_is_reported(run, build, config):
    # W25: the image became a background
    out = run([build.task(1, build.annotation(build.box(1, 1, 5, 5, from_name="old")))], label_config=config("car"))
    assert out.report.accounts.regions.dropped == {"malformed": 1}
    assert "old" in out.losses[0]["detail"]
    assert not out.report.accounts.regions.kept


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("policy", ["latest", "ground-truth", "all", "user:2"])
def test_sums_match_on_any_mixture(run, build, seed, policy):
    random_ = random.Random(seed)
    shapes = [
        lambda name: build.box(random_.uniform(-20, 110), 10, random_.uniform(-20, 30), 20, id=name),
        lambda name: build.box(10, 10, 20, 20, "car", "taxi", id=name, rotation=random_.uniform(0, 360)),
        lambda name: build.polygon([[1, 1], [random_.uniform(0, 120), 5], [9, 40]], id=name),
        lambda name: build.ellipse(50, 50, 10, random_.choice([0, 5]), id=name),
        lambda name: build.keypoint(random_.uniform(0, 130), 5, id=name),
        lambda name: build.box(1, 1, 5, 5, id=name) | random_.choice(list(MALFORMED_RESULTS.values())),
        lambda name: build.result("choices", {"choices": ["day"]}, id=name, from_name="weather"),
    ]
    tasks = [
        build.task(
            number,
            *(
                build.annotation(
                    *(random_.choice(shapes)(f"r{n}") for n in range(random_.randrange(5))),
                    number=number * 10 + a,
                    completed_by=random_.randrange(1, 4),
                    was_cancelled=random_.random() < 0.2,
                    ground_truth=random_.random() < 0.3,
                    day=random_.randrange(1, 28),
                )
                for a in range(random_.randrange(4))
            ),
            qc_status=random_.choice(["agreed", "disputed"]),
        )
        for number in range(1, 15)
    ] + list(malformed_tasks(build).values())
    tasks.append(build.task(99, build.annotation(build.box(1, 1, 5, 5), completed_by=2, ground_truth=True)))
    out = run(tasks, annotation=policy)
    accounts = out.report.accounts
    assert accounts.tasks.input == len(tasks)
    assert accounts.annotations.input == sum(
        len(task["annotations"])
        for task in tasks
        if isinstance(task, dict) and isinstance(task.get("annotations"), list) and isinstance(task.get("data"), dict)
    )
    written = {
        "coco": len(out.instances()["annotations"]),
        "voc": sum(len(out.voc_boxes(path.stem)) for path in (out.folder / "voc/Annotations").glob("*.xml")),
        "yolo-detect": sum(
            len(out.yolo(path.stem)) for path in (out.folder / "yolo-detect/labels/train").glob("*.txt")
        ),
    }
    assert written == {name: count.objects for name, count in accounts.formats.items()}
    assert len(out.instances()["images"]) == accounts.images.kept
    for kind, count in (("task", accounts.tasks), ("image", accounts.images)):
        assert sum(loss["kind"] == kind for loss in out.losses) == sum(count.dropped.values())


@pytest.mark.parametrize(("max_errors", "published"), [(0.01, False), (0.24, False), (0.25, True), (1.0, True)])
def test_too_many_failed_regions_are_not_published(run, build, max_errors, published):
    good = run([build.task(1, build.annotation(build.box(1, 1, 5, 5)))])
    results = [build.box(1, 1, 5, 5, id=f"r{n}") for n in range(3)]
    out = run([build.task(1, build.annotation(*results, build.box(200, 1, 5, 5)))], max_errors=max_errors)
    assert out.report.accounts.failed_share == 0.25
    assert out.report.published is published
    head = json.loads((out.root / "HEAD.json").read_bytes())
    assert head["version"] == (out if published else good).report.version
    assert out.manifest["published"] is published


def test_what_the_policy_leaves_out_is_no_failure(run, build):
    tasks = [
        build.task(1, build.annotation(build.box(1, 1, 5, 5)), qc_status="disputed"),
        build.task(2, build.annotation(build.box(1, 1, 5, 5), was_cancelled=True)),
        build.task(3, build.annotation(build.box(1, 1, 5, 5)), build.annotation(build.box(1, 1, 5, 5), day=2)),
    ]
    out = run(tasks, max_errors=0.0)
    assert out.report.published
    assert out.report.accounts.failed == 0
    assert out.report.accounts.regions.dropped == {
        "disputed": 1,
        "not chosen by the policy": 1,
        "skipped by the annotator": 1,
    }


def test_a_count_that_does_not_add_up_is_noticed():
    assert Count(3, 1, {"a": 2}).balanced
    assert not Count(3, 1, {"a": 1}).balanced


def test_any_label_is_exported_and_printed_on_one_line(run, build):
    labels = ["x" * 1_000_000, "line\nbreak \x1b[31m", "سيارة", '😀 a, b / c \\ "d"', "<b>&amp;</b>", "a:b"]
    boxes = [build.box(n * 10, 10, 5, 5, label, id=f"r{n}") for n, label in enumerate(labels)]
    out = run(
        [build.task(1, build.annotation(*boxes))],
        formats=[name for name in FORMATS if not name.endswith(("-pose", "classify"))],
    )
    assert all(bill.objects == len(labels) for bill in out.report.accounts.formats.values())
    assert [category["name"] for category in out.instances()["categories"]] == labels
    text = summary(out.report)
    (line,) = [line for line in text.splitlines() if line.startswith("  classes")]
    assert len(line) < 300
    assert "line break" in line
    assert "\x1b" not in text
    for name in ("voc", "voc-masks"):
        rows = (out.folder / name / "labelmap.txt").read_text().splitlines()
        assert len(rows) == 2 + len(labels) - 1  # a heading, the background; a colon cannot be written
        assert {row.count(":") for row in rows[1:]} == {3}


def test_size_that_no_image_has_is_taken_for_none(run, build):
    box = build.box(1, 1, 5, 5) | {"original_width": 10**12}
    out = run(
        [build.task(1, build.annotation(box)), build.task(2, build.annotation(box), width=640, height=360)],
        max_errors=1,
        formats=["coco"],
    )
    assert out.report.accounts.images.kept == 1
    (image,) = out.instances()["images"]
    assert (image["task_id"], image["width"]) == (2, 640)


def test_losses_without_an_id_name_the_position(run, build):
    out = run(
        [
            build.task(7, build.annotation(build.box(1, 1, 5, 5))),
            "no task",
            build.task(None, build.annotation(build.box(1, 1, 0, 5))),
        ],
        formats=("coco",),
    )
    assert [(loss["kind"], loss["detail"]) for loss in out.losses] == [
        ("task", "a task is a JSON object; number 2 in the source, without an id"),
        ("region", "width: is 0: a rectangle without area; number 3 in the source, without an id"),
    ]
