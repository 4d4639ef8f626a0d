"""Fit linear heads on a candidate table: one row per class and level, and optional box regression."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ml_backend.detection.box_voting import prior_calibration
from ml_backend.training.linear_head import Doubles, LinearHead
from ml_backend.training.parallel import parallel_map
from ml_backend.training.solvers import LOGIT_NEVER, TRAINERS, BinaryProblem, Rows
from ml_backend.training.table import CandidateTable

# Ridge penalty of the box regression, over standardised features; each object has weight 1.
REGRESSION_PENALTY = 10.0


def fit_heads(
    table: CandidateTable,
    images: Sequence[int],
    *,
    levels: Sequence[int],
    trainers: Sequence[str],
    refit_boxes: bool,
    backbone_classes: Sequence[tuple[str, int]] = (),
) -> dict[str, LinearHead]:
    """Fit one head per solver on some images of a table.

    Args:
        table: Built with the same `backbone_classes` as `prior_classes`.
        images: Indices of the images to fit on.
        levels: Number of candidates per level.
        trainers: Keys of `TRAINERS`.
        refit_boxes: Whether boxes are regressed.
        backbone_classes: Project classes that the backbone knows, as (name, index). Those without labels keep the
            backbone's score; the others start from it.

    Returns:
        A head by solver.
    """
    labelled = sorted({label for index in images for label in table.parts[index].example.labels})
    class_indices = {name: index for index, (name, _) in enumerate(backbone_classes)}
    regressor, refined = None, None
    if refit_boxes:
        regressor = _fit_box_regressor(table, images)
        refined = table.refined_overlaps(images, regressor)

    def fitted(name: str) -> list[Rows]:
        problem = table.binary_problem(name, images, refined_overlaps=refined, backbone_class=class_indices.get(name))
        return [_fit_class(table, problem, trainer) for trainer in trainers]

    shape = (len(trainers), len(table.spans), table.features.shape[1], len(labelled))
    rows: Doubles = np.zeros(shape)  # no columns while nothing is labelled
    for column, solver_rows in enumerate(parallel_map(fitted, labelled)):
        rows[..., column] = solver_rows
    rows = table.scale.to_raw(rows)
    unlabelled = [(name, index) for name, index in backbone_classes if name not in labelled]
    head = LinearHead(
        names=(*labelled, *(name for name, _ in unlabelled)),
        levels=tuple(levels),
        weights=rows[0, :, :-1],
        bias=rows[0, :, -1],
        backbone_classes=tuple(index for _, index in unlabelled),
        prior_classes=table.prior_classes,
        box_regressor=None if regressor is None else table.scale.to_raw(regressor),
        platt=tuple(prior_calibration(table.mean_overlap_mass(name, images)) for name in labelled),
    )
    return {
        trainer: replace(head, weights=solver_rows[:, :-1], bias=solver_rows[:, -1])
        for trainer, solver_rows in zip(trainers, rows, strict=True)
    }


def average_heads(weighted: Sequence[tuple[LinearHead, float]]) -> LinearHead:
    """Average the rows of heads of one fit; `weighted` are (head, weight), and weights sum to 1."""
    return replace(
        weighted[0][0],
        weights=np.sum([weight * head.weights for head, weight in weighted], axis=0),
        bias=np.sum([weight * head.bias for head, weight in weighted], axis=0),
    )


def _fit_class(table: CandidateTable, problem: BinaryProblem | None, trainer: str) -> Rows:
    if problem is None:
        rows = np.zeros((len(table.spans), table.features.shape[1]))
        rows[:, -1] = LOGIT_NEVER
        return rows
    return TRAINERS[trainer](problem)


def _fit_box_regressor(table: CandidateTable, images: Sequence[int]) -> Doubles:
    """Solve the ridge regression of box deltas: (d + 1, 4) float64."""
    gram, target = table.box_regression_normal_equations(images)
    gram[np.diag_indices_from(gram)] += REGRESSION_PENALTY
    return np.asarray(np.linalg.solve(gram, target), np.float64)
