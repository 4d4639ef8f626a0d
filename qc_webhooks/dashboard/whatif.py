"""What-if on the dashboard: the settings that can be played with, and the past under each of them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from qc_webhooks.policy import Policy
from qc_webhooks.report.replay import MOST_ANNOTATORS, Replay, Replayed

# The thresholds that the curve is drawn over.
THRESHOLDS = tuple(round(0.3 + 0.05 * step, 2) for step in range(15))


@dataclass(frozen=True)
class Scenario:
    """Settings of the policy that a replay can change; see ``Policy``."""

    agreement: float
    annotators: int
    max_annotators: int
    every_control: bool
    review_not_judged: bool = True

    @classmethod
    def of(cls, policy: Policy) -> "Scenario":
        """What is in force."""
        most = min(policy.max_annotators, MOST_ANNOTATORS)
        return cls(
            policy.agreement,
            min(policy.annotators, MOST_ANNOTATORS),
            most,
            policy.every_control,
            policy.review_not_judged,
        )

    def changed(self, values: Mapping[str, str]) -> "Scenario":
        """With the values of a form; what makes no sense is brought into its range."""
        if not values.keys() & {"agreement", "annotators", "max_annotators"}:
            return self
        annotators = int(_number(values.get("annotators"), self.annotators, 2, MOST_ANNOTATORS))
        return Scenario(
            round(_number(values.get("agreement"), self.agreement, 0.01, 1.0), 3),
            annotators,
            int(_number(values.get("max_annotators"), self.max_annotators, annotators, MOST_ANNOTATORS)),
            values.get("every_control") == "yes",
            self.review_not_judged,
        )

    def run(self, replay: Replay) -> Replayed:
        """The past under these settings."""
        return replay.run(
            agreement=self.agreement,
            annotators=self.annotators,
            max_annotators=self.max_annotators,
            every_control=self.every_control,
            review_not_judged=self.review_not_judged,
        )


def scenarios(replay: Replay, around: Scenario) -> Iterator[tuple[Scenario, Replayed]]:
    """The same settings at every threshold."""
    for threshold in THRESHOLDS:
        scenario = replace(around, agreement=threshold)
        yield scenario, scenario.run(replay)


def _number(text: str | None, default: float, low: float, high: float) -> float:
    try:
        value = float(text) if text else default
    except ValueError:
        value = default
    return min(max(value, low), high) if value == value else default  # noqa: PLR0124 - NaN
