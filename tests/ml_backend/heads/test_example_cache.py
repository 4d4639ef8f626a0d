"""What a head computes from an example is computed once, in bounded memory."""

import dataclasses

import numpy as np

from ml_backend.heads.base import HeadExample
from ml_backend.heads.example_cache import ExampleCache


def test_values_are_computed_once_and_the_oldest_are_dropped():
    cache = ExampleCache(10, size_of=len)
    computed = []

    def get(key, size=4):
        return cache.get(key, lambda: computed.append(key) or b"x" * size)

    for key in ("a", "b", "a", "c", "a", "b"):
        assert len(get(key)) == 4
    assert computed == ["a", "b", "c", "b"]
    assert len(get("large", 99)) == 99
    assert get("large") == b"x" * 99
    assert computed.count("large") == 1


def test_key_of_an_example_changes_with_what_is_drawn():
    example = HeadExample(1, "a.jpg", 9, 9, np.zeros((1, 4), np.float32), ("Disc",), np.zeros((1, 2), np.float32), None,
                          lambda: np.zeros((9, 9, 3), np.uint8))  # fmt: skip
    changes = [{"url": "b.jpg"}, {"labels": ("Square",)}, {"masks": ("2 2 0",)}, {"boxes": np.ones((1, 4), np.float32)},
               {"keypoints": (("Nose", 1.0, 2.0, 0),)}, {"rotated": ((1, 2, 3, 4, 5),)}]  # fmt: skip
    keys = {example.key, *(dataclasses.replace(example, **change).key for change in changes)}
    assert len(keys) == 7
    assert dataclasses.replace(example, task=2, choices={"a": ("b",)}).key == example.key
