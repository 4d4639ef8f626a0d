"""A user's SAM-family export cuts objects out: every exporter's inputs are fed right, and a photo is embedded once."""

import numpy as np
import pytest
from structlog.testing import capture_logs

from labelloop.labeling.geometry.overlap import iou
from labelloop.labeling.geometry.shapes import Ellipse, Mask, Rectangle
from labelloop.service.errors import SettingsError
from labelloop.service.settings import Settings
from ml_backend.errors import ModelBroken, ModelError, ModelMissing
from ml_backend.smart import SmartTools
from ml_backend.smart.check import check_segmenter
from ml_backend.smart.prompts import Prompt
from ml_backend.smart.sam import Sam
from tests.ml_backend.sam_cases import EXPORTS, write_export
from tests.ml_backend.smart.test_tools import ask, box, click, shape

WIDTH, HEIGHT = 400, 300
LEFT, RIGHT = Ellipse(120, 150, 50, 80), Ellipse(290, 140, 60, 45)


def photo(*discs, width=WIDTH, height=HEIGHT):
    """Bright discs on a dark ground."""
    image = np.full((height, width, 3), 20, np.uint8)
    for disc in discs:
        image[disc.mask(width, height)] = 235
    return image


@pytest.fixture(params=EXPORTS)
def sam(request, tmp_path):
    return Sam(*write_export(EXPORTS[request.param], tmp_path), threads=1)


def test_a_box_a_click_and_a_click_beside_find_the_object_with_every_export(sam):
    """Portrait as well as landscape: what is padded, and what is stretched, must come back where it was."""
    for turn in (False, True):
        discs = [Ellipse(one.cy, one.cx, one.ry, one.rx) if turn else one for one in (LEFT, RIGHT)]
        width, height = (HEIGHT, WIDTH) if turn else (WIDTH, HEIGHT)
        seen = sam.look(photo(*discs, width=width, height=height))
        for disc in discs:
            truth = Mask.of(disc.mask(width, height))
            left, top, right, bottom = disc.bounds
            loose = Rectangle(left - 4, top - 4, right - left + 8, bottom - top + 8)
            boxed = sam.segment(seen, Prompt(loose))
            clicked = sam.segment(seen, Prompt(None, ((disc.cx, disc.cy),)))
            assert iou(boxed.mask(width, height), truth) > 0.85
            assert iou(clicked.mask(width, height), truth) > 0.7
            assert boxed.score == pytest.approx(0.9)
            spared = sam.segment(seen, Prompt(loose, (), ((disc.cx, disc.cy),)))
            assert spared is None or not spared.mask(width, height).array()[round(disc.cy), round(disc.cx)]


def test_nothing_asked_and_nothing_there_give_nothing(sam):
    seen = sam.look(photo(LEFT))
    assert sam.segment(seen, Prompt()) is None
    assert sam.segment(seen, Prompt(Rectangle(250, 100, 80, 80))) is None


def test_a_photo_is_embedded_once_and_photos_are_not_mixed_up(tmp_path, album, monkeypatch):
    encoder, decoder = write_export(EXPORTS["sam"], tmp_path)
    looks = []
    look = Sam.look
    monkeypatch.setattr(Sam, "look", lambda self, image: looks.append(image.shape) or look(self, image))
    tools = SmartTools(
        album({"left.png": photo(LEFT), "right.png": photo(RIGHT)}),
        settings=Settings(home=tmp_path, smart_encoder=encoder, smart_decoder=decoder),
    )
    for _ in range(2):
        for url, disc in (("left.png", LEFT), ("right.png", RIGHT)):
            tight, brush = ask(tools, box(60, 60, 300, 180), url=url)
            assert iou(shape(brush), Mask.of(disc.mask(WIDTH, HEIGHT))) > 0.85
            left, top, right, bottom = disc.bounds
            assert iou(shape(tight), Rectangle(left, top, right - left, bottom - top)) > 0.9
    [brush] = ask(tools, click(120, 150), url="left.png")
    assert iou(shape(brush), Mask.of(LEFT.mask(WIDTH, HEIGHT))) > 0.7
    assert len(looks) == 2
    answer = tools.answer({"id": 1, "data": {"image": "left.png"}}, _config(), {"result": [box(60, 60, 300, 180)]})
    assert answer.model_version == "smart-sam"


def _config():
    from labelloop.labeling.studio.config import LabelConfig
    from tests.ml_backend.smart.test_tools import BRUSH, CONFIG

    return LabelConfig.parse(CONFIG.format(BRUSH))


def test_files_that_are_no_such_export_are_named_with_what_they_take(tmp_path, labelloop_model):
    encoder, decoder = write_export(EXPORTS["sam"], tmp_path / "sam")
    other = write_export(EXPORTS["sam2"], tmp_path / "sam2")[1]
    for files, error, words in (
        ((tmp_path / "gone.onnx", decoder), ModelMissing, "gone.onnx"),
        ((encoder, labelloop_model()), ModelBroken, "takes no points"),
        ((decoder, decoder), ModelBroken, "no encoder of one photo"),
        ((encoder, other), ModelBroken, "high_res_feats_0"),
    ):
        with pytest.raises(error, match=words) as told:
            Sam(*files)
        assert told.value.fix


def test_serving_names_the_segmenter_or_says_why_it_cannot_be(tmp_path):
    encoder, decoder = write_export(EXPORTS["sam"], tmp_path)
    assert "decoder.onnx" in check_segmenter(Settings(home=tmp_path, smart_encoder=encoder, smart_decoder=decoder))
    broken = Settings(home=tmp_path, smart_encoder=encoder, smart_decoder=tmp_path / "gone.onnx")
    with pytest.raises(ModelError, match=r"gone\.onnx") as told:
        check_segmenter(broken)
    assert told.value.fix


def test_a_missing_file_costs_tightness_and_is_said_plainly(tmp_path, album):
    settings = Settings(home=tmp_path, smart_encoder=tmp_path / "no.onnx", smart_decoder=tmp_path / "none.onnx")
    tools = SmartTools(album({"left.png": photo(LEFT)}), settings=settings)
    with capture_logs() as logs:
        [result] = ask(tools, box(60, 60, 120, 180), url="left.png", outlets="")
    assert result["value"]["x"] == pytest.approx(15)
    assert any("no.onnx" in line.get("reason", "") for line in logs)


def test_one_file_without_the_other_is_a_mistake_in_the_settings(tmp_path):
    with pytest.raises(SettingsError, match="LABELLOOP_SMART_DECODER"):
        Settings(home=tmp_path, smart_encoder=tmp_path / "encoder.onnx")
