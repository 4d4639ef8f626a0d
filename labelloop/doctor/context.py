"""The context of the checks: the settings, the project, and values that several checks need, fetched once."""

import re
import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import httpx

from labelloop.labeling.studio.config import LabelConfig
from labelloop.service.settings import SecretStr, Settings
from labelloop.service.store import Capabilities, open_store
from labelloop.service.studio import Studio
from ml_backend.inference.detector import Detector
from ml_backend.predict.protocol import ProjectOptions
from ml_backend.serving.activation import open_served_model
from ml_backend.studio.extra_params import options_of

Value = TypeVar("Value")

STUDIO_TIMEOUT_S = 6.0
HTTP_TIMEOUT_S = 4.0


class DoctorContext:
    """One run of the doctor.

    A value is fetched once, by the first check that needs it, and cached for the others; an error is cached too.
    Thread-safe.

    Args:
        settings: The addresses, tokens and folders.
        project_id: The project to check as well; None checks the services alone.
        studio: Label Studio. Default: from the settings, with short timeouts.
    """

    def __init__(self, settings: Settings, project_id: int | None = None, *, studio: Studio | None = None) -> None:
        """Fetch nothing yet."""
        self.settings = settings
        self.project_id = project_id
        self._studio = studio
        self._opened: Studio | None = None
        self._values: dict[str, _Cached[Any]] = {}
        self._lock = threading.Lock()

    @property
    def studio(self) -> Studio:
        """Label Studio.

        Raises:
            StudioUnreachable: The address is not an http(s) URL.
        """
        return self.fetch_once("studio", self._open_studio)

    def close(self) -> None:
        """Close the connections to Label Studio that the context itself opened."""
        if self._opened is not None:
            self._opened.close()

    def project(self) -> dict[str, Any]:
        """The project's own fields."""
        return self.fetch_once("project", lambda: self.studio.project(self._project_id()))

    def label_config(self) -> LabelConfig:
        """The project's labeling interface."""
        return self.fetch_once("config", lambda: LabelConfig.parse(str(self.project()["label_config"])))

    def options(self) -> ProjectOptions:
        """The options in the extra params of the project's connection.

        Raises:
            BadRequest: They cannot be used.
        """
        if self.project_id is None:
            return ProjectOptions()
        url = self.settings.ml_url
        return self.fetch_once("options", lambda: options_of(self.backends(), url, self.label_config()))

    def webhooks(self) -> Sequence[dict[str, Any]]:
        """The project's webhooks."""
        return self.fetch_once("webhooks", lambda: self.studio.webhooks(self._project_id()))

    def backends(self) -> Sequence[dict[str, Any]]:
        """The project's ML backends; Label Studio requests the health and version of each on the way."""
        return self.fetch_once("backends", lambda: self.studio.ml_backends(self._project_id()))

    def views(self) -> Sequence[dict[str, Any]]:
        """The project's Data Manager tabs."""
        return self.fetch_once("views", lambda: self.studio.views(self._project_id()))

    def store(self) -> Capabilities:
        """The capabilities that the store showed in its self-test."""
        return self.fetch_once("store", lambda: open_store(self.settings.store_url, self.settings).self_test())

    def detector(self) -> Detector:
        """The model that is served to the project (without one: to all projects), loaded and run once."""
        return self.fetch_once("detector", self._load_detector)

    def get(self, url: str, *, auth: bool = False) -> httpx.Response:
        """Send one GET with a short timeout and without a proxy; ``auth`` adds the configured Basic log-in."""
        return self._call("GET", url, auth=auth)

    def post(self, url: str, json: Any, *, headers: dict[str, str] | None = None, auth: bool = False) -> httpx.Response:
        """Send one POST, like `get`."""
        return self._call("POST", url, json=json, headers=headers, auth=auth)

    @staticmethod
    def reason(error: httpx.HTTPError) -> str:
        """Why a request got no response, in words."""
        if isinstance(error, httpx.TimeoutException):
            return f"no answer within {HTTP_TIMEOUT_S:g} s"
        return re.sub(r"^\[Errno -?\d+\] ", "", str(error)).rstrip(".") or type(error).__name__

    def redact(self, text: str) -> str:
        """The text with every secret of the settings replaced by ***."""
        for name in self.settings.names():
            value = getattr(self.settings, name)
            secret = value.get_secret_value() if isinstance(value, SecretStr) else ""
            if secret:
                text = text.replace(secret, "***")
        return text

    def _call(
        self, method: str, url: str, *, json: Any = None, headers: dict[str, str] | None = None, auth: bool
    ) -> httpx.Response:
        log_in = (self.settings.basic_auth_user, self.settings.basic_auth_password.get_secret_value())
        with httpx.Client(timeout=HTTP_TIMEOUT_S, trust_env=False) as client:
            return client.request(method, url, json=json, headers=headers, auth=log_in if auth and log_in[0] else None)

    def _open_studio(self) -> Studio:
        if self._studio is not None:
            return self._studio
        settings = self.settings
        api_key = settings.label_studio_api_key.get_secret_value()
        self._opened = Studio(settings.label_studio_url, api_key, timeout_s=STUDIO_TIMEOUT_S)
        return self._opened

    def _load_detector(self) -> Detector:
        return open_served_model(self.settings.replace(inference_threads=1), self.project_id)[0]

    def _project_id(self) -> int:
        if self.project_id is None:
            raise ValueError("no project was named")
        return self.project_id

    def fetch_once(self, name: str, fetch: Callable[[], Value]) -> Value:
        """The value of the first fetch under this name; other threads wait for it."""
        with self._lock:
            cached = self._values.setdefault(name, _Cached(fetch))
        return cached.get()  # type: ignore[no-any-return]


class _Cached(Generic[Value]):
    """One cached value: the first thread fetches it, the others wait for the same result."""

    def __init__(self, fetch: Callable[[], Value]) -> None:
        self._fetch = fetch
        self._lock = threading.Lock()
        self._value: Value | None = None
        self._error: Exception | None = None
        self._fetched = False

    def get(self) -> Value:
        with self._lock:
            if not self._fetched:
                try:
                    self._value = self._fetch()
                except Exception as error:  # noqa: BLE001 - every waiting check gets the same error
                    self._error = error
                self._fetched = True
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]
