"""Report and consensus of an exported file: tasks, statistics, annotators."""

import copy
import json
import random

import pytest

from labelloop.cli.main import main
from labelloop.labeling.studio.reading import read_annotation
from labelloop.labeling.studio.stream import iter_tasks
from tests.wrong_files import WRONG_FILES

CONFIG = """<View><Image name="image" value="$image"/>
<RectangleLabels name="label" toName="image"><Label value="Car"/><Label value="Person"/></RectangleLabels>
<Choices name="quality" toName="image"><Choice value="good"/><Choice value="bad"/></Choices>
<Rating name="stars" toName="image"/></View>"""


def region(x, y, label="Car", *, width=8.0, height=8.0, id_):
    value = {"x": x, "y": y, "width": width, "height": height, "rotation": 0, "rectanglelabels": [label]}
    return {"id": id_, "from_name": "label", "to_name": "image", "type": "rectanglelabels", "original_width": 1000,
            "original_height": 500, "value": value}  # fmt: skip


def layout(rng):
    """Four to seven boxes, each in a cell of its own."""
    cells = rng.sample([(x, y) for x in range(5) for y in range(5)], rng.randint(4, 7))
    return [
        region(20 * x + rng.uniform(1, 9), 20 * y + rng.uniform(1, 9), rng.choice(["Car", "Person"]), id_=f"b{n}")
        for n, (x, y) in enumerate(cells)
    ]


def copied(results, who, rng):
    """The same boxes in another order, with another annotator's ids."""
    own = copy.deepcopy(results)
    rng.shuffle(own)
    for item in own:
        item["id"] = f"{item['id']}-{who}"
    return own


def task_of(id_, *answers):
    annotations = [
        {"id": 100 * id_ + n, "completed_by": n, "result": results, "updated_at": f"2026-01-01T00:00:0{n}Z",
         "created_at": "2026-01-01T00:00:00Z"}
        for n, results in enumerate(answers, start=1)
    ]  # fmt: skip
    return {"id": id_, "data": {"image": f"s3://bucket/{id_}.jpg"}, "annotations": annotations}


@pytest.fixture
def offline(tmp_path):
    """offline(tasks, *words) -> (report, consensus) of the two commands."""

    def run(tasks, *words):
        (tmp_path / "config.xml").write_text(CONFIG)
        source = tmp_path / "export.json"
        source.write_text(json.dumps(tasks))
        shared = ["--from", str(source), "--label-config", str(tmp_path / "config.xml")]
        for command in (["report", *words, "--json", str(tmp_path / "report.json")],
                        ["consensus", "--out", str(tmp_path / "consensus.json")]):  # fmt: skip
            with pytest.raises(SystemExit) as ended:
                main(["qc", command[0], *shared, *command[1:]])
            assert not ended.value.code
        return json.loads((tmp_path / "report.json").read_text()), json.loads((tmp_path / "consensus.json").read_text())

    return run


def drop(results, rng):
    gone = results.pop(rng.randrange(len(results)))
    return {gone["id"]}


def add(results, rng):
    value = {(item["value"]["x"] // 20, item["value"]["y"] // 20) for item in results}
    x, y = rng.choice([(x, y) for x in range(5) for y in range(5) if (x, y) not in value])
    results.append(region(20 * x + 5, 20 * y + 5, id_="new"))
    return {"new"}


def swap(results, rng):
    first_item = rng.choice(results)
    first_item["value"]["rectanglelabels"] = [
        "Car" if first_item["value"]["rectanglelabels"] == ["Person"] else "Person"
    ]
    return {first_item["id"]}


def shift(results, rng):
    first_item = rng.choice(results)
    first_item["value"]["x"] += rng.choice([-1, 1]) * first_item["value"]["width"] * rng.uniform(0.25, 0.5)
    return {first_item["id"]}


def resize(results, rng):
    first_item = rng.choice(results)
    factor = rng.choice([0.7, 1.4])
    first_item["value"]["width"] *= factor
    first_item["value"]["height"] *= factor
    return {first_item["id"]}


def duplicate(results, rng):
    first_item = copy.deepcopy(rng.choice(results))
    first_item["id"] = "twin"
    first_item["value"]["x"] += 0.3
    results.append(first_item)
    return {"twin"}


def merge(results, rng):
    first = results.pop(rng.randrange(len(results)))
    value = first["value"]
    second = min(results, key=lambda e: abs(e["value"]["x"] - value["x"]) + abs(e["value"]["y"] - value["y"]))
    results.remove(second)
    left, top = min(value["x"], second["value"]["x"]), min(value["y"], second["value"]["y"])
    right = max(e["value"]["x"] + e["value"]["width"] for e in (first, second))
    bottom = max(e["value"]["y"] + e["value"]["height"] for e in (first, second))
    label = value["rectanglelabels"][0]
    results.append(region(left, top, label, width=right - left, height=bottom - top, id_="whole"))
    return {"whole"}


ERRORS = {
    "missing": drop, "extra": add, "label": swap, "low_overlap": shift, "resized": resize, "duplicate": duplicate,
    "merged": merge,
}  # fmt: skip


def drawn_apart(results, rng, spread):
    """The same regions as another annotator would draw them; sides move by this share of their length."""
    for item in results:
        value = item["value"]
        for edge, side in (("x", "width"), ("y", "height")):
            value[edge] += rng.gauss(0, spread) * value[side]
            value[side] *= 1 + rng.gauss(0, spread)
    return results


@pytest.mark.parametrize("turn", [0, 20])
def test_duplicate_box_is_found_despite_small_offsets(offline, turn):
    rng = random.Random(f"apart {turn}")
    tasks = []
    for id_ in range(1, 31):
        truth = [item | {"value": item["value"] | {"rotation": turn}} for item in layout(rng)]
        answers = [drawn_apart(copied(truth, who, rng), rng, 0.01) for who in (1, 2, 3)]
        people = answers[: 2 + id_ % 2]
        duplicate(people[-1], rng)
        tasks.append(task_of(id_, *people))
    report, _ = offline(tasks)
    for task in report["tasks"]:
        (result,) = (item for item in task["conflicts"] if item["type"] != "low_overlap")
        assert result["type"] == "duplicate"
        assert "twin" in result["regions"]


@pytest.mark.parametrize("people", [2, 3])
@pytest.mark.parametrize("error", ERRORS)
def test_an_error_is_named_and_its_region_pointed_at(offline, error, people):
    rng = random.Random(f"{error} {people}")
    tasks, wanted = [], {}
    for id_ in range(1, 41):
        truth = layout(rng)
        answers = [copied(truth, who, rng) for who in range(1, people + 1)]
        touched = ERRORS[error](answers[-1], rng)
        wanted[id_] = touched
        tasks.append(task_of(id_, *answers))
    report, _ = offline(tasks)
    expected = "low_overlap" if error == "resized" else error
    named = pointed = 0
    for task in report["tasks"]:
        result = [item for item in task["conflicts"] if item["type"] == expected]
        named += len(task["conflicts"]) == 1 and bool(result)
        stems = {id_.rsplit("-", 1)[0] for item in result for id_ in item["regions"]}
        pointed += bool(stems & {id_.rsplit("-", 1)[0] for id_ in wanted[task["id"]]})
        assert all(people == 2 or item["annotators"] == [people] for item in result)
    assert named >= 0.95 * len(tasks)
    assert pointed >= 0.98 * len(tasks)


def test_reordered_copies_are_never_disputed(offline):
    rng = random.Random(1)
    tasks = [task_of(id_, *(copied(truth, who, rng) for who in range(1, 4)))
             for id_ in range(1, 61) for truth in [layout(rng)]]  # fmt: skip
    report, consensus = offline(tasks)
    assert {task["verdict"] for task in report["tasks"]} == {"agreed"}
    assert not any(task["conflicts"] for task in report["tasks"])
    assert all(task["agreement"] == 1 for task in report["tasks"])
    assert [len(task["annotations"][0]["result"]) for task in consensus] == [
        len(task["annotations"][0]["result"]) for task in tasks
    ]


def answers_with(rng, wrong):
    def result(kind, value):
        return {"id": f"{kind}1", "from_name": {"choices": "quality", "rating": "stars"}[kind], "to_name": "image",
                "type": kind, "value": {kind: value}}  # fmt: skip

    truth = rng.choice(["good", "bad"])
    answers = []
    for who in range(1, 4):
        word = truth if rng.random() > wrong[who - 1] else {"good": "bad", "bad": "good"}[truth]
        answers.append([result("choices", [word]), result("rating", rng.choice([3, 4, 5]))])
    return answers


def test_a_project_has_statistics_with_intervals_and_people_with_reliability(offline):
    rng = random.Random(2)
    tasks = [task_of(id_, *answers_with(rng, (0.02, 0.05, 0.4))) for id_ in range(1, 121)]
    report, consensus = offline(tasks)
    quality = report["statistics"]["controls"]["quality"]["nominal"]
    assert {"agreement", "cohen_kappa", "fleiss_kappa", "gwet_ac1", "alpha_nominal"} <= set(quality)
    assert all(item["low"] < item["value"] < item["high"] and item["n"] == 120 for item in quality.values())
    stars = report["statistics"]["controls"]["stars"]["ordinal"]["alpha_ordinal"]
    assert abs(stars["value"]) < 0.2
    overall = report["statistics"]["scores"]["overall"]["pairwise"]
    assert overall["low"] < overall["value"] < overall["high"]
    people = {item["annotator"]: item["choices"]["quality"] for item in report["annotators"]}
    assert people[3]["accuracy"]["high"] < people[1]["accuracy"]["low"]
    assert people[3]["accuracy"]["low"] < 0.6 < people[3]["accuracy"]["high"]
    assert sum(sum(row.values()) for row in people[1]["confusion"].values()) == pytest.approx(120, abs=0.1)
    assert set(consensus[0]["meta"]["consensus"]["choices"]) == {"quality"}


def test_too_little_is_said_to_be_too_little(offline):
    rng = random.Random(3)
    report, _ = offline([task_of(1, *answers_with(rng, (0, 0, 0)))])
    alpha = report["statistics"]["controls"]["quality"]["nominal"]["alpha_nominal"]
    assert alpha["value"] is None
    assert alpha["evidence"].startswith("not enough evidence: 1 of the 20")
    assert report["annotators"][0]["choices"]["quality"]["accuracy"]["value"] is None


def test_consensus_is_label_studio_json_and_keeps_ground_truths(offline, tmp_path):
    rng = random.Random(4)
    truth = layout(rng)
    tasks = [task_of(1, truth, copied(truth, 2, rng), []), task_of(2, truth, copied(truth[:2], 2, rng))]
    tasks[1]["annotations"][1]["ground_truth"] = True
    offline(tasks)
    with (tmp_path / "consensus.json").open("rb") as file:
        first_item, two = iter_tasks(file)
    regions = read_annotation(first_item.annotations[0], task=first_item).regions
    assert len(regions) == len(truth)
    assert (len(two.annotations[0].results), two.annotations[0].ground_truth) == (2, True)


def test_the_policy_decides_the_verdict(offline, tmp_path):
    task = task_of(1, [region(10, 10, id_="a")], [region(12, 10, id_="b")])
    assert offline([task])[0]["tasks"][0]["verdict"] == "disputed"
    (tmp_path / "policy.toml").write_text("agreement = 0.5\n")
    assert offline([task], "--policy", str(tmp_path / "policy.toml"))[0]["tasks"][0]["verdict"] == "agreed"


def test_a_task_that_cannot_be_read_stops_no_other(offline, capsys):
    report, consensus = offline([{"id": 1, "data": 5}, task_of(2, [region(1, 1, id_="a")])])
    assert [task["id"] for task in report["tasks"]] == [2] == [task["id"] for task in consensus]
    assert report["summary"]["unreadable"] == ["task 1: data: expected an object, found int"]
    assert "1 task could not be read" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "export.json").unlink(), "No such file"),
        (lambda folder: (folder / "export.json").write_text(""), "it is empty"),
        (lambda folder: (folder / "export.json").write_text("hello"), "not JSON"),
        (lambda folder: (folder / "export.json").write_text('[{"id": 1'), "after 0 tasks"),
        (lambda folder: (folder / "config.xml").write_text("<View"), "not XML"),
        (lambda folder: (folder / "policy.toml").write_text("agreement = 7"), "agreement"),
    ],
    ids=["no file", "empty", "no JSON", "cut off", "no XML", "policy"],
)
def test_bad_input_file_is_reported_and_nothing_is_written(tmp_path, capsys, damage, message):
    (tmp_path / "config.xml").write_text(CONFIG)
    (tmp_path / "export.json").write_text("[]")
    (tmp_path / "policy.toml").write_text("")
    damage(tmp_path)
    files = {"from": "export.json", "label-config": "config.xml", "policy": "policy.toml", "json": "out.json"}
    words = [f"--{name}={tmp_path / file}" for name, file in files.items()]
    with pytest.raises(SystemExit) as ended:
        main(["qc", "report", *words])
    assert ended.value.code == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("name", WRONG_FILES)
def test_wrong_file_type_is_named(tmp_path, capsys, name):
    data, message = WRONG_FILES[name]
    (tmp_path / "export.json").write_bytes(data)
    (tmp_path / "config.xml").write_text(CONFIG)
    files = [f"--from={tmp_path / 'export.json'}", f"--label-config={tmp_path / 'config.xml'}", "--json=-"]
    with pytest.raises(SystemExit) as ended:
        main(["qc", "report", *files])
    assert ended.value.code == 1
    assert message in " ".join(capsys.readouterr().err.split())


def test_an_empty_export_is_an_empty_report(offline):
    report, consensus = offline([])
    assert (report["tasks"], report["annotators"], consensus) == ([], [], [])
