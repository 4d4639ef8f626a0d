"""The `Authorization` header for Label Studio, and the error if it is refused.

label-studio-sdk exchanges the token. Only its client wrapper is imported, on first use (0.3 s and 41 MB; the SDK's full
client imports pandas: 1.3 s and 122 MB, and it retries POST requests).
"""

import base64
import binascii
import re
import threading
import time
from typing import Any

import httpx
import msgspec

from labelloop.service.studio.errors import StudioRefused, StudioUnauthorized, StudioUnreachable

_FIX = (
    "Create a personal access token in Label Studio (Account & Settings > Personal Access Token) "
    "and set LABELLOOP_LABEL_STUDIO_API_KEY to it."
)
_LEGACY = re.compile(r"[0-9a-f]{40}")
# The usual cause is another folder than that of `labelloop up`.
_FIX_MISSING = (
    "After `labelloop up`, whose token is in settings.env of its home folder: run the command in the same folder, or "
    f"set LABELLOOP_HOME. For a Label Studio of your own: c{_FIX[1:]}"
)


class Authorization:
    """Create the header from the configured key. Thread-safe; one exchange at a time.

    A personal access token is a JWT refresh token: it is exchanged for an access token that is valid for five minutes,
    and again when that one expires. A legacy token (40 hex digits) is sent unchanged.
    """

    def __init__(self, url: str, api_key: str, http: httpx.Client) -> None:
        self._url = url
        self._api_key = api_key
        self._http = http
        self._wrapper: Any = None
        self._lock = threading.Lock()

    @property
    def renewable(self) -> bool:
        """Whether a refused header can be replaced by a new one: True for personal access tokens."""
        return _claims(self._api_key) is not None

    def header(self, *, refused: str | None = None) -> str:
        """The value of the header.

        Args:
            refused: A value that Label Studio has just refused; it is discarded unless another thread did so already.

        Raises:
            StudioUnauthorized, StudioRefused, StudioUnreachable
            httpx.TransportError: The exchange failed in transit; it may be retried.
        """
        if not self._api_key:
            raise StudioUnauthorized(url=self._url, kind="missing", fix=_FIX_MISSING)
        with self._lock:
            if self._wrapper is None:
                self._wrapper = self._new_wrapper()
            value = self._exchange()
            if value == refused:
                self._wrapper = self._new_wrapper()
                value = self._exchange()
            return value

    def unauthorized_error(self, http_status: int, detail: str) -> StudioUnauthorized:
        """The error for a header or an exchange that Label Studio refused, with a fix for the kind of token."""
        claims = _claims(self._api_key)
        if "legacy token authentication has been disabled" in detail:
            return StudioUnauthorized(
                url=self._url,
                kind="legacy disabled",
                fix=f"{_FIX} Or allow legacy tokens: Organization > API Tokens Settings, or start a new "
                "Label Studio with LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN=true.",
            )
        if claims is None:
            reason = (
                f"Label Studio does not know this legacy token ({http_status})."
                if _LEGACY.fullmatch(self._api_key)
                else "This is neither a personal access token (three parts with dots between them) nor a legacy token "
                "(40 hexadecimal digits): copy it again, in full."
            )
            return StudioUnauthorized(url=self._url, kind="wrong", fix=f"{reason} {_FIX}")
        if claims.get("token_type") == "access":
            return StudioUnauthorized(
                url=self._url,
                kind="wrong",
                fix=f"This is an access token, which is valid for five minutes. {_FIX}",
            )
        if float(claims.get("exp") or 0) < time.time():
            return StudioUnauthorized(url=self._url, kind="expired", fix=_FIX)
        return StudioUnauthorized(
            url=self._url,
            kind="wrong",
            fix=f"The token was revoked, or belongs to another Label Studio (its SECRET_KEY differs). {_FIX}",
        )

    def _new_wrapper(self) -> Any:
        from label_studio_sdk.core.api_error import ApiError
        from label_studio_sdk.core.client_wrapper import SyncClientWrapper

        try:  # the SDK uses urljoin: without the slash a path prefix would be lost
            return SyncClientWrapper(api_key=self._api_key, base_url=f"{self._url}/", httpx_client=self._http)
        except ApiError as error:
            raise self.unauthorized_error(401, str(error.body)) from None

    def _exchange(self) -> str:
        from label_studio_sdk.core.api_error import ApiError

        try:
            return str(self._wrapper.get_headers()["Authorization"])
        except ApiError as error:
            status = error.status_code or 0
            if status in {400, 401, 403}:
                raise self.unauthorized_error(status, str(error.body)) from None
            raise StudioRefused("the token exchange", status, str(error.body)[:200]) from None
        except httpx.TransportError:
            raise
        except (ValueError, httpx.HTTPError):
            raise StudioUnreachable(
                url=self._url,
                reason="the response to the token exchange is not JSON",
                fix="Set LABELLOOP_LABEL_STUDIO_URL to the address of Label Studio itself, without /projects/....",
            ) from None


def bare_token(token: str) -> str:
    """The token without what is copied along with it: quotes, and the word before it in a header."""
    return token.strip(" \t\r\n\"'").removeprefix("Token ").removeprefix("Bearer ")


def _claims(token: str) -> dict[str, Any] | None:
    """The claims of a JWT, not verified (only Label Studio can verify it); None for anything else."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = msgspec.json.decode(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError):
        return None
    return claims if isinstance(claims, dict) else None
