"""`MODEL.layout.toml`: what an unknown graph expects and gives, as a file in its folder.

The file is data: it is parsed strictly and never evaluated. `ml_backend.layouts.declared` decodes by it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from ml_backend.errors import LayoutFileError

# Version of the file's form.
FORMAT = 1

# Names of a model's layout file, in order of precedence.
SIDECARS = ("{file}.layout.toml", "{stem}.layout.toml")

# Upper bound of a layout file, in bytes: thousands of times what any needs.
MAX_BYTES = 1_000_000

Activation = Literal["none", "sigmoid", "softmax"]
BoxFormat = Literal[
    "corners", "centre", "corner-size", "distances", "ssd", "mediapipe", "yolox", "yolov3", "yolov5", "centernet",
    "fastestdet",
]  # fmt: skip
PointFormat = Literal["pixels", "normalised", "strides", "ssd", "mediapipe", "yolov5-face", "yolov8-pose"]

# Formats that are relative to a cell or an anchor, and so need `[anchors]`.
ANCHORED: frozenset[str] = frozenset(
    {"distances", "ssd", "mediapipe", "yolox", "yolov3", "yolov5", "centernet", "fastestdet", "strides", "yolov5-face",
     "yolov8-pose"}
)  # fmt: skip
# Formats that need the size of each anchor.
SIZED: frozenset[str] = frozenset({"ssd", "yolov3", "yolov5", "yolov5-face"})

Axes = Literal["", "N", "NC", "BN", "BNC", "BCN", "BCHW", "B(AC)HW", "BHWC", "BHW(AC)", "BAHWC"]
# Axes of an output by its rank, where the file does not say.
DEFAULT_AXES = {1: "N", 2: "NC", 3: "BNC", 4: "BCHW", 5: "BAHWC"}


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A table of the file: unknown keys are errors."""


class Input(_Table, frozen=True, kw_only=True):
    """How an image becomes the network's input.

    Attributes:
        size: [height, width] in pixels; needed where the graph leaves them open.
        color: Order of the channels; graphs with one channel take grey images whatever it says.
        range: Range of pixel values before `mean` and `std`.
        mean: Per channel in the order of `color`, of values in `range`.
        std: The same.
        letterbox: Place of the image: kept in shape at the top left or in the centre, stretched, or its centre cropped.
        pad: Value of the pixels around the image, 0..255.
    """

    size: tuple[int, int] | None = None
    color: Literal["RGB", "BGR", "GRAY"] = "RGB"
    range: Literal["0..255", "0..1", "-1..1"] = "0..1"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    letterbox: Literal["top-left", "centre", "stretch", "crop"] = "stretch"
    pad: int = 114


class Anchors(_Table, frozen=True, kw_only=True):
    """The cells, or anchors, that rows belong to.

    Attributes:
        strides: Pixels between cells, level by level in the order of the rows.
        sizes: Per level, each anchor of a cell in pixels: its side, [width, height], or [width, height, x, y] with its
            own place in the cell instead of `offset`.
        per_cell: Anchors of each cell, per level; empty: from `sizes`, else 1.
        offset: Place of the anchor point in its cell, in cells: 0.5 is the centre.
        order: "cells": the anchors of a cell follow one another; "anchors": all cells of a level's first anchor first.
    """

    strides: tuple[int, ...]
    sizes: tuple[tuple[float | tuple[float, ...], ...], ...] = ()
    per_cell: tuple[int, ...] = ()
    offset: float = 0.5
    order: Literal["cells", "anchors"] = "cells"


class _Source(_Table, frozen=True, kw_only=True):
    """Where a quantity is: output (or one output a level), its columns and the order of its axes."""

    output: str | tuple[str, ...]
    columns: tuple[int, int] | None = None
    axes: Axes = ""


class Boxes(_Source, frozen=True, kw_only=True):
    """Boxes.

    Attributes:
        output: Name of the output; several: one a level, in the order of `anchors.strides`.
        columns: [first, end) of the columns in a combined output; all by default.
        axes: Meaning of the axes: B batch, N rows, C columns, H rows and W columns of cells, A anchors of a cell; (AC):
            the columns of one anchor after those of another on one axis, and `columns` counts within an anchor.
        format: corners: x_min, y_min, x_max, y_max. centre: centre x, centre y, width, height. corner-size: x_min,
            y_min, width, height. distances: left, top, right, bottom of the anchor point. The others are the encodings
            of the family they name.
        unit: Of corners, centres, sides and distances.
        order: "yx" where every y comes before its x.
        bins: Values for each side of `distances` that are a distribution (Generalized Focal Loss); 1: plain distances.
        variances: Of `ssd`: factors of centre and size.
        activation: Of `yolov3` and `yolov5`: "none" where the graph has applied the sigmoid.
        sizes: Name of a second output with width and height, where `output` has the centre only.
        exponential: Of `centernet`: whether sizes are logarithms.
    """

    format: BoxFormat
    unit: Literal["pixels", "normalised", "strides"] = "pixels"
    order: Literal["xy", "yx"] = "xy"
    bins: int = 1
    variances: tuple[float, float] = (0.1, 0.2)
    activation: Literal["none", "sigmoid"] = "sigmoid"
    sizes: str = ""
    exponential: bool = False


class Scores(_Source, frozen=True, kw_only=True):
    """Scores: one column a class, or one for all where `[classes]` has the class numbers.

    Attributes:
        activation: What turns them into 0..1: "none" where the graph has applied it.
        background: Which column is the background.
        shared: Whether the anchors of a cell share the scores.
        peaks: Whether only maxima of 3 x 3 cells count (CenterNet).
    """

    activation: Activation = "none"
    background: Literal["none", "first", "last"] = "none"
    shared: bool = False
    peaks: bool = False


class Objectness(_Source, frozen=True, kw_only=True):
    """The probability of any object, per row.

    Attributes:
        activation: What turns it into 0..1.
        combine: How it joins the class score.
        weights: Of `combine = "powers"`: objectness^a x score^b.
    """

    activation: Activation = "none"
    combine: Literal["multiply", "geometric-mean", "powers"] = "multiply"
    weights: tuple[float, float] = (0.5, 0.5)


class Classes(_Table, frozen=True, kw_only=True):
    """Class numbers and names.

    Attributes:
        output: Output with a class number per row; empty: the best column of the scores.
        column: Its column in a combined output.
        axes: As in `[boxes]`.
        first: Number of the first class; smaller numbers are background.
        names: Names, where no other file has them.
    """

    output: str = ""
    column: int | None = None
    axes: Axes = ""
    first: int = 0
    names: tuple[str, ...] = ()


class Masks(_Table, frozen=True, kw_only=True):
    """Masks.

    Attributes:
        output: Mask per row (batch, n, h, w), or with `prototypes` the output of coefficients.
        columns: [first, end) of the coefficients in a combined output.
        axes: As in `[boxes]`.
        prototypes: Output of prototypes (batch, c, h, w); empty: masks are complete.
        threshold: Pixels above it belong to the mask: 0 of logits, 0.5 of probabilities.
    """

    output: str
    columns: tuple[int, int] | None = None
    axes: Axes = ""
    prototypes: str = ""
    threshold: float = 0.0


class Keypoints(_Source, frozen=True, kw_only=True):
    """Keypoints.

    Attributes:
        format: Unit, or the encoding of the family named.
        values: Columns of each point: x, y and, with 3, its confidence.
        activation: Of the confidence.
        names: Names of the points.
    """

    format: PointFormat = "pixels"
    values: Literal[2, 3] = 2
    activation: Literal["none", "sigmoid"] = "none"
    names: tuple[str, ...] = ()


class RowCount(_Table, frozen=True, kw_only=True):
    """Number of valid rows of each image.

    Attributes:
        output: Its output.
    """

    output: str


class Suppression(_Table, frozen=True, kw_only=True):
    """Suppression of duplicates.

    Attributes:
        done: Whether the graph has suppressed them.
        iou: IoU above which two boxes of a class are one object.
    """

    done: bool = False
    iou: float = 0.45


class LayoutFile(_Table, frozen=True, kw_only=True):
    """A layout file.

    Attributes:
        format: Version of the file's form.
        layout: A known layout that decodes; then only `[input]`, `[suppression]` and `[classes] names` may be given.
        input: Preprocessing; None: that of the known layout.
    """

    format: Literal[1] = 1
    layout: str = ""
    input: Input | None = None
    anchors: Anchors | None = None
    boxes: Boxes | None = None
    scores: Scores | None = None
    objectness: Objectness | None = None
    classes: Classes | None = None
    masks: Masks | None = None
    keypoints: Keypoints | None = None
    count: RowCount | None = None
    suppression: Suppression | None = None


def layout_file_of(model: Path) -> Path | None:
    """Path of a model's layout file; None without one."""
    for form in SIDECARS:
        path = model.with_name(form.format(file=model.name, stem=model.stem))
        if path.is_file():
            return path
    return None


def read_layout_file(path: Path) -> LayoutFile:
    """Read and check a layout file.

    Raises:
        LayoutFileError: It cannot be read, has an unknown key, or a value of the wrong type or range; the error names
            the key.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise LayoutFileError(path, "", f"is larger than {MAX_BYTES:,} bytes")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise LayoutFileError(path, "", "is not UTF-8 text") from None
    except OSError as error:
        raise LayoutFileError(path, "", f"cannot be read: {error.strerror}") from None
    return parse_layout(text, path)


def parse_layout(text: str, path: Path) -> LayoutFile:
    """Parse the text of a layout file; `path` is named in errors. See `read_layout_file`."""
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise LayoutFileError(path, "", f"is not TOML: {error}") from None
    try:
        file = msgspec.convert(table, LayoutFile, strict=True)
    except msgspec.ValidationError as error:
        key, reason = _located(str(error))
        raise LayoutFileError(path, key, reason) from None
    for key, reason in problems(file):
        raise LayoutFileError(path, key, reason)
    return file


_KNOWN: dict[str, Any] = {
    "": LayoutFile, "input": Input, "anchors": Anchors, "boxes": Boxes, "scores": Scores, "objectness": Objectness,
    "classes": Classes, "masks": Masks, "keypoints": Keypoints, "count": RowCount, "suppression": Suppression,
}  # fmt: skip


def _located(message: str) -> tuple[str, str]:
    """Split msgspec's message into the key and what is wrong with it."""
    reason, _, where = message.partition(" - at `$")
    key = where.rstrip("`").lstrip(".")
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", reason)
    if unknown:
        known_keys = ", ".join(_KNOWN[key].__struct_fields__) if key in _KNOWN else ""
        return ".".join(filter(None, [key, unknown[1]])), f"is not a known key. Known keys: {known_keys}"
    missing = re.fullmatch(r"Object missing required field `(.*)`", reason)
    if missing:
        return ".".join(filter(None, [key, missing[1]])), "is missing"
    wrong = re.fullmatch(r"Invalid enum value (.*)", reason)
    if wrong:
        return key, f"is {wrong[1]}; it must be one of {', '.join(_choices(key))}"
    return key, f"is wrong: {reason[:1].lower()}{reason[1:]}"


def _choices(key: str) -> tuple[str, ...]:
    table, _, name = key.rpartition(".")
    if table not in _KNOWN:
        return ()
    allowed: list[str] = []
    for part in msgspec.inspect.multi_type_info([_KNOWN[table]])[0].fields:  # type: ignore[attr-defined]
        if part.name == name:
            kinds = getattr(part.type, "types", (part.type,))
            allowed += [repr(value) for kind in kinds for value in getattr(kind, "values", ())]
    return tuple(allowed)


def problems(file: LayoutFile) -> Iterator[tuple[str, str]]:
    """Yield (key, what is wrong) of values that contradict one another or lie out of range."""
    if file.input is not None:
        yield from input_problems(file.input)
    if file.suppression is not None and not 0 < file.suppression.iou <= 1:
        yield "suppression.iou", f"is {file.suppression.iou}; it must be above 0 and at most 1"
    tables = ("anchors", "boxes", "scores", "objectness", "masks", "keypoints", "count")
    if file.layout:
        for name in tables:
            if getattr(file, name) is not None:
                yield name, f"cannot be combined with layout = {file.layout!r}: leave one of both out"
        if file.classes is not None and (file.classes.output or file.classes.first):
            yield "classes", f"may only have `names` together with layout = {file.layout!r}"
        return
    if file.boxes is None:
        yield "boxes", "is missing: name the output of the boxes, or a known layout with `layout`"
        return
    if file.scores is None:
        yield "scores", "is missing: name the output of the scores"
        return
    if file.input is None:
        yield "input", "is missing: say how the image is shown (size, color, range, letterbox)"
    yield from _source_problems(file)
    yield from _anchor_problems(file, file.boxes)


def input_problems(table: Input) -> Iterator[tuple[str, str]]:
    """Yield (key, what is wrong) of values of an `[input]` that lie out of range."""
    if table.size is not None and not all(16 <= side <= 8192 for side in table.size):
        yield "input.size", f"is {list(table.size)}; each side must be 16 to 8192 pixels ([height, width])"
    if not 0 <= table.pad <= 255:
        yield "input.pad", f"is {table.pad}; it must be 0 to 255"
    if any(value == 0 for value in table.std):
        yield "input.std", "has a zero; pixel values are divided by it"


def _source_problems(file: LayoutFile) -> Iterator[tuple[str, str]]:
    for name in ("boxes", "scores", "objectness", "masks", "keypoints"):
        table = getattr(file, name)
        if table is None:
            continue
        columns = table.columns
        if columns is not None and not 0 <= columns[0] < columns[1]:
            yield f"{name}.columns", f"is {list(columns)}; it must be [first, end] with 0 <= first < end"
        outputs = table.output if isinstance(table.output, tuple) else (table.output,)
        if not outputs or not all(outputs):
            yield f"{name}.output", "is empty; name an output of the graph"
        levels = len(file.anchors.strides) if file.anchors else 1
        if len(outputs) > 1 and len(outputs) != levels:
            yield f"{name}.output", f"names {len(outputs)} outputs for {levels} of `anchors.strides`"
    classes = file.classes
    if classes is not None and classes.column is not None and classes.column < 0:
        yield "classes.column", f"is {classes.column}; it must be 0 or more"
    if classes is not None and classes.column is not None and not classes.output:
        yield "classes.output", "is missing, and `classes.column` needs it"


def _anchor_problems(file: LayoutFile, boxes: Boxes) -> Iterator[tuple[str, str]]:
    points = file.keypoints.format if file.keypoints else ""
    needing = [
        f"{table}.format = {form!r}"
        for table, form in (("boxes", boxes.format), ("keypoints", points))
        if form in ANCHORED
    ]
    if needing and file.anchors is None:
        yield "anchors", f"is missing, and {needing[0]} is relative to anchors: give at least `strides`"
        return
    if not 1 <= boxes.bins <= 64:
        yield "boxes.bins", f"is {boxes.bins}; it must be 1 to 64"
    if boxes.unit == "strides" and boxes.format != "distances":
        yield "boxes.unit", f"is 'strides', which belongs to format = 'distances', not {boxes.format!r}"
    if boxes.bins > 1 and boxes.format != "distances":
        yield "boxes.bins", f"belongs to format = 'distances', not {boxes.format!r}"
    if boxes.sizes and boxes.format != "centernet":
        yield "boxes.sizes", f"belongs to format = 'centernet', not {boxes.format!r}"
    anchors = file.anchors
    if anchors is None:
        return
    if not anchors.strides or any(stride < 1 for stride in anchors.strides):
        yield "anchors.strides", f"is {list(anchors.strides)}; give pixels, one a level"
    for name in ("sizes", "per_cell"):
        count = len(getattr(anchors, name))
        if count and count != len(anchors.strides):
            yield f"anchors.{name}", f"has {count} levels, and `strides` has {len(anchors.strides)}"
    for size in (size for level in anchors.sizes for size in level):
        sides = size if isinstance(size, tuple) else (size, size)
        if len(sides) not in {2, 4} or any(side <= 0 for side in sides[:2]):
            yield "anchors.sizes", f"has {list(sides)}; an anchor is a side, [width, height] or [width, height, x, y]"
            break
    if any(count < 1 for count in anchors.per_cell):
        yield "anchors.per_cell", f"is {list(anchors.per_cell)}; it must be 1 or more a level"
    if anchors.sizes and anchors.per_cell and tuple(map(len, anchors.sizes)) != anchors.per_cell:
        yield "anchors.per_cell", "differs from the number of `sizes` of its level; leave it out"
    needing = [form for form in (boxes.format, points) if form in SIZED]
    if needing and not anchors.sizes:
        yield "anchors.sizes", f"is missing, and the format {needing[0]!r} needs the size of each anchor"
    if not -1 <= anchors.offset <= 1:
        yield "anchors.offset", f"is {anchors.offset}; it must be -1 to 1, in cells"


def write_layout(file: LayoutFile, *, comment: str = "") -> str:
    """Write a layout as TOML; reading it back gives an equal value."""
    lines = [f"# {line}" for line in comment.splitlines()]
    lines.append(f"format = {file.format}")
    if file.layout:
        lines.append(f"layout = {_toml(file.layout)}")
    for name in LayoutFile.__struct_fields__:
        table = getattr(file, name)
        if name in {"format", "layout"} or table is None:
            continue
        lines += ["", f"[{name}]"]
        defaults = dict(zip(table.__struct_fields__[-len(table.__struct_defaults__) :], table.__struct_defaults__,
                            strict=True)) if table.__struct_defaults__ else {}  # fmt: skip
        for key in table.__struct_fields__:
            value = getattr(table, key)
            # The preprocessing is written out: its defaults are what people check first.
            if value is not None and (value != defaults.get(key, msgspec.NODEFAULT) or name == "input"):
                lines.append(f"{key} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + "".join(char if char.isprintable() else f"\\U{ord(char):08X}" for char in escaped) + '"'
    if isinstance(value, tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    if isinstance(value, float):
        return repr(float(value))
    return str(value)
