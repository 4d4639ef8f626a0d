"""Fixture `page`: Debian's Chromium as a person at a laptop has it, and how that person logs in."""

import os
import shutil
from pathlib import Path

import pytest

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


def log_in(page, label_studio, email: str) -> None:
    """Through Label Studio's own log-in page."""
    page.goto(f"{label_studio.url}/user/login/")
    page.fill("input[name=email]", email)
    page.fill("input[name=password]", label_studio.password(email))
    page.click("button[type=submit]")
    page.wait_for_url(lambda url: "/user/login" not in url)


def screenshot(page, name: str, folder: Path) -> Path:
    """What is seen now, in LABELLOOP_SCREENSHOTS where that is set."""
    shot = Path(SHOTS or folder) / name
    shot.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=shot)
    return shot
