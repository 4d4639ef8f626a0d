"""Frozen features of given boxes: those of the candidate that a detector would have found for each."""

import numpy as np

from ml_backend.detection.detections import Floats, Ints, cross_iou
from ml_backend.training.backbone import CandidateFeatures
from ml_backend.training.examples import boxes_to_input, clip_to_image

# Candidates whose IoU is at least this share of the best one compete by their objectness.
NEAR_BEST = 0.85


def region_rows(candidates: CandidateFeatures, boxes: Floats) -> Ints:
    """Index of the candidate of each box: of those that overlap it best, the one with the highest objectness.

    A box that no candidate overlaps gets the one with the nearest centre.

    Args:
        candidates: Of one image, at least one.
        boxes: (m, 4) in pixels of the image.

    Returns:
        (m,) int64.
    """
    if not len(boxes):
        return np.zeros(0, np.int64)
    wanted = boxes_to_input(candidates.fit, np.asarray(boxes, np.float32))
    candidate_boxes = clip_to_image(candidates.boxes, candidates.fit)
    iou = cross_iou(wanted, candidate_boxes)
    best = iou.max(axis=1, keepdims=True)
    rows = np.where(iou >= NEAR_BEST * best, candidates.objectness.astype(np.float32), -1).argmax(axis=1)
    for index in np.flatnonzero(best[:, 0] <= 0).tolist():
        centres = (candidates.boxes[:, :2] + candidates.boxes[:, 2:]) / 2
        distance = np.linalg.norm(centres - (wanted[index, :2] + wanted[index, 2:]) / 2, axis=1)
        rows[index] = int(distance.argmin())
    return np.asarray(rows, np.int64)


def region_embeddings(candidates: CandidateFeatures, boxes: Floats) -> Floats:
    """Frozen features of boxes, as `Detections.embeddings` has them for detected ones.

    Args:
        candidates: Of one image.
        boxes: (m, 4) in pixels of the image.

    Returns:
        (m, d) float32; d is 0 where the backbone gives no candidates.
    """
    if not len(candidates):
        return np.zeros((len(boxes), candidates.embeddings.shape[1]), np.float32)
    embeddings = np.asarray(candidates.embeddings[region_rows(candidates, boxes)], np.float32)
    candidates.release()
    return embeddings
