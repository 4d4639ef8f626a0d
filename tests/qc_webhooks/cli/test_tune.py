"""`labelloop qc tune`: numbers that mean nothing are refused before anything is replayed."""

import math

import pytest

from qc_webhooks.cli.tune import tune_policy
from qc_webhooks.errors import QualityControlError


@pytest.mark.parametrize("cost", [-1.0, math.nan, math.inf])
def test_a_review_cost_that_is_no_number_of_labels_is_refused(cost):
    with pytest.raises(QualityControlError, match="--review-cost") as refused:
        tune_policy(source="missing.json", target_error=0.05, review_cost=cost)
    assert refused.value.code == "bad_review_cost"


@pytest.mark.parametrize("target", [0.0, 1.0, -0.1, math.nan])
def test_a_target_that_is_no_share_is_refused(target):
    with pytest.raises(QualityControlError, match="--target-error") as refused:
        tune_policy(source="missing.json", target_error=target)
    assert refused.value.code == "bad_target"
