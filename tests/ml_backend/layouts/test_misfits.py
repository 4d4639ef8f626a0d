"""Graphs that only resemble a layout are rejected with the reason; pixels follow the file's metadata."""

import numpy as np
import pytest

from ml_backend.detection.detections import Detections
from ml_backend.detection.preprocess import prepare
from ml_backend.errors import ModelBroken, UnknownLayout
from ml_backend.inference.detector import load_detector
from ml_backend.layouts.plausibility import Misfit
from tests.ml_backend.layout_cases import (
    HEIGHT,
    NAMES,
    STRIDES,
    WIDTH,
    count,
    pixel_rows,
    yolov5,
    yolov8,
    yolov8_pose,
    yolox_decoded,
)

RNG = np.random.default_rng(7)
SIDES = np.array([WIDTH, HEIGHT, WIDTH, HEIGHT])


def heads(columns, *, likely=0.0):
    """Raw maps with three anchors per cell; the values from the sixth on are logits shifted by `likely`."""
    outputs = {}
    for stride in STRIDES:
        maps = RNG.normal(0, 1, (1, 3, HEIGHT // stride, WIDTH // stride, columns))
        maps[..., 4] -= 6
        maps[..., 5:] += likely
        outputs[f"stride_{stride}"] = maps
    return outputs


def activated_heads(columns):
    outputs = heads(columns)
    return {
        name: np.concatenate([1 / (1 + np.exp(-maps[..., :5])), maps[..., 5:]], -1) for name, maps in outputs.items()
    }


def rows_of(anchors_per_cell, *more):
    return np.concatenate([pixel_rows(RNG, count(per_cell=anchors_per_cell), per_cell=anchors_per_cell), *more], axis=1)


def shares(rows):
    return np.concatenate([rows[:, :4] / SIDES, rows[:, 4:]], axis=1)


def uniform(*shape, most=1.0):
    return RNG.uniform(0, most, shape)


def finished(boxes, *, first=1):
    n = len(boxes)
    return {"boxes": boxes, "labels": np.arange(n) % 3 + first, "scores": np.linspace(0.9, 0.4, n)}


# A weight as torchvision names it.
TORCHVISION = ("roi_heads.box_predictor.cls_score.weight", "rpn.head.cls_logits.weight")


CORNERS = np.array([[0.1, 0.2, 0.4, 0.6], [0.3, 0.1, 0.9, 0.8], [0.0, 0.0, 0.2, 0.2]])

MISFITS = {
    "YOLOv5-face heads": (heads(16), "16 values per anchor would be .* 11 classes, of which"),
    "YOLOv7-pose heads": (heads(57), "57 values per anchor"),
    "plates' heads": (heads(14), "14 values per anchor"),
    "half activated heads": (activated_heads(16), "only the first five or only the others went through a sigmoid"),
    "YOLOv5-face rows": (
        {"output": [rows_of(3, uniform(count(per_cell=3), 1), uniform(count(per_cell=3), 11, most=60))]},
        "looks like yolov5 .*scores reach from",
    ),
    "YOLOv5 rows, normalised": (
        {"output": [shares(rows_of(3, uniform(count(per_cell=3), 4)))]}, "looks like yolov5 .*instead of pixels",
    ),
    "YOLOv5-Lite rows, cells not applied": (
        {"output": [uniform(count(per_cell=3), 8)]}, "looks like yolov5 .*instead of pixels",
    ),
    "YOLOv8, normalised": (
        {"output0": [shares(rows_of(1, uniform(count(), 3))).T]}, "looks like yolov8 .*instead of pixels",
    ),
    "YOLOv8-face without metadata": (
        {"output0": [rows_of(1, uniform(count(), 1), uniform(count(), 15, most=60)).T]}, "keypoints, angles or logits",
    ),
    "RT-DETR's rows in logits": (
        {"labels": np.array([[1, 2, 0]]), "boxes": CORNERS[None] * 60, "scores": np.array([[3.0, 2.0, -4.0]])},
        "scores reach from -4 to 3",
    ),
    "a map of segments": ({"map": uniform(1, 8, HEIGHT // 16, WIDTH // 16)}, "planes lie in 0..1"),
    "distances without distributions": (
        {
            f"{kind}_{stride}": uniform(1, (HEIGHT // stride) * (WIDTH // stride), wide)
            for stride in STRIDES for kind, wide in (("cls", 3), ("reg", 4))
        }, "no known layout matches",
    ),
    "boxes outside the image": (finished(CORNERS * 100_000), "outside the input"),
    "NaN scores": (
        {**finished(CORNERS * 60), "scores": np.array([np.nan, 0.5, 0.4])}, "not numbers",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("outputs", "reason"), MISFITS.values(), ids=MISFITS)
def test_misfits_are_rejected_with_the_reason(outputs, reason, make_onnx):
    with pytest.raises(UnknownLayout, match=reason):
        load_detector(make_onnx(outputs, shape=("batch", 3, HEIGHT, WIDTH), weights=TORCHVISION), allow_numbered=True)


def test_heads_with_many_unlikely_classes_are_recognised(make_onnx):
    maps = heads(85, likely=-4)
    with pytest.raises(UnknownLayout, match="its anchors are not in the file"):
        load_detector(make_onnx(maps, shape=("batch", 3, HEIGHT, WIDTH)), allow_numbered=True)
    file = make_onnx(maps, shape=("batch", 3, HEIGHT, WIDTH), metadata={"anchors": [[10, 13, 16, 30, 33, 23]] * 3})
    assert load_detector(file, allow_numbered=True).layout == "yolov5-heads"


def test_heads_with_matching_names_are_recognised(make_onnx):
    names = [f"class {number}" for number in range(11)]
    file = make_onnx(heads(16), shape=("batch", 3, HEIGHT, WIDTH), metadata={"names": names})
    assert load_detector(file).layout == "yolov5-heads"


def test_metadata_does_not_excuse_logits(make_onnx):
    case = yolov8(task="detect")
    rows = np.array(case.outputs["output0"][0])
    rows[4:] = rows[4:] * 10 - 8
    with pytest.raises(UnknownLayout, match="scores reach from"):
        load_detector(make_onnx({"output0": [rows]}, **case.options))


def test_forced_layout_reports_its_misfit(make_onnx):
    case = yolov5()
    file = make_onnx({"output": [shares(np.array(case.outputs["output0"][0]))]}, **case.options)
    assert "although boxes reach" in load_detector(file, layout="yolov5").why


def test_pose_with_metadata_is_recognised(make_onnx):
    case = yolov8_pose()
    assert load_detector(make_onnx(case.outputs, **case.options)).layout == "yolov8-pose"


# --- normalised boxes or pixels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("batched", [True, False], ids=["batched", "unbatched"])
def test_normalised_boxes_become_pixels(batched, make_onnx):
    outputs = finished(CORNERS)
    if batched:
        outputs = {name: array[None] for name, array in outputs.items()}
    detector = load_detector(make_onnx(outputs, shape=(1, 3, HEIGHT, WIDTH), metadata={"names": NAMES}))
    assert detector.layout == "ssd"
    outputs_ = detector.engine.run([np.zeros((3, HEIGHT, WIDTH), np.float32)], detector.reader.outputs)
    np.testing.assert_allclose(detector.reader.decode(outputs_, 0.3)[0].boxes, CORNERS * SIDES, rtol=1e-5)


def test_normalised_boxes_without_a_trial_raise_later(make_onnx):
    outputs = {name: array[:0] for name, array in finished(CORNERS).items()}
    shape = (1, 3, HEIGHT, WIDTH)
    detector = load_detector(make_onnx(outputs, shape=shape, metadata={"names": NAMES}, weights=TORCHVISION))
    assert not detector.units_checked
    assert "the trial run had no boxes" in detector.why
    detector.check_units([Detections(np.float32(CORNERS * SIDES), np.float32([0.9, 0.8, 0.7]), np.zeros(3, np.int64))])
    with pytest.raises(ModelBroken, match="normalised") as error:
        detector.check_units([Detections(np.float32(CORNERS), np.float32([0.9, 0.8, 0.7]), np.zeros(3, np.int64))])
    assert "ssd" in error.value.fix


# --- class numbers from 0, or from 1 behind a background --------------------------------------------------------------


def finished_model(make_onnx, first, **options):
    """A square input: the trial's grey image has no padding, and is of one colour."""
    return make_onnx(
        finished(CORNERS * WIDTH, first=first), shape=(1, 3, WIDTH, WIDTH), metadata={"names": NAMES}, **options
    )


def photo_of(detector):
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[10:20, 10:20] = 255
    return [prepare(image, detector.spec)]


def test_class_numbers_of_the_trial_tell_where_they_start(make_onnx):
    for first in (0, 1):
        detector = load_detector(finished_model(make_onnx, first))
        [detections] = detector.detect(photo_of(detector), floor=0.3)
        assert detections.classes.tolist() == [0, 1, 2]


def test_finished_detections_of_unknown_origin_are_refused(make_onnx):
    with pytest.raises(UnknownLayout, match=r"looks like torchvision.*start at 0.*`first = 0` in `\[classes\]`"):
        load_detector(finished_model(make_onnx, 1, only_unlike=True))


def test_torchvision_is_known_by_its_weights(make_onnx):
    detector = load_detector(finished_model(make_onnx, 1, only_unlike=True, weights=TORCHVISION))
    [detections] = detector.detect(photo_of(detector), floor=0.3)
    assert (detector.layout, detections.classes.tolist()) == ("torchvision", [0, 1, 2])


def test_class_number_0_where_0_is_the_background_is_an_error(make_onnx):
    detector = load_detector(finished_model(make_onnx, 0, only_unlike=True), layout="torchvision")
    with pytest.raises(ModelBroken, match="class numbers start at 0") as error:
        detector.detect(photo_of(detector), floor=0.3)
    assert "layout file" in error.value.fix


def test_class_numbers_beyond_the_names_are_an_error(make_onnx):
    detector = load_detector(finished_model(make_onnx, 2, only_unlike=True, weights=TORCHVISION))
    with pytest.raises(ModelBroken, match=r"class number 4, and its names \(metadata\) end at 3") as error:
        detector.detect(photo_of(detector), floor=0.3)
    assert "Name every class" in error.value.fix


def test_boxes_of_unknown_order_are_refused(make_onnx):
    outputs = {name: array[None] for name, array in finished(CORNERS).items()}
    with pytest.raises(UnknownLayout, match="whether x or y comes first"):
        load_detector(make_onnx(outputs, shape=(1, HEIGHT, WIDTH, 3), metadata={"names": NAMES}))


def test_padding_tells_no_unit(make_onnx):
    outputs = {**finished(np.zeros((3, 4))), "scores": np.zeros(3)}
    file = make_onnx(outputs, shape=(1, 3, HEIGHT, WIDTH), metadata={"names": NAMES}, weights=TORCHVISION)
    detector = load_detector(file)
    assert (detector.layout, detector.units_checked) == ("torchvision", False)


def test_masks_within_their_boxes_are_not_taken_for_masks_of_the_image(make_onnx):
    outputs = {**finished(CORNERS * SIDES), "masks": np.ones((3, 1, 28, 28))}
    detector = load_detector(make_onnx(outputs, shape=(1, 3, HEIGHT, WIDTH), metadata={"names": NAMES}))
    assert (detector.layout, detector.provides) == ("torchvision", {"boxes"})


def test_keypoints_of_torchvision(make_onnx):
    points = uniform(3, 17, 3, most=60)
    outputs = {**finished(CORNERS * SIDES), "keypoints": points, "keypoints_scores": uniform(3, 17)}
    detector = load_detector(make_onnx(outputs, shape=(1, 3, HEIGHT, WIDTH), metadata={"names": NAMES}))
    assert detector.provides == {"boxes", "keypoints"}
    assert detector.keypoint_names[0] == "nose"
    [detections] = detector.detect(photo_of(detector), floor=0.3)
    np.testing.assert_allclose(detections.keypoints, points, rtol=1e-5)


# --- rows whose order no trial row shows ------------------------------------------------------------------------------

ROWS = np.concatenate([np.zeros((3, 1)), CORNERS * SIDES, np.array([[0.9, 2], [0.7, 0], [0.4, 1]])], axis=1)
ORDERS = {"YOLOv7": [0, 1, 2, 3, 4, 6, 5], "YOLO-NAS": [0, 1, 2, 3, 4, 5, 6]}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_rows_of_seven_are_read_by_their_values(order, make_onnx):
    file = make_onnx(
        {"output": ROWS[:, order]}, shape=(1, 3, HEIGHT, WIDTH), metadata={"names": NAMES}, only_unlike=True
    )
    detector = load_detector(file)
    assert detector.layout == "yolov7-end2end"
    [detections] = detector.detect(photo_of(detector), floor=0.3)
    np.testing.assert_allclose(detections.boxes, CORNERS * SIDES, rtol=1e-5)
    np.testing.assert_allclose(detections.scores, [0.9, 0.7, 0.4], rtol=1e-5)
    assert detections.classes.tolist() == [2, 0, 1]


def test_rows_of_seven_in_another_order_are_an_error(make_onnx):
    file = make_onnx(
        {"output": ROWS[:, [0, 6, 5, 1, 2, 3, 4]]}, shape=(1, 3, HEIGHT, WIDTH), metadata={"names": NAMES},
        only_unlike=True,
    )  # fmt: skip
    detector = load_detector(file)
    with pytest.raises(ModelBroken, match="opened as yolov7-end2end, and its rows of seven are not"):
        detector.detect(photo_of(detector), floor=0.3)


def test_rows_of_six_that_come_late_in_another_order_are_an_error(make_onnx):
    rows = np.concatenate([CORNERS * SIDES, np.array([[2, 0.9], [0, 0.7], [1, 0.4]])], axis=1)
    file = make_onnx({"output0": np.zeros((1, 3, 6))}, shape=(1, 3, HEIGHT, WIDTH), metadata={"names": NAMES})
    detector = load_detector(file)
    assert detector.layout == "end2end"
    with pytest.raises(Misfit, match="not a box, a score and a class number"):
        detector.reader.decode({"output0": np.float32(rows[None])}, 0.3)


def test_yolox_with_another_number_of_names_is_another_layout(make_onnx):
    case = yolox_decoded()
    file = make_onnx(case.outputs, metadata={"names": [*NAMES, "d"]}, shape=("batch", 3, HEIGHT, WIDTH))
    with pytest.raises(UnknownLayout):  # YOLOv8 with rows in place of columns has as many values
        load_detector(file)


# --- ONNX's metadata of images, as Custom Vision writes it -----------------------------------------------------------

PIXELS = {
    "BGR bytes": ("Bgr8", "NominalRange_0_255", "BGR", 255.0),
    "RGB 0..1": ("Rgb8", "Normalized_0_1", "RGB", 1.0),
    "RGB -1..1": ("Rgb8", "Normalized_1_1", "RGB", 1.0),
    "no range": ("Bgr8", None, "BGR", 1.0),
}


def custom_vision(make_onnx, **metadata):
    names = {"detected_boxes": CORNERS[None], "detected_classes": np.array([[0, 1, 2]])}
    outputs = {**names, "detected_scores": np.array([[0.9, 0.8, 0.7]])}
    metadata_ = {"names": NAMES, **{f"Image.{key}": value for key, value in metadata.items() if value}}
    return make_onnx(outputs, shape=(1, 3, HEIGHT, WIDTH), metadata=metadata_)


@pytest.mark.parametrize("case", PIXELS)
def test_pixels_follow_the_metadata(case, make_onnx):
    pixels, values, color, white = PIXELS[case]
    file = custom_vision(make_onnx, BitmapPixelFormat=pixels, NominalPixelRange=values, ColorSpaceGamma="SRGB")
    spec = load_detector(file).spec
    assert (spec.color, spec.placement) == (color, "stretch")
    assert (255 * spec.scale - spec.mean[0]) / spec.std[0] == pytest.approx(white)
    black = (0 - spec.mean[0]) / spec.std[0]
    assert black == pytest.approx(-1.0 if values == "Normalized_1_1" else 0.0)


def test_custom_vision_classes_start_at_zero(make_onnx):
    detector = load_detector(custom_vision(make_onnx, BitmapPixelFormat="Bgr8"))
    outputs = detector.engine.run([np.zeros((3, HEIGHT, WIDTH), np.float32)], detector.reader.outputs)
    assert detector.map_classes(detector.reader.decode(outputs, 0.3)[0]).classes.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("key", "value"),
    [("BitmapPixelFormat", "Gray16"), ("NominalPixelRange", "NominalRange_16_235"), ("ColorSpaceGamma", "Linear")],
)
def test_unsupported_pixel_formats_are_rejected(key, value, make_onnx):
    with pytest.raises(ModelBroken, match=f"Image.{key} is '{value}'"):
        load_detector(custom_vision(make_onnx, **{key: value}))


def test_grey_pixels_need_an_input_of_one_channel(make_onnx):
    with pytest.raises(ModelBroken, match="says GRAY pixels, and its input has 3 channels"):
        load_detector(custom_vision(make_onnx, BitmapPixelFormat="Gray8"))
