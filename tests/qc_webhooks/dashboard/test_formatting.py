"""Numbers and names of the dashboard's pages."""

from types import SimpleNamespace

import pytest

from labelloop.service.charts import EN_DASH
from qc_webhooks.dashboard.dispute_panels import build_panels
from qc_webhooks.dashboard.formatting import hours, signed, statistic_name
from qc_webhooks.dashboard.project_view import ProjectView
from qc_webhooks.decision.dispute_drawing import CONSENSUS, DisputeDrawing, GroupView, RegionOutline

RING = ((0.1, 0.1), (0.9, 0.1), (0.9, 0.9), (0.1, 0.9))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, EN_DASH), (0.0, "0 min"), (-0.1, "-6 min"), (0.5, "30 min"), (0.999, "1.0 h"), (3.52, "3.5 h"),
        (9.97, "10 h"), (1200, "1,200 h"),
    ],
)  # fmt: skip
def test_less_than_an_hour_is_said_in_minutes(value, text):
    assert hours(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(8.84, "+8.8"), (-0.26, "-0.3"), (0.0, "0.0"), (-0.01, "0.0"), (0.04, "0.0")]
)
def test_a_difference_has_a_sign_unless_it_rounds_to_none(value, text):
    assert signed(value) == text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("alpha_unitizing: Dog: small", "Krippendorff's alpha, unitizing: Dog: small"),
        ("cohen_kappa", "Cohen's kappa"),
        ("unknown", "unknown"),
    ],
)
def test_a_statistic_of_one_label_has_its_name_and_the_label(name, text):
    assert statistic_name(name) == text


def test_a_name_replaces_the_number_and_keeps_its_spelling():
    view = SimpleNamespace(name={2: "de Boer", 13: "anna@example.com"}.get)
    line = "Annotator 2 draws as annotator 13 does, and annotators 2 and 13 differ."
    assert ProjectView.with_names(view, line) == (
        "de Boer draws as anna@example.com does, and annotators 2 and 13 differ."
    )


def drawing(size, groups):
    views = [GroupView(name, (), (RegionOutline((RING,), False, "Car", 0, (0,)),)) for name in groups]
    return DisputeDrawing((), tuple(views), (size,))


def test_labels_on_an_image_are_as_high_on_the_page_whatever_its_shape():
    pair, many = ("A", CONSENSUS), ("A", "B", "C", "D", "E", CONSENSUS)
    wide = build_panels(drawing((4000, 1000), pair), full_image=True)
    assert wide.text == pytest.approx(4000 * 12 / 420, abs=0.01)  # as wide as a panel may be
    tall = build_panels(drawing((500, 2000), pair), full_image=True)
    assert tall.text == pytest.approx(2000 * 12 / 195, abs=0.01)  # as high as a panel may be
    narrow = build_panels(drawing((4000, 1000), many), full_image=True)
    assert narrow.text == pytest.approx(4000 * 12 / (940 / 6), abs=0.01)  # six share a row
