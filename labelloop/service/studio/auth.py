"""Which `Authorization` header Label Studio takes now, and what to tell when it takes none.

The exchange itself is label-studio-sdk's. Only its client wrapper is imported, when first used (0.3 s and 41 MB; the
SDK's full client pulls in pandas: 1.3 s and 122 MB, and it repeats POSTs blindly).
"""

import base64
import binascii
import threading
import time
from typing import Any

import httpx
import msgspec

from labelloop.service.studio.errors import StudioRefused, StudioUnauthorized, StudioUnreachable

_CREATE = "Create a personal access token in Label Studio (Account & Settings > Personal Access Token)"
_SET = "and set LABELLOOP_LABEL_STUDIO_API_KEY to it."


class Tokens:
    """Turns the configured key into a header; thread-safe, one exchange at a time.

    A personal access token is a JWT refresh token: it is exchanged for an access token of five minutes, again whenever
    that one has run out. A legacy token (40 hex digits) is sent as it is.
    """

    def __init__(self, url: str, api_key: str, http: httpx.Client) -> None:
        self._url = url
        self._api_key = api_key
        self._http = http
        self._wrapper: Any = None
        self._lock = threading.Lock()

    @property
    def renewable(self) -> bool:
        """Whether a refused header may be replaced by a fresh one: true of personal access tokens."""
        return _claims(self._api_key) is not None

    def header(self, *, refused: str | None = None) -> str:
        """The header's value.

        Args:
            refused: A value that Label Studio has just refused; it is thrown away unless another thread did so already.

        Raises:
            StudioUnauthorized, StudioRefused, StudioUnreachable
            httpx.TransportError: The exchange did not get through; it may be repeated.
        """
        if not self._api_key:
            raise StudioUnauthorized(self._url, "missing", f"{_CREATE} {_SET}")
        with self._lock:
            if self._wrapper is None:
                self._wrapper = self._new_wrapper()
            value = self._exchange()
            if value == refused:
                self._wrapper = self._new_wrapper()
                value = self._exchange()
            return value

    def explain(self, answer: int, detail: str) -> StudioUnauthorized:
        """The error for a header or an exchange that Label Studio refused."""
        claims = _claims(self._api_key)
        if "legacy token authentication has been disabled" in detail:
            return StudioUnauthorized(
                self._url,
                "legacy disabled",
                f"{_CREATE} {_SET} Or allow legacy tokens: Organization > API Tokens Settings, or start a new "
                "Label Studio with LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN=true.",
            )
        if claims is None:
            return StudioUnauthorized(self._url, "wrong", f"It knows no such legacy token ({answer}). {_CREATE} {_SET}")
        if claims.get("token_type") == "access":
            return StudioUnauthorized(
                self._url, "wrong", f"This is an access token, which lives five minutes. {_CREATE} {_SET}"
            )
        if float(claims.get("exp") or 0) < time.time():
            return StudioUnauthorized(self._url, "expired", f"{_CREATE} {_SET}")
        return StudioUnauthorized(
            self._url,
            "wrong",
            f"The token was revoked, or belongs to another Label Studio (its SECRET_KEY differs). {_CREATE} {_SET}",
        )

    def _new_wrapper(self) -> Any:
        from label_studio_sdk.core.api_error import ApiError
        from label_studio_sdk.core.client_wrapper import SyncClientWrapper

        try:  # the SDK joins paths by urljoin: without the slash a path prefix would be lost
            return SyncClientWrapper(api_key=self._api_key, base_url=f"{self._url}/", httpx_client=self._http)
        except ApiError as error:
            raise self.explain(401, str(error.body)) from None

    def _exchange(self) -> str:
        from label_studio_sdk.core.api_error import ApiError

        try:
            return str(self._wrapper.get_headers()["Authorization"])
        except ApiError as error:
            status = error.status_code or 0
            if status in {400, 401, 403}:
                raise self.explain(status, str(error.body)) from None
            raise StudioRefused("the exchange of our token", status, str(error.body)[:200]) from None
        except httpx.TransportError:
            raise
        except (ValueError, httpx.HTTPError):
            raise StudioUnreachable(
                self._url, "the exchange of our token was answered with something else than JSON"
            ) from None


def _claims(token: str) -> dict[str, Any] | None:
    """What a JWT says, unverified (only Label Studio can verify it); None for anything else."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = msgspec.json.decode(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError):
        return None
    return claims if isinstance(claims, dict) else None
