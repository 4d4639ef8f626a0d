"""Who hands in another's work: regions that are the same to the pixel although both drew them by hand."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from qc_webhooks.statistics.bootstrap import Estimate
from qc_webhooks.statistics.proportions import proportion_ci
from qc_webhooks.verdict.task_facts import Facts

# Two are suspected when even the lower end of the interval is above both: a share that never comes about by itself,
# and several times what everybody else's pairs show (a project of whole-image boxes has many equal ones).
LEAST_SHARE, TIMES_USUAL = 0.1, 5.0
# From which share of the tasks on the one who was later is named as the copier.
_LATER = 0.8


@dataclass(frozen=True)
class Copies:
    """Two annotators whose hand-drawn regions are the same too often.

    Attributes:
        other: The other annotator.
        share: Share of the objects that both marked where the two regions are the same to the pixel.
        usual: The same share among everybody else.
        later: Share of the tasks concerned in which this annotator submitted after the other.
        copied_by: Who of the two is likely to have copied: the one who is nearly always later; None: not told apart.
    """

    other: int
    share: Estimate
    usual: float
    later: float
    copied_by: int | None


def copies(tasks: Iterable[Facts]) -> dict[int, tuple[Copies, ...]]:
    """Suspicious pairs, under both of the two."""
    met: dict[tuple[int, int], int] = defaultdict(int)
    same: dict[tuple[int, int], int] = defaultdict(int)
    order: dict[tuple[int, int], list[bool]] = defaultdict(list)
    for task in tasks:
        when = {turn.annotator: turn.at for turn in task.blind}
        for pair in task.pairs:
            key = min(pair.a, pair.b), max(pair.a, pair.b)
            if not (key[0] in when and key[1] in when):
                continue  # one of them is a reviewer's ground truth, made from what the other drew
            met[key] += pair.met
            same[key] += pair.same
            if pair.same:
                order[key].append(when[key[0]] > when[key[1]])
    found: dict[int, list[Copies]] = defaultdict(list)
    all_met, all_same = sum(met.values()), sum(same.values())
    for (a, b), n in met.items():
        rate = proportion_ci(same[a, b], n)
        others = all_met - n
        usual = (all_same - same[a, b]) / others if others else 0.0
        if rate.low is None or rate.low < max(LEAST_SHARE, TIMES_USUAL * usual):
            continue
        later = sum(order[a, b]) / len(order[a, b])
        who = a if later >= _LATER else b if later <= 1 - _LATER else None
        found[a].append(Copies(b, rate, round(usual, 4), round(later, 3), who))
        found[b].append(Copies(a, rate, round(usual, 4), round(1 - later, 3), who))
    return {who: tuple(each) for who, each in found.items()}
