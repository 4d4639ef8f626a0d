"""What-if page: settings that can be changed, and replays under them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from qc_webhooks.policy import Policy
from qc_webhooks.report.replay import MAX_ANNOTATORS, Replay, ReplayResult

# Thresholds of the curve.
THRESHOLDS = tuple(round(0.3 + 0.05 * step, 2) for step in range(15))


@dataclass(frozen=True)
class Scenario:
    """Policy settings that a replay can change; see ``Policy``."""

    agreement: float
    annotators: int
    max_annotators: int
    every_control: bool
    review_not_judged: bool = True

    @classmethod
    def of(cls, policy: Policy) -> "Scenario":
        """Settings of a policy."""
        max_annotators = min(policy.max_annotators, MAX_ANNOTATORS)
        return cls(
            policy.agreement,
            min(policy.annotators, MAX_ANNOTATORS),
            max_annotators,
            policy.every_control,
            policy.review_not_judged,
        )

    def with_form_values(self, values: Mapping[str, str]) -> "Scenario":
        """Apply the values of a form, clipped to their ranges."""
        if not values.keys() & {"agreement", "annotators", "max_annotators"}:
            return self
        annotators = int(_number(values.get("annotators"), self.annotators, 2, MAX_ANNOTATORS))
        return Scenario(
            round(_number(values.get("agreement"), self.agreement, 0.01, 1.0), 3),
            annotators,
            int(_number(values.get("max_annotators"), self.max_annotators, annotators, MAX_ANNOTATORS)),
            values.get("every_control") == "yes",
            self.review_not_judged,
        )

    def run(self, replay: Replay) -> ReplayResult:
        """Replay all tasks under these settings."""
        return replay.run(
            agreement=self.agreement,
            annotators=self.annotators,
            max_annotators=self.max_annotators,
            every_control=self.every_control,
            review_not_judged=self.review_not_judged,
        )


def replay_thresholds(replay: Replay, around: Scenario) -> Iterator[tuple[Scenario, ReplayResult]]:
    """Replay the same settings at each of THRESHOLDS."""
    for threshold in THRESHOLDS:
        scenario = replace(around, agreement=threshold)
        yield scenario, scenario.run(replay)


def _number(text: str | None, default: float, low: float, high: float) -> float:
    try:
        value = float(text) if text else default
    except ValueError:
        value = default
    return min(max(value, low), high) if value == value else default  # noqa: PLR0124 - NaN
