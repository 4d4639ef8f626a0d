"""Disputes about spans and answers: nothing is drawn on an image; what each group says is listed."""

import pytest

from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.task import read_task
from qc_webhooks.agreement import read_answers
from qc_webhooks.dashboard.dispute_panels import build_panels
from qc_webhooks.decision.dispute_drawing import draw_dispute
from qc_webhooks.policy import Policy
from qc_webhooks.verdict.verdict import judge
from tests.simulated_answers import simulate

CONFIGS = {
    "sound": '<View><Audio name="o" value="$sound"/><Labels name="c" toName="o"><Label value="Bird"/></Labels></View>',
    "talk": '<View><Paragraphs name="o" value="$talk"/><ParagraphLabels name="c" toName="o"><Label value="Bird"/>'
    "</ParagraphLabels></View>",
    "page": '<View><HyperText name="o" value="$page"/><HyperTextLabels name="c" toName="o"><Label value="Bird"/>'
    "</HyperTextLabels></View>",
}


def drawn(xml, *annotators, has_image=False):
    annotations = [
        {"id": who, "completed_by": who, "result": results} for who, results in enumerate(annotators, start=1)
    ]
    task = read_task({"id": 1, "data": {}, "annotations": annotations})
    answers = read_answers(task, config=LabelConfig.parse(xml))
    return draw_dispute(answers, judge(answers, Policy()), Policy(), has_image=has_image)


@pytest.mark.parametrize("name", CONFIGS)
def test_spans_are_listed_and_not_drawn(name):
    """Channels and paragraphs are no images: a number made of their names took 4,000,000,000 sizes."""
    simulated = simulate(CONFIGS[name])
    drawing = drawn(CONFIGS[name], simulated.results[1], simulated.results[3])
    assert drawing.conflicts
    assert drawing.sizes == ()
    assert not any(view.outlines for view in drawing.views)
    group, _, consensus = drawing.views
    assert group.answers[0][0] == consensus.answers[0][0] == "c"
    assert group.answers[0][1].startswith("Bird ")
    assert group.answers[0][1].count(";") == 1  # two spans
    panels = build_panels(drawing)
    assert (panels.has_image, panels.image_count) == (False, 1)


def test_an_image_with_an_absurd_number_is_not_counted_to():
    box = {"id": "b", "from_name": "c", "to_name": "o", "type": "rectanglelabels", "item_index": 4_000_000_000}
    value = {"x": 10, "y": 10, "width": 20, "height": 20, "rectanglelabels": ["Car"]}
    size = {"original_width": 100, "original_height": 100}
    xml = '<View><Image name="o" valueList="$pages"/><RectangleLabels name="c" toName="o"/></View>'
    drawing = drawn(xml, [box | size | {"value": value}], [box | size | {"value": value | {"x": 60}}], has_image=True)
    assert len(drawing.sizes) <= 1000
    assert build_panels(drawing).image_count <= 1000


def test_shapes_are_drawn_where_the_address_of_the_image_is_not_known():
    """The image may be in the task itself, as a data URL."""
    box = {"id": "b", "from_name": "c", "to_name": "o", "type": "rectanglelabels", "original_width": 100}
    value = {"x": 10, "y": 10, "width": 20, "height": 20, "rectanglelabels": ["Car"]}
    xml = '<View><Image name="o" value="$image"/><RectangleLabels name="c" toName="o"/></View>'
    drawing = drawn(xml, [box | {"original_height": 100, "value": value}], [])
    assert drawing.has_image


def test_each_group_shows_its_numbers_rankings_and_texts():
    xml = (
        '<View><List name="o" value="$items"/><Ranker name="order" toName="o"/><Rating name="stars" toName="o"/>'
        '<TextArea name="why" toName="o"/></View>'
    )

    def said(order, stars, why):
        return [
            {"from_name": "order", "to_name": "o", "type": "ranker", "value": {"ranker": {"order": order}}},
            {"from_name": "stars", "to_name": "o", "type": "rating", "value": {"rating": stars}},
            {"from_name": "why", "to_name": "o", "type": "textarea", "value": {"text": [why]}},
        ]

    drawing = drawn(xml, said(["x", "y"], 4, "good\n" * 50), said(["y", "x"], 1, "bad"))
    assert dict(drawing.views[1].answers) == {"order": "y > x", "stars": "1", "why": "bad"}
    assert len(dict(drawing.views[0].answers)["why"]) == 80
