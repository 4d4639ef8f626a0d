"""The dashboard in Chromium: the log-in, the queue by keyboard, stances that are switched, on a laptop's screen."""

import threading

import pytest
from PIL import Image
from werkzeug.serving import make_server

from labelloop.service.db.engine import open_database
from labelloop.service.settings import Settings
from qc_webhooks.decision.dispute_drawing import CONSENSUS, ConflictText, DisputeDrawing, GroupView, RegionOutline
from qc_webhooks.schedulers.project_summary import SummaryScheduler
from qc_webhooks.server.app import create_app
from qc_webhooks.store.projects import ProjectStore
from qc_webhooks.store.tables import TASKS
from qc_webhooks.store.task_facts import FactStore
from qc_webhooks.verdict.task_facts import AnnotationFacts, AnnotatorPair, ObjectFacts, RegionFacts, TaskFacts
from tests.qc_webhooks.conftest import studio_of_people
from tests.system.browser_fixtures import chromium_page, least_contrast, screenshot

pytestmark = pytest.mark.system
PASSWORD = "correct-horse-9"
LAPTOP = 1366, 768
# A laptop at a zoom of 200 %.
ZOOMED = 683, 384
PHONE = 390, 844
MONITOR = 1920, 1080
# A name and a control as long as people's own, without a space to break at.
ADDRESS = "a.long.address.without.any.space@department.of.a.company.example.com"
LONG_CONTROL = "transcription_of_the_licence_plate_on_the_vehicle"


def ring(x, y):
    return ((x, y), (x + 0.3, y), (x + 0.3, y + 0.3), (x, y + 0.3))


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory):
    """The address of a dashboard with a project of 30 tasks, 12 of them disputed."""
    home = tmp_path_factory.mktemp("dashboard")
    Image.new("RGB", (800, 600), (70, 110, 90)).save(home / "a.jpg")
    settings = Settings(
        home=home / "home", dashboard_password=PASSWORD, local_files_root=home, label_studio_api_key="k"
    )
    engine = open_database(settings)
    ProjectStore(engine).add(7)
    said = (
        ConflictText(
            "label",
            "label",
            (1, 2),
            "One annotator says Car, another says Van: the box at the left.",
            ("Car",),
            ("Van",),
            0,
        ),
        ConflictText(
            "attribute", LONG_CONTROL, (1, 2), f'{LONG_CONTROL} of the box: one says "1", another says "2".',
            ("1",), ("2",), 0,
        ),
    )  # fmt: skip
    views = tuple(
        GroupView(
            name,
            who,
            (
                RegionOutline((ring(0.1, 0.2),), False, label, 0, (0,)),
                RegionOutline((ring(0.5, 0.5),), False, "Car", 0, ()),
            ),
        )
        for name, who, label in (("A", (1,), "Car"), ("B", (2,), "Van"), (CONSENSUS, (), "Car"))
    )
    for task in range(1, 31):
        disputed = task <= 12
        things = (
            ObjectFacts(
                "label", (RegionFacts(1, ("Car",), 9.0, 0), RegionFacts(2, ("Van" if disputed else "Car",), 9.0, 0))
            ),
        )
        score, day = 0.2 + task / 100 if disputed else 1.0, 86_400.0 * (task % 5 + 1)
        facts = TaskFacts(
            task, (AnnotationFacts(1, day, 20.0, 2), AnnotationFacts(2, day + 5, 22.0, 2)), things, (),
            (AnnotatorPair(1, 2, score, {"label": score}, 1, 0),), (), ("/data/local-files/?d=a.jpg",), score,
            "disputed" if disputed else "agreed", disputed,
        )  # fmt: skip
        FactStore(engine).save(7, facts, DisputeDrawing(said, views, ((800, 600),)) if disputed else None)
        with engine.begin() as connection:
            connection.execute(TASKS.insert().values(
                project=7, task=task, born="", fingerprint="", outcome=facts.outcome, agreement=score, annotators=2,
                review=disputed, keys=None, decided_at=float(task),
            ))  # fmt: skip
    SummaryScheduler(engine, studio_of_people("Streets", {"first_name": "Anna"}, {"email": ADDRESS})).run()
    server = make_server("127.0.0.1", 0, create_app(settings), threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/dashboard"
    server.shutdown()
    thread.join()
    server.server_close()
    engine.dispose()


@pytest.fixture
def page(dashboard):
    """A logged-in page on a laptop's screen, with what its console said."""
    with chromium_page(*LAPTOP) as page:
        page.complaints = []
        page.on(
            "console", lambda said: page.complaints.append(said.text) if said.type in {"error", "warning"} else None
        )
        page.goto(f"{dashboard}/")
        page.wait_for_function("document.activeElement.id === 'password'")  # the field has the focus by itself
        page.keyboard.type(PASSWORD)
        page.keyboard.press("Enter")
        page.wait_for_url("**/dashboard/7/")
        yield page


def test_the_queue_is_worked_through_by_keyboard(page, dashboard, tmp_path):
    page.keyboard.press("g")
    page.keyboard.press("d")
    page.wait_for_url("**/disputes")
    page.wait_for_load_state("networkidle")
    loaded = """new Promise((done) => { const photo = new Image(); photo.onload = () => done(photo.naturalWidth);
      photo.src = document.querySelector("svg.image image").href.baseVal; })"""
    assert page.evaluate(loaded) == 800
    screenshot(page, "dashboard.png", tmp_path)
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.textContent") == "Task 2"
    page.keyboard.press("Enter")
    page.wait_for_url("**/disputes/2")
    shown = "document.querySelectorAll('.image.whole .group:not(.off)').length"
    assert page.evaluate(shown) == 3
    page.keyboard.press("2")
    assert page.evaluate(shown) == 2
    page.locator("[data-conflict='1']").hover()
    assert page.locator(".image.whole .shape.pointed").count() == 3
    page.keyboard.press("j")
    page.wait_for_url("**/disputes/3")
    page.keyboard.press("u")
    page.wait_for_url("**/disputes")
    assert page.complaints == []


def test_the_first_stop_of_the_tab_key_skips_the_navigation(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_fits_a_phone_and_a_laptop_and_can_be_read(page, dashboard, scheme):
    page.emulate_media(color_scheme=scheme)
    for path in ("", "disputes", "disputes/1", "agreement", "labels", "annotators", "annotators/1", "what-if"):
        page.goto(f"{dashboard}/7/{path}")
        page.wait_for_load_state("networkidle")
        for width, height in (PHONE, ZOOMED, MONITOR, LAPTOP):
            page.set_viewport_size({"width": width, "height": height})
            assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{path} must be scrolled sideways"
        assert least_contrast(page) >= 4.5, f"{path}: text that is hard to read (WCAG 2.2, 1.4.3)"
    assert page.complaints == []


@pytest.mark.parametrize("path", ["disputes/1", "what-if", "annotators"])
def test_every_stop_of_the_tab_key_has_an_outline(page, dashboard, path):
    page.goto(f"{dashboard}/7/{path}")
    stops = []
    for _ in range(80):
        page.keyboard.press("Tab")
        if not (stop := page.evaluate(FOCUSED)):
            break
        stops.append(stop)
    assert len(stops) > 12
    assert [stop["name"] for stop in stops if stop["outline"] < 2] == []
    assert stops[-1]["name"] == "? Keyboard shortcuts"
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.querySelector('#keys').open")
    page.keyboard.press("Escape")
    assert not page.evaluate("document.querySelector('#keys').open")


# What has the focus, and the width of its outline in pixels; null at the end of the page.
FOCUSED = """() => {
  const element = document.activeElement;
  const style = getComputedStyle(element);
  return element === document.body ? null : {
    name: element.textContent.trim(), outline: style.outlineStyle === "none" ? 0 : parseFloat(style.outlineWidth),
  };
}"""
