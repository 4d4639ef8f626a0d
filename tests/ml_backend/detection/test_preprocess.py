"""Images are mapped into the network's input, and boxes back, for every placement."""

import dataclasses

import numpy as np
import pytest

from ml_backend.detection.detections import Detections
from ml_backend.detection.preprocess import InputSpec, prepare

SPECS = {
    "top-left": InputSpec(96, 128),
    "centre": InputSpec(96, 128, placement="centre"),
    "stretch": InputSpec(96, 128, placement="stretch"),
    "channels last": InputSpec(96, 128, layout="NHWC"),
    "blue first": InputSpec(96, 128, color="BGR"),
    "0..1": InputSpec(96, 128, scale=1 / 255),
    "half precision": InputSpec(96, 128, dtype="float16"),
    "bytes": InputSpec(96, 128, dtype="uint8"),
}
SIZES = {"wide": (400, 100), "tall": (90, 333), "small": (40, 30), "one pixel high": (300, 1), "exact": (128, 96)}


def detections(*boxes):
    return Detections(np.array(boxes, np.float32), np.ones(len(boxes), np.float32), np.zeros(len(boxes), np.int64))


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_patch_round_trips_through_the_input(spec, size):
    width, height = size
    photo = np.zeros((height, width, 3), np.uint8)
    left, right = width // 4, width // 2
    top, bottom = (height // 4, height // 2) if height > 1 else (0, 1)
    photo[top:bottom, left:right, 0] = 255  # red
    prepared = prepare(photo, dataclasses.replace(spec, pad=0))
    tensor = prepared.tensor.astype(np.float32)
    assert prepared.tensor.dtype == spec.dtype
    channels = tensor if spec.layout == "NCHW" else tensor.transpose(2, 0, 1)
    assert channels.shape == (3, spec.height, spec.width)
    red = channels[2 if spec.color == "BGR" else 0]
    rows, columns = np.nonzero(red > red.max() / 2)
    patch = detections([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    [box] = patch.to_image(prepared.fit).boxes
    slack = [1 / prepared.fit.scale_x + 1, 1 / prepared.fit.scale_y + 1] * 2
    assert (np.abs(box - [left, top, right, bottom]) <= slack).all()
    assert not channels[[0, 1] if spec.color == "BGR" else [1, 2]].any()


def test_uncovered_input_is_padding():
    prepared = prepare(np.zeros((50, 100, 3), np.uint8), InputSpec(64, 64, pad=114))
    assert (prepared.tensor[:, 32:] == 114).all()
    assert (prepared.tensor[:, :32] == 0).all()


def test_centred_image_has_padding_on_both_sides():
    prepared = prepare(np.zeros((50, 100, 3), np.uint8), InputSpec(64, 64, placement="centre", pad=7))
    assert (prepared.tensor[0, [0, 15, 48, 63]] == 7).all()
    assert (prepared.fit.left, prepared.fit.top) == (0, 16)


def test_mean_and_std_apply_per_channel():
    photo = np.full((8, 8, 3), (10, 20, 30), np.uint8)
    spec = InputSpec(8, 8, mean=(10, 10, 10), std=(1, 2, 4))
    assert prepare(photo, spec).tensor[:, 0, 0].tolist() == [0, 5, 5]
    last = dataclasses.replace(spec, layout="NHWC")
    assert prepare(photo, last).tensor[0, 0].tolist() == [0, 5, 5]


def test_boxes_are_clipped_and_outside_ones_dropped():
    fit = prepare(np.zeros((50, 100, 3), np.uint8), InputSpec(100, 100)).fit
    clipped = detections([-20, -5, 30, 20], [90, 40, 300, 300], [10, 60, 40, 90]).to_image(fit)
    assert clipped.boxes.tolist() == [[0, 0, 30, 20], [90, 40, 100, 50]]  # the third lies in the padding


def test_reduced_decode_yields_original_pixels():
    reduced = np.zeros((75, 100, 3), np.uint8)
    prepared = prepare(reduced, InputSpec(100, 100), size=(4000, 3000))
    [box] = detections([10, 10, 50, 50]).to_image(prepared.fit).boxes
    assert box.tolist() == pytest.approx([400, 400, 2000, 2000])
    assert (prepared.fit.width, prepared.fit.height) == (4000, 3000)


def test_image_is_not_modified(astronaut):
    before = astronaut.copy()
    prepare(astronaut, InputSpec(64, 64))
    assert (astronaut == before).all()


@pytest.mark.parametrize(("width", "height"), [(200, 100), (100, 300), (64, 64), (30, 20)])
def test_crop_shows_the_centre_of_the_image(width, height):
    photo = np.zeros((height, width, 3), np.uint8)
    photo[:, :, 0] = np.linspace(0, 255, width, dtype=np.uint8)
    photo[:, :, 1] = np.linspace(0, 255, height, dtype=np.uint8)[:, None]
    prepared = prepare(photo, InputSpec(64, 64, placement="crop"))
    assert prepared.tensor.shape == (3, 64, 64)
    side = min(width, height)
    for channel, length in ((0, width), (1, height)):
        expected = 255 * (0.5 - side / length / 2), 255 * (0.5 + side / length / 2)
        assert (prepared.tensor[channel].min(), prepared.tensor[channel].max()) == pytest.approx(expected, abs=8)
    [box] = detections([0, 0, 64, 64]).to_image(prepared.fit).boxes
    middle = (width - side) / 2, (height - side) / 2
    assert box.tolist() == pytest.approx([*middle, middle[0] + side, middle[1] + side], abs=1)


def test_region_yields_pixels_of_the_full_image():
    photo = np.zeros((300, 400, 3), np.uint8)
    prepared = prepare(photo, InputSpec(64, 64), part=(100, 50, 228, 178))
    [box] = detections([0, 0, 32, 64]).to_image(prepared.fit).boxes
    assert box.tolist() == pytest.approx([100, 50, 164, 178])
    assert prepared.fit.to_input_point(*prepared.fit.to_image_point(10, 20)) == pytest.approx((10, 20))


def test_rotated_boxes_and_keypoints_are_mapped_back():
    fit = prepare(np.zeros((50, 100, 3), np.uint8), InputSpec(100, 100, placement="stretch")).fit  # twice as high
    turned = np.array([[50, 50, 20, 10, np.pi / 2]], np.float32)
    rotated_detections = Detections(
        np.zeros((1, 4), np.float32),
        np.ones(1, np.float32),
        np.zeros(1, np.int64),
        turned,
        np.array([[[10, 20, 0.9]]], np.float32),
    )
    back = rotated_detections.to_image(fit)
    assert back.rotated[0].tolist() == pytest.approx([50, 25, 10, 10, np.pi / 2], abs=1e-4)
    assert back.keypoints[0, 0].tolist() == pytest.approx([10, 10, 0.9])
    assert back.boxes[0].tolist() == pytest.approx([45, 20, 55, 30], abs=1e-4)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_reused_buffer_is_overwritten(spec, astronaut):
    wide, tall = astronaut[:100], astronaut[:, :90]
    used = prepare(wide, spec).tensor
    assert np.array_equal(prepare(tall, spec, into=used).tensor, prepare(tall, spec).tensor)
    assert np.array_equal(prepare(tall, spec, into=np.zeros((3, 5, 5), np.float32)).tensor, prepare(tall, spec).tensor)
