"""Conflicts of spans, texts, numbers and rankings in words: what differs and where, as the editor shows it."""

import pytest

from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.task import read_task
from qc_webhooks.agreement import compare, read_answers
from qc_webhooks.policy import ControlPolicy, Policy
from qc_webhooks.verdict.note import describe
from qc_webhooks.verdict.verdict import judge

TEXT = "Barack Obama met Angela Merkel in Berlin and then flew on to Paris."
TEXT_CONFIG = (
    '<View><Text name="o" value="$text"/><Labels name="c" toName="o"><Label value="PER"/></Labels>'
    '<TextArea name="note" toName="o" perRegion="true"/></View>'
)
CONFIGS = {
    "text": TEXT_CONFIG,
    "talk": '<View><Paragraphs name="o" value="$talk"/><ParagraphLabels name="c" toName="o"/></View>',
    "sound": '<View><Audio name="o" value="$sound"/><Labels name="c" toName="o"/></View>',
    "video": '<View><Video name="o" value="$video"/><TimelineLabels name="c" toName="o"/></View>',
    "series": '<View><TimeSeries name="o" value="$csv" timeFormat="%Y-%m-%d %H:%M"/>'
    '<TimeSeriesLabels name="c" toName="o"/></View>',
    "clock": '<View><TimeSeries name="o" value="$csv" timeFormat="%H:%M:%S"/><TimeSeriesLabels name="c" toName="o"/>'
    "</View>",
    "numbers": '<View><TimeSeries name="o" value="$csv"/><TimeSeriesLabels name="c" toName="o"/></View>',
    "number": '<View><Text name="o" value="$text"/><Number name="c" toName="o"/></View>',
    "written": '<View><Text name="o" value="$text"/><TextArea name="c" toName="o"/></View>',
    "ranker": '<View><List name="o" value="$items"/><Ranker name="c" toName="o"/></View>',
}


def span(start, end, label="PER", kind="labels", **more):
    return {"type": kind, "value": {"start": start, "end": end, kind: [label], **more}}


def frames(start, end):
    return {"type": "timelinelabels", "value": {"ranges": [{"start": start, "end": end}], "timelinelabels": ["Cut"]}}


def marked(start, end, label="PER"):
    return span(start, end, label, text=TEXT[start:end])


def texts(name, *annotators):
    """The sentences about two annotators, and about three where two are equal and the third differs."""
    config = LabelConfig.parse(CONFIGS[name])
    annotations = [
        {
            "id": number,
            "completed_by": number,
            "result": [{"id": f"{number}-{index}", "from_name": "c", "to_name": "o", **result}
                       for index, result in enumerate(results)],
        }
        for number, results in enumerate(annotators, start=1)
    ]  # fmt: skip
    answers = read_answers(read_task({"id": 1, "data": {"text": TEXT}, "annotations": annotations}), config=config)
    return [describe(conflict) for conflict in judge(answers, Policy()).conflicts]


@pytest.mark.parametrize(
    ("name", "a", "b", "sentence"),
    [
        ("text", [marked(0, 12)], [],
         'One annotator has a PER at "Barack Obama" (characters 0 to 12), another does not.'),
        ("text", [span(0, 12)], [], "One annotator has a PER at characters 0 to 12, another does not."),
        ("text", [marked(34, 40)], [marked(34, 40, "LOC")],
         'One annotator says PER, another says LOC: the span at "Berlin" (characters 34 to 40).'),
        ("text", [marked(0, 12)], [marked(7, 12)],
         ('Two spans for PER at "Barack Obama" (characters 0 to 12) and at "Obama" (characters 7 to 12)'
          " overlap only 42 %.")),
        ("text", [marked(0, 66)], [],
         ('One annotator has a PER at "Barack Obama met Angela Merkel in Berli…" (characters 0 to 66),'
          " another does not.")),
        ("text", [marked(0, 12), marked(17, 30), marked(34, 40, "LOC")], [],
         "One annotator has 3 spans (2 PER, 1 LOC), another has none."),
        ("talk", [span("2", "2", kind="paragraphlabels", startOffset=4, endOffset=9, text="hello")], [],
         'One annotator has a PER at "hello" (paragraph 3, characters 4 to 9), another does not.'),
        ("sound", [span(6.061, 66.661, channel=0)], [],
         "One annotator has a PER from 6.06 s to 1:06.66, another does not."),
        ("sound", [span(3661, 3725.5, channel=1)], [],
         "One annotator has a PER from 1:01:01 to 1:02:05.50 in channel 2, another does not."),
        ("sound", [span(2.0, 2.0, channel=0)], [], "One annotator has a PER at 2 s, another does not."),
        ("video", [frames(3, 3)],
         [], "One annotator has a Cut in frame 3, another does not."),
        ("video", [frames(3, 9)],
         [], "One annotator has a Cut in frames 3 to 9, another does not."),
        ("series", [span("2020-06-04 10:10", "2020-06-05 00:00", kind="timeserieslabels", instant=False)], [],
         "One annotator has a PER from 2020-06-04 10:10 to 2020-06-05, another does not."),
        ("series", [span("2020-06-04 10:10", 1e15, kind="timeserieslabels", instant=False)], [],
         "One annotator has a PER from 2020-06-04 10:10 to 1e+15, another does not."),
        ("clock", [span("00:00:00", "10:10:30", kind="timeserieslabels", instant=False)], [],
         "One annotator has a PER from 00:00 to 10:10:30, another does not."),
        ("numbers", [span(1591265400, 1591265460, kind="timeserieslabels", instant=False)], [],
         "One annotator has a PER from 1591265400 to 1591265460, another does not."),
        ("number", [{"type": "number", "value": {"number": 1234567}}],
         [{"type": "number", "value": {"number": 2234567}}],
         'c: one says "1234567", another says "2234567".'),
        ("written", [{"type": "textarea", "value": {"text": ["The quick brown fox jumps over a lazy dog tonight"]}}],
         [{"type": "textarea", "value": {"text": ["The quick brown fox jumps right across to Old Kent Road"]}}],
         'c: one says "…fox jumps over a lazy dog tonight", another says "…fox jumps right across to Old Kent Road".'),
        ("written", [{"type": "textarea", "value": {"text": ["المدرسة كبيرة"]}}], [],
         'c: one says "المدرسة كبيرة", another gives no answer.'),
        ("ranker", [{"type": "ranker", "value": {"ranker": {"c": ["x", "y"]}}}],
         [{"type": "ranker", "value": {"ranker": {"c": ["y", "x"]}}}],
         'c: one says "x > y", another says "y > x".'),
        ("ranker", [{"type": "ranker", "value": {"ranker": {"good": ["x", "y"], "bad": []}}}],
         [{"type": "ranker", "value": {"ranker": {"good": ["x"], "bad": ["y"]}}}],
         'c: one says "good: x > y", another says "good: x; bad: y".'),
    ],
)  # fmt: skip
def test_a_conflict_says_what_differs_and_where(name, a, b, sentence):
    assert texts(name, a, b) == [sentence]


def test_an_agreed_span_keeps_the_words_of_its_most_central_one():
    from labelloop.labeling.consensus.consensus import consensus
    from qc_webhooks.verdict.dispute_card import annotator_view, conflicts_of

    config = LabelConfig.parse(CONFIGS["text"])
    drawn = ([marked(0, 12), marked(34, 40)], [marked(0, 12), marked(34, 40)], [marked(0, 12)])
    annotations = [
        {"id": number, "completed_by": number,
         "result": [{"id": f"{number}-{index}", "from_name": "c", "to_name": "o", **one}
                    for index, one in enumerate(results)]}
        for number, results in enumerate(drawn, start=1)
    ]  # fmt: skip
    answers = read_answers(read_task({"id": 1, "data": {"text": TEXT}, "annotations": annotations}), config=config)
    found = conflicts_of(answers, consensus([annotator_view(one) for one in answers]), Policy().tolerance)
    assert [(one.annotators, describe(one.conflict)) for one in found] == [
        ((3,), 'One annotator has a PER at "Berlin" (characters 34 to 40), another does not.')
    ]


def test_spans_of_one_pre_label_are_compared_with_what_most_made_of_it():
    """Annotators keep the id of a pre-label: the first one's change of it is not what all agreed on."""
    from labelloop.labeling.consensus.consensus import consensus
    from qc_webhooks.verdict.dispute_card import annotator_view, conflicts_of

    annotations = [
        {"id": who, "completed_by": who, "result": [marked(0, end) | {"id": "same", "from_name": "c", "to_name": "o"}]}
        for who, end in ((1, 6), (2, 12), (3, 12))
    ]
    task = read_task({"id": 1, "data": {"text": TEXT}, "annotations": annotations})
    answers = read_answers(task, config=LabelConfig.parse(TEXT_CONFIG))
    found = conflicts_of(answers, consensus([annotator_view(one) for one in answers]), Policy().tolerance)
    assert [one.annotators for one in found] == [(1,)]


def test_a_control_may_have_brackets_in_its_name():
    """The setting of `Quality (overall)` is that of this control, and not of one named `Quality`."""
    config = LabelConfig.parse(
        '<View><Text name="o" value="$text"/><Rating name="Quality (overall)" toName="o"/>'
        '<Choices name="Quality" toName="o"/></View>'
    )
    annotations = [
        {
            "id": who, "completed_by": who,
            "result": [
                {"from_name": "Quality (overall)", "to_name": "o", "type": "rating", "value": {"rating": stars}},
                {"from_name": "Quality", "to_name": "o", "type": "choices", "value": {"choices": ["good"]}},
            ],
        }
        for who, stars in ((1, 1), (2, 5))
    ]  # fmt: skip
    answers = read_answers(read_task({"id": 1, "data": {}, "annotations": annotations}), config=config)
    without = Policy(controls={"Quality (overall)": ControlPolicy(weight=0)})
    assert judge(answers, Policy()).outcome == "disputed"
    assert judge(answers, without).outcome == "agreed"
    assert compare(*answers, tolerance=without.tolerance, weights=without.weights).overall == 1
