"""The included segmentation network: prompts in, masks out, alone and in batches."""

import cv2
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from structlog.testing import capture_logs

from labelloop.labeling.geometry.shapes import Rectangle
from ml_backend.segmentation.crop import CONTEXT, BoxCrop
from ml_backend.segmentation.outline_network import NETWORK_SIDE, OutlineSegmenter, embedded_outline
from ml_backend.segmentation.prompt import Prompt
from ml_backend.segmentation.prompt_maps import (
    ASPECT,
    BOX,
    GRID,
    HAS_BOX,
    INSIDE_IMAGE,
    NEGATIVE,
    POSITIVE,
    PROMPT_MAPS,
    prompt_maps,
)

W, H = 480, 320


@pytest.fixture(scope="module")
def segmenter():
    return OutlineSegmenter()


def discs(*places, radius=40):
    """Discs of one colour on a noisy background, and their masks."""
    image = np.array([70, 110, 80]) + np.random.default_rng(0).normal(0, 8, (H, W, 3))
    masks = []
    for x, y in places:
        mask = np.zeros((H, W), np.uint8)
        cv2.circle(mask, (x, y), radius, 1, -1)
        image[mask > 0] = (205, 60, 50)
        masks.append(mask > 0)
    return image.clip(0, 255).astype(np.uint8), masks


def loose(x, y, radius=40):
    return Rectangle(x - radius - 8, y - radius - 8, 2 * radius + 16, 2 * radius + 16)


def iou(found, mask):
    pixels = found.mask(W, H).array()
    return (pixels & mask).sum() / (pixels | mask).sum()


def test_a_batch_gives_what_each_box_gives(segmenter):
    places = [(80, 80), (240, 200), (400, 100)]
    image, masks = discs(*places)
    boxes = [loose(*place) for place in places]
    batch = segmenter.segment_boxes(image, boxes)
    for found, box, mask in zip(batch, boxes, masks, strict=True):
        alone = segmenter.segment(image, Prompt(box))
        assert found.bounds == alone.bounds
        np.testing.assert_allclose(found.level, alone.level, atol=2e-3)
        assert found.score == pytest.approx(alone.score, abs=1e-3)
        assert iou(found, mask) > 0.9


def test_boxes_outside_the_image_have_no_mask(segmenter):
    image, _ = discs((80, 80))
    inside, *outside = segmenter.segment_boxes(image, [loose(80, 80), loose(-200, 80), loose(80, 900)])
    assert inside is not None
    assert outside == [None, None]
    assert segmenter.segment_boxes(image, []) == []


@pytest.mark.parametrize("radius", [12, 40, 120])
def test_one_click_finds_the_object_at_any_size(radius, segmenter):
    image, [mask] = discs((240, 160), radius=radius)
    found = segmenter.segment(image, Prompt(None, ((240.0, 160.0),)))
    assert iou(found, mask) > 0.85


def test_a_rotated_box_is_segmented_in_its_own_frame(segmenter):
    image, [mask] = discs((240, 160))
    corner = np.array([240.0, 160.0]) - np.array([[0, -1], [1, 0]]) @ [48, 48]
    assert iou(segmenter.segment(image, Prompt(Rectangle(*corner, 96, 96, 90))), mask) > 0.9


def test_odds_are_the_last_convolution_of_the_features(segmenter):
    """A project's own last layer is fitted on `features`."""
    image, _ = discs((80, 80), (300, 200))
    batch = segmenter.forward(image, [loose(80, 80), loose(300, 200)])
    weights = {item.name: numpy_helper.to_array(item) for item in onnx.load(embedded_outline()).graph.initializer}
    weight = weights["out.weight_h"].astype(np.float32)[0, :, 0, 0]
    expected = np.einsum("c,nchw->nhw", weight, batch.features) + weights["out.bias_h"].astype(np.float32)[0]
    np.testing.assert_allclose(batch.logits, expected, atol=1e-3)
    assert batch.crops.shape == (2, NETWORK_SIDE, NETWORK_SIDE, 3)


class Nothing:
    """A head to which nothing is an object."""

    def __init__(self, network):
        self.network = network

    def logits(self, batch):
        assert batch.features.shape[1] > 0
        return np.full_like(batch.logits, -9)


def test_a_head_of_another_network_is_not_applied(segmenter):
    image, _ = discs((80, 80))
    assert segmenter.segment_boxes(image, [loose(80, 80)], head=Nothing(segmenter.network)) == [None]
    other = Nothing("another")
    with capture_logs() as logs:
        assert segmenter.segment_boxes(image, [loose(80, 80)], head=other) != [None]
        assert segmenter.segment_boxes(image, [loose(80, 80)], head=other) != [None]
    [warning] = [entry for entry in logs if entry["event"] == "mask_head_not_used"]
    assert segmenter.network in warning["reason"]


def test_prompt_maps_show_box_clicks_and_image():
    crop = BoxCrop(Rectangle(-20, 40, 80, 40), W, H)
    maps = prompt_maps(crop, [(20, 60)], [(50, 50)], has_box=True)
    assert maps.shape == (PROMPT_MAPS, GRID, GRID)
    assert maps[BOX].sum() == pytest.approx((GRID / CONTEXT) ** 2, rel=1e-3)
    assert np.unravel_index(maps[POSITIVE].argmax(), (GRID, GRID)) in {(27, 27), (27, 28), (28, 27), (28, 28)}
    row, column = np.unravel_index(maps[NEGATIVE].argmax(), (GRID, GRID))
    assert row < GRID / 2 < column
    assert maps[INSIDE_IMAGE].mean() == pytest.approx(1 - 36 / 112, abs=0.02)  # 36 of 112 pixels lie left of the image
    assert maps[HAS_BOX].min() == 1
    assert maps[ASPECT, 0, 0] == pytest.approx(1 / 3)
    guessed = prompt_maps(crop, [(20, 60)], has_box=False)
    assert guessed[BOX].max() == guessed[HAS_BOX].max() == guessed[ASPECT].max() == guessed[NEGATIVE].max() == 0
