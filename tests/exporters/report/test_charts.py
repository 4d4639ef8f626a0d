"""Charts of the report: what they draw is also said in words, and any name fits."""

import re

import numpy as np
import pytest

from exporters.report.charts import heat_map, histogram, stacked_bar_chart
from tests.accessibility import faults

PAGE = '<html lang="en"><head><title>x</title><meta name="viewport"></head><main><h1>x</h1>{}</main></html>'


def said(svg):
    assert faults(PAGE.format(svg)) == []
    return re.search('aria-label="([^"]*)"', svg)[1]


def test_charts_are_said_in_words():
    assert said(stacked_bar_chart([("Car", {"train": 1200, "val": 3}), ("Van", {"train": 0, "val": 0})])) == (
        "Objects by class: Car 1,203, Van 0."
    )
    assert said(histogram([("0", 0), ("1", 1500)], name="objects per image", of="images")) == (
        "Images by objects per image. 1: 1,500."
    )
    assert said(histogram([("0", 0)], name="size")) == "Boxes by size. None."
    assert said(heat_map(np.array([[0, 2], [5, 0]]))) == (
        "Box centres on the image, in 2 by 2 cells; the fullest has 5."
    )
    assert said(heat_map(np.zeros((2, 2), int))).endswith("has 0.")


@pytest.mark.parametrize("most", [0, 1, 2, 7, 99, 12_345])
def test_bars_of_a_histogram_stay_below_its_highest_tick(most):
    svg = histogram([("a", most), ("b", 0)], name="size")
    ticks = [float(y) for y in re.findall(r'<line class="grid"[^>]* y1="([\d.]+)"', svg)]
    tops = [float(y) for y in re.findall(r'<rect [^>]*?\by="([\d.]+)"', svg)]
    assert min(tops) >= min(ticks) > 11  # below the title of the axis
    assert 2 <= len(ticks) <= 5


@pytest.mark.parametrize(("name", "shown"), [
    ("Car", "Car"), ("x" * 26, "x" * 26), ("x" * 27, f"{'x' * 25}…"), ("車" * 13, "車" * 13),
    ("車" * 14, f"{'車' * 12}…"),
])  # fmt: skip
def test_long_names_are_shortened_by_the_room_they_take(name, shown):
    assert f'text-anchor="end">{shown}<title>{name}</title>' in stacked_bar_chart([(name, {"train": 1})])
