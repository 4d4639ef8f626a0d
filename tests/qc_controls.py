"""What quality control does with each control of Label Studio: the page `docs/reference/qc-controls.md`.

Every cell comes from a run: three simulated annotators (`simulated_answers`) answer a config with that control; the
comparison, the report and the consensus are read. `python -m tests.qc_controls` writes the page again.
"""

import io
import json
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.task import read_task
from qc_webhooks.agreement import compare, read_answers
from qc_webhooks.policy import Policy
from qc_webhooks.report.report import Export, write_report
from tests.merged_answers import merged, problems
from tests.simulated_answers import Simulated, simulate

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "qc-controls.md"
COLUMNS = ("control", "agreement", "statistics", "consensus", "report")
TASKS = 6

LABELS = '<Label value="Airplane"/><Label value="Car"/><Label value="Boat"/>'
CHOICES = '<Choice value="Yes"/><Choice value="No"/><Choice value="Unsure"/>'
TREE = '<Choice value="a"><Choice value="b"/><Choice value="c"/></Choice><Choice value="d"/>'
OBJECTS = {
    "image": '<Image name="image" value="$image"/>',
    "text": '<Text name="text" value="$text"/>',
    "page": '<HyperText name="page" value="$page"/>',
    "talk": '<Paragraphs name="talk" value="$talk"/>',
    "sound": '<Audio name="sound" value="$sound"/>',
    "series": '<TimeSeries name="series" value="$csv"/>',
    "video": '<Video name="video" value="$video"/>',
    "pdf": '<Pdf name="pdf" value="$pdf"/>',
    "list": '<List name="list" value="$items"/>',
    "two": '<Text name="two" value="$two"/>',
    "chat": '<Chat name="chat" value="$chat"/>',
}


@dataclass(frozen=True)
class Row:
    """A control of the table.

    Attributes:
        title: The control, in the words of the page.
        merge: How its answers are merged; empty where one annotator's are carried.
        config: A label config with it, without the outer ``View``.
        name: The control's name; of an answer about a region, that of the answer.
        region: The control of the region that it is about; empty if it is not.
    """

    title: str
    merge: str
    config: str
    name: str = "control"
    region: str = ""

    @property
    def xml(self) -> str:
        """The label config."""
        return f"<View>{self.config}</View>"


def _tag(tag: str, on: str = "image", inner: str = LABELS, more: str = "", name: str = "control") -> str:
    return f'<{tag} name="{name}" toName="{on}"{more}>{inner}</{tag}>'


def _row(tag: str, merge: str, on: str = "image", inner: str = LABELS, more: str = "", title: str = "") -> Row:
    return Row(title or f"`{tag}`", merge, OBJECTS[on] + _tag(tag, on, inner, more))


def _about(tag: str, merge: str, inner: str = "") -> Row:
    config = OBJECTS["image"] + _tag("RectangleLabels", name="box") + _tag(tag, "image", inner, ' perRegion="true"')
    return Row(f"`{tag}` about a region", merge, config, region="box")


_SHAPES = {
    "Rectangle": "median edges without bias",
    "Polygon": "weighted mean outline",
    "Ellipse": "weighted mean shape matrix",
    "KeyPoint": "median",
    "Brush": "weighted mean edge distance",
    "Bitmask": "weighted mean edge distance",
    "Vector": "the most similar to the others",
}
ROWS = (
    *(_row(f"{shape}Labels", merge) for shape, merge in _SHAPES.items()),
    *(
        Row(f"`Labels` with `{shape}`", merge, OBJECTS["image"] + _tag("Labels") + _tag(shape, name="shape", inner=""))
        for shape, merge in _SHAPES.items()
    ),
    *(_row(shape, merge, inner="", title=f"`{shape}` without labels") for shape, merge in _SHAPES.items()),
    _row("MagicWand", "as `Brush`", inner=""),
    _row("Labels", "spans; most similar ends", "text", title="`Labels` of a `Text`"),
    _row("Labels", "spans; median ends", "sound", title="`Labels` of an `Audio`"),
    _row("HyperTextLabels", "spans; most similar ends", "page"),
    _row("ParagraphLabels", "spans; most similar ends", "talk"),
    _row("TimeSeriesLabels", "spans, instants; median ends", "series"),
    _row("TimelineLabels", "spans; median ends", "video"),
    _row("Choices", "the most likely answer", "text", CHOICES),
    _row("Choices", "each answer by itself", "text", CHOICES, ' choice="multiple"', "`Choices` of several answers"),
    _row("Taxonomy", "each node by itself, along the tree", "text", TREE),
    _row("Rating", "weighted median without bias", "text", ""),
    _row("Number", "weighted median without bias", "text", ""),
    _row("DateTime", "median", "text", ""),
    _row("TextArea", "the text nearest to all", "text", ""),
    Row(
        "`Pairwise`",
        "the most likely answer",
        OBJECTS["text"] + OBJECTS["two"] + '<Pairwise name="control" toName="text,two"/>',
    ),
    _row("Ranker", "weighted Borda count", "list", ""),
    _row("Ranker", "buckets by vote, order by weighted Borda count", "list",
         '<Bucket name="good"/><Bucket name="bad"/>', title="`Ranker` with `Bucket`"),
    _about("Choices", "majority of each answer", CHOICES),
    _about("Taxonomy", "majority of each node", TREE),
    _about("Rating", "median"),
    _about("Number", "median"),
    _about("DateTime", "majority"),
    _about("TextArea", "the text nearest to all"),
    _row("VideoRectangle", "", "video", ""),
    _row("OcrLabels", "", "pdf"),
    Row("`Chat`", "", OBJECTS["chat"], "chat"),
    Row("`Relations`", "", OBJECTS["text"] + _tag("Labels", "text") + "<Relations/>", "relation"),
)  # fmt: skip


@dataclass(frozen=True)
class Cells:
    """What is done with a control: the text of each column but the first; "no" where nothing is."""

    agreement: str
    statistics: str
    consensus: str
    report: str

    def line(self, title: str) -> str:
        """The row of the table."""
        return f"| {title} | {self.agreement} | {self.statistics} | {self.consensus} | {self.report} |"


@cache
def cells(row: Row) -> Cells:
    """Run the control through comparison, report and consensus."""
    simulated = simulate(row.xml)
    report = _report(row, simulated)
    named = [f"`{name}`" for name in report["statistics"]["controls"].get(row.name, {})]
    scored = row.name in report["tasks"][0]["controls"]
    conflicts = {conflict["control"] for task in report["tasks"] for conflict in task["conflicts"]}
    skipped = row.name in report["tasks"][0]["uncompared"]
    said = (("scores", scored), ("conflicts", row.name in conflicts), ("listed as not compared", skipped))
    says = [word for word, is_there in said if is_there]
    return Cells(
        _agreement(row, simulated), ", ".join(named) or "no", _consensus(row, simulated), ", ".join(says) or "no"
    )


def _agreement(row: Row, simulated: Simulated) -> str:
    """The metric that tells different answers from equal ones."""
    config = LabelConfig.parse(row.xml)
    alike = {1: simulated.results[1], 2: simulated.results[1], 3: simulated.results[3]}
    if row.region:  # the third differs in this answer alone
        other = next(one for one in simulated.results[3] if one["from_name"] == row.name)
        field = next(name for name in other["value"] if name not in {"x", "y", "width", "height", "rotation"})
        alike[3] = [
            {**one, "value": {**one["value"], field: other["value"][field]}} if one["from_name"] == row.name else one
            for one in simulated.results[1]
        ]
    answers = read_answers(read_task(replace(simulated, results=alike).task()), config=config)
    kinds = [kind for name, kind in answers[0].controls if name == (row.region or row.name)]
    if not kinds:
        return "no"
    equal, different = (
        compare(answers[0], other, tolerance=Policy().tolerance).controls[row.region or row.name]
        for other in answers[1:]
    )
    assert equal == 1, f"{row.title}: equal answers have an agreement of {equal}"
    assert different < 1, f"{row.title}: different answers agree"
    return f"within its region (`{kinds[0]}`)" if row.region else f"`{kinds[0]}`"


def _consensus(row: Row, simulated: Simulated) -> str:
    outcome = merged(simulated.task(), row.xml)
    assert not (wrong := problems(simulated, outcome, row.xml)), f"{row.title}: {wrong}"
    carried = [line["reason"] for line in outcome.carried if line["control"] == row.name]
    assert bool(carried) != bool(row.merge), f"{row.title}: {carried or 'merged'}"
    return row.merge or "one annotator's, and said"


def _report(row: Row, simulated: Simulated) -> dict[str, Any]:
    out = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "export.json"
        source.write_text(json.dumps([simulated.task(number) for number in range(1, TASKS + 1)]))
        write_report(Export(source, LabelConfig.parse(row.xml), lambda done, total: None), Policy(), out)
    report: dict[str, Any] = json.loads(out.getvalue())
    return report


def page() -> str:
    """The reference page, in Markdown."""
    rows = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for row in ROWS:
        found = cells(row)
        rows.append(found.line(row.title))
    return "\n".join((INTRODUCTION.strip(), "", *rows, "", *_notes())) + "\n"


def _notes() -> Iterator[str]:
    for title, text in NOTES.items():
        yield from (*textwrap.wrap(f"- **{title}**: {text}", 98, subsequent_indent="  ", break_on_hyphens=False),)


INTRODUCTION = """
# What quality control does with each control

Every cell is a run of the code on a small task: three annotators, of whom one is careless.
`python -m tests.qc_controls` writes this page; `tests/test_qc_controls.py` checks it.

- **agreement**: the [metric](verdicts.md#agreement) that compares two annotators.
- **statistics**: the coefficients of the [report](../how-to/qc-offline.md), each with its number of
  units and its 95 % interval.
- **consensus**: how the answers are merged ([how-to](../how-to/qc-offline.md#the-consensus)).
- **report**: the agreement by control, and the conflicts of a task in words.
"""

NOTES: Mapping[str, str] = {
    "Without bias": "how much larger than the others each annotator draws, or how much higher they rate, is subtracted"
    " first.",
    "Most similar ends": "both ends are those of one annotator, so that text and place fit.",
    "Answers about a region": "they follow their region, whatever it is: a shape, or a span of a text, a recording or"
    " a series.",
    "One annotator's, and said": "the consensus takes the answers of the annotator with the highest mean agreement"
    " with the others and names them in `meta.consensus.carried`. So do answers about the messages of a `Chat` and the"
    " labels of a `VideoRectangle`.",
    "Several images in one task": "regions and answers with `item_index` are compared and merged image by image.",
}


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
