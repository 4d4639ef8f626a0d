"""Box bias: margins of single annotators are found, and none that all seem to share."""

import numpy as np
import pytest

from labelloop.labeling.consensus.box_bias import fit_box_bias

BOX, SIDES = np.array([100.0, 100.0, 160.0, 140.0]), np.array([60.0, 40.0, 60.0, 40.0])


def objects(margins, deviation, *, count=150, seed=0):
    rng = np.random.default_rng(seed)
    return [
        tuple(
            (who, tuple((BOX + (np.array(margin) + rng.normal(0, deviation, 4)) * SIDES).tolist()))
            for who, margin in margins.items()
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("deviation", [0.05, 0.15])
def test_noise_of_all_is_no_margin_and_leaves_the_size_as_it_is(deviation):
    drawn = objects(dict.fromkeys(range(3), (0.0,) * 4), deviation)
    model = fit_box_bias(drawn)
    assert all(abs(edge) < 0.04 for bias in model.by_annotator.values() for edge in bias.margin)
    widths = [model.fuse_boxes(boxes).width for boxes in drawn]
    assert np.mean(widths) == pytest.approx(60, rel=0.02)


def test_margin_of_one_annotator_is_taken_off():
    wide = (-0.1, -0.1, 0.1, 0.1)
    model = fit_box_bias(objects({1: (0.0,) * 4, 2: (0.0,) * 4, 3: wide}, 0.03))
    assert model.by_annotator[3].margin == pytest.approx(wide, abs=0.04)
    assert model.by_annotator[1].margin == pytest.approx((0,) * 4, abs=0.03)
