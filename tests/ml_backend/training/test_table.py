"""Targets of candidates: positives of a box, negatives of the background, and ignored ones."""

import numpy as np
import pytest

from ml_backend.detection.fit import Fit
from ml_backend.training.backbone import CandidateFeatures
from ml_backend.training.examples import Example
from ml_backend.training.table import build_table
from tests.ml_backend.training.heads import fit_head

DRAWN = (20, 20, 60, 60)
CANDIDATES = [
    DRAWN,  # 0: the labelled box itself
    (22, 20, 60, 60),  # 1: nearly equal
    (20, 20, 60, 44),  # 2: IoU 0.6
    (20, 20, 60, 42),  # 3: IoU 0.55: ignored
    (100, 100, 140, 140),  # 4: elsewhere, and the backbone is confident
    (100, 20, 140, 60),  # 5: elsewhere, and the backbone detects nothing
]


def example(*, complete=True, drawn=(DRAWN,), labels=("cell",), seed=0):
    boxes = np.array(CANDIDATES, np.float32)
    scores = np.array([[0.1], [0.1], [0.1], [0.1], [0.9], [0.1]], np.float32)
    features = np.random.default_rng(seed).normal(0, 1, (6, 3)).astype(np.float32)
    candidates = CandidateFeatures(boxes, np.full(6, 0.8, np.float32), scores, features, Fit(1.0, 1.0, 0, 0, 160, 160))
    return Example(candidates, np.array(drawn, np.float32).reshape(-1, 4), labels, complete)


def problem(*examples, name="cell"):
    table = build_table(examples, (6,))
    return table.binary_problem(name, table.indices)


def test_targets_grow_with_iou_and_medium_overlaps_are_ignored():
    posed = problem(example())
    assert posed.positives.tolist() == [0, 1, 2]
    assert posed.weights.sum() == pytest.approx(1), "one object has weight 1"
    assert posed.truth[0] == 1
    assert posed.truth[2] < posed.truth[1]
    assert posed.negatives.tolist() == [4, 5]


def test_confident_candidates_of_sparse_labels_are_ignored():
    assert problem(example(complete=False)).negatives.tolist() == [5]


def test_boxes_of_other_classes_are_negatives():
    """Candidates of a labelled box belong to its class, however confident the backbone is."""
    boxes, labels = (DRAWN, (100, 100, 140, 140)), ("cell", "dust")
    assert 4 in problem(example(complete=False, drawn=boxes, labels=labels)).negatives.tolist()


def test_unlabelled_class_has_no_row():
    """It is not predicted, unless the backbone knows it."""
    head = fit_head([example()], levels=(6,), trainer="logistic", refit_boxes=False)
    assert head.names == ("cell",)
    pretrained = fit_head(
        [example()], levels=(6,), trainer="logistic", refit_boxes=False, backbone_classes=[("dust", 0)]
    )
    assert pretrained.names == ("cell", "dust")
    assert pretrained.score_candidates(example().candidates)[1][4, 1] == pytest.approx(0.72)


def test_rows_are_sorted_by_level_across_images():
    table = build_table([example(), example(seed=1)], (4, 2))
    assert table.spans == ((0, 8), (8, 12))
    assert table.parts[1].rows.tolist() == [4, 5, 6, 7, 10, 11]
    posed = table.binary_problem("cell", table.indices)
    assert posed.positives.tolist() == [0, 1, 2, 4, 5, 6]
    assert posed.negatives.tolist() == [8, 9, 10, 11]


def test_known_class_starts_from_the_backbone_logits():
    """Before fitting, the row returns the backbone's own logits."""
    table = build_table([example()], (6,), prior_classes=(0,))
    posed = table.binary_problem("cell", table.indices, backbone_class=0)
    answered = 1 / (1 + np.exp(-posed.scores(posed.initial_rows)))
    np.testing.assert_allclose(answered, 0.8 * example().candidates.scores[:, 0], rtol=1e-4)


def test_regressed_boxes_count_by_the_mean_iou():
    table = build_table([example()], (6,))
    identity = np.zeros((9, 4))
    same = table.binary_problem("cell", table.indices, refined_overlaps=table.refined_overlaps(table.indices, identity))
    assert same.positives.tolist() == [0, 1, 2]
    shifted = identity.copy()
    shifted[-1, 0] = 0.5  # half a width to the right
    refined = table.refined_overlaps(table.indices, shifted)
    assert refined[0][0, 0] == pytest.approx(1 / 3, abs=1e-5)
    assert table.binary_problem("cell", table.indices, refined_overlaps=refined).positives.tolist() == [0, 1]
