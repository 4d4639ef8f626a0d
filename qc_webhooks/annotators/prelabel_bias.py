"""Who leaves pre-labels as they are where others correct them."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from qc_webhooks.statistics.bootstrap import Estimate
from qc_webhooks.statistics.proportions import proportion_ci
from qc_webhooks.verdict.task_facts import BY_HAND, CHANGED, UNTOUCHED, Facts

# Of two careful people, one misses a correction that the other makes now and then; who leaves more than this share
# as it was (the whole interval above it) accepts pre-labels unseen.
TOO_OFTEN = 0.6


@dataclass(frozen=True)
class Anchoring:
    """What an annotator does with pre-labels.

    Attributes:
        untouched: Share of the pre-labels handed in that were left exactly as they were. High where they are good.
        left: Of the pre-labels that most of the others corrected or removed, the share that this one left as it was.
    """

    untouched: Estimate
    left: Estimate

    @property
    def is_anchored(self) -> bool:
        """Whether pre-labels are accepted unseen."""
        return self.left.low is not None and self.left.low > TOO_OFTEN


def anchorings(tasks: Iterable[Facts]) -> dict[int, Anchoring]:
    """What everybody does with pre-labels; who never began from one is left out."""
    began: Counter[int] = Counter()
    untouched: Counter[int] = Counter()
    wrong: Counter[int] = Counter()
    left: Counter[int] = Counter()
    for task in tasks:
        blind = {turn.annotator for turn in task.blind}
        prelabelled = {
            mark.annotator for thing in task.things for mark in thing.marks if mark.origin != BY_HAND
        } & blind
        for thing in task.things:
            origins = {mark.annotator: mark.origin for mark in thing.marks if mark.annotator in blind}
            for who, origin in origins.items():
                began[who] += origin != BY_HAND
                untouched[who] += origin == UNTOUCHED
            if UNTOUCHED not in origins.values() and CHANGED not in origins.values():
                continue
            for who in prelabelled:
                corrected = _corrected_by_others(origins, who, prelabelled)
                if corrected and origins.get(who, CHANGED) != BY_HAND:
                    wrong[who] += 1
                    left[who] += origins.get(who) == UNTOUCHED
    return {
        who: Anchoring(proportion_ci(untouched[who], began[who]), proportion_ci(left[who], wrong[who]))
        for who in sorted(who for who, count in began.items() if count)
    }


def _corrected_by_others(origins: dict[int, int], who: int, prelabelled: set[int]) -> bool:
    """Whether most of the others who began from pre-labels corrected this one: another shape or label, or removed."""
    others = [origins.get(other, CHANGED) for other in prelabelled if other != who]
    informative = [origin for origin in others if origin != BY_HAND]
    return 2 * sum(origin == CHANGED for origin in informative) > len(informative) > 0
