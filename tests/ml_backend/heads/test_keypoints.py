"""Key points of drawn animals: a bright head and a dark tail on a body, found, judged, stored and applied."""

import cv2
import numpy as np
import pytest

from labelloop.labeling.studio.config import LabelConfig
from ml_backend.detection.detections import Detections
from ml_backend.heads.base import FitInput, HeadExample, ImagePrediction
from ml_backend.heads.keypoints import KeyPointsHead, apply_keypoints, fit_keypoints, point_layout

CONFIG = LabelConfig.parse(
    '<View><Image name="image" value="$image"/><RectangleLabels name="box" toName="image">'
    '<Label value="Animal" predicted_values="cat"/></RectangleLabels><KeyPointLabels name="point" toName="image">'
    '<Label value="head"/><Label value="tail"/></KeyPointLabels></View>'
)


def animal(seed, *, boxed=True, tail=True, task=None):
    """An image with a grey body, a red head and a blue tail."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(100, 140, (200, 240, 3)).astype(np.uint8)
    centre, angle = rng.uniform((90, 80), (150, 120)), rng.uniform(0, 2 * np.pi)
    along = np.array([np.cos(angle), np.sin(angle)]) * 45
    head, end = centre + along, centre - along
    corners = [tuple(int(value) for value in point) for point in (head, end)]
    cv2.line(pixels, *corners, (60, 60, 60), 22)
    cv2.circle(pixels, corners[0], 11, (230, 40, 40), -1)
    if tail:
        cv2.circle(pixels, corners[1], 8, (40, 40, 230), -1)
    low, high = np.minimum(head, end) - 14, np.maximum(head, end) + 14
    index = 0 if boxed else -1
    points = [("head", *head.tolist(), index)] + [("tail", *end.tolist(), index)] * tail
    return HeadExample(
        task=seed if task is None else task, url=str(seed), width=240, height=200,
        boxes=np.array([[*low, *high]] if boxed else [], np.float32).reshape(-1, 4),
        labels=("Animal",) if boxed else (), embeddings=np.zeros((int(boxed), 1), np.float32), image_features=None,
        pixels=lambda: pixels, keypoints=tuple(points),
    )  # fmt: skip


@pytest.fixture(scope="module")
def learned():
    result = fit_keypoints(FitInput(CONFIG, [animal(seed) for seed in range(12)]))
    assert result.passed, result.reason
    return result


def located(head, example, names=("Animal",)):
    detections = Detections(
        example.boxes, np.full(len(example.boxes), 0.9, np.float32), np.zeros(len(example.boxes), np.int64)
    )
    prediction = ImagePrediction(detections, names, 240, 200, pixels=example.pixels)
    return apply_keypoints(head, prediction).points


def test_points_of_objects_are_learned(learned):
    assert (learned.metric, learned.judged_by) == ("PCK@.1", "cross-validation")
    assert learned.value > 0.7
    assert "the mean shape has 0." in learned.reason
    assert learned.head.controls == ("point",)
    assert learned.head.labels == ("head", "tail")


def test_points_are_located_on_the_object(learned):
    right = 0
    for seed in range(40, 48):
        example = animal(seed)
        points = {label: (x, y, index) for label, x, y, _, index in located(learned.head, example)}
        for label, x, y, _ in example.keypoints:
            found = points.get(label, (0, 0, 0))
            right += np.hypot(found[0] - x, found[1] - y) < 0.1 * 120
            assert found[2] == 0
    assert right >= 13


def test_classes_are_found_by_predicted_values_and_others_are_left_alone(learned):
    assert located(learned.head, animal(40), names=("Cat",))
    assert not located(learned.head, animal(40), names=("Dog",))


def test_points_without_boxes_belong_to_the_image():
    result = fit_keypoints(FitInput(CONFIG, [animal(seed, boxed=False) for seed in range(12)]))
    assert result.passed, result.reason
    [one] = result.head.objects
    assert one.owner == ""
    example = animal(41, boxed=False)
    points = located(result.head, example)
    assert {index for *_, index in points} == {-1}
    assert all(0 <= x <= 240 and 0 <= y <= 200 for _, x, y, _, _ in points)


def test_a_hidden_point_is_seldom_filled_in():
    examples = [animal(seed, tail=seed % 4 == 0) for seed in range(16)]
    head = fit_keypoints(FitInput(CONFIG, examples)).head
    filled = [label for seed in range(50, 56) for label, *_ in located(head, animal(seed, tail=False))]
    assert filled.count("tail") <= 1
    assert filled.count("head") >= 4


def test_several_points_of_one_label_are_said_and_not_learned():
    examples = [animal(seed) for seed in range(6)]
    doubled = [
        HeadExample(**{**vars_of(example), "keypoints": (*example.keypoints, ("head", 5.0, 5.0, 0))})
        for example in examples
    ]
    layout = point_layout(doubled)
    assert layout.labels == {"Animal": ("tail",)}
    assert "6 of 6 objects 'Animal' have several points 'head'" in layout.reasons[0]
    result = fit_keypoints(FitInput(CONFIG, doubled))
    assert "several points 'head'" in result.reason
    assert result.head.labels == ("tail",)


def vars_of(example):
    return {name: getattr(example, name) for name in HeadExample.__dataclass_fields__}


def test_too_few_objects_are_said():
    assert fit_keypoints(FitInput(CONFIG, [HeadExample(**{**vars_of(animal(1)), "keypoints": ()})])) is None
    result = fit_keypoints(FitInput(CONFIG, [animal(1), animal(2)]))
    assert (result.head, result.passed) == (None, False)
    assert "fewer than 3 objects" in result.reason
    alone = fit_keypoints(FitInput(CONFIG, [animal(seed, task=1) for seed in range(4)]))
    assert not alone.passed


def test_points_that_cannot_be_found_are_refused():
    rng = np.random.default_rng(0)
    examples = []
    for seed in range(12):
        points = tuple((label, *rng.uniform((60, 40), (180, 160)).tolist(), 0) for label in ("head", "tail"))
        box = np.array([[20, 0, 220, 200]], np.float32)
        examples.append(HeadExample(**{**vars_of(animal(seed)), "keypoints": points, "boxes": box}))
    result = fit_keypoints(FitInput(CONFIG, examples))
    assert not result.passed
    assert "do not find these points" in result.reason


def test_the_served_head_is_compared_on_images_that_it_did_not_see(learned):
    examples = [animal(seed) for seed in range(20)]
    second = fit_keypoints(FitInput(CONFIG, examples, parent=learned.head))
    assert second.passed
    assert second.parent is not None
    held_out = [animal(seed) for seed in range(60, 71)]
    third = fit_keypoints(FitInput(CONFIG, examples, held_out=held_out, parent=learned.head))
    assert third.judged_by == "held-out"
    assert third.parent > 0.5
    # Twelve useless images cannot replace what is served.
    noise = [
        HeadExample(**{**vars_of(example), "url": "noise", "pixels": lambda: np.full((200, 240, 3), 120, np.uint8)})
        for example in examples[:12]
    ]
    worse = fit_keypoints(FitInput(CONFIG, noise, held_out=held_out, parent=learned.head))
    assert not worse.passed


def test_a_head_is_restored_from_its_bytes(learned, monkeypatch):
    data = learned.head.to_bytes()
    head = KeyPointsHead.from_bytes(data)
    assert (head.labels, head.controls, head.tasks) == (
        learned.head.labels, learned.head.controls, learned.head.tasks
    )  # fmt: skip
    assert located(head, animal(40)) == located(learned.head, animal(40))
    for damaged in (b"", b"nothing", data[:-300]):
        with pytest.raises(ValueError, match="key points"):
            KeyPointsHead.from_bytes(damaged)
    monkeypatch.setattr("ml_backend.heads.keypoints.backbone_checksum", lambda: "other")
    with pytest.raises(ValueError, match="another release"):
        KeyPointsHead.from_bytes(data)
