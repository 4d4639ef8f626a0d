"""Who may see the dashboard: one password, a signed session, a token in every form, and a limit on wrong guesses."""

import hashlib
import hmac
import ipaddress
import secrets
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import sqlalchemy as sa
import structlog
from flask import Request, session

from labelloop.service.db import reading
from labelloop.service.errors import Forbidden, LabelloopError
from labelloop.service.settings import Settings
from qc_webhooks.tables import REFUSALS

HOME = "/dashboard"
SESSION_S = 12 * 3600.0
# So many wrong passwords from one address within so many seconds, then it has to wait.
MOST_REFUSALS, WINDOW_S = 10, 900.0
CSRF = "csrf_token"
_UNTIL = "until"

log = structlog.get_logger(__name__)


class TooManyGuesses(LabelloopError):
    """Too many wrong passwords came from one address.

    Attributes:
        wait_s: Seconds until the next guess is heard.
    """

    code = "too_many_guesses"
    status = 429

    def __init__(self, wait_s: float) -> None:
        minutes = max(1, round(wait_s / 60))
        super().__init__(f"Too many wrong passwords came from your address. Wait {minutes} minutes and try again.")
        self.wait_s = wait_s


class Access:
    """The log-in.

    Args:
        settings: Holds the password; without one nobody gets in.
        engine: The migrated database: every process counts the same refusals.
        clock: Seconds since 1970.
    """

    def __init__(self, settings: Settings, engine: sa.Engine, *, clock: Callable[[], float] = time.time) -> None:
        self._password = settings.dashboard_password.get_secret_value()
        self._engine = engine
        self._clock = clock

    @property
    def is_on(self) -> bool:
        """Whether there is a password, and so a dashboard."""
        return bool(self._password)

    def is_logged_in(self) -> bool:
        """Whether the session is one that we gave and that has not ended."""
        until = session.get(_UNTIL, 0.0)
        return self.is_on and isinstance(until, float) and self._clock() < until

    def log_in(self, given: Request, password: str) -> bool:
        """Begins a session if the password is right.

        Raises:
            TooManyGuesses: The address has guessed too often.
        """
        if not self.is_right(given, password):
            return False
        session.clear()  # nothing that was planted before the log-in is taken along
        session[_UNTIL] = self._clock() + SESSION_S
        return True

    def is_right(self, given: Request, password: str) -> bool:
        """Whether the password is right; wrong ones are counted.

        Raises:
            TooManyGuesses: The address has guessed too often.
        """
        client = client_of(given.remote_addr or "")
        wait_s = self._wait_s(client)
        if wait_s > 0:
            log.warning("dashboard_guesses_refused", client=client)
            raise TooManyGuesses(wait_s)
        # Hashes of equal length: the time taken says nothing about the password, not even how long it is.
        wanted, got = (hashlib.sha256(word.encode()).digest() for word in (self._password, password))
        if self.is_on and hmac.compare_digest(wanted, got):
            self._forgive(client)
            return True
        self._count(client)
        log.warning("dashboard_password_wrong", client=client)
        return False

    def _wait_s(self, client: str) -> float:
        with reading(self._engine) as connection:
            row = connection.execute(sa.select(REFUSALS).where(REFUSALS.c.client == client)).one_or_none()
        if row is None or row.refused < MOST_REFUSALS:
            return 0.0
        return float(row.since + WINDOW_S - self._clock())

    def _count(self, client: str) -> None:
        now = self._clock()
        with self._engine.begin() as connection:
            connection.execute(sa.delete(REFUSALS).where(REFUSALS.c.since < now - WINDOW_S))
            more = sa.update(REFUSALS).where(REFUSALS.c.client == client).values(refused=REFUSALS.c.refused + 1)
            if not connection.execute(more).rowcount:
                connection.execute(sa.insert(REFUSALS).values(client=client, refused=1, since=now))

    def _forgive(self, client: str) -> None:
        with self._engine.begin() as connection:
            connection.execute(sa.delete(REFUSALS).where(REFUSALS.c.client == client))


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


def client_of(address: str) -> str:
    """What is counted as one client: an IPv4 address, or the /64 network that one IPv6 customer has."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return "unknown"
    if isinstance(ip, ipaddress.IPv6Address):
        return str(ip.ipv4_mapped or ipaddress.ip_network((ip, 64), strict=False))
    return str(ip)


def safe_next(target: str) -> str:
    """Where to go after the log-in: a page of the dashboard, never another site."""
    parts = urlsplit(target)
    inside = target.startswith(f"{HOME}/") and not parts.scheme and not parts.netloc and "\\" not in target
    return target if inside and not target.startswith(f"{HOME}/log") else f"{HOME}/"
