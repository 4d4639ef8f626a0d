"""The dashboard through Flask's client: the log-in, every page, the queue, files and photos."""

import csv
import io
import itertools
import json
import re
import shutil
from html import unescape

import msgspec
import pytest
from PIL import Image

from labelloop.service.db.engine import open_database
from labelloop.service.settings import Settings
from labelloop.service.web.app import create_web_app
from qc_webhooks.annotators.diagnosis import say
from qc_webhooks.dashboard import add_dashboard
from qc_webhooks.dashboard.auth import MAX_FREE_GUESSES, password_hash, safe_next
from qc_webhooks.dashboard.dispute_queue import PAGE_SIZE
from qc_webhooks.dashboard.downloads import DOWNLOADS
from qc_webhooks.pipeline.checker import Checker
from qc_webhooks.report.tuning import Tuning, TuningPoint
from qc_webhooks.report.tuning_store import save_tuning
from qc_webhooks.schedulers.project_summary import SummaryScheduler, SummaryStore
from qc_webhooks.server.app import create_app
from qc_webhooks.store.decisions import DecisionStore
from qc_webhooks.store.projects import ProjectStore
from qc_webhooks.store.task_facts import FactStore
from tests.accessibility import faults
from tests.qc_webhooks.conftest import HASHED, PASSWORD, PROJECT, QcStudio, studio_of_people

EVIL = "<script>alert(1)</script>"
IDS = itertools.count()
BASE = f"/dashboard/{PROJECT}"
PAGES = ("/", "/disputes", "/disputes?state=review&kind=label&sort=newest", "/agreement", "/labels", "/annotators",
         "/annotators?sort=-recall", "/what-if", "/what-if?agreement=0.9&annotators=2&max_annotators=3")  # fmt: skip


@pytest.fixture
def photos(tmp_path):
    """Two photos that Label Studio serves as local files."""
    folder = tmp_path / "files"
    folder.mkdir()
    Image.new("RGB", (1200, 600), (90, 120, 60)).save(folder / "a.jpg")
    (folder / "broken.jpg").write_bytes(b"no photo")
    return folder


@pytest.fixture
def closed(settings, photos):
    """Settings with a password."""
    return Settings(home=settings.home, dashboard_password=HASHED, local_files_root=photos, label_studio_api_key="k",
                    label_studio_public_url="https://labels.example.org")  # fmt: skip


@pytest.fixture
def client(closed, engine):
    """A browser that is not logged in."""
    return create_app(closed).test_client()


def token(page):
    return re.search(r'name="csrf_token" value="([^"]+)"', page.text)[1]


def log_in(client, password=PASSWORD, **more):
    page = client.get("/dashboard/login", **more)
    return client.post(
        "/dashboard/login", data={"csrf_token": token(page), "password": password} | more.pop("data", {}), **more
    )


@pytest.fixture
def inside(client):
    """A browser that is logged in."""
    assert log_in(client).status_code == 302
    return client


def named_studio():
    """A Label Studio whose names are scripts and formulas."""
    return studio_of_people(f"Cars {EVIL}", *({"first_name": name} for name in ("Anna", EVIL, "=1+1")))


@pytest.fixture(scope="module")
def judged(tmp_path_factory, migrated):
    """The database of a project of 40 tasks, 20 of them disputed, judged by the real checker; one label is a script."""
    home = tmp_path_factory.mktemp("judged")
    shutil.copyfile(migrated, home / "labelloop.sqlite3")
    engine, studio = open_database(Settings(home=home)), QcStudio()
    ProjectStore(engine).add(PROJECT)
    checker = Checker(studio, DecisionStore(engine), home)
    for number in range(40):
        task = studio.add_task(image="/data/local-files/?d=" + ("broken.jpg" if number == 1 else "a.jpg"))
        other = ("Car", "Person", "Car", EVIL)[number % 4]
        studio.annotate(task, 1, [box(10), box(60), choice("good")], lead_time=20.0)
        studio.annotate(task, 2, [box(10.3, other), box(60.2), choice("good")], lead_time=25.0)
        if number % 8 == 1:
            studio.annotate(task, 3, [box(30), choice("bad")], lead_time=22.0)
        checker.check(PROJECT, task)
    SummaryScheduler(engine, named_studio()).run()
    engine.dispose()
    return home / "labelloop.sqlite3"


def box(x, label="Car"):
    value = {"x": x, "y": 10.0, "width": 20.0, "height": 30.0, "rotation": 0.0, "rectanglelabels": [label]}
    return {"id": f"r{next(IDS)}", "from_name": "label", "to_name": "image", "type": "rectanglelabels",
            "original_width": 1200, "original_height": 600, "value": value}  # fmt: skip


def choice(answer):
    return {"from_name": "quality", "to_name": "image", "type": "choices", "value": {"choices": [answer]}}


@pytest.fixture
def filled():
    """Asked for by tests whose database is to be the judged one."""


@pytest.fixture
def engine(request, settings, migrated):
    """A database of the test's own: the judged one, or an empty one."""
    source = request.getfixturevalue("judged") if "filled" in request.fixturenames else migrated
    settings.home.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, settings.home / "labelloop.sqlite3")
    engine = open_database(settings)
    yield engine
    engine.dispose()


def test_without_a_password_there_is_no_dashboard(settings, engine):
    client = create_app(settings).test_client()
    assert client.get("/").headers["Location"] == "/dashboard/"
    assert client.get("/dashboard/").headers["Location"].startswith("/dashboard/login")
    page = client.get("/dashboard/login")
    assert "The dashboard is off" in page.text
    assert "LABELLOOP_DASHBOARD_PASSWORD" in page.text
    with client.session_transaction() as session:
        session["csrf_token"] = "t"
    assert client.post("/dashboard/login", data={"csrf_token": "t", "password": ""}).status_code == 403


def test_a_short_password_is_refused_at_the_start(settings):
    with pytest.raises(Exception, match="LABELLOOP_DASHBOARD_PASSWORD: it has fewer than 10 characters"):
        Settings(home=settings.home, dashboard_password="short")


@pytest.mark.parametrize("path", ["/dashboard/", *(BASE + page for page in PAGES), f"{BASE}/files/tasks.csv",
                                  f"{BASE}/photos/1/0/480.jpg", f"{BASE}/disputes/1"])  # fmt: skip
def test_nothing_is_shown_before_the_log_in(client, filled, path):
    answer = client.get(path)
    assert answer.status_code == 302
    assert answer.headers["Location"].startswith("/dashboard/login?next=")


def test_log_in_redirects_to_the_requested_page(client, filled):
    requested = client.get(f"{BASE}/disputes?page=2").headers["Location"]
    page = client.get(requested)
    form = {
        "csrf_token": token(page),
        "password": PASSWORD,
        "next": re.search(r'name="next" value="([^"]+)"', page.text)[1],
    }
    answer = client.post("/dashboard/login", data=form)
    assert answer.headers["Location"] == f"{BASE}/disputes?page=2"
    cookie = answer.headers["Set-Cookie"]
    assert all(part in cookie for part in ("HttpOnly", "SameSite=Lax", "Path=/dashboard"))
    assert PASSWORD not in cookie


def test_behind_https_the_cookie_travels_encrypted_only(closed, engine):
    client = create_app(closed.replace(qc_url="https://qc.example.org")).test_client()
    assert "Secure" in client.get("/dashboard/login").headers["Set-Cookie"]


@pytest.mark.parametrize(
    ("target", "goes_to"),
    [
        (f"{BASE}/labels", f"{BASE}/labels"),
        ("https://evil.example/dashboard/", "/dashboard/"),
        ("//evil.example/dashboard/", "/dashboard/"),
        ("/dashboard/\\evil.example", "/dashboard/"),
        ("/webhook", "/dashboard/"),
        ("/dashboard/logout", "/dashboard/"),
        ("", "/dashboard/"),
    ],
)
def test_the_log_in_leads_to_no_other_site(target, goes_to):
    assert safe_next(target) == goes_to


def test_wrong_password_is_refused_and_never_logged(client, caplog):
    answer = log_in(client, "guessed-it-wrong")
    assert answer.status_code == 403
    assert "The password is wrong" in answer.text
    assert client.get("/dashboard/").status_code == 302
    assert "dashboard_password_wrong" in caplog.text
    assert "guessed-it-wrong" not in caplog.text + answer.text


def test_a_form_without_our_token_is_refused(client, inside):
    assert client.post("/dashboard/logout").status_code == 403
    assert client.post("/dashboard/login", data={"password": PASSWORD}).status_code == 403
    assert client.get("/dashboard/login").status_code == 302  # still inside


def test_logging_out_ends_the_session(inside):
    assert inside.get("/dashboard/").status_code == 200
    inside.post("/dashboard/logout", data={"csrf_token": token(inside.get("/dashboard/"))})
    assert inside.get("/dashboard/").status_code == 302


def test_another_password_ends_every_session(inside, closed, engine):
    cookie = inside.get_cookie("labelloop_dashboard", path="/dashboard").value
    changed = create_app(closed.replace(dashboard_password=type(closed.dashboard_password)("another-one-9")))
    other = changed.test_client()
    other.set_cookie("labelloop_dashboard", cookie, path="/dashboard")
    assert other.get("/dashboard/").status_code == 302


@pytest.fixture
def clocked(closed, engine):
    """(clock, make): make() -> a browser of a process of its own; clock[0] is the time of all of them."""
    clock = [1_000_000.0]

    def make():
        app = create_web_app("test", closed)
        add_dashboard(app, closed, engine, clock=lambda: clock[0])
        return app.test_client()

    return clock, make


def test_a_session_ends_after_twelve_hours(clocked):
    clock, make = clocked
    client = make()
    log_in(client)
    clock[0] += 11.9 * 3600
    assert client.get("/dashboard/").status_code == 200
    clock[0] += 0.2 * 3600
    assert client.get("/dashboard/").status_code == 302


def test_guesses_wait_longer_and_longer_in_every_process(clocked):
    clock, make = clocked
    first_item, other = make(), make()
    for number in range(MAX_FREE_GUESSES):
        assert log_in((first_item, other)[number % 2], "wrong").status_code == 403
    for wait_s in (1, 2, 4, 8, 16, 32, 60, 60):
        assert log_in(first_item, "wrong", environ_base={"REMOTE_ADDR": "10.9.8.7"}).status_code == 403
        answer = log_in(other)
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, str(wait_s))
        clock[0] += wait_s + 0.5
    assert log_in(other).status_code == 302


def test_strangers_who_guess_do_not_lock_out_a_known_browser(clocked):
    _, make = clocked
    known_values, stranger = make(), make()
    assert log_in(known_values).status_code == 302
    known_values.post("/dashboard/logout", data={"csrf_token": token(known_values.get("/dashboard/"))})
    for _ in range(MAX_FREE_GUESSES + 1):
        log_in(stranger, "wrong")
    assert log_in(make()).status_code == 429
    assert log_in(known_values).status_code == 302


def test_forged_known_browser_cookie_is_ignored(clocked):
    client = clocked[1]()
    for number in range(MAX_FREE_GUESSES + 1):
        client.set_cookie("labelloop_known_browser", f"forged{number}.aaaa.bbbb", path="/dashboard")
        log_in(client, "wrong")
    assert log_in(client).status_code == 429


def test_the_password_is_set_as_it_is_or_hashed(closed, engine):
    hashed = password_hash(PASSWORD)
    assert hashed.startswith("scrypt:")
    assert PASSWORD not in hashed
    for setting in (PASSWORD, hashed):
        client = create_app(closed.replace(dashboard_password=type(closed.dashboard_password)(setting))).test_client()
        assert log_in(client, hashed).status_code == 403
        assert log_in(client).status_code == 302


def test_cookies_are_secure_where_the_proxy_says_https(closed, engine):
    client = create_app(closed.replace(trusted_proxies=1)).test_client()
    forwarded = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "10.1.2.3"}
    page = client.get("/dashboard/login", headers=forwarded)
    assert "Secure" in page.headers["Set-Cookie"]
    assert page.headers["Strict-Transport-Security"]
    plain = create_app(closed).test_client().get("/dashboard/login", headers=forwarded)
    assert "Secure" not in plain.headers["Set-Cookie"]
    assert "Strict-Transport-Security" not in plain.headers


def test_a_right_password_forgives_earlier_slips(clocked):
    client = clocked[1]()
    for _ in range(3):
        for _ in range(MAX_FREE_GUESSES):
            log_in(client, "wrong")
        assert log_in(client).status_code == 302
        client.post("/dashboard/logout", data={"csrf_token": token(client.get("/dashboard/"))})


def test_a_script_sends_the_password_by_basic_auth(client, filled):
    answer = client.get(f"{BASE}/files/annotators.json", auth=("", PASSWORD))
    assert [row["annotator"] for row in json.loads(answer.data)] == [1, 2, 3]
    wrong = client.get(f"{BASE}/files/annotators.json", auth=("", "wrong"))
    assert (wrong.status_code, wrong.headers["WWW-Authenticate"]) == (401, 'Basic realm="labelloop"')
    for _ in range(MAX_FREE_GUESSES):
        client.get(f"{BASE}/files/annotators.json", auth=("", "wrong"))
    assert client.get(f"{BASE}/files/annotators.json", auth=("", PASSWORD)).status_code == 429


def test_dashboard_needs_no_basic_auth(closed, engine):
    both = Settings(home=closed.home, dashboard_password=HASHED, basic_auth_user="u", basic_auth_password="p")
    client = create_app(both).test_client()
    assert client.get("/dashboard/login").status_code == 200
    assert client.get("/metrics").status_code == 401
    assert client.get("/dashboardx").status_code == 401


@pytest.mark.parametrize("page", PAGES)
def test_every_page_is_sound_html_with_nothing_from_elsewhere(inside, filled, page):
    answer = inside.get(BASE + page)
    assert answer.status_code == 200
    text = answer.text
    assert EVIL not in text, "something from Label Studio was written unescaped"
    assert not re.findall(r"<[^>]+ (?:style|on\w+)=", text), "the policy forbids it, so it would have no effect"
    assert not re.findall(r"<script(?! src=\"/dashboard/static/)", text)
    outside = set(re.findall(r'(?:src|href)="(https?://[^"]+)"', text))
    assert all(address.startswith("https://labels.example.org/projects/7/") for address in outside)
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["Cache-Control"] == "no-store"
    assert text.index('class="skip"') < text.index("<nav")  # the first stop of the Tab key
    assert faults(text) == []
    assert not re.findall(r"\bNone\b|\bnan\b|\{\{|\}\}", text)


@pytest.mark.parametrize("page", PAGES)
def test_every_page_of_an_empty_project_renders(inside, engine, page):
    ProjectStore(engine).add(PROJECT)
    answer = inside.get(BASE + page)
    assert answer.status_code == 200
    assert faults(answer.text) == []
    assert not re.findall(r"\bNone\b|\bnan\b", answer.text)


def test_single_project_opens_directly(inside, filled, engine):
    assert inside.get("/dashboard/").headers["Location"] == f"{BASE}/"
    ProjectStore(engine).add(8)
    text = inside.get("/dashboard/").text
    assert f'href="{BASE}/"' in text
    assert "Project 8" in text


@pytest.mark.parametrize(
    "path", [f"{BASE}/disputes/4711", f"{BASE}/annotators/99", "/dashboard/99/", f"{BASE}/files/x.csv"]
)
def test_missing_pages_have_a_readable_error(inside, filled, path):
    answer = inside.get(path)
    assert answer.status_code == 404
    assert answer.content_type.startswith("text/html")
    assert "The page cannot be shown" in answer.text


def tasks_of(page):
    return [int(task) for task in re.findall(r"data-open>Task (\d+)<", page.text)]


def test_the_queue_is_paged_sorted_and_filtered(inside, filled):
    first, second, third = (tasks_of(inside.get(f"{BASE}/disputes?page={number}")) for number in (1, 2, 3))
    assert [len(first), len(second), len(third)] == [PAGE_SIZE, PAGE_SIZE, 20 - 2 * PAGE_SIZE]
    assert sorted(first + second + third) == list(range(2, 41, 2))
    assert tasks_of(inside.get(f"{BASE}/disputes?sort=newest"))[0] == 40
    assert tasks_of(inside.get(f"{BASE}/disputes?sort=oldest"))[0] == 2
    assert tasks_of(inside.get(f"{BASE}/disputes?state=review")) == [2, 10, 18, 26, 34]
    assert tasks_of(inside.get(f"{BASE}/disputes?person=3&sort=oldest")) == [2, 10, 18, 26, 34]
    assert tasks_of(inside.get(f"{BASE}/disputes?kind=choice&sort=oldest")) == [2, 10, 18, 26, 34]
    assert tasks_of(inside.get(f"{BASE}/disputes?kind=merged")) == []


def test_tasks_not_judged_are_listed_and_wait_for_a_reviewer(inside, closed, engine):
    studio = QcStudio()
    ProjectStore(engine).add(PROJECT)
    checker = Checker(studio, DecisionStore(engine), closed.home)
    for _ in range(3):
        task = studio.add_task()
        for who in (1, 2):
            studio.annotate(task, who, [box(10) | {"value": {"x": "left"}}])
        checker.check(PROJECT, task)
    SummaryScheduler(engine, named_studio()).run()
    assert tasks_of(inside.get(f"{BASE}/disputes")) == []
    assert "3 more tasks are not judged" in inside.get(f"{BASE}/disputes").text
    page = inside.get(f"{BASE}/disputes?state=not_judged")
    assert tasks_of(page) == [1, 2, 3]
    assert "cannot be read whole" in unescape(page.text)
    assert "not judged, for a reviewer" in page.text
    for query in ("state=review", "state=review&person=2", "state=not_judged&sort=newest"):
        assert sorted(tasks_of(inside.get(f"{BASE}/disputes?{query}"))) == [1, 2, 3], query
    first_item = inside.get(f"{BASE}/disputes/2?state=not_judged")
    assert re.findall(r'rel="(?:prev|next)" href="[^"]*/disputes/(\d)', first_item.text) == ["1", "3"]
    assert inside.get(f"{BASE}/disputes/2").status_code == 200
    assert {row["verdict"] for row in json.loads(inside.get(f"{BASE}/files/disputes.json?state=review").data)} == {
        "not_judged"
    }


@pytest.mark.parametrize(
    "query", ["state=x", "kind=%25", "person=x", "person=1%25", "sort=x", "page=x", "page=-3", "page=" + "9" * 30]
)
def test_a_query_that_means_nothing_is_taken_for_the_default(inside, filled, query):
    assert tasks_of(inside.get(f"{BASE}/disputes?{query}")) == tasks_of(inside.get(f"{BASE}/disputes"))


def test_dispute_is_drawn_by_group_with_its_conflicts(inside, filled):
    text = unescape(inside.get(f"{BASE}/disputes/4").text)
    assert "One annotator says Car, another says <script>alert(1)</script>: the box at the upper left." in text
    assert 'class="group a"' in text
    assert 'class="group b"' in text
    assert 'class="group consensus"' in text
    assert 'href="https://labels.example.org/projects/7/data?task=4"' in text
    assert text.count(f'href="{BASE}/photos/4/0/') == 4
    assert 'class="shape disputed" data-conflicts="1"' in text
    assert "flag" in text  # what quality control wrote to the task
    assert "data-next" in text


def test_dispute_says_who_reads_the_guideline_differently(inside, filled, engine):
    said = say("two views", "label", ("Car", "Person"), 20, what="Car or Person", first=(1,), second=(2,), evidence="",
               measure="labels")  # fmt: skip
    store, facts = SummaryStore(engine), FactStore(engine)
    summary = msgspec.structs.replace(store.load(PROJECT).summary, splits=(said,))
    store.save(PROJECT, summary, store.replay(PROJECT), facts.extent(PROJECT), took_s=0.0)
    text = unescape(inside.get(f"{BASE}/disputes/2").text)
    assert re.search(r'class="why">Anna and .* read the guideline differently: Car or Person\.', text)
    assert 'class="why"' not in inside.get(f"{BASE}/disputes/4").text  # another label


def test_agreed_task_has_no_drawing(inside, filled):
    text = inside.get(f"{BASE}/disputes/1").text
    assert "not disputed" in text


def test_detection_alpha_is_drawn_by_threshold_and_downloaded(inside, filled):
    page = inside.get(f"{BASE}/agreement").text
    assert "Detection alpha by IoU threshold" in page
    assert "the line marks the policy&#39;s match_iou, 0.50" in page or "match_iou, 0.50" in page
    assert page.count('class="band line-') >= 2
    rows = inside.get(f"{BASE}/files/statistics.json").json
    named = {row["statistic"]: row for row in rows if row["ratings"] == "detection"}
    assert named["alpha_detection"]["value"] == named["alpha_detection_at_0.50"]["value"]
    assert named["alpha_detection_mean_at_0.75"]["value_low"] <= named["alpha_detection_mean_at_0.75"]["value"]
    assert named["f1_at_50"]["value_n"] == 40


def test_annotators_are_named_and_missing_estimates_explained(inside, filled):
    text = inside.get(f"{BASE}/annotators").text
    assert "Anna" in text
    assert "=1+1" in text
    assert "not enough data" in text  # five tasks of the third
    assert "20 s" in inside.get(f"{BASE}/annotators/1").text


@pytest.mark.parametrize("name", DOWNLOADS)
def test_everything_comes_as_json_and_as_csv(inside, filled, name):
    answer = inside.get(f"{BASE}/files/{name}.json")
    rows = json.loads(answer.data)
    assert rows, name
    table = inside.get(f"{BASE}/files/{name}.csv")
    assert table.headers["Content-Disposition"] == f'attachment; filename="{name}-7.csv"'
    lines = list(csv.DictReader(io.StringIO(table.text)))
    assert len(lines) == len(rows)
    assert set(lines[0]) >= set(rows[0])
    for line in lines:
        assert not any(cell.startswith(("=", "+", "@")) for cell in line.values()), "a spreadsheet would run it"


def test_files_hold_what_was_looked_for(inside, filled):
    rows = json.loads(inside.get(f"{BASE}/files/disputes.json?state=review&sort=oldest").data)
    assert [row["task"] for row in rows] == [2, 10, 18, 26, 34]
    assert rows[0]["people"] == ["Anna", EVIL, "=1+1"]
    assert len(json.loads(inside.get(f"{BASE}/files/tasks.json").data)) == 40


def test_images_are_scaled_and_limited_to_judged_tasks(inside, filled):
    answer = inside.get(f"{BASE}/photos/3/0/480.jpg")
    assert (answer.status_code, answer.content_type) == (200, "image/jpeg")
    assert Image.open(io.BytesIO(answer.data)).size == (480, 240)
    assert "private" in answer.headers["Cache-Control"]
    assert Image.open(io.BytesIO(inside.get(f"{BASE}/photos/3/0/3840.jpg").data)).size == (1200, 600)
    for path in ("/photos/3/1/480.jpg", "/photos/99/0/480.jpg", "/photos/3/0/481.jpg"):
        assert inside.get(BASE + path).status_code == 404
    broken = inside.get(f"{BASE}/photos/2/0/480.jpg")
    assert broken.status_code == 422
    assert b"The image cannot be shown" in broken.data


def test_what_if_compares_with_the_policy_in_force(inside, filled):
    text = inside.get(f"{BASE}/what-if?agreement=0.3&annotators=2&max_annotators=2&every_control=yes").text
    row = r'<th scope="row">(Disputes|Agreed)</th>\s*<td class="number">(\d+)</td>\s*<td class="number">(\d+)</td>'
    assert re.findall(row, text) == [("Agreed", "20", "20"), ("Disputes", "20", "20")]  # single objects dispute
    text = inside.get(f"{BASE}/what-if?agreement=nan&annotators=1e9&max_annotators=x").text
    assert 'value="0.7"' in text


@pytest.mark.parametrize("page", ["/dashboard/", f"{BASE}/disputes/1", f"{BASE}/disputes/4", f"{BASE}/annotators/2",
                                  f"{BASE}/disputes/999"])  # fmt: skip
def test_pages_of_one_task_or_person_are_accessible(inside, filled, engine, page):
    ProjectStore(engine).add(8)  # with one project, the list of projects leads to it
    assert faults(inside.get(page).text) == []


def test_wrong_password_is_read_aloud(client):
    page = log_in(client, "wrong")
    assert 'role="alert"' in page.text
    assert faults(page.text) == []


def test_last_tuning_is_drawn_with_its_policy(inside, filled, closed):
    empty = inside.get(f"{BASE}/what-if").text
    assert f"labelloop qc tune --from {PROJECT}" in empty
    points = [TuningPoint(2, 3, gain, False, 0.0, labels, 0.0, error, error - 0.02, error + 0.02, 0.0, 0.1)
              for gain, labels, error in ((0.1, 2.1, 0.09), (0.01, 2.5, 0.04))]  # fmt: skip
    tuning = Tuning(0.05, points[1], None, points[1], tuple(points), (), 3.0, 40, 0, 5.0, 0.02)
    save_tuning(closed.home, PROJECT, tuning)
    text = inside.get(f"{BASE}/what-if").text
    assert "2.50 labels per task" in text
    assert "least_gain = 0.01" in text
    assert text.count('class="spot line-1"') >= 2
