"""The consensus of three annotators on every control: the true answer of two wins, or the carried one is named."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from label_studio_sdk.label_interface import LabelInterface

from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.task import read_task
from qc_webhooks.agreement import Tolerance, compare, read_answers
from qc_webhooks.artifacts.overlays import CONSENSUS
from qc_webhooks.decision.proposal import propose
from qc_webhooks.policy import Policy
from qc_webhooks.verdict.merged_annotation import merge
from qc_webhooks.verdict.verdict import judge
from tests.merged_answers import merged, problems
from tests.simulated_answers import simulate

IMAGE, TEXT = '<Image name="image" value="$image"/>', '<Text name="text" value="$text"/>'
LABELS = '<Label value="Airplane"/><Label value="Car"/><Label value="Boat"/>'
CHOICES = '<Choice value="Yes"/><Choice value="No"/><Choice value="Unsure"/>'


def drawn(tag: str, on: str = "image", name: str = "objects", inner: str = LABELS) -> str:
    return f'<{tag} name="{name}" toName="{on}">{inner}</{tag}>'


ABOUT_REGIONS = "".join(
    f'<{tag} name="{name}" toName="{{on}}" perRegion="true">{inner}</{tag}>'
    for tag, name, inner in (
        ("TextArea", "said", ""),
        ("Choices", "clear", CHOICES),
        ("Rating", "stars", ""),
        ("Number", "count", ""),
        ("DateTime", "day", ""),
        ("Taxonomy", "kind", '<Choice value="a"><Choice value="b"/><Choice value="c"/></Choice><Choice value="d"/>'),
    )
)
# What each config asks, with every control of Label Studio in one of them.
CONFIGS: Mapping[str, str] = {
    **{
        f"{tag} with answers to each region": IMAGE + drawn(tag) + ABOUT_REGIONS.format(on="image")
        for tag in ("RectangleLabels", "PolygonLabels", "EllipseLabels", "KeyPointLabels", "BrushLabels",
                    "BitmaskLabels", "VectorLabels")
    },
    **{
        f"Labels with {shape}": IMAGE + drawn("Labels") + f'<{shape} name="shape" toName="image"/>'
        for shape in ("Rectangle", "Polygon", "Ellipse", "KeyPoint", "Brush", "Bitmask", "Vector")
    },
    **{
        f"{shape} without labels": IMAGE + drawn(shape, inner="")
        for shape in ("Rectangle", "Polygon", "Ellipse", "KeyPoint", "Brush", "Bitmask", "Vector", "MagicWand")
    },
    "boxes and lines of text on a page": IMAGE + drawn("Labels") + '<Rectangle name="box" toName="image"/>'
    '<Polygon name="poly" toName="image"/><TextArea name="line" toName="image" perRegion="true"/>',
    "pages": '<Image name="image" valueList="$pages"/>' + drawn("RectangleLabels")
    + "".join(
        f'<{tag} name="{tag}" toName="image" perItem="true">{inner}</{tag}>'
        for tag, inner in (("Choices", CHOICES), ("Rating", ""), ("Number", ""), ("TextArea", ""), ("DateTime", ""))
    ),
    "spans of a text": TEXT + drawn("Labels", "text") + ABOUT_REGIONS.format(on="text") + "<Relations/>",
    "spans of a page": '<HyperText name="page" value="$html"/>' + drawn("HyperTextLabels", "page"),
    "spans of a talk": '<Paragraphs name="talk" value="$talk"/>' + drawn("ParagraphLabels", "talk"),
    "spans of a sound": '<Audio name="sound" value="$sound"/>' + drawn("Labels", "sound")
    + ABOUT_REGIONS.format(on="sound"),
    "spans of a series": '<TimeSeries name="series" value="$csv"/>' + drawn("TimeSeriesLabels", "series")
    + ABOUT_REGIONS.format(on="series"),
    "spans of a series with dates": '<TimeSeries name="series" value="$csv" timeFormat="%Y-%m-%d %H:%M:%S"/>'
    + drawn("TimeSeriesLabels", "series"),
    "times of a video": '<Video name="video" value="$video"/>' + drawn("TimelineLabels", "video"),
    "tracks of a video": '<Video name="video" value="$video"/>' + drawn("Labels", "video")
    + drawn("VideoRectangle", "video", "box", "") + drawn("Choices", "video", "about", CHOICES),
    "answers": TEXT + "".join(
        drawn(tag, "text", tag.lower(), inner)
        for tag, inner in (("Choices", CHOICES), ("Rating", ""), ("Number", ""), ("DateTime", ""), ("TextArea", ""),
                           ("Taxonomy", '<Choice value="a"><Choice value="b"/></Choice><Choice value="c"/>'))
    ) + drawn("Choices", "text", "several", CHOICES).replace("<Choices", '<Choices choice="multiple"'),
    "two texts": TEXT + '<Text name="two" value="$two"/><Pairwise name="which" toName="text,two"/>',
    "ranks": '<List name="list" value="$items"/><Ranker name="rank" toName="list"/>',
    "ranks in buckets": '<List name="list" value="$items"/><Ranker name="rank" toName="list">'
    '<Bucket name="good"/><Bucket name="bad"/></Ranker>',
    "chat": '<Chat name="chat" value="$chat"/><Rating name="stars" toName="chat" perRegion="true"/>'
    '<Choices name="overall" toName="chat"><Choice value="a"/><Choice value="b"/></Choices>',
    "text in a document": '<Pdf name="pdf" value="$pdf"/>' + drawn("OcrLabels", "pdf")
    + drawn("Rating", "pdf", "stars", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_true_answer_of_two_of_three_wins(name):
    xml = f"<View>{CONFIGS[name]}</View>"
    simulated = simulate(xml)
    assert problems(simulated, merged(simulated.task(), xml), xml) == []


@pytest.mark.parametrize("name", CONFIGS)
def test_overlay_of_a_dispute_is_the_merge(name):
    xml = f"<View>{CONFIGS[name]}</View>"
    simulated, config = simulate(xml), LabelConfig.parse(xml)
    task = read_task(simulated.task())
    answers = read_answers(task, config=config)
    overlay = propose(task, answers, judge(answers, Policy()), Policy(), config=config)[-1]
    assert overlay.version == CONSENSUS
    shown = replace(merged(simulated.task(), xml), results=tuple(overlay.result))
    assert problems(simulated, shown, xml) == []


# What Label Studio's own checks refuse of what its editor writes.
UNCHECKED = {"tracks of a video", "two texts", "chat", "spans of a series with dates"}


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in UNCHECKED])
def test_label_studios_checks_accept_the_consensus(name):
    xml = f"<View>{CONFIGS[name]}</View>"
    simulated = simulate(xml)
    results = [result for result in merged(simulated.task(), xml).results if result["type"] != "relation"]
    assert LabelInterface(xml).validate_prediction({"result": results}, return_errors=True) == []


def span_task(*starts: list[float | str], instant: bool = True, length: float = 0.0) -> dict[str, Any]:
    """A task of a series in which each annotator marks these times."""

    def result(start: float | str) -> dict[str, Any]:
        end = start if isinstance(start, str) else start + length
        value = {"start": start, "end": end, "instant": instant, "timeserieslabels": ["Change"]}
        return {"id": f"r{start}", "from_name": "objects", "to_name": "series", "type": "timeserieslabels",
                "value": value}  # fmt: skip

    return {"id": 1, "data": {}, "annotations": [
        {"id": who, "completed_by": who, "result": [result(start) for start in times]}
        for who, times in enumerate(starts, 1)
    ]}  # fmt: skip


@pytest.mark.parametrize(
    ("marked", "expected"),
    [
        (([10.0], [10.4], [10.2]), [10.2]),  # one instant each: nothing else can be meant
        (([10, 50, 90], [11, 49, 90], [10, 51, 91]), [10, 50, 90]),
        (([10, 50, 90], [11, 90], [10, 70]), [10, 90]),  # 50 and 70 are marked by one each
        (
            (["05/01/2026 10:00"], ["05/01/2026 10:00"], ["05/01/2026 10:30"]),
            ["05/01/2026 10:00"],
        ),
    ],
)
def test_instants_of_a_series_are_merged(marked, expected):
    config = LabelConfig.parse(
        '<View><TimeSeries name="series" value="$csv" timeFormat="%m/%d/%Y %H:%M"/>'
        + drawn("TimeSeriesLabels", "series") + "</View>"
    )  # fmt: skip
    task = read_task(span_task(*marked))
    answers = read_answers(task, config=config)
    outcome = merge(task, answers, list, config=config)
    found = [result["value"] for result in outcome.results]
    assert [value["start"] for value in found] == expected
    assert all(value["start"] == value["end"] for value in found)


def test_ends_of_a_series_are_medians():
    config = LabelConfig.parse(
        '<View><TimeSeries name="series" value="$csv"/>' + drawn("TimeSeriesLabels", "series") + "</View>"
    )
    task = read_task(span_task([10.0], [10.6], [10.2], instant=False, length=8.0))
    answers = read_answers(task, config=config)
    (result,) = merge(task, answers, list, config=config).results
    assert (result["value"]["start"], result["value"]["end"]) == (10.2, 18.2)


def test_answers_to_each_image_are_merged_image_by_image():
    config = LabelConfig.parse(
        '<View><Image name="image" valueList="$pages"/><Rating name="stars" toName="image" perItem="true"/></View>'
    )

    def stars(who: int, *ratings: int) -> dict[str, Any]:
        results = [
            {"id": f"{who}-{item}", "from_name": "stars", "to_name": "image", "type": "rating", "item_index": item,
             "value": {"rating": rating}}
            for item, rating in enumerate(ratings)
        ]  # fmt: skip
        return {"id": who, "completed_by": who, "result": results}

    task = read_task({"id": 1, "data": {}, "annotations": [stars(1, 1, 5), stars(2, 1, 4), stars(3, 2, 4)]})
    answers = read_answers(task, config=config)
    outcome = merge(task, answers, list, config=config)
    assert [(result["item_index"], result["value"]["rating"]) for result in outcome.results] == [(0, 1), (1, 4)]
    assert compare(answers[0], answers[1], tolerance=Tolerance()).overall == (1 + 0.75) / 2


def test_tags_of_a_region_are_voted_on_one_by_one():
    xml = '<View><Image name="image" value="$image"/><RectangleLabels name="box" toName="image"><Label value="Car"/>'
    xml += '</RectangleLabels><Choices name="colour" toName="image" perRegion="true" choice="multiple"/></View>'
    place = {"x": 10.0, "y": 10.0, "width": 20.0, "height": 20.0, "rotation": 0}

    def marked(who: int, *colours: str) -> dict[str, Any]:
        base = {"id": f"r{who}", "to_name": "image", "original_width": 100, "original_height": 100}
        results = [
            base | {"from_name": "box", "type": "rectanglelabels", "value": place | {"rectanglelabels": ["Car"]}},
            base | {"from_name": "colour", "type": "choices", "value": place | {"choices": list(colours)}},
        ]
        return {"id": who, "completed_by": who, "result": results}

    people = [marked(1, "white", "red"), marked(2, "red", "blue"), marked(3, "white", "blue", "red", "old")]
    outcome = merged({"id": 1, "data": {}, "annotations": people}, xml)
    (answer,) = [result["value"]["choices"] for result in outcome.results if result["from_name"] == "colour"]
    assert answer == ["white", "red", "blue"]
