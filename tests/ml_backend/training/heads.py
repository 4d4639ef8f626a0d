"""Fits a head of one solver on all examples, without model selection."""

from ml_backend.training.fit import fit_heads
from ml_backend.training.table import build_table


def fit_head(examples, *, levels, trainer="logistic", refit_boxes=False, backbone_classes=()):
    table = build_table(examples, levels, prior_classes=[index for _, index in backbone_classes])
    heads = fit_heads(
        table,
        table.indices,
        levels=levels,
        trainers=[trainer],
        refit_boxes=refit_boxes,
        backbone_classes=backbone_classes,
    )
    return heads[trainer]
