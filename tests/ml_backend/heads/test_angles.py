"""Rotated boxes from upright ones: the geometry against shapely, and learned from drawn bars."""

import cv2
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from labelloop.labeling.geometry.shapes import Rectangle
from labelloop.labeling.studio.config import LabelConfig
from ml_backend.detection.detections import Detections
from ml_backend.heads.angles import (
    ROTATIONS,
    AnglesHead,
    apply_angles,
    as_drawn,
    descriptors,
    drawn_rotations,
    fit_angles,
    fit_boxes,
    hulls,
    rotated_classes,
    rotated_iou,
    rotation_prior,
)
from ml_backend.heads.base import FitInput, HeadExample, ImagePrediction

CONFIG = LabelConfig.parse(
    '<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">'
    '<Label value="Bar"/></RectangleLabels></View>'
)
BOX = st.tuples(
    st.floats(-50, 50), st.floats(-50, 50), st.floats(10, 200), st.floats(10, 200), st.floats(0, 359.9)
).map(np.array)


def outline(box):
    """The corners of a rotated box by Label Studio's own convention, from its centre."""
    cx, cy, width, height, degrees = box
    angle = np.deg2rad(degrees)
    x = cx - np.cos(angle) * width / 2 + np.sin(angle) * height / 2
    y = cy - np.sin(angle) * width / 2 - np.cos(angle) * height / 2
    return Rectangle(x, y, width, height, degrees).polygon()


@given(BOX)
def test_hulls_are_the_bounds_of_the_outline(box):
    assert np.allclose(hulls(box[None])[0], outline(box).bounds, atol=1e-6)


@settings(deadline=None)
@given(BOX, BOX)
def test_rotated_iou_is_that_of_shapely(first, second):
    one, other = outline(first), outline(second)
    wanted = one.intersection(other).area / one.union(other).area
    assert rotated_iou(first[None], second[None])[0] == pytest.approx(wanted, abs=1e-3)


@settings(deadline=None)
@given(BOX, st.integers(0, 3))
def test_descriptors_are_those_of_the_shape_and_not_of_its_notation(box, turns):
    other = box.copy()
    if turns % 2:
        other[2], other[3] = box[3], box[2]
    other[4] = (box[4] + 90 * turns) % 360
    assert shapely.symmetric_difference(outline(box), outline(other)).area < 1e-3
    assert np.allclose(descriptors(box[None]), descriptors(other[None]), atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(BOX)
def test_exact_descriptors_give_the_box_back(box):
    prior = np.full(len(ROTATIONS), -np.log(len(ROTATIONS)))
    if max(box[2:4]) > 10 * min(box[2:4]):
        return
    found = fit_boxes(hulls(box[None]), descriptors(box[None]), np.full(3, 0.05), prior)
    assert rotated_iou(found, box[None])[0] > 0.75


@settings(deadline=None)
@given(BOX, st.floats(0, 359))
def test_boxes_are_written_as_the_project_turns_them(box, usual):
    drawn = drawn_rotations(np.array([[0, 0, 2, 1, usual]]))
    written = as_drawn(box[None], drawn)
    assert rotated_iou(written, box[None])[0] > 0.999
    assert abs((written[0, 4] - usual + 180) % 360 - 180) <= 46


def test_the_share_of_upright_boxes_is_kept_in_the_prior():
    boxes = np.array([[0, 0, 4, 2, 0]] * 6 + [[0, 0, 2, 4, 0]] * 2 + [[0, 0, 4, 2, 30]] * 8, float)
    prior = np.exp(rotation_prior(boxes))
    assert prior.sum() == pytest.approx(1, abs=1e-6)
    assert prior[ROTATIONS == 0][0] > 2 * prior[ROTATIONS == 90][0] > 0.1
    assert prior[np.abs(ROTATIONS - 30) <= 10].sum() > 0.3


def bar(seed, *, rotated=True):
    """A bright bar on noise, its box drawn around it, rotated as it is."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(90, 130, (160, 160, 3)).astype(np.uint8)
    angle = float(rng.uniform(10, 170)) if rotated else 0.0
    box = np.array([80.0, 80.0, rng.uniform(70, 100), rng.uniform(18, 28), angle])
    corners = np.array(outline(box).exterior.coords)[:4]
    cv2.fillPoly(pixels, [corners.round().astype(np.int32)], (230, 220, 40))
    return HeadExample(
        task=seed, url=str(seed), width=160, height=160, boxes=hulls(box[None]).astype(np.float32), labels=("Bar",),
        embeddings=np.zeros((1, 1), np.float32), image_features=None, pixels=lambda: pixels,
        rotated=(tuple(box.tolist()),) if rotated else (),
    )  # fmt: skip


@pytest.fixture(scope="module")
def learned():
    result = fit_angles(FitInput(CONFIG, [bar(seed) for seed in range(12)], held_out=[bar(s) for s in range(50, 72)]))
    assert result.passed, result.reason
    return result


def test_rotation_is_learned_and_judged_against_upright_boxes(learned):
    assert (learned.metric, learned.judged_by) == ("rotated IoU", "held-out")
    assert learned.value > 0.7
    assert "upright boxes have" in learned.reason


def test_a_head_is_restored_from_its_bytes(learned):
    head = AnglesHead.from_bytes(learned.head.to_bytes())
    assert head.classes == ("bar",)
    assert np.array_equal(head.weights, learned.head.weights)
    for damaged in (b"", b"nothing", learned.head.to_bytes()[:-200]):
        with pytest.raises(ValueError, match="rotations"):
            AnglesHead.from_bytes(damaged)


def test_detections_of_the_class_are_rotated_and_others_stay_upright(learned):
    example = bar(99)
    boxes = np.concatenate([example.boxes, [[5, 5, 40, 30]]]).astype(np.float32)
    detections = Detections(boxes, np.array([0.9, 0.8], np.float32), np.array([0, 1]))
    prediction = ImagePrediction(detections, ("Bar", "Other"), 160, 160, pixels=example.pixels)
    rotated = apply_angles(learned.head, prediction).detections.rotated
    found = np.concatenate([rotated[:, :4], np.rad2deg(rotated[:, 4:])], axis=1).astype(float)
    assert rotated_iou(found[:1], np.array(example.rotated))[0] > 0.6
    assert found[1].tolist() == [22.5, 17.5, 35, 25, 0]


def test_a_project_without_rectangles_learns_no_rotation():
    config = LabelConfig.parse(
        '<View><Image name="image" value="$image"/><EllipseLabels name="label" toName="image">'
        '<Label value="Bar"/></EllipseLabels></View>'
    )
    assert fit_angles(FitInput(config, [bar(seed) for seed in range(6)])) is None


def test_upright_projects_learn_no_rotation():
    examples = [bar(seed, rotated=False) for seed in range(6)]
    assert rotated_classes(examples) == ()
    assert fit_angles(FitInput(CONFIG, examples)) is None


def test_too_few_rotated_objects_are_said(learned):
    result = fit_angles(FitInput(CONFIG, [bar(1)]))
    assert (result.head, result.passed) == (None, False)
    assert "3 rotated objects" in result.reason
    second = fit_angles(FitInput(CONFIG, [bar(seed) for seed in range(14)], parent=learned.head))
    assert second.parent == pytest.approx(learned.head.iou)
