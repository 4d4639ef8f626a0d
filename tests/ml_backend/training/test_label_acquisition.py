"""Images to label next: uncertain, typical of many others, and unlike the labelled ones."""

import numpy as np

from ml_backend.training.label_acquisition import density, label_vectors, next_labels, uncertainty_of


def test_uncertainty_is_one_minus_margin():
    single = uncertainty_of(np.array([[0.5, 0.5, 0.0], [0.9, 0.06, 0.04], [0.4, 0.3, 0.3]]), "single")
    assert np.allclose(single, [1.0, 0.16, 0.9])
    assert np.allclose(uncertainty_of(np.array([[0.5, 0.99], [0.01, 0.99]]), "multiple"), [1.0, 0.02])
    assert np.allclose(uncertainty_of(np.array([[0.7]]), "single"), [0.3])


def test_outlier_is_less_dense_than_a_cluster():
    rng = np.random.default_rng(0)
    cluster = np.tile([1.0, 0.0, 0.0], (30, 1)) + rng.normal(0, 0.05, (30, 3))
    points = np.concatenate([cluster, [[0.0, 0.0, 1.0]]])
    found = density((points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32))
    assert found.argmin() == 30
    assert (found >= 0).all()
    assert (found <= 1).all()


def test_order_takes_each_cluster_before_any_twice():
    rng = np.random.default_rng(1)
    centres = np.eye(4)
    points = np.repeat(centres, 10, axis=0) + rng.normal(0, 0.05, (40, 4))
    vectors = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    chosen = next_labels(np.ones(40), vectors, np.zeros((0, 4), np.float32), 4)
    assert sorted(index // 10 for index in chosen) == [0, 1, 2, 3]


def test_labelled_twin_of_an_image_makes_it_last():
    vectors = np.eye(3, dtype=np.float32)
    assert next_labels(np.ones(3), vectors, vectors[:1], 3)[-1] == 0


def test_certain_images_come_after_uncertain_ones():
    rng = np.random.default_rng(2)
    vectors = label_vectors(rng.normal(0, 1, (20, 50)).astype(np.float32))
    uncertain = np.where(np.arange(20) < 5, 0.9, 0.01)
    assert set(next_labels(uncertain, vectors, np.zeros((0, 50), np.float32), 5)) == {0, 1, 2, 3, 4}


def test_without_a_model_the_images_alone_decide():
    vectors = label_vectors(np.random.default_rng(4).normal(0, 1, (20, 8)).astype(np.float32))
    none = np.zeros((0, 8), np.float32)
    assert next_labels(np.zeros(20), vectors, none, 5) == next_labels(np.ones(20), vectors, none, 5)


def test_more_images_than_there_are_gives_all():
    vectors = np.eye(3, dtype=np.float32)
    assert sorted(next_labels(np.ones(3), vectors, np.zeros((0, 3), np.float32), 9)) == [0, 1, 2]
    assert next_labels(np.zeros(0), np.zeros((0, 3), np.float32), vectors, 2) == []


def test_vectors_of_features_have_length_one():
    vectors = label_vectors(np.random.default_rng(0).normal(5, [1, 100, 0.01], (9, 3)).astype(np.float32))
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
