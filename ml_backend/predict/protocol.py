"""Owns Label Studio's ML backend protocol: its requests and answers as frozen values, read from any JSON it sends.

The forms are those that Label Studio 1.23.2 was seen to send; docs/reference/endpoints.md lists the endpoints.
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
    """`POST /setup`: asked at every opening of the Data Manager and before every prediction.

    Attributes:
        project: `<project id>.<creation time>`.
        schema: The label config's XML.
        extra_params: The connection's "extra params": anything, or nothing.
    """

    project: str | int | None = None
    schema: str | None = None
    extra_params: Any = None


class PredictRequest(msgspec.Struct, frozen=True):
    """`POST /predict`: all selected tasks at once.

    Attributes:
        tasks: As Label Studio serializes them, data raw.
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
        """Whether an annotator waits with a half-drawn shape (`params.context`), rather than a batch of tasks."""
        return bool((self.params or {}).get("context"))


class ProjectOptions(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a project's "extra params" ask for.

    Attributes:
        score_threshold: Lowest score of a pre-label, in [0, 1]; None: the backend's own.
        score_thresholds: The same by class of the model, or by label; it goes before every other threshold.
        slice: Pixels a side of the parts that larger photos are cut into; 0: they are not.
        slice_overlap: Share of a part that its neighbour shows too.
        usual: Lowest score by class where neither project nor control says one: what comes with a model version.
    """

    score_threshold: float | None = None
    score_thresholds: dict[str, float] = {}
    slice: int = 0
    slice_overlap: float = 0.2
    usual: Mapping[str, float] = {}


def with_thresholds(options: ProjectOptions, thresholds: Mapping[str, float]) -> ProjectOptions:
    """The options with the thresholds that come with a model version; whatever the project asks for goes first."""
    return msgspec.structs.replace(options, usual=thresholds) if thresholds else options


class Prediction(msgspec.Struct, frozen=True):
    """One task's entry in the answer to `/predict`. The three fields are all that Label Studio keeps."""

    result: list[dict[str, Any]]
    score: float
    model_version: str


class Unanswered(msgspec.Struct, frozen=True):
    """An entry without `result`: Label Studio keeps nothing of it, and asks again when the task is opened next."""

    score: float
    model_version: str
    error: str


def read_message(body: Mapping[str, Any], kind: type[Message]) -> Message:
    """A request's JSON object as one of the types above; fields that it does not name are left aside.

    Raises:
        BadRequest: A field is missing or of the wrong type; the message says which.
    """
    try:
        return msgspec.convert(body, kind)
    except msgspec.ValidationError as error:
        raise BadRequest(f"The request is not one of Label Studio's: {error}.") from None


def read_options(extra_params: Any) -> ProjectOptions:
    """The options in "extra params": an object, the same as JSON text, or empty in any of the ways it can be.

    Raises:
        BadRequest: It is something else, or a number in it is none or out of its range.
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
    told: dict[str, Any] = {}
    if value.get("score_threshold") is not None:
        told["score_threshold"] = _number(value, "score_threshold", 0, 1)
    if value.get("score_thresholds") is not None:
        by_name = value["score_thresholds"]
        if not isinstance(by_name, dict):
            raise BadRequest(f"score_thresholds in the extra params is {by_name!r}.", fix=_OPTIONS)
        told["score_thresholds"] = {name: _number(by_name, name, 0, 1) for name in by_name}
    if value.get("slice") is not None:
        told["slice"] = int(_number(value, "slice", 0, 100_000))
        if 0 < told["slice"] < LEAST_SLICE:
            raise BadRequest(f"slice in the extra params is {told['slice']}, less than {LEAST_SLICE}.", fix=_OPTIONS)
    if value.get("slice_overlap") is not None:
        told["slice_overlap"] = _number(value, "slice_overlap", 0, 0.9)
    return ProjectOptions(**told)


LEAST_SLICE = 64
"""Pixels a side: smaller parts would cut a photo into thousands."""

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
    """The label config; an empty one where there is none yet.

    Raises:
        BadRequest: It is not Label Studio's XML.
    """
    try:
        return LabelConfig.parse(xml) if xml and xml.strip() else LabelConfig({}, {})
    except MalformedConfig as error:
        raise BadRequest(f"The label config cannot be read: {error.reason}.") from None
