"""From an annotation's results to shapes and answers: which results belong together, and what each one means."""

from collections.abc import Callable, Iterable
from typing import Any

from labelloop.labeling.errors import MalformedValue, RegionError
from labelloop.labeling.geometry.shapes import Rectangle
from labelloop.labeling.region import NO_ATTRIBUTES, Reading, Region
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.task import Annotation, Prediction, Result, Task
from labelloop.labeling.studio.values import ANSWERS, GEOMETRIES, Shape, answer, labels, shape_of

Source = Annotation | Prediction
SizeOf = Callable[[int], tuple[int, int] | None]

_FAR = 1e9  # as in `values`
_PER_TASK = {"choices", "taxonomy"}


def read_annotation(
    source: Source,
    *,
    task: Task | None = None,
    config: LabelConfig | None = None,
    size: SizeOf | None = None,
) -> Reading:
    """What an annotation (or a prediction) says. A malformed result costs itself alone, and is reported.

    Args:
        source: The annotation. Whether it counts (skipped, ground truth) is the caller's matter.
        task: The task it belongs to: named in errors, and asked for image sizes that the results leave out.
        config: The labelling configuration: with it, a result whose control no longer exists is an error.
        size: ``size(item_index)`` gives an image's ``(width, height)``, such as from its header. It is called only
            where neither the results nor the task's other annotations say.
    """
    return _Reader(source, task, config, size).read()


def regions(
    source: Source,
    *,
    task: Task | None = None,
    config: LabelConfig | None = None,
    size: SizeOf | None = None,
) -> tuple[Region, ...]:
    """The shapes of an annotation, for callers that want all of them or none. Takes what `read_annotation` takes.

    Raises:
        RegionError: The first result that is malformed.
    """
    reading = read_annotation(source, task=task, config=config, size=size)
    if reading.errors:
        raise reading.errors[0]
    return reading.regions


def region_of(shape: Result, others: Iterable[Result], width: int, height: int) -> Region:
    """One region from the results that share its id.

    Args:
        shape: The result that holds its geometry.
        others: Further results of the region: labels of a separate control, answers about it.
        width: The image's width in pixels.
        height: The image's height in pixels.

    Raises:
        MalformedValue: A field of one of them is malformed.
    """
    region = _bare(shape, width, height)
    for other in others:
        region = _joined(region, other)
    return region


def _bare(result: Result, width: int, height: int) -> Region:
    raw = result.raw
    value = raw.get("value")
    if not isinstance(value, dict):
        raise MalformedValue("value", "is missing" if value is None else f"expected an object, found {value!r:.40}")
    kind = result.type
    shape: Shape | None = GEOMETRIES.get(kind) or shape_of(value)
    if shape is None:
        raise MalformedValue("type", f"{kind!r} draws no shape on an image")
    return Region(
        shape.read(value, width, height),
        labels(value, kind),
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


def _usual(result: Result) -> Region | None:
    """The region of an upright rectangle with one label, in the form that Label Studio writes: most results are that.

    It is what `_bare` gives, without its questions; None where any of them would have to be asked.
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
    usual = -_FAR < x < _FAR and -_FAR < y < _FAR and 0 < w < _FAR and 0 < h < _FAR and width > 0 and height > 0
    if not usual or "score" in raw or "item_index" in raw:
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


def _joined(region: Region, other: Result) -> Region:
    """The region with what one more result says about it."""
    kind, control = other.type, other.from_name
    chosen, attributes = region.labels, dict(region.attributes)
    own = region.control
    if kind in ANSWERS:
        attributes[control] = answer(other.value, kind)
    elif kind in GEOMETRIES or kind.endswith("labels"):
        found = labels(other.value, kind)
        if not chosen and own == region.result[0].from_name:
            chosen, own = found, control
        else:
            attributes[control] = found
    return Region(
        region.geometry,
        chosen,
        region.id,
        own,
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
    """One reading under way; every result ends in exactly one of its lists."""

    def __init__(self, source: Source, task: Task | None, config: LabelConfig | None, size: SizeOf | None) -> None:
        self.source = source
        self.task = task
        self.config = config
        self.size = size
        self.regions: list[Region] = []
        self.by_id: dict[str, int] = {}  # a region's id -> its place in `regions`; -1 where its shape is malformed
        self.choices: dict[str, tuple[str, ...]] = {}
        self.answers: list[Result] = []
        self.relations: list[Result] = []
        self.carried: list[Result] = []
        self.errors: list[RegionError] = []
        self.sizes: dict[tuple[str, int], tuple[int, int]] | None = None

    def read(self) -> Reading:
        for broken in self.source.malformed:
            self._fail(None, broken.field, broken.reason, broken.source)
        others = []
        for result in self.source.results:
            if result.type in GEOMETRIES:
                self._draw(result)
            else:
                others.append(result)
        if others:
            self._rest(others)
        return Reading(
            tuple(self.regions),
            self.choices,
            tuple(self.answers),
            tuple(self.relations),
            tuple(self.carried),
            tuple(self.errors),
        )

    def _draw(self, result: Result) -> None:
        known = self.config is None or result.from_name in self.config.controls
        region = _usual(result) if known else None
        if region is None:
            try:
                if not known:
                    self._known(result)
                region = _bare(result, *self._size(result))
            except MalformedValue as error:
                self.by_id.setdefault(result.id, -1)
                self._fail(result, error.field, error.reason)
                return
        name = region.id
        place = self.by_id.get(name, -1) if name else -1
        if place < 0:
            self.by_id[name] = len(self.regions)
        elif self._same_shape(self.regions[place], region):
            self.regions[place] = _joined(self.regions[place], result)
            return
        self.regions.append(region)

    @staticmethod
    def _same_shape(first: Region, second: Region) -> bool:
        """Two controls that label one shape write it twice. Twice by one control is two regions with a worn-out id."""
        return (
            first.geometry == second.geometry
            and first.item_index == second.item_index
            and all(result.from_name != second.control for result in first.result)
        )

    def _rest(self, others: list[Result]) -> None:
        left = [result for result in others if not self._lone_labels(result)]
        # Answers about text spans and the like share an id with what they are about, and are carried with it.
        elsewhere = {result.id for result in left if result.type not in ANSWERS and result.type != "relation"}
        elsewhere |= {name for name, place in self.by_id.items() if place < 0}
        for result in left:
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
                self.carried.append(result)

    def _per_region(self, result: Result) -> bool:
        """Whether an answer is about a region that is not there."""
        control = self.config.control(result.from_name) if self.config else None
        return shape_of(result.value) is not None or (control is not None and control.per_region)

    def _attach(self, result: Result) -> None:
        place = self.by_id[result.id]
        try:
            self._known(result)
            self.regions[place] = _joined(self.regions[place], result)
        except MalformedValue as error:
            self._fail(result, error.field, error.reason)

    def _lone_labels(self, result: Result) -> bool:
        """Labels that repeat a shape whose own result is missing: the shape is read from them."""
        if result.type != "labels" or (result.id and result.id in self.by_id) or shape_of(result.value) is None:
            return False
        self._draw(result)
        return True

    def _answer(self, result: Result) -> None:
        try:
            self._known(result)
            found = answer(result.value, result.type)
        except MalformedValue as error:
            self._fail(result, error.field, error.reason)
            return
        control = result.from_name
        self.choices[control] = tuple(dict.fromkeys((*self.choices.get(control, ()), *found)))
        self.answers.append(result)

    def _known(self, result: Result) -> None:
        if self.config is not None and self.config.control(result.from_name) is None:
            raise MalformedValue("from_name", f"the label config has no control named {result.from_name!r}")

    def _size(self, result: Result) -> tuple[int, int]:
        width, height = result.original_width, result.original_height
        if width is not None and height is not None:
            return width, height
        key = (result.to_name, result.item_index or 0)
        if self.sizes is None:
            self.sizes = self._stated()
        found = self.sizes.get(key)
        if found is None and self.size is not None:
            found = self.size(key[1])
        if found is None:
            missing = "original_width" if width is None else "original_height"
            stated = result.raw.get(missing)
            reason = "is missing" if stated is None else f"is {stated!r:.40}"
            raise MalformedValue(missing, f"{reason}, and nothing else tells the image's size")
        self.sizes[key] = found
        return found

    def _stated(self) -> dict[tuple[str, int], tuple[int, int]]:
        """The image sizes that this annotation states, then those that the task's others do."""
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
