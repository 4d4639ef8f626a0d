"""SAM-family exports segment objects: inputs of every exporter are fed correctly, and images are embedded once."""

import numpy as np
import pytest
from structlog.testing import capture_logs

from labelloop.labeling.geometry.overlap import iou
from labelloop.labeling.geometry.shapes import Ellipse, Mask, Rectangle
from labelloop.service.errors import SettingsError
from labelloop.service.settings import Settings
from ml_backend.errors import ModelBroken, ModelError, ModelMissing
from ml_backend.segmentation.check import check_segmenter
from ml_backend.segmentation.prompt import Prompt
from ml_backend.segmentation.sam import SamSegmenter
from ml_backend.smart import SmartTools
from tests.ml_backend.sam_cases import EXPORTS, write_export
from tests.ml_backend.smart.test_tools import ask, box, click, shape

WIDTH, HEIGHT = 400, 300
LEFT, RIGHT = Ellipse(120, 150, 50, 80), Ellipse(290, 140, 60, 45)


def photo(*discs, width=WIDTH, height=HEIGHT):
    """Bright discs on a dark background."""
    image = np.full((height, width, 3), 20, np.uint8)
    for disc in discs:
        image[disc.mask(width, height)] = 235
    return image


@pytest.fixture(params=EXPORTS)
def sam(request, tmp_path):
    return SamSegmenter(*write_export(EXPORTS[request.param], tmp_path), threads=1)


def test_boxes_and_clicks_segment_with_every_export(sam):
    """Portrait and landscape: padding and stretching are undone."""
    for portrait in (False, True):
        discs = [Ellipse(disc_.cy, disc_.cx, disc_.ry, disc_.rx) if portrait else disc_ for disc_ in (LEFT, RIGHT)]
        width, height = (HEIGHT, WIDTH) if portrait else (WIDTH, HEIGHT)
        embedding = sam.embed(photo(*discs, width=width, height=height))
        for disc in discs:
            truth = Mask.from_array(disc.mask(width, height))
            left, top, right, bottom = disc.bounds
            loose = Rectangle(left - 4, top - 4, right - left + 8, bottom - top + 8)
            boxed = sam.segment(embedding, Prompt(loose))
            clicked = sam.segment(embedding, Prompt(None, ((disc.cx, disc.cy),)))
            assert iou(boxed.mask(width, height), truth) > 0.85
            assert iou(clicked.mask(width, height), truth) > 0.7
            assert boxed.score == pytest.approx(0.9)
            excluded = sam.segment(embedding, Prompt(loose, (), ((disc.cx, disc.cy),)))
            assert excluded is None or not excluded.mask(width, height).array()[round(disc.cy), round(disc.cx)]


def test_empty_prompt_and_empty_region_return_none(sam):
    embedding = sam.embed(photo(LEFT))
    assert sam.segment(embedding, Prompt()) is None
    assert sam.segment(embedding, Prompt(Rectangle(250, 100, 80, 80))) is None


def test_images_are_embedded_once_and_not_mixed_up(tmp_path, album, monkeypatch):
    encoder, decoder = write_export(EXPORTS["sam"], tmp_path)
    shapes = []
    embed = SamSegmenter.embed
    monkeypatch.setattr(SamSegmenter, "embed", lambda self, image: shapes.append(image.shape) or embed(self, image))
    tools = SmartTools(
        album({"left.png": photo(LEFT), "right.png": photo(RIGHT)}),
        settings=Settings(home=tmp_path, smart_encoder=encoder, smart_decoder=decoder),
    )
    for _ in range(2):
        for url, disc in (("left.png", LEFT), ("right.png", RIGHT)):
            tight, brush = ask(tools, box(60, 60, 300, 180), url=url)
            assert iou(shape(brush), Mask.from_array(disc.mask(WIDTH, HEIGHT))) > 0.85
            left, top, right, bottom = disc.bounds
            assert iou(shape(tight), Rectangle(left, top, right - left, bottom - top)) > 0.9
    [brush] = ask(tools, click(120, 150), url="left.png")
    assert iou(shape(brush), Mask.from_array(LEFT.mask(WIDTH, HEIGHT))) > 0.7
    assert len(shapes) == 2
    answer = tools.answer({"id": 1, "data": {"image": "left.png"}}, _config(), {"result": [box(60, 60, 300, 180)]})
    assert answer.model_version == "smart-sam"


def _config():
    from labelloop.labeling.studio.config import LabelConfig
    from tests.ml_backend.smart.test_tools import BRUSH, CONFIG

    return LabelConfig.parse(CONFIG.format(BRUSH))


def test_wrong_files_are_reported_with_their_inputs(tmp_path, labelloop_model):
    encoder, decoder = write_export(EXPORTS["sam"], tmp_path / "sam")
    other = write_export(EXPORTS["sam2"], tmp_path / "sam2")[1]
    for files, error, words in (
        ((tmp_path / "gone.onnx", decoder), ModelMissing, "gone.onnx"),
        ((encoder, labelloop_model()), ModelBroken, "takes no points"),
        ((decoder, decoder), ModelBroken, "not an encoder of one image"),
        ((encoder, other), ModelBroken, "high_res_feats_0"),
    ):
        with pytest.raises(error, match=words) as raised:
            SamSegmenter(*files)
        assert raised.value.fix


def test_check_describes_the_segmenter_or_raises(tmp_path):
    encoder, decoder = write_export(EXPORTS["sam"], tmp_path)
    assert "decoder.onnx" in check_segmenter(Settings(home=tmp_path, smart_encoder=encoder, smart_decoder=decoder))
    broken = Settings(home=tmp_path, smart_encoder=encoder, smart_decoder=tmp_path / "gone.onnx")
    with pytest.raises(ModelError, match=r"gone\.onnx") as raised:
        check_segmenter(broken)
    assert raised.value.fix


def test_missing_file_returns_the_box_and_logs(tmp_path, album):
    settings = Settings(home=tmp_path, smart_encoder=tmp_path / "no.onnx", smart_decoder=tmp_path / "missing.onnx")
    tools = SmartTools(album({"left.png": photo(LEFT)}), settings=settings)
    with capture_logs() as logs:
        [result] = ask(tools, box(60, 60, 120, 180), url="left.png", outlets="")
    assert result["value"]["x"] == pytest.approx(15)
    assert any("no.onnx" in line.get("reason", "") for line in logs)


def test_single_file_is_a_settings_error(tmp_path):
    with pytest.raises(SettingsError, match="LABELLOOP_SMART_DECODER"):
        Settings(home=tmp_path, smart_encoder=tmp_path / "encoder.onnx")


class Learned:
    """A mask head of the included network."""

    network = "included"

    def logits(self, batch):
        raise AssertionError("SAM has no layer for it")


def test_a_mask_head_is_not_used_and_reported_once(tmp_path):
    segmenter = SamSegmenter(*write_export(EXPORTS["sam"], tmp_path), threads=1)
    embedding, head = segmenter.embed(photo(LEFT)), Learned()
    with capture_logs() as logs:
        for _ in range(2):
            [mask] = segmenter.segment_boxes(embedding, [Rectangle(60, 60, 120, 180)], head)
            assert mask is not None
    assert [entry["event"] for entry in logs] == ["mask_head_not_used"]
