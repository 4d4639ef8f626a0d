"""Who may see the dashboard: one hashed password, a signed session, form tokens, a back-off after wrong guesses."""

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

from labelloop.service.db.engine import reading
from labelloop.service.errors import Forbidden, LabelloopError
from labelloop.service.settings import Settings
from qc_webhooks.store.tables import REFUSALS

HOME = "/dashboard"
SESSION_S = 12 * 3600.0
FREE_REFUSALS, WINDOW_S = 9, 3600.0
"""Wrong passwords within the window, seconds, after which each guess has to wait."""

LONGEST_WAIT_S = 60.0
"""The wait doubles from one second up to this: at most 1,440 guesses a day."""

KNOWN_S = 90 * 24 * 3600.0
"""How long a browser that has logged in is counted apart from strangers, who can then keep it waiting no more."""

ACCOUNT = "account"
CSRF = "csrf_token"
_UNTIL, _KNOWN = "until", "labelloop_known_browser"

log = structlog.get_logger(__name__)


class TooManyGuesses(LabelloopError):
    """Too many wrong passwords came, for the account or from a browser that had logged in before.

    Attributes:
        wait_s: Seconds until the next guess is heard.
    """

    code = "too_many_guesses"
    status = 429

    def __init__(self, wait_s: float) -> None:
        self.wait_s = wait_s
        self.retry_after_s = max(1, ceil(wait_s))
        super().__init__(
            "Too many wrong passwords were tried.", fix=f"Wait {self.retry_after_s} seconds and try again."
        )


class Access:
    """The log-in.

    Args:
        settings: Holds the password; without one nobody gets in.
        engine: The migrated database: every process counts the same refusals.
        clock: Seconds since 1970.
    """

    def __init__(self, settings: Settings, engine: sa.Engine, *, clock: Callable[[], float] = time.time) -> None:
        self._hash = password_hash(settings.dashboard_password.get_secret_value())
        self._engine = engine
        self._clock = clock

    @property
    def is_on(self) -> bool:
        """Whether there is a password, and so a dashboard."""
        return bool(self._hash)

    def is_logged_in(self) -> bool:
        """Whether the session is one that we gave and that has not ended."""
        until = session.get(_UNTIL, 0.0)
        return self.is_on and isinstance(until, float) and self._clock() < until

    def log_in(self, given: Request, password: str) -> bool:
        """Begins a session if the password is right.

        Raises:
            TooManyGuesses: The account's back-off, or this browser's own, has not passed.
        """
        if not self.is_right(given, password):
            return False
        session.clear()  # nothing that was planted before the log-in is taken along
        session[_UNTIL] = self._clock() + SESSION_S
        g.known_browser = secrets.token_urlsafe(16)
        return True

    def is_right(self, given: Request, password: str) -> bool:
        """Whether the password is right; wrong ones are counted.

        Raises:
            TooManyGuesses: The account's back-off, or this browser's own, has not passed.
        """
        who = self._guesser(given)
        if (wait_s := self._wait_s(who)) > 0:
            log.warning("dashboard_guesses_refused", client=given.remote_addr)
            raise TooManyGuesses(wait_s)
        if self.is_on and check_password_hash(self._hash, password):
            self._forgive(who)
            return True
        self._count(who)
        log.warning("dashboard_password_wrong", client=given.remote_addr)
        return False

    def remember(self, response: Response) -> None:
        """After a log-in: have the browser say next time that it was let in before (OWASP, "device cookies")."""
        if browser := g.pop("known_browser", None):
            response.set_cookie(
                _KNOWN, self._signer().dumps(browser), max_age=int(KNOWN_S), path=HOME, httponly=True,
                secure=current_app.session_interface.get_cookie_secure(current_app), samesite="Lax",
            )  # fmt: skip

    def _guesser(self, given: Request) -> str:
        """Whose guesses these are: a known browser's own, or the account's."""
        try:
            return f"browser {self._signer().loads(given.cookies.get(_KNOWN, ''), max_age=int(KNOWN_S))}"
        except BadSignature:
            return ACCOUNT

    @staticmethod
    def _signer() -> URLSafeTimedSerializer:
        return URLSafeTimedSerializer(current_app.secret_key or "", salt="known browser")

    def _wait_s(self, who: str) -> float:
        with reading(self._engine) as connection:
            row = connection.execute(sa.select(REFUSALS).where(REFUSALS.c.client == who)).one_or_none()
        if row is None or row.refused <= FREE_REFUSALS:
            return 0.0
        pause = min(LONGEST_WAIT_S, 2.0 ** min(row.refused - FREE_REFUSALS - 1, 16))
        return float(row.since + pause - self._clock())

    def _count(self, who: str) -> None:
        now = self._clock()
        more = sa.update(REFUSALS).where(REFUSALS.c.client == who).values(refused=REFUSALS.c.refused + 1, since=now)
        with self._engine.begin() as connection:
            connection.execute(sa.delete(REFUSALS).where(REFUSALS.c.since < now - WINDOW_S))
            if not connection.execute(more).rowcount:
                connection.execute(sa.insert(REFUSALS).values(client=who, refused=1, since=now))

    def _forgive(self, who: str) -> None:
        with self._engine.begin() as connection:
            connection.execute(sa.delete(REFUSALS).where(REFUSALS.c.client == who))


_HASHED = re.compile(r"(scrypt|pbkdf2):[^$]+\$[^$]+\$[0-9a-f]+")


def password_hash(password: str) -> str:
    """The hash of a password, which may be one already (Werkzeug's `scrypt:...$salt$hash`); empty stays empty."""
    return password if not password or _HASHED.fullmatch(password) else generate_password_hash(password)


def session_key(settings: Settings) -> bytes:
    """The key that signs sessions: the same in every process, and another one when the password is changed.

    Stretched, so that a stolen cookie does not make the password easy to guess.
    """
    salt = hashlib.sha256(b"labelloop dashboard session" + settings.webhook_secret.get_secret_value().encode()).digest()
    password = settings.dashboard_password.get_secret_value().encode() or secrets.token_bytes(32)
    return hashlib.scrypt(password, salt=salt, n=2**14, r=8, p=1, dklen=32)


def csrf_token() -> str:
    """The token of this session that every form carries."""
    if CSRF not in session:
        session[CSRF] = secrets.token_urlsafe(24)
    return str(session[CSRF])


def check_csrf(given: Request) -> None:
    """Refuses a form that does not come from one of our pages.

    Raises:
        Forbidden: The token is missing or wrong.
    """
    wanted = str(session.get(CSRF, ""))
    if not wanted or not hmac.compare_digest(wanted.encode(), given.form.get(CSRF, "").encode()):
        raise Forbidden("The form has expired.", fix="Reload the page and send it again.")


def safe_next(target: str) -> str:
    """Where to go after the log-in: a page of the dashboard, never another site."""
    parts = urlsplit(target)
    inside = target.startswith(f"{HOME}/") and not parts.scheme and not parts.netloc and "\\" not in target
    return target if inside and not target.startswith(f"{HOME}/log") else f"{HOME}/"
