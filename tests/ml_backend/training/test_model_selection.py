"""A head learns a class that its backbone never saw, and the file made of it answers the same to the bit."""

import numpy as np
import onnx
import pytest

from ml_backend.detection.box_voting import PlattCalibration
from ml_backend.detection.preprocess import prepare
from ml_backend.errors import ModelBroken
from ml_backend.inference.detector import embedded_model, load_detector
from ml_backend.layouts.labelloop import LINES
from ml_backend.training.backbone import open_backbone
from ml_backend.training.calibration import calibrated
from ml_backend.training.examples import Example
from ml_backend.training.fit import fit_head, fit_heads
from ml_backend.training.linear_head import apply_box_deltas, encode_box_deltas
from ml_backend.training.model_selection import FitConfig, choices_of, select_and_fit
from ml_backend.training.onnx_export import write_learned
from ml_backend.training.table import build_table


def photo_of_discs(seed, *, size=320):
    """Red discs and blue squares on grey noise; the boxes around the discs."""
    rng = np.random.default_rng(seed)
    photo = rng.integers(100, 156, (size, size, 3)).astype(np.uint8)
    y, x = np.mgrid[:size, :size]
    boxes = []
    for place in range(2):
        radius = int(rng.integers(28, 45))
        cx, cy = int(rng.integers(50, size - 50)), 80 + 160 * place
        if place == 0 or seed % 2:
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
    made = []
    for seed in range(6):
        photo, boxes = photo_of_discs(seed)
        [sight] = backbone.extract_features([prepare(photo, backbone.spec)])
        made.append(Example(sight, boxes, ("disc",) * len(boxes)))
    return made


def test_the_backbone_gives_the_features_and_finds_what_the_model_finds(backbone, chelsea):
    photo = prepare(chelsea, backbone.spec)
    [sight] = backbone.extract_features([photo])
    assert sight.embeddings.shape == (len(sight.boxes), 384)
    [ours], [plain] = (one.detect([photo], floor=0.1) for one in (backbone.detector, load_detector(embedded_model())))
    np.testing.assert_array_equal(ours.boxes, plain.boxes)
    np.testing.assert_array_equal(ours.scores, plain.scores)


def test_a_class_that_the_backbone_never_saw_is_found_on_a_new_photo(backbone, examples):
    learned = select_and_fit(examples[:5], levels=backbone.levels)
    best = learned.head.detect(examples[5].sight, floor=0.3).boxes[:2]
    assert len(examples[5].drawn) == 2
    assert min(max(_iou(box, drawn) for box in best) for drawn in examples[5].drawn) > 0.5


def test_a_single_photo_is_learned_with_one_row_for_all_levels(backbone, examples):
    """Its boxes lie on a level or two; the class is answered on the others too."""
    learned = select_and_fit(examples[:1], levels=backbone.levels)
    assert (learned.choice.trainer, learned.judged) == ("shared", {})
    for row in learned.head.weights[1:]:
        np.testing.assert_array_equal(row, learned.head.weights[0])


@pytest.mark.parametrize(
    ("photos", "boxes", "known", "first", "tried"),
    [
        (4, 2, (), "shared", {("shared", 0.4), ("logistic", 0.3), ("logistic", 0), ("prototype", 0)}),
        (5, 4, (), "shared", {("shared", 0.4), ("logistic", 0.3), ("logistic", 0)}),
        (6, 5, (), "logistic", {("logistic", 0.3), ("logistic", 0)}),
        (6, 10, (), "logistic", {("logistic", 0)}),
        (2, 1, ("disc",), "logistic", {("logistic", 0)}),
    ],
)
def test_what_is_tried_depends_on_what_was_drawn(backbone, examples, photos, boxes, known, first, tried):
    """Of 8 boxes on four photos, 20 on five, 30 and 60 on six, and of a class that the backbone knows."""
    drawn = np.array([[30 * place, 20, 30 * place + 25, 100] for place in range(boxes)], np.float32)
    shown = [Example(one.sight, drawn, ("disc",) * boxes) for one in examples[:photos]]
    choices = choices_of(shown, known=bool(known))
    assert choices[0].trainer == first
    assert {(choice.trainer, choice.lean) for choice in choices} == tried


@pytest.mark.parametrize(("photos", "known"), [(4, ()), (2, ("disc",))])
def test_what_is_learned_was_judged_with_all_that_was_tried(backbone, examples, photos, known):
    learned = select_and_fit(examples[:photos], levels=backbone.levels, known=[(name, 0) for name in known])
    assert set(learned.judged) == set(choices_of(examples[:photos], known=bool(known)))
    assert learned.choice in learned.judged


def test_a_head_that_leans_lies_between_those_of_its_trainers(backbone, examples):
    training = build_table(examples[:2], backbone.levels)
    heads = fit_heads(training, [0, 1], levels=backbone.levels, trainers=["logistic", "prototype"], refit_boxes=False)
    mixed = FitConfig("logistic", refit_boxes=False, lean=0.25).head(heads)
    np.testing.assert_allclose(mixed.weights, 0.75 * heads["logistic"].weights + 0.25 * heads["prototype"].weights)
    np.testing.assert_allclose(mixed.bias, 0.75 * heads["logistic"].bias + 0.25 * heads["prototype"].bias)
    assert FitConfig("logistic", refit_boxes=False).head(heads) is heads["logistic"]


@pytest.mark.parametrize("refit_boxes", [False, True])
def test_the_file_answers_as_the_head_to_the_bit(backbone, examples, refit_boxes, tmp_path):
    known = [("cat", backbone.names.index("cat"))]
    head = fit_head(examples[:3], levels=backbone.levels, trainer="logistic", refit_boxes=refit_boxes, known=known)
    head = calibrated(head, {"disc": PlattCalibration(1.1, -0.3, -0.7, -0.4)})
    write_learned(tmp_path / "learned.onnx", backbone, head)
    onnx.checker.check_model(onnx.load(tmp_path / "learned.onnx"))
    detector = load_detector(tmp_path / "learned.onnx")
    assert detector.layout == "labelloop"
    assert detector.names.names == ("disc", "cat")
    for seed in range(3, 6):
        photo = prepare(photo_of_discs(seed)[0], backbone.spec)
        [sight] = backbone.extract_features([photo])
        raw = detector.engine.run([photo.tensor], ["boxes", "scores"])
        boxes, scores = head.score_candidates(sight)
        np.testing.assert_array_equal(raw["scores"][0], scores)
        np.testing.assert_array_equal(raw["boxes"][0], boxes)
        [served] = detector.detect([photo], floor=0.05)
        answered = head.detect(sight, floor=0.05)
        np.testing.assert_array_equal(served.boxes, answered.boxes)
        np.testing.assert_array_equal(served.scores, answered.scores)


@pytest.mark.parametrize(
    ("told", "lines"),
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
def test_a_learned_model_of_before_is_opened_and_a_damaged_one_is_not(backbone, examples, told, lines, tmp_path):
    head = fit_head(examples[:2], levels=backbone.levels, trainer="logistic", refit_boxes=False)
    write_learned(tmp_path / "learned.onnx", backbone, head)
    model = onnx.load(tmp_path / "learned.onnx")
    [entry] = [one for one in model.metadata_props if one.key == LINES]
    entry.value = told
    onnx.save(model, tmp_path / "learned.onnx")
    if lines is None:
        with pytest.raises(ModelBroken, match=LINES):
            load_detector(tmp_path / "learned.onnx")
    else:
        assert load_detector(tmp_path / "learned.onnx").reader.lines == lines


def test_a_learned_model_can_be_learned_on_again(backbone, examples, tmp_path):
    head = fit_head(examples[:2], levels=backbone.levels, trainer="logistic", refit_boxes=False)
    write_learned(tmp_path / "learned.onnx", backbone, head)
    again = open_backbone(tmp_path / "learned.onnx", folder=tmp_path)
    assert again.names == ("disc",)
    photo = prepare(photo_of_discs(0)[0], again.spec)
    np.testing.assert_array_equal(
        again.extract_features([photo])[0].embeddings, backbone.extract_features([photo])[0].embeddings
    )
    assert again.detector.reader.lines == head.lines, "and shows what it finds as the model it was made from"


def test_a_class_that_nobody_drew_is_answered_as_the_backbone_does(backbone, examples, chelsea):
    cat = backbone.names.index("cat")
    head = fit_head(examples[:2], levels=backbone.levels, trainer="logistic", refit_boxes=False, known=[("cat", cat)])
    [sight] = backbone.extract_features([prepare(chelsea, backbone.spec)])
    np.testing.assert_allclose(
        head.score_candidates(sight)[1][:, 1], sight.scores[:, cat] * sight.objectness, rtol=1e-6
    )


def test_a_class_that_the_backbone_knows_is_learned_from_there_on(backbone, examples, chelsea):
    """One drawn cat is not enough to learn cats from, nor may it spoil what the backbone knows of them."""
    cat = backbone.names.index("cat")
    [sight] = backbone.extract_features([prepare(chelsea, backbone.spec)])
    drawn = np.array([[0, 0, 450, 300]], np.float32)
    head = select_and_fit(
        [Example(sight, drawn, ("cat",)), *examples[:2]], levels=backbone.levels, known=[("cat", cat)]
    ).head
    assert head.prior == (cat,)
    [mirrored] = backbone.extract_features([prepare(np.ascontiguousarray(chelsea[:, ::-1]), backbone.spec)])
    found = head.detect(mirrored, floor=0.3)
    assert head.names[found.classes[0]] == "cat"
    assert _iou(found.boxes[0], (0, 0, 451, 300)) > 0.7


def test_the_file_answers_as_a_head_that_starts_from_the_backbone(backbone, examples, tmp_path):
    known = [("bottle", backbone.names.index("bottle"))]
    renamed = [Example(one.sight, one.drawn, ("bottle",) * len(one.labels)) for one in examples[:3]]
    head = fit_head(renamed, levels=backbone.levels, trainer="logistic", refit_boxes=True, known=known)
    write_learned(tmp_path / "learned.onnx", backbone, head)
    photo = prepare(photo_of_discs(5)[0], backbone.spec)
    raw = load_detector(tmp_path / "learned.onnx").engine.run([photo.tensor], ["boxes", "scores"])
    boxes, scores = head.score_candidates(backbone.extract_features([photo])[0])
    np.testing.assert_array_equal(raw["scores"][0], scores)
    np.testing.assert_array_equal(raw["boxes"][0], boxes)


def test_shifts_take_boxes_to_their_targets():
    boxes = np.array([[10, 10, 30, 50], [0, 0, 8, 8]], np.float32)
    targets = np.array([[12, 8, 36, 40], [1, 1, 12, 7]], np.float32)
    np.testing.assert_allclose(apply_box_deltas(boxes, encode_box_deltas(boxes, targets)), targets, atol=1e-4)


def _iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)
