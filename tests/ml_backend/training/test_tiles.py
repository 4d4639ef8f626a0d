"""Objects too small for whole images are learned on tiles, and served as they were learned."""

from dataclasses import replace

import numpy as np
import pytest

from ml_backend.detection.preprocess import prepare
from ml_backend.errors import ModelBroken
from ml_backend.inference.detector import embedded_model, load_detector
from ml_backend.inference.slicing import Slices, detect_as_learned, slice_boxes
from ml_backend.training import tiles
from ml_backend.training.backbone import open_backbone
from ml_backend.training.examples import Example, is_ignored
from ml_backend.training.metrics import GroundTruth, mean_ap50
from ml_backend.training.model_selection import _folds
from ml_backend.training.onnx_export import write_learned
from ml_backend.training.tiles import fit_on_best_view, plan_tiles, sample_parts, view_of, whole_view

SIZE = 1600


def photo_of_small_discs(seed, *, radius=9):
    """Red discs on grey noise; returns the image and their boxes."""
    rng = np.random.default_rng(seed)
    photo = rng.integers(100, 156, (SIZE, SIZE, 3)).astype(np.uint8)
    y, x = np.mgrid[: 2 * radius + 1, : 2 * radius + 1] - radius
    disc = x**2 + y**2 <= radius**2
    corners = rng.choice(30 * 30, 40, replace=False)
    boxes = np.stack([corners % 30 * 50 + 20, corners // 30 * 50 + 20], 1)
    for left, top in boxes:
        photo[top : top + 2 * radius + 1, left : left + 2 * radius + 1][disc] = (220, 20, 20)
    return photo, np.concatenate([boxes, boxes + 2 * radius + 1], 1).astype(np.float32)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return open_backbone(embedded_model(), folder=tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def photos():
    return [photo_of_small_discs(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def examples(backbone, photos):
    return [
        Example(backbone.extract_features([prepare(photo, backbone.spec)])[0], boxes, ("disc",) * len(boxes))
        for photo, boxes in photos
    ]


def test_small_objects_are_learned_and_served_on_tiles(backbone, photos, examples, tmp_path, monkeypatch):
    monkeypatch.setattr(tiles, "MAX_OF_IMAGE", 8)
    learned = fit_on_best_view(
        examples[:2],
        lambda index, parts: backbone.extract_tiles(photos[index][0], parts),
        spec=backbone.spec,
        levels=backbone.levels,
    )
    assert learned.head.tiles == 6
    assert learned.tiling.startswith("median object 5 px at 416: 6 x 6 tiles (AP50 on held-out tiles ")
    write_learned(tmp_path / "learned.onnx", backbone, learned.head)
    detector = load_detector(tmp_path / "learned.onnx")
    assert detector.tiles == 6
    photo, boxes = photos[2]
    truth = GroundTruth(boxes, ("disc",) * len(boxes))
    served = mean_ap50([truth], [detect_as_learned(detector, photo, floor=0.05)], names=["disc"])
    [whole] = detector.detect([prepare(photo, detector.spec)], floor=0.05)
    assert served > 0.5
    assert served > mean_ap50([truth], [whole], names=["disc"]) + 0.3


def test_large_objects_keep_whole_images(backbone, examples):
    large = [Example(item.candidates, np.array([[0, 0, 900, 900]], np.float32), ("disc",)) for item in examples]
    plan = plan_tiles(large, backbone.spec)
    assert (plan.grid, round(plan.median_px)) == (1, 234)
    no_boxes = [Example(item.candidates, np.zeros((0, 4), np.float32), ()) for item in examples]
    assert plan_tiles(no_boxes, backbone.spec).grid == 1


@pytest.mark.parametrize("size", [(1600, 1600), (4000, 3000), (100, 900)])
@pytest.mark.parametrize("grid", [2, 3, 6, 16])
def test_grid_covers_the_image_with_its_tiles(size, grid):
    parts = slice_boxes(*size, Slices(grid=grid))
    covered = np.zeros(size[::-1], bool)
    for left, top, right, bottom in parts:
        covered[top:bottom, left:right] = True
    assert covered.all()
    longer = 0 if size[0] >= size[1] else 1
    assert len({part[longer] for part in parts}) == grid


def test_objects_cut_by_a_tile_are_ignored(examples):
    example = Example(
        examples[0].candidates, np.array([[10, 10, 60, 60], [90, 10, 140, 60], [500, 500, 520, 520]], np.float32),
        ("a", "b", "c"),
    )  # fmt: skip
    view = view_of(example, examples[0].candidates, (0, 0, 120, 120), image=3)
    assert (view.labels, view.image) == (("a",), 3)
    np.testing.assert_array_equal(view.ignored, [[90, 10, 140, 60]])
    assert is_ignored(np.array([[95, 15, 130, 50], [10, 10, 60, 60]], np.float32), view.ignored).tolist() == [
        True,
        False,
    ]


def test_whole_view_shows_large_objects_only(backbone, examples):
    boxes = np.array([[0, 0, 800, 300], [10, 10, 28, 28]], np.float32)
    plan = plan_tiles(examples, backbone.spec)
    view = whole_view(Example(examples[0].candidates, boxes, ("ship", "boat")), plan, image=0)
    assert view.labels == ("ship",)
    np.testing.assert_array_equal(view.ignored, boxes[1:])


def test_sample_has_tiles_with_and_without_objects(backbone, examples):
    plan = plan_tiles(examples, backbone.spec)
    drawn = np.array([[20, 20, 40, 40], [1500, 1500, 1520, 1520]], np.float32)
    parts = sample_parts((SIZE, SIZE), drawn, plan, count=8, key="a")
    holds = [any(p[0] <= b[0] and p[1] <= b[1] and b[2] <= p[2] and b[3] <= p[3] for b in drawn) for p in parts]
    assert sum(holds) == 2
    assert len(parts) - sum(holds) == 2
    assert parts == sample_parts((SIZE, SIZE), drawn, plan, count=8, key="a")


def test_views_of_one_image_are_held_out_together(examples):
    views = [
        view_of(example, example.candidates, (0, 0, 800, 800), image=i % 3) for i, example in enumerate(examples * 3)
    ]
    for held_out, fitted in _folds(views):
        assert not {views[index].image for index in held_out} & {views[index].image for index in fitted}


def test_too_many_tiles_in_metadata_are_refused():
    from ml_backend.layouts.labelloop import TILES_KEY, tiles_of

    assert tiles_of({}) == 1
    for wrong in ("0", "17", "many", "-2"):
        with pytest.raises(ValueError, match="not a number from 1 to 16"):
            tiles_of({TILES_KEY: wrong})


def test_tiles_in_metadata_that_are_no_number_name_the_model(tmp_path, backbone, examples):
    learned = fit_on_best_view(
        examples[:2], lambda index, parts: (), spec=backbone.spec, levels=backbone.levels
    )  # no image can be loaded any more: whole images are learned from
    assert learned.head.tiles == 1
    write_learned(tmp_path / "odd.onnx", backbone, replace(learned.head, tiles=99))
    with pytest.raises(ModelBroken, match="not a number from 1 to 16"):
        load_detector(tmp_path / "odd.onnx")
