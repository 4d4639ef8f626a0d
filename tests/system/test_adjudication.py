"""A dispute adjudicated inside stock Label Studio: overlays in order, one accepted, the truth exported, and undone."""

import json

import pytest

from tests.system.browser_fixtures import log_in, screenshot
from tests.system.loop_fixtures import eventually

pytestmark = pytest.mark.system

OVERLAYS = ["QC consensus", "QC: A", "QC: B", "QC: C"]
ANNOTATORS = ("anna", "ben", "cleo")


# Everybody marks the motorbike; each takes something else for one besides: a bicycle, a wheel, the other wheel.
ELSE = ((0, 36, 9, 12), (59, 66, 36, 27), (15, 49, 30, 36))


def drawn(x, y, width, height, label="Motorbike"):
    value = {"x": x, "y": y, "width": width, "height": height, "rotation": 0, "rectanglelabels": [label]}
    return {
        "id": f"r{x}", "from_name": "objects", "to_name": "image", "type": "rectanglelabels", "original_width": 512,
        "original_height": 512, "value": value,
    }  # fmt: skip


class Review:
    """The project as its reviewer sees it."""

    def __init__(self, admin, project):
        self.admin, self.project = admin, project

    def tasks(self):
        asked = {"project": self.project, "fields": "all", "resolve_uri": "false", "review": "true"}
        return self.admin.get("/api/tasks/", **asked)["tasks"]

    def task(self, number):
        return next(task for task in self.tasks() if task["id"] == number)

    def kept(self, number):
        """The task as it is stored: without what counts the minutes since."""
        task = self.task(number)
        for each in (*task["predictions"], *task["annotations"]):
            each.pop("created_ago", None)
        return task

    def predictions(self, number):
        """As the quick view shows the tabs: the newest first."""
        return sorted(self.task(number)["predictions"], key=lambda each: -each["id"])

    def overlays(self, number):
        return [name for each in self.predictions(number) if (name := each["model_version"]).startswith("QC")]

    def overlay(self, number, version):
        return next(each for each in self.predictions(number) if each["model_version"] == version)

    def truths(self, number):
        return [each["id"] for each in self.task(number)["annotations"] if each["ground_truth"]]

    def view(self, title):
        views = self.admin.get("/api/dm/views/", project=self.project)
        return next(view for view in views if view["data"]["title"] == title)

    def tab(self, title):
        return {task["id"] for task in self.admin.get("/api/tasks/", view=self.view(title)["id"])["tasks"]}

    def is_closed(self, number):
        data = self.task(number)["data"]
        return not self.overlays(number) and (data.get("qc_status"), data.get("qc_review")) == ("agreed", "no")


@pytest.fixture(scope="module")
def review(project, people):
    return Review(people["admin"], project)


@pytest.fixture(scope="module")
def disputed(review, people):
    """Three tasks that three annotators dispute: all have the motorbike, and each has another one besides."""
    photo = {"image": review.tasks()[0]["data"]["image"]}
    review.admin.ask("POST", f"/api/projects/{review.project}/import", json=[photo, photo]).raise_for_status()
    numbers = [task["id"] for task in review.tasks()]
    for number in numbers:
        review.admin.get(f"/api/tasks/{number}/")  # whoever opens it first has it pre-labelled
    for number in numbers:
        for place, name in enumerate(ANNOTATORS):
            people[name].submit(number, [drawn(12 + place, 22, 80, 72), drawn(*ELSE[place])])
            assert not review.overlays(number), "overlays before the last blind annotation"
    for number in numbers:
        eventually(lambda number=number: review.overlays(number) == OVERLAYS, what="the overlays")
    return numbers


def test_the_overlays_stand_in_order_and_say_what_is_disputed(disputed, review, people):
    assert review.tab("QC: to review") == set(disputed)
    for number in disputed:
        *shown, model = (each["model_version"] for each in review.predictions(number))
        assert shown == OVERLAYS
        assert model.startswith("base-")
        (bike,) = review.overlay(number, "QC consensus")["result"]
        assert bike["value"]["x"] == pytest.approx(13, abs=0.01)
        _, extra = review.overlay(number, "QC: B")["result"]
        assert "One annotator has a Motorbike" in extra["meta"]["text"][0]
        said = json.dumps(review.overlay(number, "QC: B")).lower()
        assert not any(f"{name}@" in said for name in ANNOTATORS)
    project = people["admin"].get(f"/api/projects/{review.project}/")
    assert project["model_version"].startswith("base-"), "annotators go on being served the model's pre-labels"


def test_the_prediction_score_stays_the_models(disputed, review):
    """The uncertainty queue and the Data Manager go by it."""
    own = {number: review.predictions(number)[-1] for number in disputed}
    view = {"project": review.project, "data": {"title": "scores", "ordering": ["tasks:predictions_score"]}}
    made = review.admin.ask("POST", "/api/dm/views/", json=view).raise_for_status().json()
    listed = review.admin.get("/api/tasks/", view=made["id"])["tasks"]
    scores = {task["id"]: task["predictions_score"] for task in listed}
    assert scores == pytest.approx({number: own[number]["score"] for number in disputed})


def test_a_reviewer_closes_a_dispute_in_three_clicks(disputed, review, label_studio, page, tmp_path):
    number = disputed[0]
    label_studio.user("rita@example.com")
    log_in(page, label_studio, "rita@example.com")
    tab = review.view("QC: to review")["id"]
    page.goto(f"{label_studio.url}/projects/{review.project}/data?tab={tab}&task={number}")
    page.get_by_text("QC consensus").first.click()
    page.locator("[class*=outliner-item__title]").first.wait_for()
    page.get_by_text("No majority among 3 annotators").first.wait_for()  # the note above the photograph
    page.wait_for_timeout(1500)  # the photograph fades in
    page.get_by_text("QC consensus").first.hover()
    page.locator("[class*=annotation-button] [class*=trigger]").first.click()  # 1: the three dots
    page.get_by_text("Duplicate Annotation").first.wait_for()
    screenshot(page, "adjudication.png", tmp_path)
    page.get_by_text("Duplicate Annotation").first.click()  # 2
    page.locator('button:has-text("Submit")').first.click()  # 3
    eventually(lambda: review.is_closed(number), what="the end of the dispute")
    (truth,) = review.truths(number)
    assert truth == max(each["id"] for each in review.task(number)["annotations"])
    assert number not in review.tab("QC: to review") | review.tab("QC: disputed")


def test_the_bulk_action_accepts_many_at_once(disputed, review):
    chosen = disputed[1:]
    body = {"model_version": "QC consensus", "selectedItems": {"all": False, "included": chosen}}
    where = f"/api/dm/actions?id=predictions_to_annotations&project={review.project}"
    review.admin.ask("POST", where, json=body).raise_for_status()
    for number in chosen:
        eventually(lambda number=number: review.is_closed(number), what="the end of the dispute")
        assert len(review.truths(number)) == 1
    assert review.tab("QC: to review") == review.tab("QC: disputed") == set()


def test_the_truth_is_what_is_exported(disputed, review, loop, tmp_path):
    """Runs after the disputes were closed: each photograph has the one box of the consensus."""
    assert all(review.truths(number) for number in disputed)
    to = tmp_path / "set"
    words = ("--format", "coco", "--to", f"file://{to}", "--annotation", "ground-truth")
    loop.command("export", str(review.project), *words)
    loop.command("dataset", "pull", f"file://{to}", "--no-images", "--to", str(tmp_path / "pulled"))
    found = (tmp_path / "pulled").rglob("instances_*.json")
    boxes = [box for file in found for box in json.loads(file.read_bytes())["annotations"]]
    assert len(boxes) == len(disputed) == 3


def test_closing_wrote_once_and_can_be_undone(disputed, review, loop):
    number = disputed[0]
    before = review.kept(number)
    loop.command("qc", "recheck", str(review.project))
    eventually(lambda: " 0" in loop.command("inbox", "counts").stdout.splitlines()[0], what="an empty inbox")
    assert review.kept(number) == before
    said = loop.command("qc", "undo", str(review.project), "--task", str(number), "--last", "3").stdout
    assert "ground truth: annotation" in said
    assert "overlays: skipped" in said
    assert review.truths(number) == []
    assert review.task(number)["data"]["qc_review"] == "yes"
    # the dispute is open again, with the reviewer's version as one more stance
    eventually(lambda: review.overlays(number)[:1] == ["QC consensus"], what="the overlays")
    loop.command("qc", "undo", str(review.project), "--task", str(number))
    assert review.overlays(number) == []
    assert not [name for name in review.task(number)["data"] if name.startswith("qc_")]
