"""Heat maps with a shape prior: pure numpy, on maps made up for the test."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from ml_backend.heads.point_model import (
    PEAK,
    PointExamples,
    _GramSums,
    correct_points,
    fit_points,
    locate,
    shape_prior,
)

GRID, CHANNELS, LABELS = 16, 6, ("head", "tail")


def made_up(count, *, seed=0, missing=0.0, informative=True):
    """Objects whose first two channels peak at the points; the rest is noise."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(0.15, 0.85, (count, 2, 2))
    line = (np.arange(GRID) + 0.5) / GRID
    maps = rng.normal(0, 0.1, (count, GRID, GRID, CHANNELS))
    if informative:
        for point in range(2):
            x = np.exp(-((line - points[:, point, :1]) ** 2) / (2 * (1.5 / GRID) ** 2))
            y = np.exp(-((line - points[:, point, 1:]) ** 2) / (2 * (1.5 / GRID) ** 2))
            maps[..., point] += y[:, :, None] * x[:, None, :]
    points[rng.random((count, 2)) < missing] = np.nan
    return PointExamples(maps.reshape(count, -1, CHANNELS).astype(np.float16), points, np.ones(count), np.arange(count))


def test_points_are_found_where_the_features_show_them():
    fitted = fit_points(made_up(20), LABELS, 64)
    assert fitted.model.has_heat_maps
    test = made_up(30, seed=1)
    located = fitted.model.locate(test.features, len(test))
    assert np.linalg.norm(located.points - test.points, axis=-1).max() < 0.05
    assert fitted.pck["heat maps"] > 0.95 > 0.5 > fitted.pck["mean shape"]
    present, correct = fitted.model.confidence(located)
    assert present.min() > 0.8
    assert correct.min() > 0.8


def test_the_mean_shape_stays_where_the_features_show_nothing():
    rng = np.random.default_rng(0)
    examples = made_up(20, informative=False)
    points = np.array([[0.3, 0.3], [0.7, 0.7]]) + rng.normal(0, 0.01, (20, 2, 2))
    fitted = fit_points(PointExamples(examples.features, points, examples.sizes, examples.groups), LABELS, 64)
    assert not fitted.model.has_heat_maps
    located = fitted.model.locate(None, 3)
    assert np.allclose(located.points, [[0.3, 0.3], [0.7, 0.7]], atol=0.02)


def test_a_point_that_is_seldom_labelled_is_unlikely():
    examples = made_up(40)
    points = examples.points.copy()
    points[8:, 1] = np.nan
    model = fit_points(PointExamples(examples.features, points, examples.sizes, examples.groups), LABELS, 64).model
    present, _ = model.confidence(model.locate(made_up(20, seed=3).features, 20))
    assert present[:, 0].min() > 0.7
    assert present[:, 1].max() < 0.5


@pytest.mark.parametrize("penalty", [0.01, 0.1])
def test_the_filters_are_those_of_scikit_learn(penalty):
    examples = made_up(8, missing=0.2)
    weights = _GramSums(examples).fit(np.arange(8), penalty)
    rows = examples.features.astype(np.float64)
    mean, scale = rows.mean((0, 1)), rows.std((0, 1)) + 1e-6
    line = (np.arange(GRID) + 0.5) / GRID
    for point in range(2):
        known = np.flatnonzero(examples.labelled[:, point])
        x = np.exp(-((line - examples.points[known, point, :1]) ** 2) / (2 * (PEAK / GRID) ** 2))
        y = np.exp(-((line - examples.points[known, point, 1:]) ** 2) / (2 * (PEAK / GRID) ** 2))
        target = (y[:, :, None] * x[:, None, :]).ravel()
        standard = ((rows[known] - mean) / scale).reshape(-1, CHANNELS)
        referee = Ridge(alpha=penalty * len(standard)).fit(standard, target)
        ours = rows[known].reshape(-1, CHANNELS) @ weights[:-1, point] + weights[-1, point]
        assert np.allclose(ours, referee.predict(standard), atol=2e-3)


@settings(deadline=None)
@given(st.integers(0, 1000), st.floats(0, 0.6))
def test_the_shape_prior_is_a_covariance(seed, missing):
    mean, covariance = shape_prior(made_up(6, seed=seed, missing=missing).points)
    assert np.isfinite(mean).all()
    assert np.allclose(covariance, covariance.T)
    assert np.linalg.eigvalsh(covariance).min() > 0


@settings(deadline=None)
@given(st.floats(0.1, 0.9), st.floats(0.1, 0.9))
def test_a_sharp_peak_is_found_to_a_part_of_a_cell(x, y):
    line = (np.arange(GRID) + 0.5) / GRID
    peak = (
        np.exp(-((line - x) ** 2) / (2 * (1.5 / GRID) ** 2))[None]
        * np.exp(-((line - y) ** 2) / (2 * (1.5 / GRID) ** 2))[:, None]
    )
    located = locate(peak[None, None], np.array([[0.5, 0.5]]), 0.09 * np.eye(2))
    assert np.abs(located.points[0, 0] - (x, y)).max() < 0.5 / GRID
    assert located.peaks[0, 0] > 0.8


def test_a_hidden_point_is_where_the_others_expect_it():
    rng = np.random.default_rng(0)
    shift = rng.normal(0, 0.12, (200, 1, 2))
    points = np.array([[0.3, 0.5], [0.7, 0.5]]) + shift + rng.normal(0, 0.005, (200, 2, 2))
    mean, covariance = shape_prior(points)
    line = (np.arange(GRID) + 0.5) / GRID
    seen = np.exp(-((line - 0.45) ** 2) / 0.01)[None] * np.exp(-((line - 0.6) ** 2) / 0.01)[:, None]
    located = locate(np.stack([seen, np.zeros_like(seen)])[None], mean, covariance)
    assert np.allclose(located.points[0, 1], (0.85, 0.6), atol=0.06)


def test_correct_points_are_those_within_a_tenth_of_the_size():
    points = np.array([[[0.5, 0.5], [np.nan, np.nan]]])
    examples = PointExamples(np.zeros((1, 4, 1), np.float16), points, np.array([0.5]), np.zeros(1, int))
    for away, right in ((0.049, True), (0.051, False)):
        found = np.array([[[0.5 + away, 0.5], [0.5, 0.5]]])
        assert correct_points(found, examples).tolist() == [[right, False]]
