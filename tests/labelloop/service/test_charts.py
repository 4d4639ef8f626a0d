import math

import pytest

from labelloop.service.charts import LinearScale, Tick, count, decimal, nice_step, percent, polyline


@pytest.mark.parametrize(("minimum", "step"), [(0, 1), (1, 1), (1.2, 2), (3, 5), (7, 10), (11, 20), (501, 1000)])
def test_steps_of_axes_are_round(minimum, step):
    assert nice_step(minimum) == step


def test_vertical_scale_points_up():
    scale = LinearScale(0.5, 1, 216, 10)
    assert [scale(value) for value in (0.5, 0.75, 1)] == [216, 113, 10]
    assert scale.ticks([0.5, 1], percent) == (Tick(216, "50 %"), Tick(10, "100 %"))


@pytest.mark.parametrize("scale", [LinearScale(0, 3, 0, 100), LinearScale(-1, 2, 100, 0)])
def test_stacked_segments_meet_exactly(scale):
    sizes = [1 / 3, 0, 1, 0.77]
    segments = list(scale.stack(sizes))
    level = 0.0
    for size, (first, length) in zip(sizes, segments, strict=True):
        assert {first, round(first + length, 1)} == {scale(level), scale(level + size)}
        level += size


def test_segment_below_zero_starts_at_zero():
    scale = LinearScale(-1, 1, 100, 0)
    assert list(scale.stack([-0.5])) == [(scale(0), 25)]


def test_numbers_as_text():
    assert polyline([(1.0, 2.5), (3.0, 4.0)]) == "1.0,2.5 3.0,4.0"
    assert count(12345) == "12,345"
    assert [decimal(0.8264), decimal(0.8264, 3), decimal(None)] == ["0.83", "0.826", "\u2013"]
    assert [percent(0.934), percent(3, of=4), percent(0.1234, 1)] == ["93 %", "75 %", "12.3 %"]
    assert {percent(None), percent(math.nan), percent(0, of=0)} == {"\u2013"}
