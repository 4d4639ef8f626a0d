"""Configure logging: structlog formats our and the standard library's records and redacts secrets."""

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

REDACTED = "********"
# Names of fields and headers whose value is always redacted.
_SECRET_NAME = re.compile(
    r"(?i)(password|passwd|secret|authorization|api[_-]?key|access[_-]?token|refresh[_-]?token|^token$|cookie)"
)
# (pattern of a secret, replacement)
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    # Authorization headers, also inside messages.
    (re.compile(r"(?i)\b(bearer|basic|token)\s+[A-Za-z0-9._~+/=-]{8,}"), rf"\1 {REDACTED}"),
    # JSON web tokens: Label Studio's personal access tokens and their access tokens.
    (re.compile(r"\beyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"), REDACTED),
    # user:password@ in any URL.
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://[^\s:/@]*):[^\s/@]+@"), rf"\1:{REDACTED}@"),
    # Signed URLs: S3 (v2 and v4), Google Cloud Storage, Azure.
    (
        re.compile(
            r"(?i)([?&](?:x-amz-(?:signature|credential|security-token)|x-goog-(?:signature|credential)|signature|"
            r"awsaccesskeyid|googleaccessid|sig|token|access_token|api_key|key|secret|password)=)[^&\s\"'<>]+"
        ),
        rf"\1{REDACTED}",
    ),
    # `password=...`, `"api_key": "..."` in messages and reprs.
    (
        re.compile(
            r"(?i)((?:password|passwd|secret|api[_-]?key|access[_-]?token|refresh[_-]?token)"
            r"[\"']?\s*[=:]\s*[\"']?)[^\s\"',;&]+"
        ),
        rf"\1{REDACTED}",
    ),
)


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Replace the given secrets and everything that looks like one (tokens, URL passwords, signatures)."""
    for secret in secrets:
        text = text.replace(secret, REDACTED)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


class Redactor:
    """A structlog processor that redacts secrets in all values of an event, also nested ones."""

    def __init__(self, secrets: Iterable[str]) -> None:
        # Longest first: if one secret is a prefix of another, replacing it first would leave the suffix.
        self._secrets = sorted({secret for secret in secrets if len(secret) >= 4}, key=len, reverse=True)

    def __call__(self, _logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Redact one event dict."""
        return {name: self._value(name, value) for name, value in event.items()}

    def _value(self, name: str, value: Any) -> Any:
        if name.startswith("_"):
            return value  # structlog's internals, not rendered
        if isinstance(value, str):
            return REDACTED if value and _SECRET_NAME.search(name) else redact(value, self._secrets)
        if isinstance(value, SecretStr):
            return REDACTED
        if isinstance(value, Mapping):
            return {key: self._value(str(key).lstrip("_"), inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple, set, frozenset)):
            return [self._value(name, inner) for inner in value]
        if value is None or isinstance(value, (bool, int, float)):
            return value
        return redact(str(value) if isinstance(value, BaseException) else repr(value), self._secrets)


def settings_secrets(settings: Settings) -> list[str]:
    """All non-empty secrets of the settings, including passwords inside URLs."""
    secrets = []
    for name in settings.names():
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            secrets.append(value.get_secret_value())
        elif isinstance(value, str) and "://" in value:
            secrets.append(urlsplit(value).password or "")
    return [secret for secret in secrets if secret]


def _log_retry(details: RetryDetails) -> None:
    """Log the reason and the delay of a retry (a stamina hook). Our own retry errors wrap the original in `.error`."""
    import structlog

    reason = getattr(details.caused_by, "error", details.caused_by)
    structlog.get_logger(__name__).warning(
        "trying_again", reason=str(reason), attempt=details.retry_num + 1, wait_s=round(details.wait_for, 1)
    )


def setup_lazy_logging(settings: Settings) -> None:
    """Run `setup_logging` at the first record; saves its imports in commands that rarely log.

    Only records of standard library loggers trigger it; structlog loggers need `setup_logging`.
    """

    class LazySetupHandler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            setup_logging(settings)
            logger = logging.getLogger(record.name)
            if logger.isEnabledFor(record.levelno):
                logger.handle(record)

    root = logging.getLogger()
    root.handlers[:] = [LazySetupHandler()]
    root.setLevel(settings.log_level)


def setup_logging(settings: Settings) -> None:
    """Send all log records of this process, including libraries, to stderr in the settings' format and level."""
    import stamina.instrumentation
    import structlog  # imported late: a third of the memory of a small command

    stamina.instrumentation.set_on_retry_hooks([_log_retry])
    redactor = Redactor(settings_secrets(settings))
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,  # before the redactor, so that tracebacks are redacted
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
    # These log every queue poll and every request at INFO and DEBUG.
    for name in ("huey", "alembic", "urllib3", "botocore", "boto3", "s3transfer", "httpx", "httpcore", "google", "PIL"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLevelName(settings.log_level)))
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
