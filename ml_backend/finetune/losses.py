"""Assign objects to candidates and compute the loss of a detector, on decoded boxes and scores of any layout.

Assignment: SimOTA (Ge et al. 2021, https://arxiv.org/abs/2107.08430, section 2.3, after YOLOX's code, Apache-2.0).
Boxes: generalised IoU (Rezatofighi et al. 2019, https://arxiv.org/abs/1902.09630). Scores: binary cross-entropy with
the IoU as target of the assigned class, as in YOLOX; without an objectness of its own, the quality focal loss (Li et
al. 2020, https://arxiv.org/abs/2006.04388, equation 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

# Half side of the square around an object's centre in which candidates may be assigned, in strides (YOLOX: 2.5).
CENTRE_RADIUS = 2.5
# Candidates whose IoUs add up to an object's number of assignments (YOLOX: 10).
TOP_IOU = 10
# Weight of the IoU in the cost of an assignment (YOLOX: 3).
IOU_COST = 3.0
# Cost of a candidate that is not both inside the object and near its centre (YOLOX: 1e5).
OUTSIDE_COST = 1e5
# Weight of the boxes in the loss (YOLOX: 5).
BOX_WEIGHT = 5.0
# Exponent of the quality focal loss.
FOCUS = 2.0

EPS = 1e-7


@dataclass(frozen=True)
class Assignment:
    """Candidates of one image with their objects.

    Attributes:
        candidates: (k,) int64 indices of candidates.
        objects: (k,) int64 index of the object of each.
        ious: (k,) float32 their IoU.
    """

    candidates: Any
    objects: Any
    ious: Any


def pairwise_iou(first: Any, second: Any) -> Any:
    """IoU of boxes (n, 4) and (m, 4) x_min, y_min, x_max, y_max -> (n, m)."""
    low = torch.maximum(first[:, None, :2], second[None, :, :2])
    high = torch.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(dim=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1) for boxes in (first, second)]
    return shared / (areas[0][:, None] + areas[1][None] - shared + EPS)


def giou_loss(boxes: Any, targets: Any) -> Any:
    """1 - generalised IoU of pairs of boxes (n, 4) -> (n,)."""
    low, high = torch.maximum(boxes[:, :2], targets[:, :2]), torch.minimum(boxes[:, 2:], targets[:, 2:])
    shared = (high - low).clamp(min=0).prod(dim=1)
    areas = [(each[:, 2:] - each[:, :2]).clamp(min=0).prod(dim=1) for each in (boxes, targets)]
    union = areas[0] + areas[1] - shared
    hull_low, hull_high = torch.minimum(boxes[:, :2], targets[:, :2]), torch.maximum(boxes[:, 2:], targets[:, 2:])
    hull = (hull_high - hull_low).clamp(min=0).prod(dim=1)
    return 1 - shared / (union + EPS) + (hull - union) / (hull + EPS)


def assign(boxes: Any, scores: Any, targets: Any, classes: Any, *, centres: Any, strides: Any) -> Assignment:
    """Assign objects to the candidates of one image by SimOTA.

    Args:
        boxes: (n, 4) decoded boxes in pixels of the input.
        scores: (n, classes) objectness x class score, in [0, 1].
        targets: (m, 4) boxes of the objects.
        classes: (m,) int64 their classes.
        centres: (n, 2) centres of the candidates' cells.
        strides: (n,) their strides.
    """
    with torch.no_grad():
        return _assign(boxes, scores, targets, classes, centres=centres, strides=strides)


def _assign(boxes: Any, scores: Any, targets: Any, classes: Any, *, centres: Any, strides: Any) -> Assignment:
    inside = _inside(centres, targets, margin=0)
    middle = (targets[:, :2] + targets[:, 2:]) / 2
    radius = CENTRE_RADIUS * strides
    near = ((centres[:, None] - middle[None]).abs() <= radius[:, None, None]).all(dim=2)
    possible = (inside | near).any(dim=1).nonzero().squeeze(1)
    if not len(possible) or not len(targets):
        empty = torch.zeros(0, dtype=torch.long, device=boxes.device)
        return Assignment(empty, empty, empty.float())
    ious = pairwise_iou(boxes[possible], targets)
    likely = scores[possible].clamp(EPS, 1 - EPS).sqrt()
    none = functional.binary_cross_entropy(likely, torch.zeros_like(likely), reduction="none").sum(dim=1)
    of_class = likely[:, classes]
    class_cost = none[:, None] + torch.log1p(-of_class) - torch.log(of_class)
    both = (inside & near)[possible]
    cost = class_cost - IOU_COST * torch.log(ious + 1e-8) + OUTSIDE_COST * (~both)
    top = torch.topk(ious, min(TOP_IOU, len(possible)), dim=0).values
    counts = top.sum(dim=0).int().clamp(min=1).tolist()
    matched = torch.zeros_like(cost, dtype=torch.bool)
    for index, count in enumerate(counts):
        matched[torch.topk(cost[:, index], min(count, len(possible)), largest=False).indices, index] = True
    several = matched.sum(dim=1) > 1
    if several.any():
        best = cost[several].argmin(dim=1)
        matched[several] = False
        matched[several.nonzero().squeeze(1), best] = True
    rows, objects = matched.nonzero(as_tuple=True)
    return Assignment(possible[rows], objects, ious[rows, objects])


def _inside(centres: Any, targets: Any, *, margin: float) -> Any:
    low = centres[:, None] - targets[None, :, :2]
    high = targets[None, :, 2:] - centres[:, None]
    return torch.minimum(low, high).amin(dim=2) > margin


def detection_loss(
    boxes: Any, objectness: Any, scores: Any, targets: Any, classes: Any, *, centres: Any, strides: Any, own: bool
) -> tuple[Any, int]:
    """Loss of one image, summed, and the number of assigned candidates, to divide by.

    Args:
        boxes: (n, 4) decoded boxes.
        objectness: (n,) in [0, 1].
        scores: (n, classes) in [0, 1].
        targets: (m, 4) boxes of the objects.
        classes: (m,) int64.
        centres: (n, 2) centres of the candidates' cells.
        strides: (n,) their strides.
        own: Whether objectness is trained apart; else its product with the scores is trained.
    """
    boxes, objectness, scores = boxes.float(), objectness.float(), scores.float()
    joint = objectness[:, None] * scores
    assignment = assign(boxes, joint, targets, classes, centres=centres, strides=strides)
    count = len(assignment.candidates)
    of_object = classes[assignment.objects]
    loss = BOX_WEIGHT * giou_loss(boxes[assignment.candidates], targets[assignment.objects]).sum()
    if own:
        is_object = torch.zeros_like(objectness)
        is_object[assignment.candidates] = 1.0
        wanted = functional.one_hot(of_object, scores.shape[1]).float() * assignment.ious[:, None]
        loss = loss + _cross_entropy(objectness, is_object).sum()
        loss = loss + _cross_entropy(scores[assignment.candidates], wanted).sum()
    else:
        wanted = torch.zeros_like(joint)
        wanted[assignment.candidates, of_object] = assignment.ious
        weight = (wanted - joint.detach()).abs() ** FOCUS
        loss = loss + 2 * (weight * _cross_entropy(joint, wanted)).sum()
    return loss, count


def _cross_entropy(probabilities: Any, targets: Any) -> Any:
    """Binary cross-entropy of probabilities, bounded where they are 0 or 1."""
    return functional.binary_cross_entropy(probabilities.clamp(EPS, 1 - EPS), targets, reduction="none")
