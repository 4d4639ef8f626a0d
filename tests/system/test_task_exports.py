"""Projects of any template of stock Label Studio leave whole, and their bucket is read by boto3 alone."""

import json

import pytest
from pydantic import SecretStr

from exporters.pipeline.export import export
from exporters.tasks.flat import rebuild
from exporters.tasks.line import flat_of
from tests.simulated_answers import simulate
from tests.system.test_templates import ANNOTATORS, configs

pytestmark = pytest.mark.system

__all__ = ["configs"]
SOME = (
    "natural-language-processing/relation-extraction",
    "audio-speech-processing/automatic-speech-recognition-using-segments",
    "generative-ai/llm-ranker",
    "videos/video-object-tracking",
    "chat/chat_rlhf",
    "computer-vision/image-captioning",
)


def canonical(results):
    return sorted(json.dumps(result, sort_keys=True) for result in results)


def lost(label_studio, people, s3_server, folder, name, xml):
    """What is missing in the lines of a project of a template: annotations by annotator."""
    admin, simulated = people["admin"], simulate(xml)
    made = admin.ask("POST", "/api/projects/", json={"title": name[-50:], "label_config": xml})
    assert made.status_code == 201, made.text
    project = made.json()["id"]
    annotations = [
        {"result": results, "completed_by": people[who].id, "ground_truth": False}
        for who, results in zip(ANNOTATORS, simulated.results.values(), strict=True)
    ]
    body = [{"data": simulated.data, "annotations": annotations}]
    admin.ask("POST", f"/api/projects/{project}/import", json=body).raise_for_status()
    settings = s3_server.settings(
        folder / "home", label_studio_url=label_studio.url, label_studio_api_key=SecretStr(label_studio.admin_token)
    )
    bucket = s3_server.make_bucket()
    formats = ("tasks-jsonl", "csv") if "<Choices" in xml else ("tasks-jsonl",)
    report = export(
        project,
        settings=settings,
        to=f"s3://{bucket}/set",
        annotation="all",
        formats=formats,
        split="train=1",
        fetch=False,
    )
    assert report.published, (name, report)
    client = s3_server.client()
    text = client.get_object(Bucket=bucket, Key="set/latest/tasks-jsonl/train.jsonl")["Body"].read()
    (stored,) = admin.get("/api/tasks", project=project, fields="all", resolve_uri="false")["tasks"]
    expected = {one["completed_by"]: canonical(one["result"]) for one in stored["annotations"]}
    lines = [json.loads(line) for line in text.splitlines()]
    assert all(line["data"] == stored["data"] for line in lines)
    found = {line["annotation"]["by"]: canonical(rebuild(flat_of(line))) for line in lines}
    return [f"{name}: annotator {who}" for who in expected if found.get(who) != expected[who]]


def test_projects_of_some_templates_leave_whole(label_studio, people, s3_server, configs, tmp_path):
    for number, name in enumerate(SOME):
        assert lost(label_studio, people, s3_server, tmp_path / str(number), name, configs[name]) == []


@pytest.mark.slow
def test_projects_of_every_template_leave_whole(label_studio, people, s3_server, configs, tmp_path):
    others = {name: xml for name, xml in configs.items() if name not in SOME}
    found = []
    for number, (name, xml) in enumerate(others.items()):
        found += lost(label_studio, people, s3_server, tmp_path / str(number), name, xml)
    assert found == []
