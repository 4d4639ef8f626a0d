"""Reading and writing a result gives the same JSON back, for every type of the table."""

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labelloop.labeling.geometry.brush_codec import encode_rle
from labelloop.labeling.geometry.png_codec import encode_data_url
from labelloop.labeling.studio.task import read_task
from labelloop.labeling.studio.values import GEOMETRIES
from labelloop.labeling.studio.writing import to_results
from tests.read_regions import read_regions

percent = st.floats(-20, 120)
extent = st.floats(0.01, 120)
turn = st.floats(-360, 360) | st.integers(0, 359)
pair = st.tuples(percent, percent).map(list)
point = st.fixed_dictionaries({"x": percent, "y": percent})
size = st.tuples(st.integers(1, 20), st.integers(1, 20))


def pixels(width, height, seed):
    return np.random.default_rng(seed).random((height, width)) < 0.5


def vertices(points, beziers):
    for index, (vertex, bezier) in enumerate(zip(points, beziers, strict=False)):
        link = {"id": f"v{index}", "prevPointId": f"v{index - 1}" if index else None, "isBezier": bezier is not None}
        yield vertex | link | ({"controlPoint1": bezier[0], "controlPoint2": bezier[1]} if bezier else {})


@st.composite
def values(draw, kind, width, height):
    """A value of this kind as Label Studio's editor writes it, without labels."""
    shape = GEOMETRIES[kind].key
    if shape == "height":
        box = {"x": draw(percent), "y": draw(percent), "width": draw(extent), "height": draw(extent)}
        return box | {"rotation": draw(turn)}
    if shape == "radiusX":
        return {
            "x": draw(percent),
            "y": draw(percent),
            "radiusX": draw(extent),
            "radiusY": draw(extent),
            "rotation": draw(turn),
        }
    if shape == "points":
        return {"points": draw(st.lists(pair, min_size=3, max_size=8)), "closed": True}
    if shape == "x":
        return {"x": draw(percent), "y": draw(percent), "width": draw(extent)}
    if shape == "vertices":
        points = draw(st.lists(point, min_size=1, max_size=6))
        beziers = [draw(st.none() | st.tuples(point, point)) for _ in points]
        return {"vertices": list(vertices(points, beziers)), "closed": draw(st.booleans())}
    mask = pixels(width, height, draw(st.integers(0, 2**32 - 1)))
    return {"format": "rle", "rle": encode_rle(mask)} if shape == "rle" else {"imageDataURL": encode_data_url(mask)}


@st.composite
def results(draw, kind):
    width, height = draw(size)
    value = draw(values(kind, width, height))
    if kind.endswith("labels"):
        value[kind] = draw(st.lists(st.sampled_from(["Car", "Ä", ""]), max_size=3))
    optional = {
        "item_index": st.integers(0, 3),
        "score": st.floats(0, 1),
        "meta": st.just({"text": ["n"]}),
        "readonly": st.booleans(),
    }
    return {
        "id": "r1",
        "from_name": "control",
        "to_name": "image",
        "type": kind,
        "value": value,
        "original_width": width,
        "original_height": height,
        "image_rotation": draw(st.sampled_from([0, 90])),
    } | draw(st.fixed_dictionaries({}, optional=optional))


def read(*results):
    return read_regions(
        read_task({"id": 1, "data": {}, "annotations": [{"id": 2, "result": list(results)}]}).annotations[0]
    )


def close(actual, expected):
    if isinstance(actual, float | int) and not isinstance(actual, bool):
        return actual == pytest.approx(expected, rel=1e-12, abs=1e-10)
    if isinstance(actual, dict):
        return actual.keys() == expected.keys() and all(close(actual[key], expected[key]) for key in actual)
    if isinstance(actual, list):
        return len(actual) == len(expected) and all(map(close, actual, expected))
    return actual == expected


@pytest.mark.parametrize("kind", GEOMETRIES)
@settings(max_examples=25)
@given(data=st.data())
def test_reading_and_writing_gives_the_same_json_back(kind, data):
    raw = data.draw(results(kind))
    (region,) = read(raw)
    assert to_results(region) == [raw]


@pytest.mark.parametrize("kind", GEOMETRIES)
@settings(max_examples=25)
@given(data=st.data())
def test_rewritten_values_differ_only_by_rounding(kind, data):
    raw = data.draw(results(kind))
    (region,) = read(raw)
    (written,) = to_results(msgspec.structs.replace(region, result=()))
    assert close(
        {key: value for key, value in written["value"].items() if key != kind},
        {key: value for key, value in raw["value"].items() if key != kind},
    )
    assert written["value"].get(kind, []) == raw["value"].get(kind, [])
    (again,) = read(written)
    assert again.labels == region.labels
    assert type(again.geometry) is type(region.geometry)
    assert again.geometry.bounds == pytest.approx(region.geometry.bounds, abs=1e-9)
