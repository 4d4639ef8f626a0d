"""Agreement on sets of tags (alpha with MASI, alpha of each tag), rankings and texts.

- MASI distance: Passonneau, "Measuring Agreement on Set-valued Items (MASI) for Semantic and Pragmatic Annotation",
  2006, in Krippendorff's alpha.
- Texts: the mean similarity of two annotators (1 - normalised Levenshtein distance). It has no correction for chance:
  two texts of different tasks are as far apart as can be, so alpha with that distance would be the same number.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from labelloop.labeling.consensus.tags import Votes
from qc_webhooks.statistics.agreement_coefficients import krippendorff_alpha
from qc_webhooks.statistics.bootstrap import MIN_UNITS, Estimate, estimate, mean_of_tasks
from qc_webhooks.statistics.ratings import Floats, Ratings

# Most different sets of tags that are compared with each other; with more, the tags are only judged one by one.
MAX_SETS = 400
# Most tags with a statistic of their own: the most frequent ones.
MAX_TAGS = 60
GIVEN, NOT_GIVEN = "given", "not given"


def masi_distance(a: Sequence[str], b: Sequence[str]) -> float:
    """1 - Jaccard x monotonicity, which is 1 for equal sets, 2/3 for a subset, 1/3 for an overlap and 0 otherwise."""
    first, second = set(a), set(b)
    if first == second:
        return 0.0
    common = first & second
    if not common:
        return 1.0
    monotonicity = 2 / 3 if first <= second or second <= first else 1 / 3
    return 1 - len(common) / len(first | second) * monotonicity


def tag_statistics(items: Iterable[Votes]) -> dict[str, Estimate]:
    """Agreement on the tags of one control: alpha with MASI, and alpha of each tag.

    Args:
        items: The sets of tags that annotators gave each task or object.
    """
    units = [dict(votes) for votes in items if len(votes) > 1]
    ratings = Ratings.of(units)
    estimates: dict[str, Estimate] = {}
    if len(ratings.values) <= MAX_SETS:
        distances = np.array([[masi_distance(a, b) for b in ratings.values] for a in ratings.values])
        distances = distances.reshape(len(ratings.values), -1)

        def alpha(sample: Ratings, weights: Floats | None = None) -> float:
            return krippendorff_alpha(sample, weights, distances=distances)

        estimates["alpha_masi"] = estimate(alpha, ratings)
    else:
        reason = f"more than {MAX_SETS} different sets of tags; see the tags"
        estimates["alpha_masi"] = Estimate.insufficient(len(units), reason)
    given: dict[str, int] = defaultdict(int)
    for unit in units:
        for tag in {tag for tags in unit.values() for tag in tags}:
            given[tag] += 1
    for tag in sorted(given, key=lambda name: (-given[name], name))[:MAX_TAGS]:
        if given[tag] < MIN_UNITS:
            reason = f"given in {given[tag]} of the {MIN_UNITS} required"
            estimates[f"alpha: {tag}"] = Estimate.insufficient(given[tag], reason)
            continue
        votes = [{who: GIVEN if tag in tags else NOT_GIVEN for who, tags in unit.items()} for unit in units]
        estimates[f"alpha: {tag}"] = estimate(krippendorff_alpha, Ratings.of(votes))
    return estimates


def ranking_statistic(concordances: Sequence[float]) -> Estimate:
    """Mean of Kendall's W over tasks; those where nothing can be compared are left out."""
    defined = [value for value in concordances if not np.isnan(value)]
    return mean_of_tasks(defined, [1] * len(defined))


def similarity_statistic(tasks: Iterable[Sequence[tuple[int, int, float]]]) -> Estimate:
    """Mean similarity of two annotators' texts, with an interval over the tasks; n counts tasks."""
    pairs = [[value for _, _, value in alike] for alike in tasks]
    pairs = [values for values in pairs if values]
    return mean_of_tasks([sum(values) for values in pairs], [len(values) for values in pairs])
