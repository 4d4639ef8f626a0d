"""Numbers, times and names of the dashboard as people read them."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime

from qc_webhooks.agreement.conflicts import ConflictType
from qc_webhooks.statistics import Estimate

# Type of conflict -> what it is called on a page.
KINDS: Mapping[ConflictType, str] = {
    "missing": "left out",
    "extra": "additional",
    "label": "other label",
    "low_overlap": "drawn differently",
    "duplicate": "drawn twice",
    "merged": "several as one",
    "split": "one as several",
    "attribute": "other attribute",
    "empty": "nothing against something",
    "choice": "other answer",
    "answer": "other text or number",
    "not_named": "too many to name",
}

# Kind of a split -> what it is called.
REASONS: Mapping[str, str] = {
    "guideline": "unclear guideline",
    "two views": "two views",
    "one person": "one person",
    "careless": "carelessness",
    "hard": "hard call",
}

# A statistic -> what it is called; others keep their name.
STATISTIC_NAMES: Mapping[str, str] = {
    "agreement": "Observed agreement",
    "positive_agreement": "Positive agreement (F1)",
    "cohen_kappa": "Cohen's kappa",
    "fleiss_kappa": "Fleiss' kappa",
    "conger_kappa": "Conger's kappa",
    "gwet_ac1": "Gwet's AC1",
    "brennan_prediger": "Brennan and Prediger's coefficient",
    "alpha_nominal": "Krippendorff's alpha",
    "alpha_detection": "Krippendorff's alpha, detection",
    "alpha_ordinal": "Krippendorff's alpha, ordinal",
    "alpha_interval": "Krippendorff's alpha, interval",
    "alpha_ratio": "Krippendorff's alpha, ratio",
}

# A kind of ratings -> what it is about.
RATINGS: Mapping[str, str] = {
    "nominal": "which label",
    "detection": "marked or not, and which label",
    "ordinal": "how many stars",
    "number": "which number",
}

_DASH = "\u2013"
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def percent(share: float | None, digits: int = 0) -> str:
    """0.934 -> 93 %; nothing known -> a dash."""
    return _DASH if share is None or math.isnan(share) else f"{100 * share:.{digits}f} %"


def interval(found: Estimate, digits: int = 0) -> str:
    """The 95 % interval of a share."""
    if found.low is None or found.high is None:
        return ""
    return f"{100 * found.low:.{digits}f}{_DASH}{100 * found.high:.{digits}f} %"


def span(found: Estimate, digits: int = 2) -> str:
    """The 95 % interval of a number."""
    return "" if found.low is None or found.high is None else f"{found.low:.{digits}f} to {found.high:.{digits}f}"


def count(number: float) -> str:
    """12345 -> 12,345."""
    return f"{number:,.0f}"


def hours(value: float | None) -> str:
    """Hours as people say them."""
    if value is None:
        return _DASH
    return f"{value:,.0f} h" if abs(value) >= 10 else f"{value:.1f} h"


def seconds(value: float | None) -> str:
    """Seconds as people say them."""
    if value is None:
        return _DASH
    return f"{value:.0f} s" if value < 120 else f"{value / 60:.0f} min"


def day(at: float, *, year: bool = False) -> str:
    """A day, in UTC."""
    when = datetime.fromtimestamp(at, tz=UTC)
    return f"{when.day} {_MONTHS[when.month - 1]}{f' {when.year}' if year else ''}"


def stamp(at: float | None) -> str:
    """A moment, in UTC."""
    return _DASH if not at else datetime.fromtimestamp(at, tz=UTC).strftime("%Y-%m-%d %H:%M")


def iso(at: float | None) -> str:
    """A moment for machines."""
    return "" if not at else datetime.fromtimestamp(at, tz=UTC).isoformat(timespec="seconds")


def ago(at: float | None, now: float) -> str:
    """How long ago, roughly."""
    if not at:
        return "never"
    passed = max(now - at, 0.0)
    for length, name in ((86_400, "day"), (3600, "hour"), (60, "minute")):
        if passed >= length:
            number = int(passed // length)
            return f"{number} {name}{'s' if number > 1 else ''} ago"
    return "just now"
