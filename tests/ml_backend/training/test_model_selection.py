"""A head learns a class that its backbone does not know, and the exported model equals it bitwise."""

import numpy as np
import onnx
import pytest
from scipy.special import softmax

from ml_backend.detection.box_voting import PlattCalibration
from ml_backend.detection.preprocess import prepare
from ml_backend.errors import ModelBroken
from ml_backend.inference.detector import embedded_model, load_detector
from ml_backend.layouts.labelloop import CALIBRATIONS_KEY
from ml_backend.training.backbone import open_backbone
from ml_backend.training.calibration import calibrate_head
from ml_backend.training.examples import Example
from ml_backend.training.fit import fit_heads
from ml_backend.training.linear_head import apply_box_deltas, encode_box_deltas, head_detector
from ml_backend.training.model_selection import (
    BLENDED,
    HALF_REGRESSION_BOXES,
    LOGISTIC,
    NOISE,
    SHARED,
    FitConfig,
    average_config,
    box_share,
    candidate_configs,
    fit_folds,
    select_and_fit,
)
from ml_backend.training.onnx_export import write_learned
from ml_backend.training.table import build_table
from tests.ml_backend.training.heads import fit_head


def photo_of_discs(seed, *, size=320):
    """Red discs and blue squares on grey noise; returns the image and the boxes of the discs."""
    rng = np.random.default_rng(seed)
    photo = rng.integers(100, 156, (size, size, 3)).astype(np.uint8)
    y, x = np.mgrid[:size, :size]
    boxes = []
    for index in range(2):
        radius = int(rng.integers(28, 45))
        cx, cy = int(rng.integers(50, size - 50)), 80 + 160 * index
        if index == 0 or seed % 2:
            photo[(x - cx) ** 2 + (y - cy) ** 2 <= radius**2] = (220, 20, 20)
            boxes.append((cx - radius, cy - radius, cx + radius, cy + radius))
        else:
            photo[cy - radius : cy + radius, cx - radius : cx + radius] = (20, 20, 220)
    return photo, np.array(boxes, np.float32)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return open_backbone(embedded_model(), folder=tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def examples(backbone):
    result = []
    for seed in range(6):
        photo, boxes = photo_of_discs(seed)
        [candidates] = backbone.extract_features([prepare(photo, backbone.spec)])
        result.append(Example(candidates, boxes, ("disc",) * len(boxes)))
    return result


def test_backbone_outputs_features_and_the_same_detections(backbone, chelsea):
    photo = prepare(chelsea, backbone.spec)
    [candidates] = backbone.extract_features([photo])
    assert candidates.embeddings.shape == (len(candidates.boxes), 384)
    [exported], [plain] = (
        detector.detect([photo], floor=0.1) for detector in (backbone.detector, load_detector(embedded_model()))
    )
    np.testing.assert_array_equal(exported.boxes, plain.boxes)
    np.testing.assert_array_equal(exported.scores, plain.scores)


def test_new_class_is_detected_on_a_new_image(backbone, examples):
    learned = select_and_fit(examples[:5], levels=backbone.levels)
    best = learned.head.detect(examples[5].candidates, floor=0.3).boxes[:2]
    assert len(examples[5].drawn) == 2
    assert min(max(_iou(box, drawn) for box in best) for drawn in examples[5].drawn) > 0.5


def test_single_image_trains_one_row_for_all_levels(backbone, examples):
    """Its boxes lie on one or two levels; the class is predicted on all."""
    learned = select_and_fit(examples[:1], levels=backbone.levels)
    assert (learned.choice, learned.scores) == (SHARED, {})
    for row in learned.head.weights[1:]:
        np.testing.assert_array_equal(row, learned.head.weights[0])


@pytest.mark.parametrize(
    ("photos", "boxes", "pretrained", "tried"),
    [
        (5, 4, False, (SHARED, BLENDED)),
        (6, 5, False, (BLENDED, LOGISTIC)),
        (25, 2, False, (BLENDED, LOGISTIC, SHARED)),
        (2, 1, True, (LOGISTIC,)),
    ],
)
def test_candidate_configs_depend_on_the_labels(examples, photos, boxes, pretrained, tried):
    """20 boxes on five images, 30 on six, 50 on 25, and a class that the backbone knows."""
    drawn = np.array([[30 * index, 20, 30 * index + 25, 100] for index in range(boxes)], np.float32)
    labelled = [Example(example.candidates, drawn, ("disc",) * boxes) for example in (examples * 5)[:photos]]
    assert candidate_configs(labelled, pretrained=pretrained) == tried


def test_weights_are_the_softmax_of_the_scores_over_their_noise():
    """With 25 boxes held out, one of .03 AP50 less has 1/e of the weight."""
    scores = {LOGISTIC: 0.5, SHARED: 0.5 - NOISE / 5}
    weights = softmax([1, 0])
    rows = dict(average_config(scores, held_out_boxes=25).rows)
    assert rows == pytest.approx({"logistic": weights[0], "shared": 0.6 * weights[1], "prototype": 0.4 * weights[1]})
    assert sum(rows.values()) == pytest.approx(1)


def test_configuration_that_is_surely_worse_is_left_out():
    assert average_config({BLENDED: 0.2, LOGISTIC: 0.7, SHARED: 0.4}, held_out_boxes=300) == LOGISTIC


def test_regression_of_boxes_grows_with_their_number():
    assert [box_share(0), box_share(HALF_REGRESSION_BOXES)] == [0, 0.5]
    assert box_share(3) < 0.1 < 0.9 < box_share(40) < 1


def test_fits_average_what_they_tried(backbone, examples):
    """The predictions and scores of the average are those of its own head on images it was not fitted on."""
    learned = select_and_fit(examples, levels=backbone.levels)
    tried = {solver for config in candidate_configs(examples, pretrained=False) for solver, _ in config.rows}
    assert {solver for solver, _ in learned.choice.rows} <= tried
    assert learned.choice.box_share == pytest.approx(box_share(sum(len(example.labels) for example in examples)))
    folds = fit_folds(examples, build_table(examples, backbone.levels), sorted(tried), levels=backbone.levels)
    again = folds.predict(learned.choice)
    assert learned.scores[learned.choice] == again.mean_ap50()
    assert sorted(again.indices) == list(range(len(examples)))
    assert [len(one) for one in learned.predictions.detections] == [len(one) for one in again.detections]


def test_project_of_known_classes_has_one_configuration(backbone, examples):
    learned = select_and_fit(examples[:2], levels=backbone.levels, backbone_classes=[("disc", 0)])
    assert (learned.choice.rows, set(learned.scores)) == (LOGISTIC.rows, {learned.choice})


def test_head_of_a_configuration_is_the_mean_of_its_solvers(backbone, examples):
    table = build_table(examples[:2], backbone.levels)
    heads = fit_heads(table, [0, 1], levels=backbone.levels, trainers=["logistic", "prototype"], refit_boxes=True)
    rows = (("logistic", 0.75), ("prototype", 0.25))
    mean = FitConfig(rows, box_share=0.4).head(heads)
    np.testing.assert_allclose(mean.weights, 0.75 * heads["logistic"].weights + 0.25 * heads["prototype"].weights)
    np.testing.assert_allclose(mean.bias, 0.75 * heads["logistic"].bias + 0.25 * heads["prototype"].bias)
    np.testing.assert_allclose(mean.box_regressor, 0.4 * heads["logistic"].box_regressor)
    assert FitConfig(rows).head(heads).box_regressor is None
    assert FitConfig(rows, 0.4).name == "0.75 logistic + 0.25 prototype, boxes moved by 0.40 of their regression"


@pytest.mark.parametrize("refit_boxes", [False, True])
def test_exported_model_equals_the_head_bitwise(backbone, examples, refit_boxes, tmp_path):
    backbone_classes = [("cat", backbone.names.index("cat"))]
    head = fit_head(
        examples[:3],
        levels=backbone.levels,
        trainer="logistic",
        refit_boxes=refit_boxes,
        backbone_classes=backbone_classes,
    )
    head = calibrate_head(head, {"disc": PlattCalibration(1.1, -0.3, -0.7, -0.4)})
    write_learned(tmp_path / "learned.onnx", backbone, head)
    onnx.checker.check_model(onnx.load(tmp_path / "learned.onnx"))
    detector = load_detector(tmp_path / "learned.onnx")
    assert detector.layout == "labelloop"
    assert detector.names.names == ("disc", "cat")
    for seed in range(3, 6):
        photo = prepare(photo_of_discs(seed)[0], backbone.spec)
        [candidates] = backbone.extract_features([photo])
        raw = detector.engine.run([photo.tensor], ["boxes", "scores"])
        boxes, scores = head.score_candidates(candidates)
        np.testing.assert_array_equal(raw["scores"][0], scores)
        np.testing.assert_array_equal(raw["boxes"][0], boxes)
        [served] = detector.detect([photo], floor=0.05)
        answered = head.detect(candidates, floor=0.05)
        [shared] = head_detector(backbone, head, version="v").detect([photo], floor=0.05)
        for other in (answered, shared):
            np.testing.assert_array_equal(served.boxes, other.boxes)
            np.testing.assert_array_equal(served.scores, other.scores)
            np.testing.assert_array_equal(served.classes, other.classes)


@pytest.fixture(scope="module")
def learned_file(backbone, examples, tmp_path_factory):
    head = fit_head(examples[:2], levels=backbone.levels, trainer="logistic", refit_boxes=False)
    file = tmp_path_factory.mktemp("learned") / "learned.onnx"
    write_learned(file, backbone, head)
    return file


@pytest.mark.parametrize(
    ("metadata", "calibrations"),
    [
        ("[[2.0, -1.0]]", (PlattCalibration(2.0, -1.0),)),
        ("[[2.0, -1.0, -0.5, 0.25]]", (PlattCalibration(2.0, -1.0, -0.5, 0.25),)),
        ("[null]", (None,)),
        ("[[2.0]]", None),
        ("[[2.0, -1.0, 0.5]]", None),
        ('[[2.0, "much"]]', None),
        ("[[2.0, -1.0], null]", None),
        ("{}", None),
    ],
)
def test_older_calibrations_load_and_damaged_ones_raise(learned_file, metadata, calibrations, tmp_path):
    model = onnx.load(learned_file)
    [entry] = [candidate for candidate in model.metadata_props if candidate.key == CALIBRATIONS_KEY]
    entry.value = metadata
    onnx.save(model, tmp_path / "learned.onnx")
    if calibrations is None:
        with pytest.raises(ModelBroken, match=CALIBRATIONS_KEY):
            load_detector(tmp_path / "learned.onnx")
    else:
        assert load_detector(tmp_path / "learned.onnx").reader.calibrations == calibrations


def test_trained_model_can_be_trained_on_again(backbone, examples, tmp_path):
    head = fit_head(examples[:2], levels=backbone.levels, trainer="logistic", refit_boxes=False)
    write_learned(tmp_path / "learned.onnx", backbone, head)
    again = open_backbone(tmp_path / "learned.onnx", folder=tmp_path)
    assert again.names == ("disc",)
    photo = prepare(photo_of_discs(0)[0], again.spec)
    np.testing.assert_array_equal(
        again.extract_features([photo])[0].embeddings, backbone.extract_features([photo])[0].embeddings
    )
    assert again.detector.reader.calibrations == head.calibrations


def test_unlabelled_class_keeps_the_backbone_scores(backbone, examples, chelsea):
    cat = backbone.names.index("cat")
    head = fit_head(
        examples[:2], levels=backbone.levels, trainer="logistic", refit_boxes=False, backbone_classes=[("cat", cat)]
    )
    [candidates] = backbone.extract_features([prepare(chelsea, backbone.spec)])
    np.testing.assert_allclose(
        head.score_candidates(candidates)[1][:, 1], candidates.scores[:, cat] * candidates.objectness, rtol=1e-6
    )


def test_known_class_is_fitted_from_the_backbone(backbone, examples, chelsea):
    """One labelled cat is too little to learn cats, and must not spoil the backbone's knowledge."""
    cat = backbone.names.index("cat")
    [candidates] = backbone.extract_features([prepare(chelsea, backbone.spec)])
    drawn = np.array([[0, 0, 450, 300]], np.float32)
    head = select_and_fit(
        [Example(candidates, drawn, ("cat",)), *examples[:2]], levels=backbone.levels, backbone_classes=[("cat", cat)]
    ).head
    assert head.prior_classes == (cat,)
    [mirrored] = backbone.extract_features([prepare(np.ascontiguousarray(chelsea[:, ::-1]), backbone.spec)])
    detections = head.detect(mirrored, floor=0.3)
    assert head.names[detections.classes[0]] == "cat"
    assert _iou(detections.boxes[0], (0, 0, 451, 300)) > 0.7


def test_exported_model_equals_a_pretrained_head_bitwise(backbone, examples, tmp_path):
    backbone_classes = [("bottle", backbone.names.index("bottle"))]
    renamed = [
        Example(example.candidates, example.drawn, ("bottle",) * len(example.labels)) for example in examples[:3]
    ]
    head = fit_head(
        renamed, levels=backbone.levels, trainer="logistic", refit_boxes=True, backbone_classes=backbone_classes
    )
    write_learned(tmp_path / "learned.onnx", backbone, head)
    photo = prepare(photo_of_discs(5)[0], backbone.spec)
    raw = load_detector(tmp_path / "learned.onnx").engine.run([photo.tensor], ["boxes", "scores"])
    boxes, scores = head.score_candidates(backbone.extract_features([photo])[0])
    np.testing.assert_array_equal(raw["scores"][0], scores)
    np.testing.assert_array_equal(raw["boxes"][0], boxes)


def test_box_deltas_map_boxes_to_their_targets():
    boxes = np.array([[10, 10, 30, 50], [0, 0, 8, 8]], np.float32)
    targets = np.array([[12, 8, 36, 40], [1, 1, 12, 7]], np.float32)
    np.testing.assert_allclose(apply_box_deltas(boxes, encode_box_deltas(boxes, targets)), targets, atol=1e-4)


def _iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)
