"""Logs: structlog for our lines and the standard library's, with secrets taken out of both."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from labelloop.service.settings import SecretStr, Settings

if TYPE_CHECKING:
    from stamina.instrumentation import RetryDetails

HIDDEN = "********"
# Names of fields and headers whose value is a secret whatever it looks like.
_SECRET_NAME = re.compile(
    r"(?i)(password|passwd|secret|authorization|api[_-]?key|access[_-]?token|refresh[_-]?token|^token$|cookie)"
)
# (what gives a secret away, what is put in its place)
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    # Authorization headers, also as text inside messages.
    (re.compile(r"(?i)\b(bearer|basic|token)\s+[A-Za-z0-9._~+/=-]{8,}"), rf"\1 {HIDDEN}"),
    # JSON web tokens: Label Studio's personal access tokens and the access tokens they are exchanged for.
    (re.compile(r"\beyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"), HIDDEN),
    # user:password@ in any URL.
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://[^\s:/@]*):[^\s/@]+@"), rf"\1:{HIDDEN}@"),
    # Signed URLs: S3 (v2 and v4), Google Cloud Storage, Azure.
    (
        re.compile(
            r"(?i)([?&](?:x-amz-(?:signature|credential|security-token)|x-goog-(?:signature|credential)|signature|"
            r"awsaccesskeyid|googleaccessid|sig|token|access_token|api_key|key|secret|password)=)[^&\s\"'<>]+"
        ),
        rf"\1{HIDDEN}",
    ),
    # `password=...`, `"api_key": "..."` in messages and reprs.
    (
        re.compile(
            r"(?i)((?:password|passwd|secret|api[_-]?key|access[_-]?token|refresh[_-]?token)[\"']?\s*[=:]\s*[\"']?)[^\s\"',;&]+"
        ),
        rf"\1{HIDDEN}",
    ),
)


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """`text` without the given secrets and without what looks like one: tokens, passwords in URLs, signatures."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


class Redactor:
    """A structlog processor that takes secrets out of every value of a line, however deep."""

    def __init__(self, secrets: Iterable[str]) -> None:
        # The longest first: a secret that begins with another must not leave its tail behind.
        self._secrets = sorted({secret for secret in secrets if len(secret) >= 4}, key=len, reverse=True)

    def __call__(self, _logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Redact one line."""
        return {name: self._value(name, value) for name, value in event.items()}

    def _value(self, name: str, value: Any) -> Any:
        if name.startswith("_"):
            return value  # structlog's own, never printed
        if isinstance(value, str):
            return HIDDEN if value and _SECRET_NAME.search(name) else redact(value, self._secrets)
        if isinstance(value, SecretStr):
            return HIDDEN
        if isinstance(value, Mapping):
            return {key: self._value(str(key).lstrip("_"), inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple, set, frozenset)):
            return [self._value(name, inner) for inner in value]
        if value is None or isinstance(value, (bool, int, float)):
            return value
        return redact(str(value) if isinstance(value, BaseException) else repr(value), self._secrets)


def settings_secrets(settings: Settings) -> list[str]:
    """Every secret that the settings hold, those inside URLs included."""
    found = []
    for name in settings.names():
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            found.append(value.get_secret_value())
        elif isinstance(value, str) and "://" in value:
            found.append(urlsplit(value).password or "")
    return [secret for secret in found if secret]


def _log_retry(details: RetryDetails) -> None:
    """What is tried again, as a person would ask: why, and when. Our own retries carry the error they stand for."""
    import structlog

    reason = getattr(details.caused_by, "error", details.caused_by)
    structlog.get_logger(__name__).warning(
        "trying_again", reason=str(reason), attempt=details.retry_num + 1, wait_s=round(details.wait_for, 1)
    )


def setup_late_logging(settings: Settings) -> None:
    """As `setup_logging`, put off to the first line: for a command that most often has nothing to tell.

    That line must come from the standard library's loggers; structlog's own need `setup_logging`.
    """

    class First(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            setup_logging(settings)
            logger = logging.getLogger(record.name)
            if logger.isEnabledFor(record.levelno):
                logger.handle(record)

    root = logging.getLogger()
    root.handlers[:] = [First()]
    root.setLevel(settings.log_level)


def setup_logging(settings: Settings) -> None:
    """Send every log line of this process, ours and other libraries', to stderr in the settings' format and level."""
    import stamina.instrumentation
    import structlog  # with what it brings, a third of the memory of a small command

    stamina.instrumentation.set_on_retry_hooks([_log_retry])
    redactor = Redactor(settings_secrets(settings))
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,  # to text first, so that tracebacks are redacted too
    ]
    renderer = (
        structlog.processors.JSONRenderer(default=str)
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, redactor, renderer],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level)
    # These tell each poll of the queue or each request on INFO and DEBUG; ours say it once.
    for chatty in ("huey", "alembic", "urllib3", "botocore", "boto3", "s3transfer", "httpx", "httpcore", "PIL"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLevelName(settings.log_level)))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
