"""Where each of many parts lies in what they make together."""

import numpy as np
from numpy.typing import NDArray


def offsets(lengths: NDArray[np.integer]) -> NDArray[np.int64]:
    """Where each of some parts begins, and where the last ends: (parts + 1,)."""
    first = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=first[1:])
    return first
