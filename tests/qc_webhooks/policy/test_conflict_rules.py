"""The table [conflicts] of a policy: read strictly, merged over files, described."""

import pytest

from labelloop.labeling.studio.config import LabelConfig
from qc_webhooks.errors import PolicyError
from qc_webhooks.policy import (
    ConflictPolicy,
    LabelConflicts,
    Policy,
    describe_conflict_policy,
    policy_files,
    read_policy,
)
from qc_webhooks.policy.conflict_rules import BY_MEAN
from tests.qc_webhooks.conftest import CONFIG
from tests.qc_webhooks.policy.test_policy import write


@pytest.mark.parametrize(
    ("text", "field", "message"),
    [
        ('dispute = ["mising"]', "conflicts.dispute", r"has 'mising' \('missing'\?\); there are missing, extra"),
        ('dispute = ["badly located"]', "conflicts.dispute", r"\('low_overlap'\?\)"),
        ('dispute = ["mislabelled"]', "conflicts.dispute", r"\('label'\?\)"),
        ('dispute = ["text"]', "conflicts.dispute", "which the `agreement` of its control decides"),
        ('dispute = "missing"', "conflicts.dispute", "must be a list of texts"),
        ("majority = 0.5", "conflicts.majority", "above 0.5 and at most 1"),
        ("pixels = -1", "conflicts.pixels", "must be 0 or more"),
        ("overlap = 0", "conflicts.overlap", "above 0 and at most 1"),
        ("min_size = nan", "conflicts.min_size", "must be 0 or more"),
        ("min_image_share = 2", "conflicts.min_image_share", "from 0 to 1"),
        ('decide_by = "object"', "conflicts.decide_by", "must be one of objects, mean"),
        ("pixel = 3", "conflicts.pixel", "no such key; there are decide_by, dispute"),
        ("labels = 3", "conflicts.labels", r"must be tables \[conflicts.labels.NAME\]"),
        ("[conflicts.labels.Car]\npixels = 3", "conflicts.labels.Car.pixels", "no such key"),
        ("[conflicts.labels.Car]\nmin_size = -3", "conflicts.labels.Car.min_size", "must be 0 or more"),
        ("[conflicts.labels.Cat]\nmin_size = 3", "conflicts.labels.Cat", r"names 'Cat' \('Car'\?\)"),
    ],
)
def test_invalid_keys_are_reported_with_a_hint(tmp_path, text, field, message):
    write(policy_files(tmp_path, 7)[1], f"[conflicts]\n{text}")
    with pytest.raises(PolicyError, match=message) as caught:
        read_policy(tmp_path, 7, config=LabelConfig.parse(CONFIG))
    assert caught.value.field == field


def test_the_file_of_a_project_adds_to_that_of_all(tmp_path):
    for_all, for_one = policy_files(tmp_path, 7)
    write(for_all, "[conflicts]\npixels = 4\n[conflicts.labels.Car]\nmin_size = 8")
    write(for_one, '[conflicts]\nmajority = 1\n[conflicts.labels.Person]\ndispute = ["label"]')
    conflicts = ConflictPolicy(
        pixels=4.0,
        majority=1.0,
        labels={"Car": LabelConflicts(min_size=8.0), "Person": LabelConflicts(dispute=("label",))},
    )
    assert read_policy(tmp_path, 7) == Policy(conflicts=conflicts)


@pytest.mark.parametrize(
    ("text", "decide_by"),
    [("agreement = 0.8", "mean"), ("[conflicts]\npixels = 4", "objects"), ('[conflicts]\ndecide_by = "mean"', "mean")],
)
def test_a_table_turns_the_rule_on_in_an_older_project(tmp_path, text, decide_by):
    write(policy_files(tmp_path, 7)[1], text)
    assert read_policy(tmp_path, 7, defaults=Policy(conflicts=BY_MEAN)).conflicts.decide_by == decide_by


def test_every_key_is_described():
    described = {name: text for name, _, text in describe_conflict_policy()}
    assert set(described) == set(ConflictPolicy.__dataclass_fields__)
    assert all(text.endswith(".") for text in described.values())
