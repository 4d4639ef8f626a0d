"""A policy is read from files, checked, and explained."""

import pytest

from qc_webhooks.errors import PolicyError
from qc_webhooks.policy import Policy, describe_policy, policy_files, read_policy


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
    ("text", "field", "said"),
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
def test_what_cannot_be_followed_is_said_with_file_and_setting(tmp_path, text, field, said):
    path = policy_files(tmp_path, 7)[1]
    write(path, text)
    with pytest.raises(PolicyError, match=said) as caught:
        read_policy(tmp_path, 7)
    assert caught.value.field == field
    assert str(path) in str(caught.value)


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
