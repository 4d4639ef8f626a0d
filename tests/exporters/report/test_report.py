"""The page of a version: its figures are the data set's, its pictures are inside, nothing of the data acts in it."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from exporters.cli.dataset import dataset_report
from exporters.dataset.versions import read_version
from exporters.formats import FORMATS
from exporters.formats.decode import DECODERS
from exporters.report.page import html_report
from labelloop.service.media import Media
from labelloop.service.store import open_store
from tests.accessibility import faults
from tests.system.browser_fixtures import chromium_page

HOSTILE = '<script>alert("x")</script>'
CONFIG = f"""<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">
<Label value="car"/><Label value="never"/><Label value="{HOSTILE.replace("<", "&lt;").replace('"', "&quot;")}"/>
</RectangleLabels><KeyPointLabels name="point" toName="image"><Label value="nose"/></KeyPointLabels></View>"""


class Page(HTMLParser):
    """What a page loads, and its words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in {"src", "href", "data", "action", "srcset"}]

    def handle_data(self, data):
        self.words += f" {data.strip()} "


@pytest.fixture
def exported(run, build, photos):
    pixels = np.zeros((360, 640), bool)
    pixels[50:200, 100:300] = True
    pixels[90:120, 150:200] = False
    tasks = [
        build.task(
            1, build.annotation(build.box(10, 20, 30, 40, "car"), build.brush(pixels, id="b")), image=photos("1.jpg")
        ),
        build.task(2, build.annotation(build.box(1, 2, 3, 4, HOSTILE, id="h")), image=photos("<b>2.jpg")),
        build.task(3, build.annotation(build.box(5, 5, 50, 50, "car", rotation=30)), image="s3://nowhere/3.jpg"),
        build.task(4, build.annotation(), image=photos("4.jpg")),
        build.task(5, build.annotation(build.box(None, 2, 3, 4, "car", id="broken"), build.box(9, 9, 9, 9))),
    ]
    tasks[4]["data"]["image"] = photos("5.jpg")
    return run(tasks, label_config=CONFIG, formats=tuple(FORMATS), fetch=True)


@pytest.fixture
def page(exported, settings):
    """The page, made once more for each call."""
    store = open_store(f"file://{exported.root}", settings)

    def page(**options):
        media = Media(settings, None)
        try:
            return html_report(store, read_version(store), media=media, **options)
        finally:
            media.close()

    return page


def test_statistics_match_the_data_set(page, exported):
    words = re.sub(r"\s+", " ", Page(page()).words)
    annotations = exported.instances()["annotations"]
    assert f"{len(annotations)} objects" in words
    assert "5 images" in words
    assert "1 images without objects" in words
    assert "1 malformed" in words
    assert "no object" in words  # the class without objects
    assert "x: is missing" in words  # the loss itself


def test_page_loads_nothing_and_escapes_data(page):
    text = page()
    read = Page(text)
    assert not {"script", "iframe", "object", "link", "form"} & set(read.tags)
    assert all(value.startswith("data:image/jpeg;base64,") for value in read.loads)
    assert "http" not in re.sub(r"data:image/jpeg;base64,[\w+/=]+", "", text).replace("http-equiv", "")
    assert HOSTILE in read.words
    assert "default-src 'none'" in text
    assert faults(text) == []


def test_thumbnails_show_images_or_the_reason_they_are_missing(page, tmp_path):
    read = Page(page())
    assert len(read.loads) == 4
    for address in read.loads:
        with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as picture:
            assert picture.size == (420, 236)
            assert np.abs(np.asarray(picture).astype(int) - (90, 120, 150)).max() < 6
    assert "no image: " in read.words


def test_the_same_version_gives_the_same_page(page):
    assert page() == page()
    assert len(Page(page(samples=2)).loads) <= 2


@pytest.mark.parametrize("name", DECODERS)
def test_every_format_shows_the_same_objects(run, build, settings, name):
    task = build.task(1, build.annotation(build.box(10, 20, 30, 40, "car"), build.box(50, 50, 25, 25, "never", id="2")))
    out = run([task], label_config=CONFIG, formats=(name,))
    store = open_store(f"file://{out.root}", settings)
    text = html_report(store, read_version(store))
    assert "<b>2</b>objects" in text
    paths = re.findall(r'<path d="([^"]+)"', text)
    boxes = sorted([float(number) for number in re.findall(r"[\d.]+", path)] for path in paths)
    corners = [[64, 72, 256, 72, 256, 216, 64, 216], [320, 180, 480, 180, 480, 270, 320, 270]]
    np.testing.assert_allclose(boxes, corners, atol=0.1)


def test_a_classification_version_shows_its_images(run, build, settings):
    choice = {"id": "c", "from_name": "kind", "to_name": "image", "type": "choices", "value": {"choices": ["cat"]}}
    config = """<View><Image name="image" value="$image"/><Choices name="kind" toName="image"><Choice value="cat"/>
    </Choices></View>"""
    task = build.task(1, build.annotation(choice), width=64, height=48)
    out = run([task], label_config=config, formats=("yolo-classify",))
    store = open_store(f"file://{out.root}", settings)
    text = html_report(store, read_version(store))
    assert "<b>1</b>images" in text
    assert text.count("<figure>") == 1


def test_the_command_writes_a_file(exported, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LABELLOOP_HOME", str(tmp_path / "home"))
    dataset_report(f"file://{exported.root}", out=tmp_path / "deep/report.html", images=False)
    assert "v000001" in capsys.readouterr().out
    assert "images were not requested" in (tmp_path / "deep/report.html").read_text()


@pytest.mark.system
def test_chromium_renders_it_without_errors(page, tmp_path):
    (tmp_path / "report.html").write_text(page())
    messages, requests = [], []
    with chromium_page() as tab:
        tab.on("console", lambda message: messages.append(message.text))
        tab.on("dialog", lambda dialog: messages.append(dialog.message))
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(f"file://{tmp_path}/report.html")
        widths = tab.evaluate("[...document.images].map(each => each.naturalWidth)")
        wide = tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert messages == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    assert widths == [420] * 4
    assert wide
