"""Parse an annotation: group its results by region, and read shapes, labels and answers."""

from collections.abc import Callable, Iterable
from typing import Any

from msgspec.structs import replace

from labelloop.labeling.errors import MalformedValue, RegionError
from labelloop.labeling.geometry.shapes import Mask, Rectangle
from labelloop.labeling.region import NO_ATTRIBUTES, ParsedAnnotation, Region
from labelloop.labeling.result import Result
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.task import Annotation, ModelPrediction, Task
from labelloop.labeling.studio.values import (
    ANSWERS,
    GEOMETRIES,
    ValueCodec,
    codec_for_value,
    parse_answer,
    parse_labels,
)

Source = Annotation | ModelPrediction
ImageSizeOf = Callable[[int], tuple[int, int] | None]

_MAX_NUMBER = 1e9  # as in `values`
_PER_TASK = {"choices", "taxonomy"}


def read_annotation(
    source: Source,
    *,
    task: Task | None = None,
    config: LabelConfig | None = None,
    size: ImageSizeOf | None = None,
) -> ParsedAnnotation:
    """Parse an annotation or a prediction. A malformed result is reported; the others are read.

    Args:
        source: The annotation, also a skipped one or a ground truth.
        task: Its task: named in errors, and a source of image sizes that the results lack.
        config: The label config: with it, a result whose control does not exist is an error.
        size: ``size(item_index)`` returns an image's ``(width, height)``, for example from its header. It is called
            only if neither the results nor the task's other annotations state the size.
    """
    return _Reader(source, task, config, size).read()


def region_from_results(shape: Result, others: Iterable[Result], width: int, height: int) -> Region:
    """Build a region from the results that share its id.

    Args:
        shape: The result with its geometry.
        others: Further results of the region: labels of a separate control, answers.
        width: The image's width in pixels.
        height: The image's height in pixels.

    Raises:
        MalformedValue: A field of one of them is malformed.
    """
    region = _region_from_shape(shape, width, height)
    for other in others:
        region = _with_result(region, other)
    return region


def at_image_size(region: Region, width: int, height: int) -> Region:
    """The region on an image of another size than its result states: Label Studio's values are in percent.

    Args:
        region: A region that was read from a result.
        width: The image's width in pixels.
        height: The image's height in pixels.

    Raises:
        MalformedValue: It is a mask, whose pixels are those of the stated size.
    """
    value = region.result[0].value
    codec = GEOMETRIES.get(region.type) or codec_for_value(value)
    if codec is None or codec.geometry is Mask:
        stated = f"{region.width} x {region.height}"
        raise MalformedValue("original_width", f"a mask of {stated} pixels on an image of {width} x {height}")
    return replace(region, geometry=codec.read(value, width, height), width=width, height=height)


def _region_from_shape(result: Result, width: int, height: int) -> Region:
    raw = result.raw
    value = raw.get("value")
    if not isinstance(value, dict):
        raise MalformedValue("value", "is missing" if value is None else f"expected an object, found {value!r:.40}")
    kind = result.type
    shape: ValueCodec | None = GEOMETRIES.get(kind) or codec_for_value(value)
    if shape is None:
        raise MalformedValue("type", f"{kind!r} draws no shape on an image")
    return Region(
        shape.read(value, width, height),
        parse_labels(value, kind),
        result.id,
        result.from_name,
        result.to_name,
        kind,
        result.score,
        result.item_index or 0,
        width,
        height,
        NO_ATTRIBUTES,
        (result,),
    )


def _plain_rectangle(result: Result) -> Region | None:
    """Fast path for an upright rectangle with one label as Label Studio writes it: most results are that.

    The result equals that of `_region_from_shape`; None if any check of the general path is needed.
    """
    raw = result.raw
    get = raw.get
    value, width, height = get("value"), get("original_width"), get("original_height")
    if get("type") != "rectanglelabels" or type(value) is not dict or type(width) is not int or type(height) is not int:
        return None
    x, y, w, h = value.get("x"), value.get("y"), value.get("width"), value.get("height")
    labels = value.get("rectanglelabels")
    if not (type(x) is type(y) is type(w) is type(h) is float and type(labels) is list and len(labels) == 1):
        return None
    name, control, to_name, label = get("id"), get("from_name"), get("to_name"), labels[0]
    if not (type(name) is type(control) is type(to_name) is type(label) is str) or value.get("rotation"):
        return None
    is_plain = (
        -_MAX_NUMBER < x < _MAX_NUMBER
        and -_MAX_NUMBER < y < _MAX_NUMBER
        and 0 < w < _MAX_NUMBER
        and 0 < h < _MAX_NUMBER
        and width > 0
        and height > 0
    )
    if not is_plain or "score" in raw or "item_index" in raw:
        return None
    return Region(
        Rectangle(x * width / 100, y * height / 100, w * width / 100, h * height / 100),
        (label,),
        name,
        control,
        to_name,
        "rectanglelabels",
        None,
        0,
        width,
        height,
        NO_ATTRIBUTES,
        (result,),
    )


def _with_result(region: Region, other: Result) -> Region:
    """The region with the content of one more result."""
    kind, control = other.type, other.from_name
    region_labels, attributes = region.labels, dict(region.attributes)
    label_control = region.control
    if kind in ANSWERS:
        attributes[control] = parse_answer(other.value, kind)
    elif kind in GEOMETRIES or kind.endswith("labels"):
        names = parse_labels(other.value, kind)
        if not region_labels and label_control == region.result[0].from_name:
            region_labels, label_control = names, control
        else:
            attributes[control] = names
    return Region(
        region.geometry,
        region_labels,
        region.id,
        label_control,
        region.to_name,
        region.type,
        region.score if region.score is not None else other.score,
        region.item_index,
        region.width,
        region.height,
        attributes,
        (*region.result, other),
    )


class _Reader:
    """The state while one annotation is read; every result goes to exactly one of the lists."""

    def __init__(self, source: Source, task: Task | None, config: LabelConfig | None, size: ImageSizeOf | None) -> None:
        self.source = source
        self.task = task
        self.config = config
        self.size = size
        self.regions: list[Region] = []
        self.by_id: dict[str, int] = {}  # a region's id -> index in `regions`; -1 if its shape is malformed
        self.choices: dict[str, tuple[str, ...]] = {}
        self.choice_results: list[Result] = []
        self.relations: list[Result] = []
        self.other_results: list[Result] = []
        self.errors: list[RegionError] = []
        self.sizes: dict[tuple[str, int], tuple[int, int]] | None = None

    def read(self) -> ParsedAnnotation:
        for broken in self.source.malformed:
            self._fail(None, broken.field, broken.reason, broken.source)
        others = []
        for result in self.source.results:
            if result.type in GEOMETRIES:
                self._draw(result)
            else:
                others.append(result)
        if others:
            self._read_others(others)
        return ParsedAnnotation(
            tuple(self.regions),
            self.choices,
            tuple(self.choice_results),
            tuple(self.relations),
            tuple(self.other_results),
            tuple(self.errors),
        )

    def _draw(self, result: Result) -> None:
        has_control = self.config is None or result.from_name in self.config.controls
        region = _plain_rectangle(result) if has_control else None
        if region is None:
            try:
                if not has_control:
                    self._require_control(result)
                region = _region_from_shape(result, *self._size(result))
            except MalformedValue as error:
                self.by_id.setdefault(result.id, -1)
                self._fail(result, error.field, error.reason)
                return
        name = region.id
        index = self.by_id.get(name, -1) if name else -1
        if index < 0:
            self.by_id[name] = len(self.regions)
        elif self._same_shape(self.regions[index], region):
            self.regions[index] = _with_result(self.regions[index], result)
            return
        self.regions.append(region)

    @staticmethod
    def _same_shape(first: Region, second: Region) -> bool:
        """Whether two results are one region: different controls write a shared shape twice, with one id."""
        return (
            first.geometry == second.geometry
            and first.item_index == second.item_index
            and all(result.from_name != second.control for result in first.result)
        )

    def _read_others(self, others: list[Result]) -> None:
        remaining = [result for result in others if not self._is_labels_without_shape(result)]
        # Answers about text spans and similar regions share the id of their region and stay with it.
        elsewhere = {result.id for result in remaining if result.type not in ANSWERS and result.type != "relation"}
        elsewhere |= {name for name, index in self.by_id.items() if index < 0}
        for result in remaining:
            name, kind = result.id, result.type
            if kind == "relation":
                self.relations.append(result)
            elif not kind:
                self._fail(result, "type", "is missing")
            elif name and self.by_id.get(name, -1) >= 0:
                self._attach(result)
            elif kind in _PER_TASK and not (name and name in elsewhere) and not self._per_region(result):
                self._answer(result)
            else:
                self.other_results.append(result)

    def _per_region(self, result: Result) -> bool:
        """Whether an answer refers to a region that does not exist."""
        control = self.config.control(result.from_name) if self.config else None
        return codec_for_value(result.value) is not None or (control is not None and control.per_region)

    def _attach(self, result: Result) -> None:
        index = self.by_id[result.id]
        try:
            self._require_control(result)
            self.regions[index] = _with_result(self.regions[index], result)
        except MalformedValue as error:
            self._fail(result, error.field, error.reason)

    def _is_labels_without_shape(self, result: Result) -> bool:
        """Read labels that repeat a shape whose own result is missing; whether that was the case."""
        if result.type != "labels" or (result.id and result.id in self.by_id) or codec_for_value(result.value) is None:
            return False
        self._draw(result)
        return True

    def _answer(self, result: Result) -> None:
        try:
            self._require_control(result)
            chosen = parse_answer(result.value, result.type)
        except MalformedValue as error:
            self._fail(result, error.field, error.reason)
            return
        control = result.from_name
        self.choices[control] = tuple(dict.fromkeys((*self.choices.get(control, ()), *chosen)))
        self.choice_results.append(result)

    def _require_control(self, result: Result) -> None:
        if self.config is not None and self.config.control(result.from_name) is None:
            raise MalformedValue("from_name", f"the label config has no control named {result.from_name!r}")

    def _size(self, result: Result) -> tuple[int, int]:
        width, height = result.original_width, result.original_height
        if width is not None and height is not None:
            return width, height
        key = (result.to_name, result.item_index or 0)
        if self.sizes is None:
            self.sizes = self._stated_sizes()
        size = self.sizes.get(key)
        if size is None and self.size is not None:
            size = self.size(key[1])
        if size is None:
            missing = "original_width" if width is None else "original_height"
            stated = result.raw.get(missing)
            reason = "is missing" if stated is None else f"is {stated!r:.40}"
            raise MalformedValue(missing, f"{reason}, and no other result states the image's size")
        self.sizes[key] = size
        return size

    def _stated_sizes(self) -> dict[tuple[str, int], tuple[int, int]]:
        """The image sizes stated by this annotation, then by the task's other annotations."""
        sizes: dict[tuple[str, int], tuple[int, int]] = {}
        others: tuple[Source, ...] = (*self.task.annotations, *self.task.predictions) if self.task else ()
        for source in (self.source, *others):
            for result in source.results:
                width, height = result.original_width, result.original_height
                if width is not None and height is not None:
                    sizes.setdefault((result.to_name, result.item_index or 0), (width, height))
        return sizes

    def _fail(self, result: Result | None, field: str, reason: str, source: Any = None) -> None:
        self.errors.append(
            RegionError(
                self.task.id if self.task else None,
                self.source.id,
                result.id if result else "",
                field,
                reason,
                source=result.raw if result else source,
            )
        )
