"""Draw a tuning: the curve of error against labels, as a chart and as one self-contained HTML page."""

import math
from pathlib import Path

from labelloop.service.charts import Chart, ChartLine, DataPoint, LinearScale, polyline
from qc_webhooks.report.tuning import Tuning, TuningPoint, policy_block


def tuning_chart(tuning: Tuning, *, width: float = 760.0, height: float = 320.0) -> Chart | None:
    """Error against labels per task, with its interval, and the wanted error; None with fewer than two policies."""
    curve = shown_curve(tuning)
    if len(curve) < 2:
        return None
    left, right, top, bottom = 56.0, width - 14, 24.0, height - 44
    highest = max(*(point.high for point in curve), tuning.target)
    step = next(size for size in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if highest / size <= 8)
    ceiling = step * (int(highest / step) + 1)
    x = LinearScale(curve[0].labels, curve[-1].labels, left, right)
    y = LinearScale(0, ceiling, bottom, top)
    spots = tuple(DataPoint(x(point.labels), y(point.error), describe_point(point)) for point in curve)
    band = [(x(point.labels), y(point.high)) for point in curve]
    band += [(x(point.labels), y(point.low)) for point in reversed(curve)]
    lines = (
        ChartLine("error", polyline([(spot.x, spot.y) for spot in spots]), polyline(band), spots),
        ChartLine("wanted error", polyline([(left, y(tuning.target)), (right, y(tuning.target))])),
    )
    span = curve[-1].labels - curve[0].labels
    every = next(size for size in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 1e9) if span / size <= 8)
    first = math.ceil(curve[0].labels / every - 1e-9)
    last = math.floor(curve[-1].labels / every + 1e-9)
    ticks = [round(every * number, 3) for number in range(first, last + 1)]
    levels = [round(step * index, 3) for index in range(round(ceiling / step) + 1)]
    return Chart(
        width, height, left, right, top, bottom, x.ticks(ticks, "{:g}".format),
        y.ticks(levels, lambda level: f"{100 * level:g} %"), "labels per task", "error", lines,
        mark=None if tuning.proposed is None else x(min(tuning.proposed.labels, curve[-1].labels)),
        text="Error of the consensus against labels per task.",
    )  # fmt: skip


def shown_curve(tuning: Tuning) -> tuple[TuningPoint, ...]:
    """The curve that the proposal is on: without reviewers, unless only they reach the wanted error."""
    alone = tuning.proposed is None or not tuning.proposed.reviewers
    return tuning.curve if alone else tuning.reviewed_curve


def describe_point(point: TuningPoint) -> str:
    """A policy, its cost and its error in one line."""
    review = f", {100 * point.reviewed:.0f} % reviewed" if point.reviewers else ""
    agreement = f", agreement {point.agreement:g}" if point.agreement else ""
    return (
        f"{point.labels:.2f} labels per task, error {100 * point.error:.1f} % ({100 * point.low:.1f} to"
        f" {100 * point.high:.1f}): {point.annotators} to {point.max_annotators} annotators, least_gain"
        f" {point.least_gain:g}{agreement}{review}"
    )


def tuning_html(tuning: Tuning, *, source: str) -> str:
    """The page: proposal, curve, table."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("tuning.html.jinja").render(
        tuning=tuning,
        chart=tuning_chart(tuning),
        curve=shown_curve(tuning),
        source=source,
        block="" if tuning.proposed is None else policy_block(tuning.proposed),
    )
