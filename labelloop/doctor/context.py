"""What the checks look at: the settings, the project, and what several of them ask for, asked once."""

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
from ml_backend.serving.activation import open_served

Fact = TypeVar("Fact")

STUDIO_TIMEOUT_S = 6.0
HTTP_TIMEOUT_S = 4.0


class Context:
    """One run of the doctor.

    Facts are asked for once, by the first check that wants them, and kept for the others; so is the error where asking
    failed. Safe to use from many threads.

    Args:
        settings: where everything is.
        project_id: the project to look at as well; None looks at the services alone.
        studio: Label Studio; default made from the settings, with short timeouts.
    """

    def __init__(self, settings: Settings, project_id: int | None = None, *, studio: Studio | None = None) -> None:
        """Ask nothing yet."""
        self.settings = settings
        self.project_id = project_id
        self._studio = studio
        self._opened: Studio | None = None
        self._facts: dict[str, _Fact[Any]] = {}
        self._lock = threading.Lock()

    @property
    def studio(self) -> Studio:
        """Label Studio.

        Raises:
            StudioUnreachable: the address is not an http(s) address.
        """
        return self._once("studio", self._open_studio)

    def close(self) -> None:
        """Close the connections to Label Studio that the context itself opened."""
        if self._opened is not None:
            self._opened.close()

    def project(self) -> dict[str, Any]:
        """The project's own fields."""
        return self._once("project", lambda: self.studio.project(self._project_id()))

    def label_config(self) -> LabelConfig:
        """The project's labeling interface."""
        return self._once("config", lambda: LabelConfig.parse(str(self.project()["label_config"])))

    def webhooks(self) -> Sequence[dict[str, Any]]:
        """The project's webhooks."""
        return self._once("webhooks", lambda: self.studio.webhooks(self._project_id()))

    def backends(self) -> Sequence[dict[str, Any]]:
        """The project's ML backends; Label Studio asks each of them for its health and version on the way."""
        return self._once("backends", lambda: self.studio.ml_backends(self._project_id()))

    def views(self) -> Sequence[dict[str, Any]]:
        """The project's Data Manager tabs."""
        return self._once("views", lambda: self.studio.views(self._project_id()))

    def store(self) -> Capabilities:
        """What the store was seen to do."""
        return self._once("store", lambda: open_store(self.settings.store_url, self.settings).self_test())

    def detector(self) -> Detector:
        """The model that is served to the project, or to all where none was named: loaded and tried once."""
        return self._once("detector", self._load_detector)

    def get(self, url: str, *, auth: bool = False) -> httpx.Response:
        """One GET with a short timeout, past any proxy, with our Basic log-in where asked for and configured."""
        return self._call("GET", url, auth=auth)

    def post(self, url: str, json: Any, *, headers: dict[str, str] | None = None, auth: bool = False) -> httpx.Response:
        """One POST, as `get`."""
        return self._call("POST", url, json=json, headers=headers, auth=auth)

    @staticmethod
    def reason(error: httpx.HTTPError) -> str:
        """Why a call got no answer, in plain words."""
        if isinstance(error, httpx.TimeoutException):
            return f"no answer within {HTTP_TIMEOUT_S:g} s"
        return re.sub(r"^\[Errno -?\d+\] ", "", str(error)).rstrip(".") or type(error).__name__

    def redact(self, text: str) -> str:
        """The text without any secret of the settings."""
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
        return open_served(self.settings.but(inference_threads=1), self.project_id)[0]

    def _project_id(self) -> int:
        if self.project_id is None:
            raise ValueError("no project was named")
        return self.project_id

    def _once(self, name: str, ask: Callable[[], Fact]) -> Fact:
        with self._lock:
            fact = self._facts.setdefault(name, _Fact(ask))
        return fact.get()  # type: ignore[no-any-return]


class _Fact(Generic[Fact]):
    """One fact: asked for by the first who comes, while the others wait for the same answer."""

    def __init__(self, ask: Callable[[], Fact]) -> None:
        self._ask = ask
        self._lock = threading.Lock()
        self._answer: Fact | None = None
        self._error: Exception | None = None
        self._asked = False

    def get(self) -> Fact:
        with self._lock:
            if not self._asked:
                try:
                    self._answer = self._ask()
                except Exception as error:  # noqa: BLE001 - whatever it was, the others are told the same
                    self._error = error
                self._asked = True
        if self._error is not None:
            raise self._error
        return self._answer  # type: ignore[return-value]
