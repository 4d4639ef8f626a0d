"""The image templates of Label Studio 1.23.2, and what labelloop does with each control of them.

The result is `docs/reference/image-templates.md`.

Every cell comes from the code: pre-labels, learning and the next task from the table of controls; smart tools,
agreement, consensus and exports from a run on a small task whose annotators answered that control alone.
`python -m tests.image_templates` writes the page again.
"""

import base64
import io
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from PIL import Image

from exporters.pipeline.export import export
from labelloop.labeling.geometry.brush_codec import decode_mask, encode_rle
from labelloop.labeling.studio.config import Control, LabelConfig
from labelloop.labeling.studio.task import read_task
from labelloop.service.settings import Settings
from ml_backend.learning.annotations import training_data_of
from ml_backend.predict.control_support import ControlSupport, ModelOutputs, controls_of
from ml_backend.smart.controls import BARE_OUTLINES, OUTLINES, PROMPTS, serves_smart_tools
from qc_webhooks.agreement import compare, read_answers
from qc_webhooks.policy import Policy
from qc_webhooks.verdict.merged_annotation import merge
from qc_webhooks.verdict.verdict import judge

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "image-templates.md"
SIDE = 200
# Formats of data sets that differ in what they take.
EXPORTED = ("coco", "yolo-detect", "yolo-pose", "yolo-classify")
# Controls that draw nothing.
ANSWERS = frozenset({"Choices", "TextArea", "Rating"})
COLUMNS = ("pre-label", "learn", "next", "smart tool", "QC", "consensus", "export")


@dataclass(frozen=True)
class Template:
    """A template of Label Studio.

    Attributes:
        folder: Its folder below `annotation_templates`.
        title: As Label Studio shows it.
        body: The tags of its labeling interface that show or take something, without decoration.
        data: Values of a task's data beside images: the labels that a task brings along.
    """

    folder: str
    title: str
    body: str
    data: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def config(self) -> LabelConfig:
        """The labeling interface."""
        return LabelConfig.parse(f"<View>{self.body}</View>")


def _labels(tag: str, name: str, to: str, *values: str, **attributes: str) -> str:
    item = "Choice" if tag == "Choices" else "Label"
    more = "".join(f' {key}="{value}"' for key, value in attributes.items())
    items = "".join(f'<{item} value="{value}"/>' for value in values)
    return f'<{tag} name="{name}" toName="{to}"{more}>{items}</{tag}>'


_IMAGE = '<Image name="image" value="$image"/>'
_BREASTS = "left_cc,right_cc,left_mlo,right_mlo"

TEMPLATES: tuple[Template, ...] = (
    Template(
        "computer-vision/object-detection-with-bounding-boxes",
        "Object Detection with Bounding Boxes",
        _IMAGE + _labels("RectangleLabels", "label", "image", "Airplane", "Car"),
    ),
    Template(
        "computer-vision/semantic-segmentation-with-polygons",
        "Semantic Segmentation with Polygons",
        _IMAGE + _labels("PolygonLabels", "label", "image", "Airplane", "Car"),
    ),
    Template(
        "computer-vision/semantic-segmentation-with-masks",
        "Semantic Segmentation with Masks",
        _IMAGE + _labels("BrushLabels", "tag", "image", "Airplane", "Car"),
    ),
    Template(
        "computer-vision/keypoints",
        "Keypoint Labeling",
        '<Image name="img-1" value="$img"/>' + _labels("KeyPointLabels", "kp-1", "img-1", "Face", "Nose"),
    ),
    Template(
        "computer-vision/image-classification",
        "Image Classification",
        _IMAGE + _labels("Choices", "choice", "image", "Adult content", "Weapons", "Violence"),
    ),
    Template(
        "computer-vision/medical-image-classification-with-bboxes",
        "Medical Image Classification with Bounding Boxes",
        _IMAGE
        + _labels("RectangleLabels", "label", "image", "Tumor")
        + _labels("Choices", "classification", "image", "Benign", "Malignant", "Normal"),
    ),
    Template(
        "computer-vision/image-captioning",
        "Image Captioning",
        '<Image name="image" value="$captioning"/><TextArea name="caption" toName="image" maxSubmissions="1"/>',
    ),
    Template(
        "computer-vision/optical-character-recognition",
        "Optical Character Recognition",
        '<Image name="image" value="$ocr"/>'
        + _labels("Labels", "label", "image", "Text", "Handwriting")
        + '<Rectangle name="bbox" toName="image"/><Polygon name="poly" toName="image"/>'
        '<TextArea name="transcription" toName="image" perRegion="true"/>',
    ),
    Template(
        "community-contributions/ocr-invoices-pre-ner-bio-format",
        "OCR Invoices Pre-NER BIO Format",
        _IMAGE
        + _labels("RectangleLabels", "label", "image", "O")
        + '<TextArea name="transcription" toName="image" perRegion="true"/>',
    ),
    Template(
        "computer-vision/multipage-documents",
        "Multi-page document annotation",
        _labels("RectangleLabels", "rectangles", "pdf", "Title", "Date", "Author", "Organization", "Amount")
        + '<Image name="pdf" valueList="$pages"/>',
    ),
    Template(
        "computer-vision/inventory-tracking",
        "Inventory Tracking",
        '<PolygonLabels name="objects" toName="image" value="$objects"/>' + _IMAGE,
        {"objects": [{"value": "CocaCola"}, {"value": "RedBull"}]},
    ),
    Template(
        "computer-vision/visual-genome",
        "Visual Genome",
        "".join(
            f'<RectangleLabels name="{name}" toName="image" value="${name}"/>'
            for name in ("regions", "attributes", "relationships")
        )
        + _IMAGE,
        {
            name: [{"value": "the panda is cute"}, {"value": "nose is black"}]
            for name in ("regions", "attributes", "relationships")
        },
    ),
    Template(
        "computer-vision/visual-question-answering",
        "Visual Question Answering",
        _IMAGE
        + _labels("Labels", "aspect", "q1", "counting", "comparison")
        + "".join(
            f'<Text name="q{n}" value="$q{n}"/><TextArea name="answer{n}" toName="q{n}" maxSubmissions="1"/>'
            for n in range(1, 5)
        ),
    ),
    Template(
        "ranking-and-scoring/content-based-image-search",
        "Content-based Image Retrieval",
        "".join(f'<Image name="{name}" value="${name}"/>' for name in ("query", "image1", "image2", "image3"))
        + _labels("Choices", "similar", "query", "One", "Two", "Three", choice="multiple"),
    ),
    Template(
        "ranking-and-scoring/pairwise-regression",
        "Pairwise regression",
        '<Rating name="rating" toName="image1,image2"/><Image name="image1" value="$image1"/>'
        '<Image name="image2" value="$image2"/>',
    ),
    Template(
        "community-contributions/breast-cancer-mammogram-classification",
        "Breast Cancer Mammogram Classification",
        "".join(f'<Image name="{name}" value="${name}"/>' for name in _BREASTS.split(","))
        + "".join(
            _labels("Choices", f"birads_{side}", _BREASTS, "1 - Negative", "2 - Benign", choice="single")
            + _labels("Choices", f"density_{side}", _BREASTS, "A - Fatty", "D - Dense", choice="single")
            + _labels("Choices", f"findings_{side}", _BREASTS, "Mass", "Asymmetry", choice="multiple")
            for side in ("left", "right")
        )
        + f'<TextArea name="notes" toName="{_BREASTS}"/>',
    ),
)

# `Labels` with a shape of the same image, as Label Studio's own templates rarely have them.
PAIRS: tuple[Template, ...] = tuple(
    Template(
        "", f"`Labels` and `{tag}`",
        _IMAGE + _labels("Labels", "label", "image", "Airplane", "Car") + f'<{tag} name="shape" toName="image"/>',
    )
    for tag in ("Rectangle", "Polygon", "Brush", "Bitmask", "Ellipse", "KeyPoint")
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """What labelloop does with one control: whether it is served, and why not; None: it does not apply."""

    served: bool | None
    reason: str = ""


# --- answers of annotators -------------------------------------------------------------------------------------------


def _box(variant: int) -> dict[str, Any]:
    return {"x": 10 + 50 * variant, "y": 10, "width": 30, "height": 40, "rotation": 0}


def _polygon(variant: int) -> dict[str, Any]:
    left = 10 + 50 * variant
    return {"points": [[left, 10], [left + 30, 10], [left + 30, 50], [left, 50]], "closed": True}


def _mask(variant: int) -> dict[str, Any]:
    pixels = np.zeros((SIDE, SIDE), bool)
    pixels[20:100, 20 + 100 * variant : 80 + 100 * variant] = True
    return {"format": "rle", "rle": encode_rle(pixels)}


def _ellipse(variant: int) -> dict[str, Any]:
    return {"x": 25 + 50 * variant, "y": 30, "radiusX": 15, "radiusY": 20, "rotation": 0}


def _bitmask(variant: int) -> dict[str, Any]:
    png = io.BytesIO()
    drawn = decode_mask(_mask(variant)["rle"], SIDE, SIDE)
    Image.fromarray(np.where(drawn, 255, 0).astype(np.uint8)).save(png, "PNG")
    return {"imageDataURL": f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"}


def _point(variant: int) -> dict[str, Any]:
    return {"x": 20 + 50 * variant, "y": 20, "width": 1}


# Type of a result -> its value but for labels, drawn here (0) or there (1).
_SHAPES: Mapping[str, Callable[[int], dict[str, Any]]] = {
    "rectanglelabels": _box,
    "polygonlabels": _polygon,
    "brushlabels": _mask,
    "keypointlabels": _point,
}
# Type of a shape without labels of its own, which draws those of `Labels`, likewise.
_BARE: Mapping[str, Callable[[int], dict[str, Any]]] = {
    "rectangle": _box, "polygon": _polygon, "ellipse": _ellipse, "brush": _mask, "bitmask": _bitmask,
    "keypoint": _point,
}  # fmt: skip


def answers_to(template: Template, control: Control, variant: int) -> list[dict[str, Any]]:
    """The results of an annotator who answered one control; two variants differ."""
    config, kind = template.config, control.type
    to_name = control.to_names[0]
    image = config.objects[to_name]
    sizes = {"original_width": SIDE, "original_height": SIDE, "image_rotation": 0}
    item = {"item_index": 0} if "valueList" in image.attributes else {}
    base = {"id": "r1", "from_name": control.name, "to_name": to_name, "type": kind, **item}
    names = [label.stored for label in control.labels]
    names = names or [entry["value"] for entry in template.data.get(control.attributes.get("value", "")[1:], ())]
    if kind in _SHAPES:
        return [{**base, **sizes, "value": {**_SHAPES[kind](variant), kind: names[:1]}}]
    if kind == "labels" and image.tag == "Image":
        shape = config.controls_of(*_BARE)[0]
        value = _BARE[shape.type](variant)
        drawn = {**base, **sizes, "value": {**value, "labels": names[:1]}}
        return [{**drawn, "from_name": shape.name, "type": shape.type, "value": value}, drawn]
    if kind == "labels":
        return [{**base, "value": {"start": 2 * variant, "end": 2 * variant + 2, "text": "ab", "labels": names[:1]}}]
    if control.per_region:
        (drawer,) = config.controls_of("RectangleLabels", "Labels")
        text = {**base, **sizes, "value": {**_box(0), "text": [("invoice", "receipt")[variant]]}}
        return [*answers_to(template, drawer, 0), text]
    values: Mapping[str, dict[str, Any]] = {
        "choices": {"choices": names[variant : variant + 1]},
        "textarea": {"text": [("a red car", "two dogs at sea")[variant]]},
        "rating": {"rating": 1 + 4 * variant},
    }
    return [{**base, "value": values[kind]}]


def task_of(template: Template, control: Control, variants: Sequence[int]) -> dict[str, Any]:
    """A task as Label Studio exports it: each annotator answered this control alone, in a variant."""
    images = {image.value.removeprefix("$"): "s3://photos/1.jpg" for image in template.config.images}
    lists = {
        tag.attributes["valueList"][1:]: ["s3://photos/1.jpg", "s3://photos/2.jpg"]
        for tag in template.config.images
        if "valueList" in tag.attributes
    }
    texts = {tag.value.removeprefix("$"): "abcdef" for tag in template.config.objects.values() if tag.tag == "Text"}
    annotations = [
        {
            "id": number, "completed_by": number, "was_cancelled": False, "ground_truth": False,
            "created_at": f"2026-01-01T00:00:0{number}.000000Z", "updated_at": f"2026-01-01T00:00:0{number}.000000Z",
            "result": answers_to(template, control, variant),
        }
        for number, variant in enumerate(variants, 1)
    ]  # fmt: skip
    return {"id": 1, "data": {**texts, **images, **lists, **template.data}, "annotations": annotations,
            "predictions": [], "overlap": len(variants), "is_labeled": True}  # fmt: skip


# --- what is done with them ------------------------------------------------------------------------------------------


def learning(template: Template, control: Control, support: ControlSupport) -> Cell:
    """Whether versions are trained on the control, by the table, and whether training data is read from an answer."""
    if not support.learns:
        return Cell(False, support.reason)
    data = training_data_of(read_task(task_of(template, control, (0,))), template.config, project=1, held_out=0.0)
    is_read = data is not None and any(image.is_labelled for image in data.photos)
    return Cell(is_read, "" if is_read else "no training data is read from its answers")


def agreement(template: Template, control: Control) -> Cell:
    """Whether quality control tells equal answers from different ones."""
    policy = Policy(annotators=2)
    scores: list[float | None] = []
    for second in (0, 1):
        task = read_task(task_of(template, control, (0, second)))
        answers = read_answers(task, config=template.config)
        verdict = judge(answers, policy)
        if verdict.not_judged:
            return Cell(False, " ".join(verdict.not_judged))
        scores.append(compare(*answers, tolerance=policy.tolerance).controls.get(control.name))
    equal, different = scores
    if equal is None or different is None:
        return Cell(False, "its answers are not compared")
    return Cell(equal == 1.0 and different < 1.0)


def consensus(template: Template, control: Control) -> Cell:
    """Whether the answers of three annotators are merged; with the reason where one of them is taken instead."""
    task = read_task(task_of(template, control, (0, 0, 1)))
    answers = read_answers(task, config=template.config)
    merged = merge(task, answers, lambda: judge(answers, Policy()).comparisons, config=template.config)
    carried = [line["reason"] for line in merged.carried if line.get("control", control.name) == control.name]
    names = {result.get("from_name") for result in merged.results}
    if carried:
        return Cell(False, f"one annotator's answer is taken: {carried[0]}")
    return Cell(control.name in names, "" if control.name in names else "the merged annotation has no answer")


def exports(template: Template, control: Control, folder: Path) -> Cell:
    """Whether a data set in some format has the answer."""
    source = folder / "tasks.json"
    task = task_of(template, control, (0,))
    source.write_bytes(msgspec.json.encode([task]))
    report = export(
        source, settings=Settings(home=folder / "home", label_studio_api_key=""), formats=EXPORTED,
        to=f"file://{folder}/set", label_config=f"<View>{template.body}</View>", split="train=1", fetch=False,
    )  # fmt: skip
    if control.tag in ANSWERS:
        value = task["annotations"][0]["result"][-1]["value"][control.type if control.type != "textarea" else "text"]
        text = str(value[0] if isinstance(value, list) else f'"{control.name}"').encode()
        objects = (folder / "set" / "objects").rglob("*")
        served = any(text in file.read_bytes() for file in objects if file.is_file())
        first = "of several `Choices`, `yolo-classify` has the first"
        return Cell(served, first if control.tag == "Choices" else "no format has such answers")
    counts = report.accounts.formats.values()
    dropped = sorted({reason for count in counts for reason in count.dropped if count.regions == 0})
    return Cell(any(count.objects for count in counts), dropped[0] if dropped else "no format has it")


def smart_tool(template: Template, control: Control) -> Cell:
    """Whether smart tools answer prompts of the control, once the labeling interface asks for them."""
    partners = template.config.controls_of(*_BARE) if control.type == "labels" else ()
    prompts = [drawer for drawer in (control, *partners) if drawer.tag in PROMPTS]
    if not prompts:
        outline = any(drawer.tag in {*OUTLINES, *BARE_OUTLINES} for drawer in (control, *partners))
        prompt = "it sends no prompts: add `KeyPointLabels` or `RectangleLabels` with the same labels"
        if control.type == "labels":
            prompt = "its shape sends no prompts: add `KeyPoint` or `Rectangle` for the same image"
        return Cell(False, prompt) if outline else Cell(None)
    body = template.body.replace(f'name="{prompts[0].name}"', f'name="{prompts[0].name}" smart="true"')
    if serves_smart_tools(LabelConfig.parse(f"<View>{body}</View>")):
        return Cell(True, f'once `{prompts[0].name}` has `smart="true"`')
    return Cell(False, "a click has nothing to draw on: add a shape control with the same labels")


def template_cells(template: Template) -> dict[str, dict[str, Cell]]:
    """Column -> control -> cell."""
    config = template.config
    classes = tuple(label.stored for control in config.controls.values() for label in control.labels)
    # The embedded model, once it knows the project's labels and answers.
    learned = {support.control for support in controls_of(config) if support.learns}
    answers = frozenset(name for name in learned if config.controls[name].tag in ANSWERS)
    supports = controls_of(config, ModelOutputs(classes, frozenset({"boxes"}), answers=answers))
    is_ordered = any(support.learns or support.prelabels for support in supports)
    columns: dict[str, dict[str, Cell]] = {name: {} for name in COLUMNS}
    for support in reversed(supports):  # of several images the first
        control = config.controls[support.control]
        with tempfile.TemporaryDirectory() as folder:
            cells = (
                Cell(bool(support.prelabels), support.reason),
                learning(template, control, support),
                Cell(is_ordered, "nothing is pre-labelled or learned, so Label Studio's own order stays"),
                smart_tool(template, control),
                agreement(template, control),
                consensus(template, control),
                exports(template, control, Path(folder)),
            )
        for column, cell in zip(COLUMNS, cells, strict=True):
            columns[column] = {control.name: cell} | columns[column]
    return columns


def page(templates: Sequence[Template] = TEMPLATES) -> str:
    """The reference page, in Markdown."""
    cells = {template.title: template_cells(template) for template in (*templates, *PAIRS)}
    rows = _table("template", [template.title for template in templates], cells)
    pairs = _table("controls", [template.title for template in PAIRS], cells)
    notes = [line for title in cells for line in _notes(title, cells[title])]
    return (
        "\n".join((INTRODUCTION.strip(), "", *rows, "", GENERIC.strip(), "", *pairs, "", NOTES.strip(), *notes)) + "\n"
    )


def _table(what: str, titles: Sequence[str], cells: Mapping[str, Mapping[str, Mapping[str, Cell]]]) -> list[str]:
    rows = [f"| {' | '.join((what, *COLUMNS))} |", "|---" * (len(COLUMNS) + 1) + "|"]
    return rows + [f"| {title} | {' | '.join(_summary(cells[title][name]) for name in COLUMNS)} |" for title in titles]


def _summary(cells: Mapping[str, Cell]) -> str:
    served = [cell.served for cell in cells.values() if cell.served is not None]
    return "no" if not any(served) else "yes" if all(served) else "part"


def _notes(title: str, columns: Mapping[str, Mapping[str, Cell]]) -> Iterator[str]:
    """What is not served, with the reason; controls with the same reason in one line."""
    reasons: dict[tuple[str, str], list[str]] = {}  # (control, reason) -> columns
    for column, cells in columns.items():
        if all(cell.served is None for cell in cells.values()):
            reasons["", "nothing is drawn"] = [column]
        for control, cell in cells.items():
            if cell.served is False:
                reasons.setdefault(("" if column == "next" else f"`{control}`", cell.reason), []).append(column)
    grouped: dict[tuple[tuple[str, ...], str], list[str]] = {}
    for (control, reason), names in reasons.items():
        grouped.setdefault((tuple(dict.fromkeys(names)), reason), []).append(control)
    if grouped:
        yield from ("", f"### {title}", "")
    for (names, reason), controls in grouped.items():
        listed = f" {', '.join(controls)}:" if any(controls) else ""
        yield from _wrapped(f"{', '.join(names)}:{listed} {reason}.")


def _wrapped(text: str) -> Iterator[str]:
    yield from textwrap.wrap(text, 98, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)


INTRODUCTION = """
# Label Studio's image templates

Label Studio 1.23.2 has 16 templates with an image. Each cell says what labelloop does with a
project that uses the template as it comes: "yes" for all its controls, "part" for some, "no" for
none; the reasons are below. The embedded model serves; it knows the project's labels, from its own
classes or after learning them.

- **pre-label**: a model fills the control before an annotator opens the task.
- **learn**: each submit trains the next version.
- **next**: the most informative task is served next.
- **smart tool**: a box or a click becomes the finished shape; the control needs `smart="true"`
  ([smart tools](../how-to/smart-tools.md)).
- **QC**: answers of several annotators are compared.
- **consensus**: they are merged, each with its probability; "no" where one annotator's is taken.
- **export**: a data set in some format has the answers.

`tests/test_image_templates.py` makes this page: the first three columns from
[the table of controls](controls.md), the others from a small task of each template.
"""

GENERIC = """
## Labels and shapes as controls of their own

A labeling interface may have `Labels`, and shapes without labels for the same image. Such a pair is
served like the shape's form with labels.
"""

NOTES = """
## What is not served, and why
"""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
