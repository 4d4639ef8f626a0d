"""Requests and responses of Label Studio's ML backend protocol, decoded from the JSON that it sends.

The message formats match Label Studio 1.23.2; docs/reference/endpoints.md lists the endpoints.
"""

import json
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from labelloop.labeling.errors import MalformedConfig
from labelloop.labeling.studio.config import LabelConfig
from labelloop.service.errors import BadRequest

Message = TypeVar("Message", bound=msgspec.Struct)


class SetupRequest(msgspec.Struct, frozen=True):
    """`POST /setup`: sent whenever the Data Manager opens and before every prediction.

    Attributes:
        project: `<project id>.<creation time>`.
        schema: The label config's XML.
        extra_params: The connection's "extra params": any JSON value, or none.
    """

    project: str | int | None = None
    schema: str | None = None
    extra_params: Any = None


class PredictRequest(msgspec.Struct, frozen=True):
    """`POST /predict`: all selected tasks in one request.

    Attributes:
        tasks: As Label Studio serializes them; `data` is not resolved.
        label_config: The label config's XML.
        project: As in `SetupRequest`.
        params: `login`, `password`, `context`; may be null.
    """

    tasks: list[dict[str, Any]]
    label_config: str | None = None
    project: str | int | None = None
    params: dict[str, Any] | None = None

    @property
    def interactive(self) -> bool:
        """Whether an annotator waits for the response to a half-drawn shape (`params.context`)."""
        return bool((self.params or {}).get("context"))


# How a control can be served other than by the table CONTROLS: not at all; from boxes without the segmenter;
# rectangles as the smallest rotated box of the object.
OFF, BOX, ROTATED = "off", "box", "rotated"


class ProjectOptions(msgspec.Struct, frozen=True, omit_defaults=True):
    """Prediction options from a project's "extra params".

    Attributes:
        score_threshold: Minimum score of a pre-label, in [0, 1]; None: the backend's default.
        score_thresholds: Minimum score by model class or by label; takes precedence over every other threshold.
        slice: Side of the tiles that larger images are cut into, pixels; 0: no slicing.
        slice_overlap: Share of a tile that overlaps its neighbour, in [0, 0.9].
        controls: How controls are served, by name: `OFF`, `BOX` or `ROTATED`; all others by the table CONTROLS.
        model_thresholds: Minimum score by class where neither project nor control sets one; comes with a model version.
    """

    score_threshold: float | None = None
    score_thresholds: dict[str, float] = {}
    slice: int = 0
    slice_overlap: float = 0.2
    controls: dict[str, str] = {}
    model_thresholds: Mapping[str, float] = {}


def with_thresholds(options: ProjectOptions, thresholds: Mapping[str, float]) -> ProjectOptions:
    """Return the options with the thresholds of a model version as defaults; those of the project take precedence."""
    return msgspec.structs.replace(options, model_thresholds=thresholds) if thresholds else options


class TaskPrediction(msgspec.Struct, frozen=True):
    """One task's entry in the response to `/predict`. Label Studio stores these three fields only."""

    result: list[dict[str, Any]]
    score: float
    model_version: str


class FailedPrediction(msgspec.Struct, frozen=True):
    """An entry without `result`: Label Studio stores nothing and asks again when the task is opened next."""

    score: float
    model_version: str
    error: str


def read_message(body: Mapping[str, Any], kind: type[Message]) -> Message:
    """Decode a request's JSON object; unknown fields are ignored.

    Raises:
        BadRequest: A field is missing or of the wrong type; the message names it.
    """
    try:
        return msgspec.convert(body, kind)
    except msgspec.ValidationError as error:
        raise BadRequest(f"The request does not match Label Studio's ML backend protocol: {error}.") from None


def read_options(extra_params: Any) -> ProjectOptions:
    """Decode the options in "extra params": a JSON object, the same as JSON text, or empty.

    Raises:
        BadRequest: It is something else, or a value has the wrong type or is out of range.
    """
    value = extra_params
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else {}
        except json.JSONDecodeError as error:
            raise BadRequest(f"The extra params are not JSON: {error}.", fix=_OPTIONS) from None
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise BadRequest("The extra params are not a JSON object.", fix=_OPTIONS)
    options: dict[str, Any] = {}
    if value.get("score_threshold") is not None:
        options["score_threshold"] = _number(value, "score_threshold", 0, 1)
    if value.get("score_thresholds") is not None:
        by_name = value["score_thresholds"]
        if not isinstance(by_name, dict):
            raise BadRequest(f"score_thresholds in the extra params is {by_name!r}.", fix=_OPTIONS)
        options["score_thresholds"] = {name: _number(by_name, name, 0, 1) for name in by_name}
    if value.get("slice") is not None:
        options["slice"] = int(_number(value, "slice", 0, 100_000))
        if 0 < options["slice"] < MIN_SLICE:
            raise BadRequest(f"slice in the extra params is {options['slice']}, less than {MIN_SLICE}.", fix=_OPTIONS)
    if value.get("slice_overlap") is not None:
        options["slice_overlap"] = _number(value, "slice_overlap", 0, 0.9)
    if value.get("controls") is not None:
        options["controls"] = _controls(value["controls"])
    return ProjectOptions(**options)


def _controls(value: Any) -> dict[str, str]:
    """How controls are served, by name, without those that are served by the table."""
    if not isinstance(value, dict):
        raise BadRequest(f"controls in the extra params is {value!r}.", fix=_CONTROLS)
    controls: dict[str, str] = {}
    for name, served_as in value.items():
        if not isinstance(served_as, bool | str) or served_as not in {True, False, BOX, ROTATED}:
            raise BadRequest(f"controls.{name} in the extra params is {served_as!r}.", fix=_CONTROLS)
        if served_as is not True:
            controls[name] = served_as or OFF
    return controls


def check_controls(config: LabelConfig, options: ProjectOptions) -> None:
    """Check the controls that the options name against the label config.

    Raises:
        BadRequest: A control does not exist, or cannot be served like that.
    """
    for name, served_as in options.controls.items():
        control = config.control(name)
        if control is None:
            offered = ", ".join(config.controls) or "none"
            raise BadRequest(
                f"controls in the extra params names {name!r}, and the label config has no such control: {offered}.",
                fix=_CONTROLS,
            )
        shapes = {control.type.removesuffix("labels")}
        if control.type == "labels":
            shapes = {partner.type for partner in config.controls.values() if {*partner.to_names} & {*control.to_names}}
        if not shapes & _SERVED_AS.get(served_as, shapes):
            takes = ", ".join(sorted(_SERVED_AS[served_as]))
            raise BadRequest(
                f"controls.{name} in the extra params is {served_as!r}, and only controls of {takes} take that.",
                fix=_CONTROLS,
            )


# Shapes that a control must draw for an option.
_SERVED_AS = {BOX: frozenset({"polygon", "ellipse"}), ROTATED: frozenset({"rectangle"})}

_CONTROLS = (
    'Write the name of a control and how it is pre-labelled, for example {"controls": {"brush": false}}: false for not '
    'at all, "box" for a polygon or an ellipse of the box without the segmenter, "rotated" for the smallest rotated '
    "rectangle of the object."
)


# Pixels a side: smaller tiles would cut an image into thousands.
MIN_SLICE = 64

_OPTIONS = (
    'In the connection\'s extra params write for example {"score_threshold": 0.4}, or '
    '{"score_thresholds": {"car": 0.6}, "slice": 640}: thresholds are numbers from 0 to 1, slice is in pixels.'
)


def _number(value: Mapping[str, Any], key: str, least: float, most: float) -> float:
    number = value[key]
    if isinstance(number, bool) or not isinstance(number, int | float) or not least <= number <= most:
        raise BadRequest(f"{key} in the extra params is {number!r}.", fix=_OPTIONS)
    return float(number)


def read_config(xml: str | None) -> LabelConfig:
    """Parse the label config; an empty one if the project has none yet.

    Raises:
        BadRequest: It is not a Label Studio label config.
    """
    try:
        return LabelConfig.parse(xml) if xml and xml.strip() else LabelConfig({}, {})
    except MalformedConfig as error:
        raise BadRequest(f"The label config cannot be read: {error.reason}.") from None
