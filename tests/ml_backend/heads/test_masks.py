from dataclasses import replace

import cv2
import numpy as np
import pytest

from labelloop.labeling.geometry.shapes import Rectangle
from labelloop.labeling.studio.config import LabelConfig
from ml_backend.heads import masks
from ml_backend.heads.base import FitInput, HeadExample
from ml_backend.heads.masks import MasksHead, drawn_ious, fit_masks, object_share
from ml_backend.segmentation.crop import BoxCrop
from ml_backend.segmentation.outline_network import OutlineSegmenter
from ml_backend.segmentation.prompt import Prompt
from ml_backend.training.mask_codec import crop_bounds, encode_mask

CONFIG = LabelConfig.parse(
    """<View><Image name="image" value="$image"/><PolygonLabels name="label" toName="image"><Label value="x"/>
    </PolygonLabels></View>"""
)
SIDE = 240


def drawing(seed, *, share=1.0, discs=3):
    """Pixels, boxes and masks of discs; the masks are diamonds: people of this project draw them so."""
    chance = np.random.default_rng(seed)
    pixels = np.full((SIDE, SIDE, 3), 40 + chance.integers(0, 30), np.uint8)
    boxes, drawn = [], []
    for place in range(discs):
        radius = int(chance.integers(18, 32))
        x, y = 40 + 75 * place + int(chance.integers(-6, 6)), int(chance.integers(50, SIDE - 50))
        cv2.circle(pixels, (x, y), radius, (200, 180, int(chance.integers(60, 200))), -1)
        mask = np.abs(np.mgrid[:SIDE, :SIDE][1] - x) + np.abs(np.mgrid[:SIDE, :SIDE][0] - y) <= radius * share
        boxes.append((x - radius, y - radius, x + radius + 1, y + radius + 1))
        drawn.append(mask)
    return cv2.GaussianBlur(pixels, (0, 0), 1), np.array(boxes, np.float32), drawn


def example(seed, **more):
    pixels, boxes, drawn = drawing(seed, **more)
    texts = []
    for box, mask in zip(boxes.tolist(), drawn, strict=True):
        left, top, right, bottom = crop_bounds(tuple(box), SIDE, SIDE)
        texts.append(encode_mask(mask[top:bottom, left:right]))
    return HeadExample(
        task=seed, url=f"drawing-{seed}-{more}", width=SIDE, height=SIDE, boxes=boxes, labels=("x",) * len(boxes),
        embeddings=np.zeros((len(boxes), 0), np.float32), image_features=None, pixels=lambda: pixels,
        masks=tuple(texts),
    )  # fmt: skip


@pytest.fixture(scope="module")
def segmenter():
    return OutlineSegmenter()


@pytest.fixture(scope="module")
def fitted():
    return fit_masks(FitInput(CONFIG, [example(seed) for seed in range(6)]))


def iou_of(segmenter, seed, head=None):
    pixels, boxes, drawn = drawing(seed)
    ious = []
    for box, mask in zip(boxes, drawn, strict=True):
        loose = Rectangle(float(box[0]) - 4, float(box[1]) - 4, float(box[2] - box[0]) + 8, float(box[3] - box[1]) + 8)
        found = segmenter.segment_boxes(pixels, [loose], head)[0]
        found = found.mask(SIDE, SIDE).array() if found else np.zeros_like(mask)
        ious.append((found & mask).sum() / (found | mask).sum())
    return float(np.mean(ious))


def test_masks_follow_how_a_project_draws(segmenter, fitted):
    assert fitted.passed, fitted.reason
    assert fitted.value > fitted.parent + 0.1
    before, after = (np.mean([iou_of(segmenter, seed, head) for seed in (90, 91)]) for head in (None, fitted.head))
    assert after > before + 0.1
    clicked = segmenter.segment(drawing(90)[0], Prompt(Rectangle(5, 50, 80, 90), ((40.0, 95.0),)), fitted.head)
    assert clicked is not None


def test_a_head_survives_the_store(segmenter, fitted):
    again = MasksHead.from_bytes(fitted.head.to_bytes())
    assert (again.recipe, again.objects, again.network) == (fitted.head.recipe, 18, segmenter.network)
    batch = segmenter.forward(drawing(90)[0], [Rectangle(5, 50, 80, 90)])
    assert np.array_equal(again.logits(batch), fitted.head.logits(batch))


def test_damaged_heads_are_refused(fitted):
    data = fitted.head.to_bytes()
    for damaged in (b"", b"no zip", data[:200], data[:-40]):
        with pytest.raises(ValueError):
            MasksHead.from_bytes(damaged)
    not_finite = replace(fitted.head, weights=np.full_like(fitted.head.weights, np.nan))
    with pytest.raises(ValueError):
        MasksHead.from_bytes(not_finite.to_bytes())


def test_a_head_of_another_network_changes_nothing(segmenter, fitted):
    other = replace(fitted.head, network="0" * 16)
    assert iou_of(segmenter, 91, other) == iou_of(segmenter, 91)
    assert iou_of(segmenter, 91, fitted.head) != iou_of(segmenter, 91)


def test_without_masks_there_is_nothing_to_fit():
    assert fit_masks(FitInput(CONFIG, [])) is None
    assert fit_masks(FitInput(CONFIG, [replace(example(0), masks=())])) is None


def test_few_masks_keep_the_shipped_network():
    result = fit_masks(FitInput(CONFIG, [example(0, discs=1), example(1, discs=1)]))
    assert result.head is None
    assert not result.passed
    assert "from 4 on" in result.reason


def test_drawn_masks_decide_not_pixels_of_the_grid(monkeypatch):
    def worse(_segmenter, examples, heads, **_options):
        return np.array([[0.8] * len(examples), [0.7 if heads[1] else 0.8] * len(examples)])

    monkeypatch.setattr(masks, "drawn_ious", worse)
    result = fit_masks(FitInput(CONFIG, [example(seed) for seed in range(6)]))
    assert not result.passed
    assert (result.parent, result.value) == (pytest.approx(0.8), pytest.approx(0.7))
    assert "is needed to be more than chance" in result.reason


def test_drawn_ious_are_those_of_the_masks(segmenter, fitted):
    examples = [example(seed) for seed in range(30, 34)]
    shipped, learned = drawn_ious(segmenter, examples, [None, fitted.head])
    assert len(shipped) == sum(len(one.masks) for one in examples)
    assert learned.mean() > shipped.mean() + 0.1
    assert len(drawn_ious(segmenter, examples, [None], most=3)[0]) < len(shipped)


def test_held_out_tasks_decide(fitted):
    held_out = [example(seed) for seed in range(20, 26)]
    result = fit_masks(FitInput(CONFIG, [example(seed) for seed in range(6)], held_out, parent=fitted.head))
    assert result.judged_by == "held-out"
    assert result.parent > fitted.parent + 0.1  # what is served now is the learned head
    # Masks of another way to draw: the head fitted on them loses against the served one.
    smaller = [example(seed, share=0.5) for seed in range(6)]
    result = fit_masks(FitInput(CONFIG, smaller, held_out, parent=fitted.head))
    assert not result.passed
    assert "worse than" in result.reason


def test_a_copied_project_is_judged_by_its_own_tasks(fitted):
    copied = fit_masks(FitInput(CONFIG, [replace(example(seed), task=1000 + seed) for seed in range(6)]))
    assert (copied.passed, copied.value) == (True, fitted.value)


def test_objects_of_one_task_are_judged_by_others(monkeypatch):
    fitted, judged = [], []
    sample, draw = masks.sample_pixels, masks.drawn_ious

    def objects(examples):
        return [(one.url, index) for one in examples for index, mask in enumerate(one.masks) if mask]

    def sampled(segmenter, examples):
        fitted.append(objects(examples))
        return sample(segmenter, examples)

    def drawn(segmenter, examples, heads, **options):
        judged.append(objects(examples))
        return draw(segmenter, examples, heads, **options)

    monkeypatch.setattr(masks, "sample_pixels", sampled)
    monkeypatch.setattr(masks, "drawn_ious", drawn)
    images = [replace(example(seed, discs=1), task=7) for seed in range(3)]
    result = fit_masks(FitInput(CONFIG, [replace(example(3), task=7), *images]))
    assert "on 6 objects of 1 task," in result.reason
    everything, *others = fitted
    for left, right in zip(others, judged, strict=True):
        assert sorted((*left, *right)) == sorted(everything)
        assert not set(left) & set(right)


def test_too_few_held_out_tasks_are_not_drawn(monkeypatch):
    drawn = []
    draw = masks._draw
    monkeypatch.setattr(masks, "_draw", lambda *args: drawn.append(args[1].task) or draw(*args))
    held_out = [example(seed) for seed in range(20, 23)]
    result = fit_masks(FitInput(CONFIG, [example(seed) for seed in range(6)], held_out))
    assert result.judged_by == "cross-validation"
    assert drawn
    assert not {one.task for one in held_out} & set(drawn)


def test_a_second_run_samples_new_images_alone(monkeypatch):
    examples = [example(seed) for seed in range(30, 34)]
    fit_masks(FitInput(CONFIG, examples))
    sampled = []
    original = masks._sample_image
    monkeypatch.setattr(masks, "_sample_image", lambda *args: sampled.append(args[1].url) or original(*args))
    new = example(34)
    fit_masks(FitInput(CONFIG, [*examples, new]))
    assert sampled == [new.url]


@pytest.mark.parametrize("box", [(60, 50, 140, 180), (58.5, 47.25, 150, 190), (40, 30, 200, 200)])
def test_masks_lie_in_crops_where_they_lie_on_images(box):
    image = np.zeros((SIDE, SIDE), np.uint8)
    cv2.ellipse(image, (100, 115), (38, 62), 20, 0, 360, 1, -1)
    rows, columns = np.nonzero(image)
    tight = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    view = BoxCrop(Rectangle(box[0], box[1], box[2] - box[0], box[3] - box[1]), SIDE, SIDE)
    part = image[tight[1] : tight[3], tight[0] : tight[2]] > 0
    share = object_share(view, part, np.array(tight, float), 56) >= 0.5
    drawn = cv2.resize(view.render(np.dstack([image * 255] * 3), 168)[..., 0], (56, 56), interpolation=cv2.INTER_AREA)
    reference = drawn >= 128
    assert (share & reference).sum() / (share | reference).sum() > 0.97
