"""A policy is read from files, checked, and explained."""

import pytest

from labelloop.cli.main import main
from labelloop.labeling.studio.config import LabelConfig
from qc_webhooks.errors import PolicyError
from qc_webhooks.policy import Policy, describe_policy, parse_policy, policy_files, read_policy
from tests.qc_webhooks.conftest import CONFIG


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_without_a_file_the_defaults_hold(tmp_path):
    assert read_policy(tmp_path, 7) == Policy()


def test_a_projects_file_lies_over_the_file_for_all(tmp_path):
    for_all, for_one = policy_files(tmp_path, 7)
    write(for_all, "agreement = 0.9\nmax_annotators = 5\n")
    write(for_one, "agreement = 1\n")
    assert read_policy(tmp_path, 7) == Policy(agreement=1.0, max_annotators=5)
    assert read_policy(tmp_path, 8) == Policy(agreement=0.9, max_annotators=5)


@pytest.mark.parametrize(
    ("text", "field", "message"),
    [
        ("agreement = 1.5", "agreement", "at most 1"),
        ("agreement = 0", "agreement", "above 0"),
        ("agreement = '0.7'", "agreement", "must be a number"),
        ("match_iou = 2.0", "match_iou", "at most 1"),
        ("near_iou = 0.6", "near_iou", "at most match_iou"),
        ("annotators = 1", "annotators", "at least 2"),
        ("annotators = 2.5", "annotators", "must be a whole number"),
        ("annotators = true", "annotators", "must be a whole number"),
        ("annotators = 4", "max_annotators", "at least annotators"),
        ("every_control = 1", "every_control", "true or false"),
        ("agrement = 0.8", "agrement", "no such setting; there are agreement"),
        ("agreement 0.8", "", "no TOML"),
        ("agreement = nan", "agreement", "above 0"),
    ],
)
def test_invalid_settings_are_reported_with_their_file(tmp_path, text, field, message):
    path = policy_files(tmp_path, 7)[1]
    write(path, text)
    with pytest.raises(PolicyError, match=message) as caught:
        read_policy(tmp_path, 7)
    assert caught.value.field == field
    assert str(path) in str(caught.value)


def test_every_fault_of_both_files_is_said_at_once(tmp_path):
    for_all, for_one = policy_files(tmp_path, 7)
    write(for_all, "agreement = 2\nagrement = 1\nannotators = 'two'\nmax_annotators = 1")
    write(for_one, "least_gain = 0\n[controls.a]\nweight = -1\nwait = 2\n[[rules]]\n[[review]]\noperator = 'is'")
    with pytest.raises(PolicyError) as caught:
        read_policy(tmp_path, 7)
    result = {(item.where, item.field) for item in caught.value.faults}
    assert result == {
        *((str(for_all), field) for field in ("agreement", "agrement", "annotators")),
        *((str(for_one), field) for field in ("least_gain", "controls.a.wait", "rules[1].rule", "review[1].operator")),
    }
    assert all(str(item) in str(caught.value) for item in caught.value.faults)


MISNAMED = """
[controls.lable]
agreement = 0.9
[[review]]
dimension = "qualty"
[[rules]]
rule = "required_answer"
control = "colour"
[[rules]]
rule = "must_meet"
labels = ["car"]
others = ["Person"]
"""
NAMED = ["controls.lable", "review[1].dimension", "rules[1].control", "rules[2].labels"]


def test_what_the_project_does_not_have_is_a_fault(tmp_path):
    config, (for_all, for_one) = LabelConfig.parse(CONFIG), policy_files(tmp_path, 7)
    write(for_one, MISNAMED)
    assert read_policy(tmp_path, 7)
    with pytest.raises(PolicyError, match=r"controls.lable names 'lable' \('label'\?\)") as caught:
        read_policy(tmp_path, 7, config=config)
    assert [item.field for item in caught.value.faults] == NAMED
    for_one.rename(for_all)
    assert read_policy(tmp_path, 7, config=config)  # another project may have it
    write(for_one, "[controls.relation]\nweight = 0\n[controls.label]\nweight = 2")
    assert read_policy(tmp_path, 7, config=config)


def test_labels_that_come_with_each_task_are_not_looked_up(tmp_path):
    path = tmp_path / "policy.toml"
    write(path, '[[rules]]\nrule = "max_regions"\nvalue = 2\nlabels = ["car"]')
    xml = '<View><Image name="i" value="$i"/><Labels name="l" toName="i" value="$labels"/></View>'
    assert parse_policy(path, config=LabelConfig.parse(xml))


@pytest.mark.parametrize("command", ["report", "what-if"])
def test_a_misspelled_control_is_refused_with_the_label_config(tmp_path, command, capsys):
    write(tmp_path / "policy.toml", MISNAMED)
    write(tmp_path / "config.xml", CONFIG)
    write(tmp_path / "export.json", "[]")
    words = ["--from", str(tmp_path / "export.json"), "--label-config", str(tmp_path / "config.xml")]
    with pytest.raises(SystemExit) as ended:
        main(["qc", command, *words, "--policy", str(tmp_path / "policy.toml"), "--json", str(tmp_path / "out.json")])
    assert ended.value.code == 1
    message = " ".join(capsys.readouterr().err.split())
    assert [name for name in NAMED if f"{name} names" in message] == NAMED
    assert not (tmp_path / "out.json").exists()


def test_a_file_that_is_no_text_is_a_policy_error(tmp_path):
    path = policy_files(tmp_path, 7)[0]
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PolicyError, match="no TOML"):
        read_policy(tmp_path, 7)


def test_every_setting_is_described():
    described = {name: text for name, _, text in describe_policy()}
    assert set(described) == set(Policy.__dataclass_fields__)
    assert all(text.endswith(".") for text in described.values())
