"""Owns Label Studio's ML backend protocol: its requests and answers as frozen values, read from any JSON it sends.

The forms are those that Label Studio 1.23.2 was seen to send; docs/reference/endpoints.md lists the endpoints.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from labelloop.labeling.config import LabelConfig
from labelloop.labeling.errors import MalformedConfig
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
    """

    score_threshold: float | None = None


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
        BadRequest: It is something else, or the threshold is not a number from 0 to 1.
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
    threshold = value.get("score_threshold")
    if threshold is None:
        return ProjectOptions()
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
        raise BadRequest(f"score_threshold in the extra params is {threshold!r}.", fix=_OPTIONS)
    return ProjectOptions(score_threshold=float(threshold))


_OPTIONS = 'In the connection\'s extra params write for example {"score_threshold": 0.4}, a number from 0 to 1.'


def read_config(xml: str | None) -> LabelConfig:
    """The label config; an empty one where there is none yet.

    Raises:
        BadRequest: It is not Label Studio's XML.
    """
    try:
        return LabelConfig.parse(xml) if xml and xml.strip() else LabelConfig({}, {})
    except MalformedConfig as error:
        raise BadRequest(f"The label config cannot be read: {error.reason}.") from None
