"""Settings: one table of options, read once from the environment, `<home>/settings.env` and the defaults.

Every process and every command imports this module first, so it imports little.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit, urlunsplit

import msgspec

from labelloop.service.errors import SettingsError

# ruff: noqa: RUF009 - `_option` returns a dataclass field with an immutable default

PREFIX = "LABELLOOP_"
MIB = 2**20
_MIN_PASSWORD_LENGTH, _MIN_TOKEN_LENGTH = 10, 16
_TRUE, _FALSE = frozenset({"1", "true", "yes", "on", "y", "t"}), frozenset({"0", "false", "no", "off", "n", "f"})


class SecretStr:
    """A string that repr, str and logs mask; ``get_secret_value()`` returns it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def get_secret_value(self) -> str:
        """The secret."""
        return self._value

    def __repr__(self) -> str:
        return f"SecretStr({str(self)!r})"

    def __str__(self) -> str:
        return "**********" if self._value else ""

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SecretStr) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)


def _option(default: Any, help_: str, **limits: Any) -> Any:
    return field(default=default, metadata={"help": help_, "limits": limits})


@dataclass(frozen=True, init=False, repr=False)
class Settings:
    """All options of labelloop. Immutable; repr masks secrets and passwords inside URLs.

    Sources in order of precedence: keyword argument, environment variable ``LABELLOOP_<NAME>``, file
    ``<home>/settings.env``, default. An empty variable counts as unset.

    Raises:
        SettingsError: A value is invalid; the message names the variable.
        TypeError: There is no such option.
    """

    home: Path = _option(Path(".labelloop"), "Folder of labelloop's own state.")
    database_url: str = _option(
        "", "Database: sqlite:///path or postgresql://user:password@host/name. Empty: SQLite in home."
    )
    queue_url: str = _option(
        "", "Wake-up queue of the workers: sqlite:///path, redis://... or postgresql://... Empty: SQLite in home."
    )
    store_url: str = _option(
        "",
        "Object store: file:///path, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix."
        " Empty: the folder `store` in home.",
    )

    label_studio_url: str = _option("http://localhost:8080", "URL of Label Studio, as labelloop reaches it.")
    label_studio_public_url: str = _option(
        "", "URL of Label Studio, as a browser reaches it, for links. Empty: label_studio_url."
    )
    label_studio_api_key: SecretStr = _option(
        SecretStr(""), "Personal access token (or legacy token) for Label Studio."
    )
    webhook_secret: SecretStr = _option(
        SecretStr(""), "Secret that Label Studio sends in X-Labelloop-Secret. Empty: not checked."
    )
    webhook_secret_previous: SecretStr = _option(
        SecretStr(""), "Previous secret, also accepted during a rotation: see `labelloop rotate`."
    )
    basic_auth_user: str = _option("", "User name for Basic auth on the services. Empty: no Basic auth.")
    basic_auth_password: SecretStr = _option(SecretStr(""), "Password for Basic auth on the services.")
    dashboard_password: SecretStr = _option(
        SecretStr(""), "Password of the dashboard, at least 10 characters. Empty: no dashboard."
    )
    trainer_token: SecretStr = _option(
        SecretStr(""), "Token of `labelloop trainer`, at least 16 characters. Empty: the ML backend hands out no work."
    )
    ml_url: str = _option("http://localhost:9090", "URL of the ML backend, as Label Studio reaches it.")
    qc_url: str = _option("http://localhost:9091", "URL of the QC service, as Label Studio reaches it.")

    allowed_hosts: tuple[str, ...] = _option(
        (),
        "Host names, comma-separated, that the services accept in addition to localhost and their own addresses.",
    )
    trusted_proxies: int = _option(
        0,
        "Number of reverse proxies in front of the services whose X-Forwarded-For, -Proto and -Host are trusted.",
        ge=0,
    )

    model: Path | None = _option(None, "ONNX detector to serve. Empty: the bundled model.")
    model_layout: str = _option("", "Layout of the model's outputs, if it cannot be inferred from the file.")
    score_threshold: float = _option(0.3, "Minimum score of a pre-label, 0 to 1.", ge=0, le=1)
    smart_encoder: Path | None = _option(
        None, "Encoder of a SAM-family export (ONNX) for the smart tools. Empty: they work without a model file."
    )
    smart_decoder: Path | None = _option(None, "Decoder of the same export.")
    inference_threads: int = _option(0, "Threads per inference; 0: ONNX Runtime chooses.", ge=0)

    learn_cache_bytes: int = _option(
        4096 * MIB, "Maximum size of the on-disk cache of image features for learning, bytes.", ge=0
    )

    s3_endpoint_url: str = _option("", "URL of an S3-compatible server. Empty: AWS.")
    s3_region: str = _option("us-east-1", "Region of the bucket.")
    s3_access_key_id: str = _option("", "Access key ID. Empty: botocore's credential chain.")
    s3_secret_access_key: SecretStr = _option(SecretStr(""), "Secret access key.")

    media_cache_bytes: int = _option(2048 * MIB, "Maximum size of the on-disk image cache, bytes.", ge=0)
    media_max_bytes: int = _option(256 * MIB, "Maximum size of an image file, bytes.", gt=0)
    media_max_pixels: int = _option(100_000_000, "Maximum size of a decoded image, pixels.", gt=0)
    media_memory_bytes: int = _option(
        512 * MIB, "Maximum bytes of pixels that one process decodes concurrently.", ge=64 * MIB
    )
    media_timeout_s: float = _option(20.0, "Timeout for fetching one image, seconds.", gt=0)
    media_allow_private_hosts: bool = _option(False, "Allow image URLs that resolve to private network addresses.")
    media_hosts: tuple[str, ...] = _option(
        (), "Hosts, comma-separated, that images may be read from although their address is private."
    )
    local_files_root: Path | None = _option(
        None, "Folder that Label Studio serves as /data/local-files/; images are read from it directly."
    )

    export_webhook_secret: SecretStr = _option(
        SecretStr(""), "Key that signs the webhooks sent for published data sets. Empty: not signed."
    )

    max_body_bytes: int = _option(64 * MIB, "Maximum size of a request body, bytes.", gt=0)
    log_format: Literal["console", "json"] = _option(
        "console", "Log format: human-readable lines (console) or JSON lines (json)."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = _option("INFO", "Minimum level that is logged.")
    poll_seconds: float = _option(15.0, "Interval of the reconciliation with Label Studio, seconds.", gt=0)
    web_workers: int = _option(2, "Processes of each web service.", ge=1)
    web_threads: int = _option(4, "Threads per web process.", ge=1)

    job_threads: int = _option(2, "Jobs that one worker runs concurrently.", ge=1)
    job_attempts: int = _option(8, "Attempts before an event becomes a dead letter.", ge=1)
    job_backoff_s: float = _option(2.0, "Delay before the second attempt, seconds; doubles with each attempt.", gt=0)
    job_backoff_max_s: float = _option(600.0, "Maximum delay between two attempts, seconds.", gt=0)
    job_lease_s: float = _option(
        30.0, "Lease of a claim: without a heartbeat for this long, another worker takes over, seconds.", gt=0
    )
    job_stop_s: float = _option(20.0, "Time for running jobs to finish when a worker stops, seconds.", ge=0)
    job_retention_days: float = _option(14.0, "Retention of finished events, days.", ge=0)
    job_dead_days: float = _option(180.0, "Retention of dead letters, which can be replayed or discarded, days.", ge=0)
    job_memory_bytes: int = _option(
        2048 * MIB,
        "Memory limit of an isolated job (one that takes long, or during which two workers were lost), bytes.",
        gt=0,
    )
    job_isolated_s: float = _option(
        3600.0, "Time limit of an isolated job, seconds; then it is ended and becomes a dead letter.", gt=0
    )
    job_age_limit_s: float = _option(1800.0, "Age of an unfinished event from which /ready returns 503, seconds.", gt=0)
    min_free_bytes: int = _option(
        50 * MIB, "Minimum free space on the disk of the home folder; services do not start with less, bytes.", ge=0
    )

    def __init__(self, **values: Any) -> None:
        unknown = values.keys() - _types().keys()
        if unknown:
            raise TypeError(f"no such settings: {', '.join(sorted(unknown))}")
        raw_values = _raw_values(values)
        checked, problems = {}, []
        for name, type_ in _types().items():
            try:
                checked[name] = _VALIDATORS.get(name, _identity)(_convert(raw_values[name], type_))
            except ValueError as error:
                problems.append(f"{env_name(name)}: {error}")
        problems = problems or list(_incomplete_pairs(checked))
        if problems:
            raise SettingsError(
                f"Invalid settings: {'; '.join(problems)}.",
                fix="Correct them in the environment or in settings.env in labelloop's home folder.",
            ) from None  # the original error may quote the value
        self.__dict__.update(checked)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of all options."""
        return tuple(_types())

    def replace(self, **changes: Any) -> Self:
        """A copy with some values changed; they are not validated."""
        unknown = changes.keys() - _types().keys()
        if unknown:
            raise TypeError(f"no such settings: {', '.join(sorted(unknown))}")
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__ | changes)
        return other

    def __repr__(self) -> str:
        values = {name: getattr(self, name) for name in self.names()}
        masked = {
            name: hide_password(value) if isinstance(value, str) and "://" in value else value
            for name, value in values.items()
        }
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in masked.items())})"


_DERIVED_DEFAULTS = {
    "database_url": "sqlite:///{home}/labelloop.sqlite3",
    "queue_url": "sqlite:///{home}/queue.sqlite3",
    "store_url": "file://{home}/store",
}


def env_name(field: str) -> str:
    """The environment variable of a setting."""
    return f"{PREFIX}{field}".upper()


def settings_file(home: Path) -> Path:
    """The settings file of a home folder; `labelloop up` writes it."""
    return home / "settings.env"


def describe_settings() -> list[tuple[str, str, str]]:
    """Every setting as (environment variable, default, help), for the reference page."""
    derived = {name: pattern.format(home="<home>") for name, pattern in _DERIVED_DEFAULTS.items()}
    return [
        (env_name(option.name), derived.get(option.name) or _format_default(option.default), option.metadata["help"])
        for option in fields(Settings)
    ]


def unknown_settings(home: Path) -> list[str]:
    """Variables in the environment or settings.env with our prefix that name no setting, such as misspelled ones."""
    file = settings_file(home)
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    names = {*os.environ, *(line.removeprefix("export ").split("=", 1)[0].strip() for line in lines if "=" in line)}
    valid_names = {env_name(name) for name in Settings.names()}
    return sorted(name for name in names if name.upper().startswith(PREFIX) and name.upper() not in valid_names)


def hide_password(url: str) -> str:
    """The URL with its password replaced by asterisks."""
    parts = urlsplit(url)
    if not parts.password:
        return url
    user, host = parts.username or "", parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{user}:********@{host}"))


def _raw_values(values: dict[str, Any]) -> dict[str, Any]:
    """The unvalidated value of each option by precedence: arguments, environment, settings.env, defaults."""
    environment = _options_in(os.environ)
    defaults: dict[str, Any] = {option.name: option.default for option in fields(Settings)}
    home = values.get("home") or environment.get("home") or defaults["home"]
    home = home if isinstance(home, str | Path) else str(home)
    home = Path(home).expanduser()
    merged = defaults | _options_in(_read_file(settings_file(home))) | environment | values
    home = home.absolute()
    derived = {name: pattern.format(home=home) for name, pattern in _DERIVED_DEFAULTS.items() if not merged[name]}
    return merged | derived | {"home": home}


def _read_file(file: Path) -> Mapping[str, str | None]:
    if not file.is_file():
        return {}
    from dotenv import dotenv_values

    return dotenv_values(file, encoding="utf-8")


def _options_in(variables: Mapping[str, str | None]) -> dict[str, str]:
    """Non-empty variables that name an option (case-insensitive), by option name."""
    upper = {name.upper(): value for name, value in variables.items() if value}
    return {name: value for name in _types() if (value := upper.get(env_name(name)))}


@cache
def _types() -> dict[str, Any]:
    """The type of each option, annotated with its limits."""
    hints = get_type_hints(Settings)
    return {
        option.name: Annotated[hints[option.name], msgspec.Meta(**limits)]
        if (limits := option.metadata["limits"])
        else hints[option.name]
        for option in fields(Settings)
    }


def _convert(value: Any, type_: Any) -> Any:
    """Convert a value or its text to an option's type. The ValueError does not quote the value."""
    if type_ is bool and isinstance(value, str):
        value = True if value.lower() in _TRUE else False if value.lower() in _FALSE else value
    elif type_ == tuple[str, ...] and isinstance(value, str):
        value = tuple(part.strip() for part in value.split(",") if part.strip())
    elif get_origin(type_) is Literal and isinstance(value, str):  # case-insensitive
        value = next((choice for choice in get_args(type_) if choice.lower() == value.lower()), value)
    try:
        return msgspec.convert(value, type_, strict=False, dec_hook=_decode_text)
    except msgspec.ValidationError:
        raise ValueError(f"expected {_describe_type(type_)}") from None


def _decode_text(type_: type, value: Any) -> Any:
    """`dec_hook` of `msgspec.convert` for Path and SecretStr."""
    if isinstance(value, type_):
        return value
    if type_ in (Path, SecretStr) and isinstance(value, str):
        return type_(value)
    raise ValueError("not text")


def _describe_type(type_: Any) -> str:
    """A type and its limits in words, for error messages."""
    if get_origin(type_) is Literal:
        return " or ".join(map(repr, get_args(type_)))
    plain = get_args(type_)[0] if get_origin(type_) is Annotated else type_
    words = {int: "a whole number", float: "a number", bool: "true or false", tuple[str, ...]: "comma-separated text"}
    limits = get_args(type_)[1] if get_origin(type_) is Annotated else msgspec.Meta()
    bounds = [
        f"{sign} {bound:g}"
        for sign, bound in (("above", limits.gt), ("at least", limits.ge), ("at most", limits.le))
        if bound is not None
    ]
    return ", ".join((words.get(plain, "text"), *bounds))


def _incomplete_pairs(values: Mapping[str, Any]) -> Iterator[str]:
    """Errors of options that must be set together."""
    for first, second in (
        ("basic_auth_user", "basic_auth_password"),
        ("smart_encoder", "smart_decoder"),
        ("s3_access_key_id", "s3_secret_access_key"),
    ):
        if bool(values[first]) != bool(values[second]):
            missing, present = (second, first) if values[first] else (first, second)
            yield f"{env_name(missing)} is empty but {env_name(present)} is set; set both or neither"


def _identity(value: Any) -> Any:
    return value


def _password(value: SecretStr) -> SecretStr:
    if 0 < len(value.get_secret_value()) < _MIN_PASSWORD_LENGTH:
        raise ValueError(f"it has fewer than {_MIN_PASSWORD_LENGTH} characters")
    return value


def _http_url(value: str) -> str:
    if value and (urlsplit(value).scheme not in {"http", "https"} or not urlsplit(value).hostname):
        raise ValueError("expected a URL such as http://host:port")
    return value.rstrip("/")


def _database_url(value: str) -> str:
    return _checked_url(_with_psycopg(value), {"sqlite", "postgresql+psycopg"}, "sqlite:///path or postgresql://...")


def _queue_url(value: str) -> str:
    plain = value.replace("postgresql+psycopg://", "postgresql://", 1).replace("postgres://", "postgresql://", 1)
    schemes = {"sqlite", "redis", "rediss", "unix", "postgresql"}
    return _checked_url(plain, schemes, "sqlite:///path, redis://... or postgresql://...")


def _store_url(value: str) -> str:
    return _checked_url(
        value,
        {"file", "s3", "gs", "az"},
        "file:///path, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix",
    )


def _with_psycopg(url: str) -> str:
    for scheme in ("postgresql://", "postgres://"):
        if url.startswith(scheme):
            return f"postgresql+psycopg://{url.removeprefix(scheme)}"
    return url


def _checked_url(url: str, schemes: set[str], expected: str) -> str:
    if url.partition(":")[0] not in schemes:
        raise ValueError(f"expected {expected}")
    return url


def _token(token: SecretStr) -> SecretStr:
    if token and len(token.get_secret_value()) < _MIN_TOKEN_LENGTH:
        raise ValueError(f"it has fewer than {_MIN_TOKEN_LENGTH} characters")
    return token


# Validates and normalises an option beyond its type; raises ValueError.
_VALIDATORS: Mapping[str, Any] = {
    "label_studio_url": _http_url,
    "label_studio_public_url": _http_url,
    "ml_url": _http_url,
    "qc_url": _http_url,
    "s3_endpoint_url": _http_url,
    "dashboard_password": _password,
    "trainer_token": _token,
    "database_url": _database_url,
    "queue_url": _queue_url,
    "store_url": _store_url,
}


def _format_default(default: Any) -> str:
    if isinstance(default, SecretStr) or default is None:
        return ""
    return ",".join(default) if isinstance(default, tuple) else str(default)
