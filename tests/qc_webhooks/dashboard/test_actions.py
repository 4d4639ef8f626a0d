"""Forms of the dashboard: send back, accept, confirm a ground truth, adopt the new default."""

import re

import pytest
import sqlalchemy as sa

from labelloop.service.settings import Settings
from qc_webhooks.server.app import create_app
from qc_webhooks.store.projects import ProjectStore
from qc_webhooks.store.send_backs import SendBackStore
from qc_webhooks.store.tables import PROJECTS
from tests.qc_webhooks.conftest import HASHED, PASSWORD, PROJECT

ANNE, BEN, CLEO, RITA = 1, 2, 3, 9
COMMENT = "The car at the right is missing."
BASE = f"/dashboard/{PROJECT}"


@pytest.fixture
def projects(engine):
    projects = ProjectStore(engine)
    projects.add(PROJECT)
    return projects


@pytest.fixture
def browser(settings, engine, projects):
    client = create_app(Settings(home=settings.home, dashboard_password=HASHED)).test_client()
    form = {"password": PASSWORD, "csrf_token": token(client.get("/dashboard/login"))}
    assert client.post("/dashboard/login", data=form).status_code == 302
    return client


@pytest.fixture
def disputed(studio, box, check, projects):
    task = studio.add_task()
    studio.annotate(task, ANNE, [box(0), box(60)])
    studio.annotate(task, BEN, [box(0)])
    check(task)
    return task


def token(page):
    return re.search(r'name="csrf_token" value="([^"]+)"', page.text)[1]


def send(browser, page, action, **form):
    """Submit a form of a page; returns the page that follows."""
    form["csrf_token"] = token(browser.get(page))
    return browser.post(f"{BASE}{action}", data=form, follow_redirects=True)


def test_a_task_is_sent_back_and_accepted_on_its_page(browser, studio, box, check, engine, disputed):
    page = f"{BASE}/disputes/{disputed}"
    answer = send(browser, page, f"/disputes/{disputed}/send-back", annotator=BEN, comment=COMMENT)
    assert "Sent back. Within seconds" in answer.text
    assert COMMENT in answer.text
    check(disputed)
    assert studio.tasks_by_id[disputed]["data"]["qc_sent_back"] == "sent back"
    assert "1 task</a> sent back to an annotator" in browser.get(f"{BASE}/disputes").text
    assert '<span class="state">sent back to an annotator</span>' in browser.get(page).text
    studio.edit_annotation(2, result=[box(0), box(60)])
    check(disputed)
    assert "Accept the redone work" in browser.get(page).text
    assert '<span class="state">redone, to accept</span>' in browser.get(page).text
    assert f"Task {disputed}" in browser.get(f"{BASE}/disputes?state=redone").text
    assert "Accepted." in send(browser, page, f"/disputes/{disputed}/accept").text
    check(disputed)
    assert SendBackStore(engine).of_task(PROJECT, disputed)[0].state == "accepted"


@pytest.mark.parametrize(
    ("form", "status"),
    [({"annotator": BEN}, 400), ({"annotator": 77, "comment": COMMENT}, 404), ({"comment": COMMENT}, 404)],
)
def test_an_incomplete_form_is_refused_with_the_reason(browser, disputed, form, status):
    answer = send(browser, f"{BASE}/disputes/{disputed}", f"/disputes/{disputed}/send-back", **form)
    assert answer.status_code == status


@pytest.mark.parametrize("action", ["send-back", "accept", "confirm-truth"])
def test_a_form_without_the_token_changes_nothing(browser, disputed, action):
    assert browser.post(f"{BASE}/disputes/{disputed}/{action}", data={"annotator": BEN}).status_code == 403


def test_a_ground_truth_in_doubt_is_listed_and_confirmed(browser, studio, box, check, projects):
    task = studio.add_task()
    for who in (ANNE, BEN, CLEO):
        studio.annotate(task, who, [box(0)])
    studio.annotate(task, RITA, [box(0), box(60)], ground_truth=True)
    check(task)
    data = studio.tasks_by_id[task]["data"]
    assert (data["qc_status"], data["qc_review"]) == ("agreed", "yes")
    assert "The ground truth (annotation 4) may be wrong" in data["qc_note"]
    assert studio.tabs(task) == []
    assert "1 ground truth</a> in doubt" in browser.get(f"{BASE}/disputes").text
    page = f"{BASE}/disputes/{task}"
    assert "The ground truth (annotation 4) may be wrong" in browser.get(page).text
    assert f"Task {task}" in browser.get(f"{BASE}/disputes?state=truth").text
    assert '<span class="state">ground truth in doubt</span>' in browser.get(page).text
    assert "is confirmed" in send(browser, page, f"/disputes/{task}/confirm-truth", annotation=4).text
    check(task)
    assert studio.tasks_by_id[task]["data"]["qc_review"] == "no"
    assert "in doubt" not in browser.get(f"{BASE}/disputes").text.replace("ground truth in doubt</option>", "")


def test_the_new_default_is_shown_and_adopted(browser, studio, box, check, engine, projects):
    with engine.begin() as connection:
        connection.execute(sa.update(PROJECTS).values(defaults=None))
    task, objects = studio.add_task(), [box(10 * index, width=6.0) for index in range(10)]
    studio.annotate(task, ANNE, objects)
    studio.annotate(task, BEN, objects[:7])
    assert check(task).verdict.outcome == "agreed"
    page = browser.get(f"{BASE}/what-if").text
    assert "1 of 1 tasks" in page
    answer = send(browser, f"{BASE}/what-if", "/what-if/adopt")
    assert "The new default is in force" in answer.text
    assert check(task).verdict.outcome == "disputed"
    assert "The new default" not in browser.get(f"{BASE}/what-if").text
