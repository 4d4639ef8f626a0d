"""STATISTICS: the statistics of a control, each with the kinds of ratings that it is told of."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from qc_webhooks.statistics.agreement_coefficients import (
    brennan_prediger,
    cohen_kappa,
    conger_kappa,
    fleiss_kappa,
    gwet_ac1,
    krippendorff_alpha,
    observed_agreement,
    positive_agreement,
)
from qc_webhooks.statistics.bootstrap import Estimate, Statistic, estimate
from qc_webhooks.statistics.ratings import Ratings

# Kinds of ratings: labels and choices; what of a region's surroundings was marked at all; stars; numbers.
NOMINAL, DETECTION, ORDINAL, NUMBER = "nominal", "detection", "ordinal", "number"


@dataclass(frozen=True)
class Entry:
    """One statistic.

    Attributes:
        function: Of ratings and weights of the units.
        kinds: The kinds of ratings that it is told of.
    """

    function: Statistic
    kinds: frozenset[str]


_ANY = frozenset({NOMINAL, ORDINAL, NUMBER})

STATISTICS: Mapping[str, Entry] = {
    "agreement": Entry(observed_agreement, _ANY),
    "positive_agreement": Entry(positive_agreement, frozenset({NOMINAL, DETECTION})),
    "cohen_kappa": Entry(cohen_kappa, frozenset({NOMINAL})),
    "fleiss_kappa": Entry(fleiss_kappa, frozenset({NOMINAL})),
    "conger_kappa": Entry(conger_kappa, frozenset({NOMINAL})),
    "gwet_ac1": Entry(gwet_ac1, frozenset({NOMINAL})),
    "brennan_prediger": Entry(brennan_prediger, frozenset({NOMINAL})),
    "alpha_nominal": Entry(krippendorff_alpha, frozenset({NOMINAL})),
    "alpha_detection": Entry(krippendorff_alpha, frozenset({DETECTION})),
    "alpha_ordinal": Entry(partial(krippendorff_alpha, level="ordinal"), frozenset({ORDINAL})),
    "alpha_interval": Entry(partial(krippendorff_alpha, level="interval"), frozenset({NUMBER})),
    "alpha_ratio": Entry(partial(krippendorff_alpha, level="ratio"), frozenset({NUMBER})),
}


def describe(ratings: Ratings, kind: str) -> dict[str, Estimate]:
    """Every statistic that makes sense of ratings of this kind."""
    return {name: estimate(entry.function, ratings) for name, entry in STATISTICS.items() if kind in entry.kinds}
