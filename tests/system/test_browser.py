"""What an annotator sees: a task of the label stream opens in Chromium with the model's boxes drawn."""

import os
import shutil
from pathlib import Path

import pytest

from tests.system.loop_fixtures import Person

pytestmark = pytest.mark.system
SHOTS = os.environ.get("LABELLOOP_SCREENSHOTS")


@pytest.fixture
def page():
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no Chromium: run `sh tests/system/setup.sh` as root, or `apt-get install chromium`")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as play:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        browser = play.chromium.launch(executable_path=chromium, args=arguments)
        yield browser.new_page(viewport={"width": 1440, "height": 900})
        browser.close()


def test_an_annotator_sees_the_pre_labels_drawn(page, label_studio, loop, project, tmp_path):
    email = "dora@example.com"
    token, number = label_studio.user(email)
    page.goto(f"{label_studio.url}/user/login/")
    page.fill("input[name=email]", email)
    page.fill("input[name=password]", label_studio.password(email))
    page.click("button[type=submit]")
    page.wait_for_url(lambda url: "/user/login" not in url)
    page.goto(f"{label_studio.url}/projects/{project}/data?labeling=1")
    person = Person(label_studio.url, token, number)
    served = person.next_task(project)
    person.close()
    boxes = [item for item in served["predictions"][0]["result"] if item["type"] == "rectanglelabels"]
    assert boxes
    try:
        page.locator('button:has-text("Submit")').first.wait_for(timeout=60_000)
        page.locator("[class*=outliner-item__title]").first.wait_for(timeout=30_000)
        page.wait_for_timeout(1500)  # the photograph fades in
    finally:
        shot = Path(SHOTS or tmp_path) / "prelabels.png"
        shot.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=shot)
    shown = page.locator("[class*=outliner-item__title]").all_inner_texts()
    wanted = [label for item in boxes for label in item["value"]["rectanglelabels"]]
    assert sorted(text.strip() for text in shown if text.strip() in {"Person", "Cat", "Motorbike"}) == sorted(wanted)
    assert shot.stat().st_size > 20_000
