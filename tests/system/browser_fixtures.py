"""Fixture `page`: Debian's Chromium as a person at a laptop has it, and how that person logs in."""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

SHOTS = os.environ.get("LABELLOOP_SCREENSHOTS")
PATIENCE_S = 120
"""What a page may take on a busy machine."""


@contextmanager
def chromium_page(width=1440, height=900):
    """An empty page in a browser of its own; skips the test where there is no Chromium."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no Chromium: run `sh tests/system/setup.sh` as root, or `apt-get install chromium`")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as play:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        browser = play.chromium.launch(executable_path=chromium, args=arguments)
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(1000 * PATIENCE_S)
        yield page
        browser.close()


@pytest.fixture
def page():
    with chromium_page() as page:
        yield page


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
