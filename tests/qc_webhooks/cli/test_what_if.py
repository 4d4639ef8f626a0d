"""The past under another policy, from a project's record and from an export; and what a report says about people."""

import json
import random

import pytest

from labelloop.cli.main import main
from qc_webhooks.report.project_summary import summarize_project
from qc_webhooks.schedulers.project_summary import SummaryStore
from qc_webhooks.store.projects import ProjectStore
from qc_webhooks.store.task_facts import FactsExtent
from tests.qc_webhooks.conftest import CONFIG, PROJECT
from tests.qc_webhooks.report.test_project_summary import task as facts_of


def run(*words):
    with pytest.raises(SystemExit) as ended:
        main(["qc", *map(str, words)])
    return ended.value.code


@pytest.fixture
def policy(tmp_path):
    """policy("agreement = 0.9") -> the path of a policy.toml."""

    def write(text, name="new.toml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


@pytest.fixture
def recorded(settings, engine, monkeypatch):
    """A project with a record: two tasks agreed by two, one by three, one for a reviewer."""
    monkeypatch.setenv("LABELLOOP_HOME", str(settings.home))
    ProjectStore(engine).add(PROJECT)
    tasks = [facts_of(1, [0.9]), facts_of(2, [0.8]), facts_of(3, [0.5, 0.9, 0.5]), facts_of(4, [0.2, 0.3, 0.4])]
    SummaryStore(engine).save(PROJECT, *summarize_project(tasks), FactsExtent(4, 1.0), took_s=0.1)


def test_a_record_is_replayed_under_another_policy(recorded, policy, capsys, tmp_path):
    assert not run("what-if", PROJECT, "--policy", policy("agreement = 0.85"), "--json", tmp_path / "out.json")
    messages = json.loads((tmp_path / "out.json").read_text())
    assert messages["in_force"]["agreed"] == {"2": 2, "3": 1}
    assert (messages["in_force"]["review"], messages["what_if"]["open"], messages["what_if"]["labels"]) == (1, 1, 11)
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].split() == ["disputes", "2", "3", "+1"]


def test_setting_that_needs_an_export_is_refused_with_a_fix(recorded, policy, capsys):
    assert run("what-if", PROJECT, "--policy", policy("match_iou = 0.6")) == 1
    output = capsys.readouterr().err
    assert "another match_iou" in output
    assert "--from" in output


@pytest.mark.parametrize("words", [(), (PROJECT, "--from", "x.json")])
def test_what_is_to_be_replayed_must_be_one_thing(policy, words, capsys):
    assert run("what-if", *words, "--policy", policy("")) == 1
    assert "Name a project, or an export" in capsys.readouterr().err


def test_a_project_without_a_record_says_what_to_do(settings, engine, policy, capsys, monkeypatch):
    monkeypatch.setenv("LABELLOOP_HOME", str(settings.home))
    ProjectStore(engine).add(PROJECT)
    for _ in ("no summary", "a summary of no task, made before the first verdict"):
        assert run("what-if", PROJECT, "--policy", policy("")) == 1
        assert "labelloop worker" in capsys.readouterr().err
        SummaryStore(engine).save(PROJECT, *summarize_project([]), FactsExtent(0, 0.0), took_s=0.1)


@pytest.fixture
def exported(tmp_path, box):
    """Forty tasks of three people; the third draws every second box a quarter aside, and hands in hastily."""
    rng = random.Random(0)
    tasks = []
    for number in range(1, 41):
        annotations = []
        for who in (1, 2, 3):
            off = 5.0 if who == 3 and number % 2 else rng.uniform(0, 0.3)
            annotations.append({
                "id": 10 * number + who, "completed_by": who, "result": [box(10 + off), box(60 + off, label="Person")],
                "updated_at": f"2026-01-{1 + number // 10:02}T00:00:0{who}Z", "lead_time": 3.0 if who == 3 else 30.0,
            })  # fmt: skip
        tasks.append({"id": number, "data": {"image": "a.jpg"}, "annotations": annotations})
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    (tmp_path / "config.xml").write_text(CONFIG)
    return ["--from", tmp_path / "export.json", "--label-config", tmp_path / "config.xml"]


def test_an_export_is_judged_anew_for_any_setting(exported, policy, tmp_path, capsys):
    new = policy("annotators = 3\nmatch_iou = 0.95\nnear_iou = 0.1")
    assert not run("what-if", *exported, "--policy", new, "--json", tmp_path / "out.json")
    messages = json.loads((tmp_path / "out.json").read_text())
    assert messages["in_force"]["agreed"] == {"2": 40}
    assert messages["in_force"]["labels"] == 80
    assert messages["what_if"]["labels"] == 120
    assert sum(messages["what_if"]["agreed"].values()) + messages["what_if"]["review"] == 40


def test_a_report_tells_how_people_work(exported, tmp_path, capsys):
    assert not run("report", *exported, "--json", tmp_path / "report.json")
    people = {item["annotator"]: item for item in json.loads((tmp_path / "report.json").read_text())["annotators"]}
    assert people[3]["speed"]["hasty"]["value"] == 1.0
    assert people[1]["speed"]["pace"]["value"] == pytest.approx(10**0.5, rel=0.01)
    assert people[1]["drift"] is None
    assert people[1]["anchoring"] is None
    assert [person["concerns"] for person in people.values()][:2] == [[], []]
    assert "100 % of the tasks took less than a quarter of the others' time." in people[3]["concerns"]
    assert people[3]["regions"]["recall"]["n"] > 0  # the other sections are unchanged
    assert "  ! 100 % of the tasks" in capsys.readouterr().out


REVIEWED = """
[[review]]
operator = "gte"
threshold = 0
share = 0.5

[[rules]]
rule = "min_regions"
value = 3
labels = ["Person"]
effect = "block"
"""


@pytest.mark.parametrize(
    "text", ["", "review_share = 0.3", REVIEWED, "agreement = 0.99\nmax_annotators = 2\n[conflicts]\npixels = 0"]
)
def test_what_if_sends_to_review_what_the_report_does(exported, policy, tmp_path, text, capsys):
    path = policy(text)
    assert not run("report", *exported, "--policy", path, "--json", tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert not run("what-if", *exported, "--policy", path, "--against", path, "--json", tmp_path / "out.json")
    messages = json.loads((tmp_path / "out.json").read_text())
    reviewed = sum(bool(task["review"]) or task["verdict"] == "disputed" for task in report["tasks"])
    if "max_annotators" in text:
        assert messages["what_if"]["review"] > 0  # the report judges all three, the replay the first two
    else:
        assert messages["what_if"]["review"] == reviewed == report["summary"]["to_review"]
    assert messages["left_out"] == []


def test_a_record_says_which_settings_it_leaves_out(recorded, policy, capsys, tmp_path):
    assert not run("what-if", PROJECT, "--policy", policy(REVIEWED), "--json", tmp_path / "out.json")
    (line,) = json.loads((tmp_path / "out.json").read_text())["left_out"]
    assert line.startswith("review, rules: left out")
    assert line in capsys.readouterr().out


def test_what_if_says_what_of_an_export_it_leaves_out(exported, policy, tmp_path, capsys):
    path = tmp_path / "export.json"
    tasks = json.loads(path.read_text())
    tasks[0]["annotations"][2]["ground_truth"] = True
    tasks[1] |= {"predictions": [7]}
    path.write_text(json.dumps([*tasks, {"id": 99, "data": 5}]))
    assert not run("what-if", *exported, "--policy", policy("least_model_score = 0.5"))
    output = capsys.readouterr().out
    assert "1 task has a ground truth" in output
    assert "1 task could not be read" in output
    assert "1 task with pre-labels by id only" in output


@pytest.mark.parametrize("lost", [None, 7, "text", [1]])
def test_an_annotation_that_is_no_object_was_submitted_too(exported, tmp_path, lost):
    path = tmp_path / "export.json"
    (task, *_) = json.loads(path.read_text())
    first_item = task | {"annotations": [task["annotations"][0], lost]}
    path.write_text(json.dumps([first_item, first_item | {"id": 2, "annotations": lost}]))
    assert not run("report", *exported, "--json", tmp_path / "report.json")
    first, second = json.loads((tmp_path / "report.json").read_text())["tasks"]
    assert (first["verdict"], first["annotators"]) == ("not_judged", 2)
    assert bool(second["unread"]) == (lost is not None)  # without any annotations nothing was submitted
    assert not run("consensus", *exported, "--out", tmp_path / "out.json")
    created, *_ = json.loads((tmp_path / "out.json").read_text())
    assert created["annotations"][0]["result"]
    assert "not read whole" in created["meta"]["consensus"]["rejected"][0]["reason"]


def test_tasks_that_cannot_be_judged_are_no_disputes(exported, policy, tmp_path, capsys):
    path = tmp_path / "export.json"
    tasks = json.loads(path.read_text())
    for task in tasks[:5]:
        task["annotations"][0]["result"] = "lost"
        if task["id"] % 2:  # further aside than two careful annotators ever draw
            for result in task["annotations"][2]["result"]:
                result["value"]["x"] += 5
    path.write_text(json.dumps(tasks))
    assert not run("report", *exported, "--json", tmp_path / "report.json")
    assert "3 not judged" in capsys.readouterr().out  # of the other two tasks the two who can be read agree
    assert not run("what-if", *exported, "--policy", policy("review_not_judged = false"), "--json", tmp_path / "o.json")
    messages = json.loads((tmp_path / "o.json").read_text())
    assert [messages[item]["not_judged"] for item in ("in_force", "what_if")] == [5, 5]
    assert messages["in_force"]["review"] - messages["what_if"]["review"] == 5
