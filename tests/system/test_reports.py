"""The pages that commands write, in Chromium: read on a laptop, a monitor and at a zoom of 200 %, light and dark."""

from pathlib import Path

import pytest
from PIL import Image

from labelloop.cli.main import main
from ml_backend.learning.report.page import learning_page
from tests.drawn import SIDE, draw_shapes
from tests.ml_backend.learning.report.test_report import edited, report_of, run_of
from tests.system.browser_fixtures import chromium_page, least_contrast

pytestmark = pytest.mark.system
EXAMPLE = Path(__file__).parents[2] / "examples" / "quality-offline"
DATA = [str(EXAMPLE / "export.json"), "--label-config", str(EXAMPLE / "config.xml")]


def run(*words):
    with pytest.raises(SystemExit) as ended:
        main([*map(str, words)])
    assert not ended.value.code


def drawn_yolo(folder):
    """A data set of four drawn images, as YOLO files."""
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    (folder / "classes.txt").write_text("Disc\nSquare\n")
    for seed in range(4):
        pixels, objects = draw_shapes(seed, ("Disc", "Square"))
        Image.fromarray(pixels).save(folder / "images" / f"{seed}.png")
        boxes = [((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0) for _, (x0, y0, x1, y1) in objects]
        rows = [" ".join([str(number), *(f"{side / SIDE}" for side in box)]) for number, box in enumerate(boxes)]
        (folder / "labels" / f"{seed}.txt").write_text("\n".join(rows))
    return folder


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Each page, by what it reports."""
    folder = tmp_path_factory.mktemp("reports")
    tuning, check, learning = (folder / f"{name}.html" for name in ("tuning", "check", "learning"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABELLOOP_HOME", str(folder / "home"))
        run("qc", "tune", "--from", *DATA, "--target-error", ".2", "--html", tuning)
        run("export", *DATA, "--no-fetch", "--format", "coco,tasks-jsonl", "--to", folder / "set")
        run("dataset", "check", drawn_yolo(folder / "yolo"), "--out", check)
    learning.write_text(learning_page(report_of([run_of(2), run_of(3)], [edited(1), edited(2)])), encoding="utf-8")
    return {"tuning": tuning, "check": check, "learning": learning, "data set": folder / "set/latest/report.html"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_report_fits_its_screen_and_can_be_read(pages, scheme):
    with chromium_page() as page:
        page.emulate_media(color_scheme=scheme)
        for name, file in pages.items():
            page.goto(file.as_uri())
            assert least_contrast(page) >= 4.5, name
            for width, height in ((683, 384), (1366, 768), (1920, 1080)):
                page.set_viewport_size({"width": width, "height": height})
                assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{name} at {width} px"
