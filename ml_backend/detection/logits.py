"""Sigmoid and logit of SciPy, loaded on first use: it takes 28 MB of every worker, and many models need neither."""

from typing import Any

import numpy as np
import numpy.typing as npt

# Probabilities are clipped to [PROB_EPS, 1 - PROB_EPS] before the logit.
PROB_EPS = 1e-6


def expit(logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Compute the sigmoid element by element, in the array's floating-point type."""
    from scipy import special

    return np.asarray(special.expit(logits))


def logit(scores: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Compute the logits of scores in [0, 1], clipped to [PROB_EPS, 1 - PROB_EPS].

    Args:
        scores: Of any shape and floating-point type.

    Returns:
        float64 of the same shape.
    """
    from scipy import special

    probabilities = np.clip(np.asarray(scores, np.float64), PROB_EPS, 1 - PROB_EPS)
    return np.asarray(special.logit(probabilities), np.float64)
