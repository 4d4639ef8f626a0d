"""What several annotators submitted becomes one annotation: nothing is lost without a line or malformed."""

import itertools
import json
from collections import Counter

import pytest
from label_studio_sdk.label_interface import LabelInterface

from labelloop.cli.main import main
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.task import read_task
from qc_webhooks.agreement import read_answers
from qc_webhooks.artifacts.overlays import CONSENSUS
from qc_webhooks.decision.proposal import propose
from qc_webhooks.policy import Policy
from qc_webhooks.verdict.verdict import judge

IMAGE = {"original_width": 640, "original_height": 480, "image_rotation": 0}
BOX = {"x": 10.0, "y": 10.0, "width": 20.0, "height": 20.0, "rotation": 0}
SOUND = {"start": 1.0, "end": 2.0, "channel": 0}
TEXT = {"start": 0, "end": 5, "text": "Hello"}
PAGE = {"start": "/p[1]/text()[1]", "end": "/p[1]/text()[1]", "startOffset": 0, "endOffset": 5,
        "globalOffsets": {"start": 0, "end": 5}, "text": "Hello"}  # fmt: skip
VIDEO = {"framesCount": 10, "duration": 1.0, "labels": ["A"],
         "sequence": [{"frame": 1, "enabled": True, "rotation": 0, "time": 0.1, **BOX}]}  # fmt: skip


def label_tags(tag, name, to_name):
    return f'<{tag} name="{name}" toName="{to_name}"><Label value="A"/><Label value="B"/></{tag}>'


def region(type_, value, *, to_name="image", name="control", **more):
    return {"id": "r", "from_name": name, "to_name": to_name, "type": type_, "value": value, **more}


def answer(type_, value, *, to_name="text", **more):
    return {"id": "q", "from_name": "control", "to_name": to_name, "type": type_, "value": value, **more}


IMAGES_TAG = '<Image name="image" valueList="$images"/>'
IMAGE_TAG, TEXT_TAG = '<Image name="image" value="$image"/>', '<Text name="text" value="$text"/>'
AUDIO_TAG = '<Audio name="audio" value="$audio"/>'
SAID = '<TextArea name="said" toName="audio" perRegion="true"/>'
# Every control -> (label config, results as one annotator submits them). Ids get the annotator's number.
CONTROLS = {
    "text labels": (TEXT_TAG + label_tags("Labels", "control", "text"),
                    [region("labels", TEXT | {"labels": ["A"]}, to_name="text")]),
    "hypertext labels": ('<HyperText name="page" value="$page"/>' + label_tags("HyperTextLabels", "control", "page"),
                         [region("hypertextlabels", PAGE | {"hypertextlabels": ["A"]}, to_name="page")]),
    "paragraph labels": ('<Paragraphs name="talk" value="$talk"/>' + label_tags("ParagraphLabels", "control", "talk"),
                         [region("paragraphlabels", {"start": "0", "end": "1", "startOffset": 3, "endOffset": 4,
                                                     "text": "Hi", "paragraphlabels": ["A"]}, to_name="talk")]),
    "audio labels and transcript": (
        AUDIO_TAG + label_tags("Labels", "control", "audio") + SAID,
        [region("labels", SOUND | {"labels": ["A"]}, to_name="audio"),
         region("textarea", SOUND | {"text": ["hi"]}, to_name="audio", name="said")]),
    "time series labels": (
        '<TimeSeries name="series" value="$csv"><Channel column="a"/></TimeSeries>'
        + label_tags("TimeSeriesLabels", "control", "series"),
        [region("timeserieslabels", {"start": 1, "end": 2, "instant": False, "timeserieslabels": ["A"]},
                to_name="series")]),
    "timeline labels": ('<Video name="video" value="$video"/>' + label_tags("TimelineLabels", "control", "video"),
                        [region("timelinelabels", {"ranges": [{"start": 1, "end": 4}], "timelinelabels": ["A"]},
                                to_name="video")]),
    "video rectangle": ('<Video name="video" value="$video"/><VideoRectangle name="control" toName="video"/>'
                        + label_tags("Labels", "names", "video"),
                        [region("videorectangle", VIDEO, to_name="video"),
                         region("labels", VIDEO, to_name="video", name="names")]),
    "choices": (TEXT_TAG + '<Choices name="control" toName="text"><Choice value="a"/><Choice value="b"/></Choices>',
                [answer("choices", {"choices": ["a"]})]),
    "choices of each image": (
        IMAGES_TAG + '<Choices name="control" toName="image" perItem="true"><Choice value="a"/></Choices>',
        [answer("choices", {"choices": ["a"]}, to_name="image", item_index=0),
         answer("choices", {"choices": ["a"]}, to_name="image", item_index=1) | {"id": "q2"}]),
    "taxonomy": (TEXT_TAG + '<Taxonomy name="control" toName="text"><Choice value="a"><Choice value="b"/></Choice>'
                 "</Taxonomy>", [answer("taxonomy", {"taxonomy": [["a", "b"]]})]),
    "rating": (TEXT_TAG + '<Rating name="control" toName="text"/>', [answer("rating", {"rating": 3})]),
    "number": (TEXT_TAG + '<Number name="control" toName="text"/>', [answer("number", {"number": 3})]),
    "date": (TEXT_TAG + '<DateTime name="control" toName="text" only="date"/>',
             [answer("datetime", {"datetime": "2026-01-01"})]),
    "text area": (TEXT_TAG + '<TextArea name="control" toName="text"/>',
                  [answer("textarea", {"text": ["one", "two"]})]),
    "pairwise": ((TEXT_TAG + TEXT_TAG.replace("text", "other") + '<Pairwise name="control" toName="text,other"/>'),
                 [answer("pairwise", {"selected": "left"}, to_name="text,other")]),
    "ranker": ('<List name="list" value="$list"/><Ranker name="control" toName="list"/>',
               [answer("ranker", {"ranker": {"rank": ["a", "b"]}}, to_name="list")]),
    "chat": ('<Chat name="control" value="$chat"/>',
             [answer("chatmessage", {"chatmessage": {"role": "user", "content": "hi"}}, to_name="control")]),
    "an unknown control": (TEXT_TAG + '<Custom name="control" toName="text"/>',
                           [answer("custom", {"custom": {"anything": [1, 2]}})]),
    "links between spans": (
        TEXT_TAG + label_tags("Labels", "control", "text") + "<Relations><Relation value='of'/></Relations>",
        [region("labels", TEXT | {"labels": ["A"]}, to_name="text"),
         region("labels", TEXT | {"start": 6, "end": 9, "labels": ["B"]}, to_name="text") | {"id": "s"},
         {"type": "relation", "from_id": "r", "to_id": "s", "direction": "right", "labels": ["of"]}]),
    "boxes": (IMAGE_TAG + label_tags("RectangleLabels", "control", "image"),
              [region("rectanglelabels", BOX | {"rectanglelabels": ["A"]}, **IMAGE, meta={"text": ["note"]})]),
    "ellipses": (IMAGE_TAG + label_tags("EllipseLabels", "control", "image"),
                 [region("ellipselabels", {"x": 50.0, "y": 50.0, "radiusX": 10.0, "radiusY": 20.0, "rotation": 0,
                                           "ellipselabels": ["A"]}, **IMAGE)]),
    "polygons": (IMAGE_TAG + label_tags("PolygonLabels", "control", "image"),
                 [region("polygonlabels", {"points": [[10, 10], [50, 10], [30, 60]], "closed": True,
                                           "polygonlabels": ["A"]}, **IMAGE)]),
    "points of a box": (
        IMAGE_TAG + label_tags("RectangleLabels", "control", "image") + label_tags("KeyPointLabels", "points", "image"),
        [region("rectanglelabels", BOX | {"rectanglelabels": ["A"]}, **IMAGE),
         region("keypointlabels", {"x": 15.0, "y": 15.0, "width": 1.0, "keypointlabels": ["A"]}, name="points",
                **IMAGE, parentID="r") | {"id": "s"}]),
    "boxes with links and answers": (
        IMAGE_TAG + label_tags("Labels", "names", "image") + '<Rectangle name="control" toName="image"/>'
        '<TextArea name="said" toName="image" perRegion="true"/><DateTime name="day" toName="image" perRegion="true"/>',
        [region("rectangle", BOX, **IMAGE), region("labels", BOX | {"labels": ["A"]}, name="names", **IMAGE),
         region("textarea", BOX | {"text": ["hi"]}, name="said", **IMAGE),
         region("datetime", BOX | {"datetime": "2026-01-01"}, name="day", **IMAGE),
         region("rectangle", BOX | {"x": 60.0}, **IMAGE) | {"id": "s"},
         {"type": "relation", "from_id": "r", "to_id": "s", "direction": "right"}]),
}  # fmt: skip


def renamed(results, who):
    own = {"id", "from_id", "to_id", "parentID"}
    return [{name: f"{value}-{who}" if name in own else value for name, value in item.items()} for item in results]


def nameless(results):
    """Results without their ids and what quality control says in ``meta``."""
    logged = {"id", "from_id", "to_id", "parentID", "meta", "score"}
    return [{name: value for name, value in item.items() if name not in logged} for item in results]


def task_of(annotations, **fields):
    return {"id": 1, "project": 1, "data": {"image": "s3://b/a.jpg"}, "annotations": annotations} | fields


def annotation(who, results, **fields):
    stamp = f"2026-01-01T00:00:{who:02}Z"
    return {"id": 100 + who, "completed_by": who, "result": results, "updated_at": stamp, "created_at": stamp} | fields


@pytest.fixture
def offline(tmp_path, capsys):
    """offline(config, tasks) -> (tasks of the consensus, what was printed)."""

    def run(config, tasks):
        (tmp_path / "config.xml").write_text(f"<View>{config}</View>")
        (tmp_path / "export.json").write_text(json.dumps(tasks))
        words = ["--from", str(tmp_path / "export.json"), "--label-config", str(tmp_path / "config.xml")]
        with pytest.raises(SystemExit) as ended:
            main(["qc", "consensus", *words, "--out", str(tmp_path / "out.json")])
        assert not ended.value.code
        return json.loads((tmp_path / "out.json").read_text()), capsys.readouterr().out

    return run


@pytest.mark.parametrize("annotators", [2, 3])
@pytest.mark.parametrize("name", CONTROLS)
def test_every_control_survives_a_consensus_as_it_was_written(offline, name, annotators):
    config, results = CONTROLS[name]
    everybody = [annotation(who, renamed(results, who)) for who in range(1, annotators + 1)]
    ((task,), _) = offline(config, [task_of(everybody)])
    (created,) = task["annotations"]
    assert sorted(map(json.dumps, nameless(created["result"]))) == sorted(map(json.dumps, nameless(results)))
    held = {item["id"] for item in created["result"] if "id" in item}
    for item in created["result"]:
        assert {item[end] for end in ("from_id", "to_id", "parentID") if end in item} <= held
    logged = task["meta"]["consensus"]
    assert not [line for line in logged["rejected"] + logged["carried"] if not line["reason"]]


# What Label Studio's own checks refuse of what Label Studio itself writes.
UNCHECKED = {"video rectangle", "pairwise", "chat", "an unknown control"}


@pytest.mark.parametrize("name", [name for name in CONTROLS if name not in UNCHECKED])
def test_label_studios_own_checks_take_the_consensus(offline, name):
    config, results = CONTROLS[name]
    ((task,), _) = offline(config, [task_of([annotation(who, renamed(results, who)) for who in (1, 2)])])
    referee = LabelInterface(f"<View>{config}</View>")
    drawn = [item for item in task["annotations"][0]["result"] if item["type"] != "relation"]
    assert referee.validate_annotation({"result": [item for item in results if item["type"] != "relation"]})
    assert referee.validate_annotation({"result": drawn})


def merged_answers(offline, name, *values):
    """The consensus of a task where each annotator gives the control another value, and its account."""
    config, [result] = CONTROLS[name]
    people = [renamed([result | {"value": value}], who) for who, value in enumerate(values, 1)]
    ((task,), _) = offline(config, [task_of([annotation(who, held) for who, held in enumerate(people, 1)])])
    return [item["value"] for item in task["annotations"][0]["result"]], task["meta"]["consensus"]


def test_ratings_and_numbers_become_their_median(offline):
    assert merged_answers(offline, "rating", {"rating": 5}, {"rating": 2}, {"rating": 4})[0] == [{"rating": 4}]
    (value,), logged = merged_answers(offline, "number", {"number": 1}, {"number": 2.5}, {"number": 9})
    assert value == {"number": 2.5}
    low, high = logged["intervals"]["control"]
    assert low < 2.5 < high
    assert {line["reason"] for line in logged["rejected"]} == {"the weighted median of all answers is taken"}
    assert logged["carried"] == []


def test_dates_become_their_median(offline):
    days = [{"datetime": "2026-01-09"}, {"datetime": "2025-12-31"}, {"datetime": "2026-03-01"}]
    assert merged_answers(offline, "date", *days)[0] == [days[0]]


def test_text_nearest_to_all_is_taken(offline):
    texts = [{"text": ["the cat sat"]}, {"text": ["the cat sits"]}, {"text": ["a dog"]}]
    (value,), logged = merged_answers(offline, "text area", *texts)
    assert value in texts[:2]
    assert [line["annotator"] for line in logged["rejected"]] == [2 - texts.index(value), 3]
    assert 0 < logged["texts"]["control"] < 1


def test_tags_are_voted_on_one_by_one(offline):
    choices = [{"choices": ["a", "b"]}, {"choices": ["b", "c"]}, {"choices": ["c", "d", "b"]}]
    (value,), logged = merged_answers(offline, "choices", *choices)
    assert sorted(value["choices"]) == ["b", "c"]
    assert [line["annotator"] for line in logged["rejected"]] == [1, 3]
    paths = [{"taxonomy": [["a", "b"]]}, {"taxonomy": [["a", "b"], ["c"]]}, {"taxonomy": [["c"]]}]
    assert merged_answers(offline, "taxonomy", *paths)[0] == [{"taxonomy": [["a", "b"], ["c"]]}]


def test_tags_that_nobody_gave_together_are_put_together(offline):
    choices = [{"choices": ["a", "b"]}, {"choices": ["b", "c"]}, {"choices": ["a", "c"]}]
    (value,), logged = merged_answers(offline, "choices", *choices)
    assert sorted(value["choices"]) == ["a", "b", "c"]
    assert len(logged["rejected"]) == 3


@pytest.mark.parametrize(("name", "type_"), [("choices", "choices"), ("taxonomy", "taxonomy")])
def test_branch_that_other_tasks_gave_is_an_answer(offline, name, type_):
    config, [result] = CONTROLS[name]

    def task(number, *paths):
        values = [path.split("/") if type_ == "taxonomy" else path for path in paths]
        people = [renamed([result | {"value": {type_: [value]}}], who) for who, value in enumerate(values, 1)]
        return task_of([annotation(who, held) for who, held in enumerate(people, 1)], id=number)

    merged, _ = offline(config, [task(1, "a/b", "a/c", "a/d"), *(task(number, "a", "a", "a/b") for number in (2, 3))])
    expected = [["a"]] if type_ == "taxonomy" else ["a"]
    assert [item["value"] for item in merged[0]["annotations"][0]["result"]] == [{type_: expected}]


def test_spans_are_merged_with_their_links(offline):
    config, results = CONTROLS["links between spans"]
    shifted = [
        item if item["type"] == "relation" else item | {"value": item["value"] | {"start": item["value"]["start"] + 1}}
        for item in results
    ]
    people = [renamed(results, 1), renamed(shifted, 2), renamed(results[:1], 3)]
    ((task,), printed) = offline(config, [task_of([annotation(who, held) for who, held in enumerate(people, 1)])])
    logged = task["meta"]["consensus"]
    merged = task["annotations"][0]["result"]
    assert nameless(merged) == nameless(results)
    assert [len(item["meta"]["labelloop"]["annotators"]) for item in merged if "meta" in item] == [3, 2]
    assert {line["control"] for line in logged["carried"]} == {"relation"}
    assert "One annotator's answer, not merged: relation (1 task)" in printed


def span(start, end, label="A"):
    value = {"start": start, "end": end, "text": "The cat sat on the mat."[start:end], "labels": [label]}
    return region("labels", value, to_name="text") | {"id": f"{start}{label}"}


def test_span_that_most_missed_is_left_out(offline):
    config, _ = CONTROLS["text labels"]
    people = [[span(4, 7), span(8, 11)], [span(4, 7, "B")], [span(4, 7), span(19, 22)], [span(3, 7)]]
    ((task,), _) = offline(config, [task_of([annotation(who, held) for who, held in enumerate(people, 1)])])
    (merged,) = task["annotations"][0]["result"]
    assert merged["value"] == {"start": 4, "end": 7, "text": "cat", "labels": ["A"]}
    rejected = task["meta"]["consensus"]["rejected"]
    assert [line["annotators"] for line in rejected] == [[1], [3]]


def test_ends_of_a_sound_are_medians_and_its_text_the_nearest(offline):
    config, results = CONTROLS["audio labels and transcript"]
    people = []
    for who, (start, end, text) in enumerate([(1.0, 2.0, "hi you"), (1.1, 2.2, "hi you"), (1.3, 2.1, "bye")], 1):
        ends = {"start": start, "end": end}
        said = results[1] | {"value": results[1]["value"] | ends | {"text": [text]}}
        people.append(renamed([results[0] | {"value": results[0]["value"] | ends}, said], who))
    ((task,), _) = offline(config, [task_of([annotation(who, held) for who, held in enumerate(people, 1)])])
    labels, said = (item["value"] for item in task["annotations"][0]["result"])
    assert (labels["start"], labels["end"]) == (said["start"], said["end"]) == (1.1, 2.1)
    assert said["text"] == ["hi you"]


def test_the_latest_answer_is_carried_where_nothing_can_be_compared(offline):
    config, results = CONTROLS["chat"]
    people = [renamed(results, who) for who in (1, 2, 3)]
    ((task,), _) = offline(config, [task_of([annotation(who, held) for who, held in enumerate(people, 1)])])
    assert task["annotations"][0]["result"] == people[2]
    assert "latest" in task["meta"]["consensus"]["carried"][0]["reason"]


def test_a_ground_truth_and_a_lone_annotation_are_taken_whole(offline):
    config, results = CONTROLS["rating"]
    truth = [annotation(1, renamed(results, 1), ground_truth=True), annotation(2, renamed(results, 2))]
    skipped = [annotation(1, renamed(results, 1)), annotation(2, [], was_cancelled=True)]
    (first, two), _ = offline(config, [task_of(truth), task_of(skipped, id=2)])
    for task, reason in ((first, "the ground truth"), (two, "the only annotation")):
        assert task["annotations"][0]["result"] == renamed(results, 1)
        assert [line["reason"] for line in task["meta"]["consensus"]["carried"]] == [reason]


def test_an_unreadable_annotation_has_no_vote(offline):
    config, (box,) = CONTROLS["boxes"]
    broken = box | {"value": {"x": "here"}}
    people = [[box], [broken], [broken]]
    both, empty = [annotation(who, held) for who, held in enumerate(people, 1)], [annotation(1, [broken])]
    empty += [annotation(2, [broken, box | {"id": "t"}])]
    (first, two), _ = offline(config, [task_of(both), task_of(empty, id=2)])
    assert nameless(first["annotations"][0]["result"]) == nameless([box])
    unread = [line for line in first["meta"]["consensus"]["rejected"] if line["reason"].startswith("not read whole")]
    assert [(line["annotation"], line["results"]) for line in unread] == [(102, 1), (103, 1)]
    assert two["annotations"][0]["result"] == [broken, box | {"id": "t"}]  # unchanged, nothing deleted
    assert two["meta"]["consensus"]["carried"][0]["reason"] == "no annotation can be read whole"


@pytest.mark.parametrize("ids", [(None, None), ("a", "b"), (1.5, True), ("7", "8"), (5, 5)])
@pytest.mark.parametrize("people", [(1, 2), ("1", "2"), ({"id": 1}, {"id": 2}), ("a@x.y", "b@x.y"), (None, None)])
def test_annotations_without_a_number_are_submitted_all_the_same(ids, people):
    config, results = CONTROLS["boxes"]
    annotations = [
        annotation(0, renamed(results, who), id=id_, completed_by=who) for id_, who in zip(ids, people, strict=True)
    ]
    result = judge(read_answers(read_task(task_of(annotations)), config=LabelConfig.parse(f"<View>{config}</View>")),
                  Policy())  # fmt: skip
    assert (result.outcome, result.annotators) == ("agreed", 2)


@pytest.mark.parametrize("field", ["from_name", "id", "meta", "parentID", "type", "to_name", "value"])
@pytest.mark.parametrize("junk", [None, [1], {"a": 1}, 7, ["a"]])
def test_a_malformed_field_does_not_affect_other_annotations(offline, field, junk):
    config, (box,) = CONTROLS["boxes"]
    people = [[box], [box], [box | {field: junk}]]
    ((task,), _) = offline(config, [task_of([annotation(who, held) for who, held in enumerate(people, 1)])])
    assert nameless(task["annotations"][0]["result"])[0] == nameless([box])[0]


def test_one_person_known_by_name_is_no_second_opinion():
    _, results = CONTROLS["boxes"]
    annotations = [annotation(0, renamed(results, n), id=n, completed_by={"email": "A@x.y "[: 5 + n]}) for n in (0, 1)]
    result = judge(read_answers(read_task(task_of(annotations))), Policy())
    assert (result.outcome, result.annotators) == ("waiting", 1)


@pytest.mark.parametrize("name", CONTROLS)
def test_the_overlay_keeps_every_control_and_its_ids(name):
    config, results = CONTROLS[name]
    everybody = [annotation(who, renamed(results, who)) for who in (1, 2)]
    read = LabelConfig.parse(f"<View>{config}</View>")
    task = read_task(task_of(everybody))
    answers = read_answers(task, config=read)
    visible = propose(task, answers, judge(answers, Policy()), Policy(), config=read)
    (proposed,) = (item for item in visible if item.version == CONSENSUS)
    types = Counter(item["type"] for item in results)
    assert Counter(item["type"] for item in proposed.result) == types
    shared = Counter(item["id"] for item in results if "id" in item)
    result = Counter(item["id"] for item in proposed.result if "id" in item)
    assert sorted(result.values()) == sorted(shared.values())


def test_controls_that_share_a_region_come_from_one_annotator(offline):
    config, (label, message) = CONTROLS["audio labels and transcript"]
    people = [renamed([label], 1), renamed([label, message], 2), renamed([label], 3)]
    for order in itertools.permutations(people):
        ((task,), _) = offline(config, [task_of([annotation(who, held) for who, held in enumerate(order, 1)])])
        ids = {item["id"] for item in task["annotations"][0]["result"]}
        assert len(ids) == 1
