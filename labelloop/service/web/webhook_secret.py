"""`WebhookSecrets`: which secrets a webhook may carry now. Two are valid while a rotation is under way."""

import hmac
import threading

from flask import Request

from labelloop.service.errors import Forbidden
from labelloop.service.settings import Settings, settings_file

SECRET_HEADER = "X-Labelloop-Secret"  # noqa: S105 - the header's name


class WebhookSecrets:
    """The secrets of the settings, read again when settings.env changes, so that a rotation needs no restart."""

    def __init__(self, settings: Settings) -> None:
        """Takes those of the settings.

        Args:
            settings: The secret, the previous one, and the home folder.
        """
        self._settings = settings
        self._written = self._stamp()
        self._lock = threading.Lock()

    def accepted(self) -> tuple[bytes, ...]:
        """The secrets that are valid now, the one that new webhooks carry first; none: nothing is checked."""
        written = self._stamp()
        with self._lock:
            if written != self._written:
                self._settings, self._written = Settings(home=self._settings.home), written
            settings = self._settings
        secrets = (settings.webhook_secret, settings.webhook_secret_previous)
        return tuple(secret.get_secret_value().encode() for secret in secrets if secret)

    def check(self, given: Request) -> None:
        """Refuse a request that carries none of them, in constant time.

        Raises:
            Forbidden: The header is missing or wrong.
        """
        carried = given.headers.get(SECRET_HEADER, "").encode()
        accepted = self.accepted()
        matches = [hmac.compare_digest(carried, secret) for secret in accepted]  # all of them, whichever matches
        if accepted and not any(matches):
            what = "is wrong" if SECRET_HEADER in given.headers else "is missing"
            raise Forbidden(
                f"The header {SECRET_HEADER} {what}.", fix="Run `labelloop connect PROJECT` to set it in Label Studio."
            )

    def _stamp(self) -> tuple[int, int]:
        try:
            stat = settings_file(self._settings.home).stat()
        except OSError:
            return 0, 0
        return stat.st_mtime_ns, stat.st_ino
