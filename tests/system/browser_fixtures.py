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


def least_contrast(page) -> float:
    """The lowest contrast of a text of the page; WCAG 2.2 (1.4.3) asks 4.5."""
    contrast = page.evaluate(_CONTRAST)
    assert contrast <= 21, "the page has no text"  # of none it is infinite; black on white is 21
    return contrast


# By WCAG's formula, of the text and the background that it lies on.
_CONTRAST = """() => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[0-9.]+/g).slice(0, 3).map((part) => {
      const share = Number(part) / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (!colour.startsWith("rgba(0, 0, 0, 0")) return colour;
    }
    return getComputedStyle(document.documentElement).backgroundColor;
  };
  const texts = [...document.querySelectorAll(
    "main :is(p, small, a, h1, h2, h3, li, label, summary), main table:not(.matrix) :is(th, td)"
    + ", main svg text, .tag-pill, nav a, footer p"
  )];
  // Labels on images have an outline instead of a background.
  const isPlain = (each) => each.getClientRects().length && getComputedStyle(each).stroke === "none";
  return Math.min(...texts.filter((each) => each.textContent.trim() && isPlain(each)).map((each) => {
    const style = getComputedStyle(each);
    const colour = each.tagName === "text" ? style.fill : style.color;
    const [one, other] = [light(colour), light(ground(each))].sort((a, b) => b - a);
    return (one + 0.05) / (other + 0.05);
  }));
}"""
