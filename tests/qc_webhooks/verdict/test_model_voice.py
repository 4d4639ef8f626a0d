"""A prediction is heard only where it is independent of the annotators; the consensus of an export uses it."""

import io
import json

import msgspec
import numpy as np
import pytest

from labelloop.labeling.consensus.consensus import fit_annotator_model
from labelloop.labeling.consensus.voiced import with_voice
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.task import read_task
from qc_webhooks.agreement import Tolerance, read_answers
from qc_webhooks.policy import Policy
from qc_webhooks.report.report import HEARD, Export, write_consensus, write_report
from qc_webhooks.verdict.fact_collection import facts_of
from qc_webhooks.verdict.model_voice import LATE, NO_PREDICTION, SHOWN, UNSCORED, hear_prediction
from qc_webhooks.verdict.task_facts import TaskFacts
from qc_webhooks.verdict.verdict import judge

CONFIG = LabelConfig.parse(
    '<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image"><Label value="car"/>'
    "</RectangleLabels></View>"
)
BEFORE, AT, AFTER = (f"2026-01-0{day}T00:00:00Z" for day in (1, 2, 3))


def box(id_, x, y, *, score=None, origin="manual"):
    value = {"x": x, "y": y, "width": 8, "height": 8, "rotation": 0, "rectanglelabels": ["car"]}
    result = {"id": id_, "from_name": "label", "to_name": "image", "type": "rectanglelabels", "original_width": 1000,
              "original_height": 1000, "value": value, "origin": origin}  # fmt: skip
    return result if score is None else {**result, "score": score}


def task(id_, annotations, predictions):
    return {
        "id": id_,
        "data": {"image": "/a.jpg"},
        "annotations": [
            {"id": 10 * id_ + who, "completed_by": who, "result": result, "created_at": AT, "updated_at": AT, **more}
            for who, (result, more) in enumerate(annotations, start=1)
        ],
        "predictions": [
            {"id": 10 * id_ + place, "model_version": "v1", "result": result, "created_at": at}
            for place, (result, at) in enumerate(predictions)
        ],
    }


DRAWN = [([box("a", 10, 10)], {}), ([box("b", 10, 10)], {})]
SCORED = [box("m", 10, 10, score=0.8)]


@pytest.mark.parametrize(
    ("annotations", "predictions", "reason"),
    [
        (DRAWN, [(SCORED, BEFORE)], ""),
        (DRAWN, [(SCORED, BEFORE), ([], AFTER)], ""),
        (DRAWN, [([], BEFORE)], ""),  # it says that nothing is there
        (DRAWN, [], NO_PREDICTION),
        ([], [(SCORED, BEFORE)], NO_PREDICTION),
        (DRAWN, [(SCORED, AFTER)], LATE),
        (DRAWN, [(SCORED, "")], LATE),
        (DRAWN, [([box("m", 10, 10)], BEFORE)], UNSCORED),
        ([([box("a", 10, 10)], {"parent_prediction": 7}), DRAWN[1]], [(SCORED, BEFORE)], SHOWN),
        ([([box("a", 10, 10, origin="prediction-changed")], {}), DRAWN[1]], [(SCORED, BEFORE)], SHOWN),
    ],
)  # fmt: skip
def test_only_independent_predictions_are_heard(annotations, predictions, reason):
    seen = read_task(task(1, annotations, predictions))
    hearing = hear_prediction(seen, read_answers(seen, config=CONFIG), config=CONFIG)
    assert hearing.reason == reason
    assert (hearing.voice is None) == bool(reason)


def test_our_overlays_are_not_heard():
    seen = task(1, DRAWN, [(SCORED, BEFORE)])
    seen["predictions"][0]["model_version"] = "QC consensus"
    seen = read_task(seen)
    assert hear_prediction(seen, read_answers(seen), config=CONFIG).reason == NO_PREDICTION


def export(folder, *, tasks=60):
    """Each task has four objects; its annotators miss a third each, the model a tenth."""
    rng = np.random.default_rng(0)
    places = [(x, y) for x in (5, 30, 55, 80) for y in (5, 30, 55, 80)]
    content = []
    for id_ in range(1, tasks + 1):
        here = [places[index] for index in rng.permutation(len(places))]

        def drawn(name, found, here=here):
            return [box(f"{name}{n}", *(place + rng.normal(0, 0.3, 2))) for n, place in enumerate(here[:4])
                    if rng.random() < found]  # fmt: skip

        said = [{**one, "score": round(float(rng.beta(8, 2)), 3)} for one in drawn("m", 0.9)]
        content.append(task(id_, [(drawn(name, 0.66), {}) for name in "ab"], [(said, BEFORE)]))
    file = folder / "export.json"
    file.write_text(json.dumps(content))
    return Export(file, CONFIG)


def test_consensus_of_an_export_hears_the_model(tmp_path):
    source = export(tmp_path)
    found = {}
    for voice in (False, True):
        out = io.BytesIO()
        summary = write_consensus(source, out, Policy(model_voice=voice))
        found[voice] = json.loads(out.getvalue())
        assert summary.voice == ({HEARD: 60} if voice else {})
    count = {voice: sum(len(each["annotations"][0]["result"]) for each in tasks) for voice, tasks in found.items()}
    assert count[False] < 0.9 * 240 < count[True] <= 240
    added = [result for each in found[True] for result in each["annotations"][0]["result"]
             if not result["meta"]["labelloop"]["annotators"]]  # fmt: skip
    assert added
    assert all(one["meta"]["labelloop"]["model"]["version"] == "v1" for one in added)
    assert all(one["from_name"] == "label" and one["to_name"] == "image" for one in added)


def test_stored_facts_are_enough_to_estimate_the_model(tmp_path):
    facts = []
    for seen in export(tmp_path).tasks():
        answers = read_answers(seen, config=CONFIG)
        voice = hear_prediction(seen, answers, config=CONFIG).voice
        stored = msgspec.json.encode(facts_of(seen, answers, judge(answers, Policy()), Tolerance(), voice=voice))
        facts.append(msgspec.json.decode(stored, type=TaskFacts))
    model = with_voice(fit_annotator_model(one.evidence() for one in facts), [one.heard for one in facts])
    assert model.voice.tasks == 60
    assert model.voice.recall() == pytest.approx(0.9, abs=0.12)
    assert set(model.detection.logits) == {1, 2}


def test_report_is_the_same_with_and_without_the_model(tmp_path):
    source, reports = export(tmp_path, tasks=30), []
    for voice in (False, True):
        out = io.BytesIO()
        write_report(source, Policy(model_voice=voice), out)
        reports.append(json.loads(out.getvalue()))
        del reports[-1]["summary"]
    assert reports[0] == reports[1]
