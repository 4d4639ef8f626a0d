"""On stock Label Studio: annotators are measured by known ground truths, and a review project decides in one click."""

import json

import pytest

from tests.system.browser_fixtures import log_in, screenshot
from tests.system.loop_fixtures import LABEL_CONFIG, delete_project, eventually

pytestmark = pytest.mark.system

POLICY = """
ground_truth_share = 0.5
review_project = true
max_annotators = 2
"""


def drawn(x, label="Motorbike", name="r"):
    value = {"x": x, "y": 20, "width": 30, "height": 40, "rotation": 0, "rectanglelabels": [label]}
    return {
        "id": f"{name}{x}", "from_name": "objects", "to_name": "image", "type": "rectanglelabels",
        "original_width": 512, "original_height": 512, "value": value,
    }  # fmt: skip


class Desk:
    """The project with its tasks, as the admin sees it."""

    def __init__(self, admin, project):
        self.admin, self.project = admin, project

    def tasks(self, project=None):
        asked = {"project": project or self.project, "fields": "all", "resolve_uri": "false", "review": "true"}
        return self.admin.get("/api/tasks/", **asked)["tasks"]

    def task(self, number):
        return next(task for task in self.tasks() if task["id"] == number)

    def truth(self, number):
        return [each for each in self.task(number)["annotations"] if each["ground_truth"]]

    def settings(self):
        return self.admin.get(f"/api/projects/{self.project}/")

    def review(self):
        title = f"{self.settings()['title']}: review"
        found = self.admin.get("/api/projects/", page_size=100)["results"]
        return next((each for each in found if each["title"] == title), None)


@pytest.fixture(scope="module")
def desk(loop, people, photos):
    """Two tasks with a ground truth as an import makes it, and six without; two annotators a task."""
    admin = people["admin"]
    body = {"title": "Measured", "label_config": LABEL_CONFIG, "maximum_annotations": 2}
    number = admin.ask("POST", "/api/projects/", json=body).raise_for_status().json()["id"]
    file = [("file", ("motorcycle_left.jpg", photos["motorcycle_left.jpg"], "image/jpeg"))]
    admin.ask("POST", f"/api/projects/{number}/import", files=file).raise_for_status()
    photo = Desk(admin, number).tasks()[0]["data"]["image"]
    rows = [{"data": {"image": photo}} for _ in range(5)]
    rows += [{"data": {"image": photo}, "annotations": [{"result": [drawn(10)]}]} for _ in range(2)]
    admin.ask("POST", f"/api/projects/{number}/import", json=rows).raise_for_status()
    policy = loop.home / "qc" / str(number) / "policy.toml"
    policy.parent.mkdir(parents=True, exist_ok=True)
    policy.write_text(POLICY)
    said = loop.command("connect", str(number)).stdout
    assert "review project" in said
    yield Desk(admin, number)
    delete_project(admin, number)


@pytest.fixture(scope="module")
def golds(desk):
    return [task["id"] for task in desk.tasks() if any(each["ground_truth"] for each in task["annotations"])]


def test_truths_are_held_back_until_somebody_is_due(desk, golds, people):
    assert len(golds) == 2
    eventually(lambda: all(desk.task(gold)["is_labeled"] for gold in golds), what="holding them back")
    eventually(lambda: desk.settings()["annotator_evaluation_enabled"], what="telling Label Studio")
    assert people["anna"].next_task(desk.project)["id"] not in golds


def test_who_is_due_is_served_one_blind_and_is_measured(desk, golds, people):
    anna = people["anna"]
    served = []
    for _ in range(2):
        task = anna.next_task(desk.project)
        anna.submit(task["id"], [drawn(10)])
        served.append(task["id"])
        eventually(lambda: any(not desk.task(gold)["is_labeled"] for gold in golds) or len(served) < 2, what="a seed")
    assert not set(served) & set(golds)
    task = anna.next_task(desk.project)
    assert task["id"] in golds, "the next one is a task with a ground truth"
    assert task["annotations"] == []
    assert not task["data"].get("qc_note")
    before = desk.truth(task["id"])
    anna.submit(task["id"], [drawn(11)])
    eventually(lambda: desk.task(task["id"])["data"].get("qc_annotators") == 2, what="the verdict")
    assert desk.task(task["id"])["data"]["qc_status"] == "agreed"
    assert [each["id"] for each in desk.truth(task["id"])] == [each["id"] for each in before]
    assert desk.task(task["id"])["is_labeled"]


def test_the_report_tells_how_far_each_agrees_with_the_truth(desk, loop, people, tmp_path):
    export = desk.admin.ask("GET", f"/api/projects/{desk.project}/export?exportType=JSON&download_all_tasks=true")
    (tmp_path / "export.json").write_bytes(export.raise_for_status().content)
    (tmp_path / "config.xml").write_text(LABEL_CONFIG)
    words = ("--from", str(tmp_path / "export.json"), "--label-config", str(tmp_path / "config.xml"))
    loop.command("qc", "report", *words, "--json", str(tmp_path / "report.json"))
    rows = {each["annotator"]: each for each in json.loads((tmp_path / "report.json").read_text())["annotators"]}
    assert rows[people["anna"].id]["against_truth"]["n"] == 1
    assert "5 required" in rows[people["anna"].id]["against_truth"]["evidence"], "one task says too little"


def test_a_dispute_is_decided_by_one_click_in_the_review_project(desk, people, label_studio, page, tmp_path):
    number = next(
        task["id"]
        for task in desk.tasks()
        if {each["completed_by"] for each in task["annotations"]} == {people["anna"].id}
    )
    people["ben"].submit(number, [drawn(60, "Cat")])
    review = desk.review()
    made = eventually(lambda: [each for each in desk.tasks(review["id"]) if each["predictions"]], what="the copy")
    assert "One annotator has a" in made[0]["data"]["qc_note"]
    eventually(lambda: desk.review()["model_version"] == "QC consensus", what="the consensus in the stream")
    label_studio.user("rita@example.com")
    log_in(page, label_studio, "rita@example.com")
    page.goto(f"{label_studio.url}/projects/{review['id']}/data?labeling=1")
    page.locator("[class*=outliner-item__title]").first.wait_for()
    page.wait_for_timeout(1500)  # the photograph fades in
    assert page.get_by_text("One annotator has a").count(), "the note stands above the photograph"
    screenshot(page, "review_stream.png", tmp_path)
    page.locator('button:has-text("Submit")').first.click()
    (truth,) = eventually(lambda: desk.truth(number), what="the decision")
    assert truth["completed_by"] == label_studio.user("rita@example.com")[1]
    eventually(lambda: desk.tasks(review["id"]) == [], what="the end of the copy")
    data = desk.task(number)["data"]
    assert (data["qc_status"], data["qc_review"]) == ("agreed", "no")


def test_undo_takes_all_of_it_back(desk, golds, loop):
    said = loop.command("qc", "undo", str(desk.project)).stdout
    assert "ground truth: annotation" in said
    assert "the reviewer's annotation stays" in said
    kept = {task["id"]: task for task in desk.tasks()}
    assert not [name for task in kept.values() for name in task["data"] if name.startswith("qc_")]
    assert {kept[gold]["overlap"] for gold in golds} == {2}
    assert all(len([one for one in kept[gold]["annotations"] if one["ground_truth"]]) == 1 for gold in golds)


def test_without_the_setting_everything_is_as_it_was(desk, loop):
    (loop.home / "qc" / str(desk.project) / "policy.toml").write_text("max_annotators = 2\n")
    eventually(lambda: not desk.settings()["annotator_evaluation_enabled"], what="telling Label Studio")
