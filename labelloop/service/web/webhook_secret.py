"""Check the shared secret of webhooks (`WebhookSecrets`); during a rotation two secrets are valid."""

import hmac
import threading
from typing import TYPE_CHECKING

from labelloop.service.errors import Forbidden
from labelloop.service.settings import Settings, settings_file

if TYPE_CHECKING:  # the commands that connect a project serve nothing
    from flask import Request

SECRET_HEADER = "X-Labelloop-Secret"  # noqa: S105 - the header's name


class WebhookSecrets:
    """The webhook secrets, re-read when settings.env changes, so that a rotation needs no restart."""

    def __init__(self, settings: Settings) -> None:
        """Read the secrets.

        Args:
            settings: The secret, the previous secret, and the home folder.
        """
        self._settings = settings
        self._file_stamp = self._stamp()
        self._lock = threading.Lock()

    def settings(self) -> Settings:
        """The settings with the current secrets; a process that writes webhooks must not write a revoked one."""
        file_stamp = self._stamp()
        with self._lock:
            if file_stamp != self._file_stamp:
                self._settings, self._file_stamp = Settings(home=self._settings.home), file_stamp
            return self._settings

    def accepted(self) -> tuple[bytes, ...]:
        """The valid secrets, the current one first; empty: requests are not checked."""
        settings = self.settings()
        secrets = (settings.webhook_secret, settings.webhook_secret_previous)
        return tuple(secret.get_secret_value().encode() for secret in secrets if secret)

    def check(self, http_request: "Request") -> None:
        """Refuse a request without a valid secret (constant-time comparison).

        Raises:
            Forbidden: The header is missing or wrong.
        """
        sent = http_request.headers.get(SECRET_HEADER, "").encode()
        accepted = self.accepted()
        matches = [hmac.compare_digest(sent, secret) for secret in accepted]  # always compare all
        if accepted and not any(matches):
            what = "is wrong" if SECRET_HEADER in http_request.headers else "is missing"
            raise Forbidden(
                f"The header {SECRET_HEADER} {what}.", fix="Run `labelloop connect PROJECT` to set it in Label Studio."
            )

    def _stamp(self) -> tuple[int, int]:
        try:
            stat = settings_file(self._settings.home).stat()
        except OSError:
            return 0, 0
        return stat.st_mtime_ns, stat.st_ino
