"""The calibration error of the percentages of remarks is that of scikit-learn's bins."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from bench.opinion import BINS, Said, calibration, calibration_error


def test_the_calibration_error_is_that_of_the_referee():
    rng = np.random.default_rng(0)
    stated = rng.uniform(size=500)
    right = rng.uniform(size=500) < stated**2
    error, rows = calibration_error(stated, right)
    shares, means = calibration_curve(right, stated, n_bins=len(BINS) - 1)
    counts = [len(some) for some in rows[:-1]]
    assert sum(counts) == len(rows[-1]) == 500
    assert error == pytest.approx(np.average(np.abs(shares - means), weights=counts))
    assert error > 0.1


def test_few_remarks_have_no_error_and_undrawn_objects_are_right():
    few = [Said("class", 0.9, "planted", False), Said("class", 0.7, "wrong", False)]
    many = [Said("class", 0.5, what, True) for what in ("planted", "undrawn", "wrong", "wrong") * 10]
    rows = {
        line.split(" | ")[0].strip("| "): line for line in calibration({("few", "class"): few, ("many", "class"): many})
    }
    assert rows["few"].endswith("| 0.80 / 0.50 (2) | - |")
    assert rows["many"].endswith("| - | - | 0.50 / 0.50 (40) | - | - | 0.50 / 0.50 (40) | 0.000 |")
