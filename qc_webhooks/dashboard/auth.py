"""Access control of the dashboard: one hashed password, signed sessions, CSRF tokens, back-off after wrong guesses."""

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable
from math import ceil
from urllib.parse import urlsplit

import sqlalchemy as sa
import structlog
from flask import Request, Response, current_app, g, session
from itsdangerous import BadSignature, URLSafeTimedSerializer
from werkzeug.security import check_password_hash, generate_password_hash

from labelloop.service.db.engine import begin_read
from labelloop.service.errors import Forbidden, LabelloopError
from labelloop.service.settings import Settings
from qc_webhooks.store.tables import REFUSALS

BASE_PATH = "/dashboard"
SESSION_S = 12 * 3600.0
# Wrong passwords within the window (seconds) before guesses are delayed.
MAX_FREE_GUESSES, GUESS_WINDOW_S = 9, 3600.0
# The delay doubles from one second up to this: at most 1,440 guesses a day.
MAX_WAIT_S = 60.0
# Seconds for which a browser that has logged in has its own counter, so that other clients cannot delay it.
KNOWN_BROWSER_S = 90 * 24 * 3600.0

ACCOUNT = "account"
CSRF = "csrf_token"
_UNTIL_KEY, _KNOWN_BROWSER_COOKIE = "until", "labelloop_known_browser"

log = structlog.get_logger(__name__)


class AccessControl:
    """Log-in with one password.

    Args:
        settings: Hold the password; without one every log-in is refused.
        engine: The migrated database, which shares the refusals between processes.
        clock: Returns seconds since 1970.
    """

    def __init__(self, settings: Settings, engine: sa.Engine, *, clock: Callable[[], float] = time.time) -> None:
        self._hash = password_hash(settings.dashboard_password.get_secret_value())
        self._engine = engine
        self._clock = clock

    @property
    def is_enabled(self) -> bool:
        """Whether a password is set."""
        return bool(self._hash)

    def is_logged_in(self) -> bool:
        """Whether the session is valid and has not expired."""
        until = session.get(_UNTIL_KEY, 0.0)
        return self.is_enabled and isinstance(until, float) and self._clock() < until

    def log_in(self, http_request: Request, password: str) -> bool:
        """Begin a session if the password is right.

        Raises:
            LabelloopError: The account's back-off, or this browser's own, has not passed.
        """
        if not self.check_password(http_request, password):
            return False
        session.clear()  # against session fixation
        session[_UNTIL_KEY] = self._clock() + SESSION_S
        g.known_browser = secrets.token_urlsafe(16)
        return True

    def check_password(self, http_request: Request, password: str) -> bool:
        """Check the password and count wrong ones.

        Raises:
            LabelloopError: The account's back-off, or this browser's own, has not passed.
        """
        who = self._guesser(http_request)
        if (wait_s := self._wait_s(who)) > 0:
            log.warning("dashboard_guesses_refused", client=http_request.remote_addr)
            retry_after_s = max(1, ceil(wait_s))
            raise LabelloopError(
                "Too many wrong passwords were tried.",
                fix=f"Wait {retry_after_s} seconds and try again.",
                code="too_many_guesses",
                status=429,
                retry_after_s=retry_after_s,
            )
        if self.is_enabled and check_password_hash(self._hash, password):
            self._forgive(who)
            return True
        self._count(who)
        log.warning("dashboard_password_wrong", client=http_request.remote_addr)
        return False

    def set_known_browser_cookie(self, response: Response) -> None:
        """Mark the browser as known after a log-in (OWASP, "device cookies")."""
        if browser := g.pop("known_browser", None):
            response.set_cookie(
                _KNOWN_BROWSER_COOKIE, self._signer().dumps(browser), max_age=int(KNOWN_BROWSER_S), path=BASE_PATH,
                httponly=True,
                secure=current_app.session_interface.get_cookie_secure(current_app), samesite="Lax",
            )  # fmt: skip

    def _guesser(self, http_request: Request) -> str:
        """Counter of wrong guesses: of a known browser, or of the account."""
        try:
            cookie = http_request.cookies.get(_KNOWN_BROWSER_COOKIE, "")
            return f"browser {self._signer().loads(cookie, max_age=int(KNOWN_BROWSER_S))}"
        except BadSignature:
            return ACCOUNT

    @staticmethod
    def _signer() -> URLSafeTimedSerializer:
        return URLSafeTimedSerializer(current_app.secret_key or "", salt="known browser")

    def _wait_s(self, who: str) -> float:
        with begin_read(self._engine) as connection:
            row = connection.execute(sa.select(REFUSALS).where(REFUSALS.c.client == who)).one_or_none()
        if row is None or row.refused <= MAX_FREE_GUESSES:
            return 0.0
        delay = min(MAX_WAIT_S, 2.0 ** min(row.refused - MAX_FREE_GUESSES - 1, 16))
        return float(row.since + delay - self._clock())

    def _count(self, who: str) -> None:
        now = self._clock()
        increment = (
            sa.update(REFUSALS).where(REFUSALS.c.client == who).values(refused=REFUSALS.c.refused + 1, since=now)
        )
        with self._engine.begin() as connection:
            connection.execute(sa.delete(REFUSALS).where(REFUSALS.c.since < now - GUESS_WINDOW_S))
            if not connection.execute(increment).rowcount:
                connection.execute(sa.insert(REFUSALS).values(client=who, refused=1, since=now))

    def _forgive(self, who: str) -> None:
        with self._engine.begin() as connection:
            connection.execute(sa.delete(REFUSALS).where(REFUSALS.c.client == who))


_HASHED = re.compile(r"(scrypt|pbkdf2):[^$]+\$[^$]+\$[0-9a-f]+")


def password_hash(password: str) -> str:
    """Hash of a password; a hash (Werkzeug's `scrypt:...$salt$hash`) and an empty password are returned unchanged."""
    return password if not password or _HASHED.fullmatch(password) else generate_password_hash(password)


def session_key(settings: Settings) -> bytes:
    """Key that signs sessions: equal in all processes, different after a change of the password.

    Derived with scrypt, so that a stolen cookie does not make the password easy to guess.
    """
    salt = hashlib.sha256(b"labelloop dashboard session" + settings.webhook_secret.get_secret_value().encode()).digest()
    password = settings.dashboard_password.get_secret_value().encode() or secrets.token_bytes(32)
    return hashlib.scrypt(password, salt=salt, n=2**14, r=8, p=1, dklen=32)


def csrf_token() -> str:
    """CSRF token of this session, sent with every form."""
    if CSRF not in session:
        session[CSRF] = secrets.token_urlsafe(24)
    return str(session[CSRF])


def check_csrf(http_request: Request) -> None:
    """Reject a form without the session's CSRF token.

    Raises:
        Forbidden: The token is missing or wrong.
    """
    expected = str(session.get(CSRF, ""))
    if not expected or not hmac.compare_digest(expected.encode(), http_request.form.get(CSRF, "").encode()):
        raise Forbidden("The form has expired.", fix="Reload the page and send it again.")


def safe_next(target: str) -> str:
    """Redirect target after the log-in: a page of the dashboard, never another site."""
    parts = urlsplit(target)
    inside = target.startswith(f"{BASE_PATH}/") and not parts.scheme and not parts.netloc and "\\" not in target
    return target if inside and not target.startswith(f"{BASE_PATH}/log") else f"{BASE_PATH}/"
