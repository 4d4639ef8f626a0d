"""Formats numbers, times and names for the pages."""

from collections.abc import Mapping
from datetime import UTC, datetime

from labelloop.service.charts import EN_DASH, count, percent  # noqa: F401 - the templates call fmt.count, fmt.percent
from qc_webhooks.annotators import DIAGNOSES
from qc_webhooks.statistics import Estimate
from qc_webhooks.verdict.note import CONFLICT_NAMES  # noqa: F401 - the templates call fmt.CONFLICT_NAMES

# Kind of a diagnosis -> display name.
PATTERN_NAMES: Mapping[str, str] = {kind: said.name for kind, said in DIAGNOSES.items()}

# Statistic -> display name; others keep their name.
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
    "alpha_detection_mean": "Krippendorff's alpha, detection, mean over images",
    "f1_at_50": "F1 at an IoU of 0.5",
    "alpha_ordinal": "Krippendorff's alpha, ordinal",
    "alpha_interval": "Krippendorff's alpha, interval",
    "alpha_ratio": "Krippendorff's alpha, ratio",
    "icc": "Intraclass correlation, ICC(1)",
    "alpha_unitizing": "Krippendorff's alpha, unitizing",
    "alpha_masi": "Krippendorff's alpha, MASI distance",
    "mean_similarity": "Mean similarity of two texts",
    "kendall_w": "Kendall's W, mean over tasks",
    "mean_kendall_tau": "Mean Kendall's tau, negative ones as 0",
}


def statistic_name(name: str) -> str:
    """A statistic's display name; that of a single label or tag ends with it: "alpha_unitizing: Dog"."""
    statistic, colon, label = name.partition(":")
    return f"{STATISTIC_NAMES.get(statistic, statistic)}{colon}{label}"


# Kind of ratings -> what annotators agree on.
RATING_NAMES: Mapping[str, str] = {
    "nominal": "which label",
    "detection": "marked or not, and which label",
    "ordinal": "how many stars",
    "number": "which number",
    "date": "which date",
    "spans": "which spans",
    "tags": "which tags",
    "text": "which text",
    "ranking": "which order",
}

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def interval(estimate: Estimate, digits: int = 0) -> str:
    """95 % interval of a share, in percent."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"{100 * estimate.low:.{digits}f}{EN_DASH}{100 * estimate.high:.{digits}f} %"


def number_interval(estimate: Estimate, digits: int = 2) -> str:
    """95 % interval of a number."""
    return (
        ""
        if estimate.low is None or estimate.high is None
        else f"{estimate.low:.{digits}f} to {estimate.high:.{digits}f}"
    )


def hours(value: float | None) -> str:
    """Hours, rounded: "40 min", "3.5 h", "120 h"."""
    if value is None:
        return EN_DASH
    minutes = round(60 * value)
    if abs(minutes) < 60:
        return f"{minutes} min"
    return f"{value:,.0f} h" if round(abs(value), 1) >= 10 else f"{value:.1f} h"


def signed(value: float, digits: int = 1) -> str:
    """A difference with its sign: "+8.8", "-0.3"; "0.0" where it rounds to that."""
    return f"{round(value, digits) + 0.0:+.{digits}f}" if round(value, digits) else f"{0:.{digits}f}"


def seconds(value: float | None) -> str:
    """Seconds, rounded: "45 s", "3 min"."""
    if value is None:
        return EN_DASH
    return f"{value:.0f} s" if round(value) < 120 else f"{value / 60:.0f} min"


def day(at: float, *, year: bool = False) -> str:
    """Day in UTC: "3 May"."""
    when = datetime.fromtimestamp(at, tz=UTC)
    return f"{when.day} {_MONTHS[when.month - 1]}{f' {when.year}' if year else ''}"


def timestamp(at: float | None) -> str:
    """Time in UTC: "2025-05-03 14:05"."""
    return EN_DASH if not at else datetime.fromtimestamp(at, tz=UTC).strftime("%Y-%m-%d %H:%M")


def iso(at: float | None) -> str:
    """ISO 8601 time in UTC; empty for None or 0."""
    return "" if not at else datetime.fromtimestamp(at, tz=UTC).isoformat(timespec="seconds")


def ago(at: float | None, now: float) -> str:
    """Rounded time since ``at``: "2 hours ago"."""
    if not at:
        return "never"
    passed = max(now - at, 0.0)
    for length, name in ((86_400, "day"), (3600, "hour"), (60, "minute")):
        if passed >= length:
            number = int(passed // length)
            return f"{number} {name}{'s' if number > 1 else ''} ago"
    return "just now"
