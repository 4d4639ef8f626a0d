"""Settings: one table of options, read once from environment, `<home>/settings.env` and defaults, then passed down.

What travels with them is small: every process of labelloop, each command included, starts by reading its settings.
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

# ruff: noqa: RUF009 - each option is said by a call, whose default is frozen

PREFIX = "LABELLOOP_"
MIB = 2**20
_SHORTEST_PASSWORD = 10
_TRUE, _FALSE = frozenset({"1", "true", "yes", "on", "y", "t"}), frozenset({"0", "false", "no", "off", "n", "f"})


class SecretStr:
    """A text that is never shown: only ``get_secret_value()`` gives it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def get_secret_value(self) -> str:
        """The text."""
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
    """Every option of labelloop. Frozen; secrets and passwords inside URLs stay out of its repr.

    A value comes from (first wins): a keyword argument, the environment variable ``LABELLOOP_<NAME>``, the file
    ``<home>/settings.env``, the default. A variable that is there and empty is as good as none.

    Raises:
        SettingsError: a value cannot be used; the message names the variable.
        TypeError: there is no such option.
    """

    home: Path = _option(Path(".labelloop"), "Folder that keeps labelloop's own state.")
    database_url: str = _option(
        "", "Database: sqlite:///path or postgresql://user:password@host/name. Empty: SQLite in home."
    )
    queue_url: str = _option(
        "", "Queue that wakes workers: sqlite:///path, redis://... or postgresql://... Empty: SQLite in home."
    )
    store_url: str = _option("", "Object store: file:///path or s3://bucket/prefix. Empty: the folder `store` in home.")

    label_studio_url: str = _option("http://localhost:8080", "Address of Label Studio, as labelloop reaches it.")
    label_studio_public_url: str = _option(
        "", "Address of Label Studio, as a browser reaches it, for links. Empty: label_studio_url."
    )
    label_studio_api_key: SecretStr = _option(
        SecretStr(""), "Personal access token (or legacy token) for Label Studio."
    )
    webhook_secret: SecretStr = _option(
        SecretStr(""), "Secret that Label Studio sends in X-Labelloop-Secret. Empty: not checked."
    )
    webhook_secret_previous: SecretStr = _option(
        SecretStr(""), "A secret that is accepted too, while webhooks change to a new one: see `labelloop rotate`."
    )
    basic_auth_user: str = _option("", "User name for Basic auth on the services. Empty: no Basic auth.")
    basic_auth_password: SecretStr = _option(SecretStr(""), "Password for Basic auth on the services.")
    dashboard_password: SecretStr = _option(
        SecretStr(""), "Password of the dashboard, at least 10 characters. Empty: there is no dashboard."
    )
    ml_url: str = _option("http://localhost:9090", "Address of the ML backend, as Label Studio reaches it.")
    qc_url: str = _option("http://localhost:9091", "Address of the QC service, as Label Studio reaches it.")

    allowed_hosts: tuple[str, ...] = _option(
        (),
        "Host names, separated by commas, that the services answer to besides localhost and their own addresses.",
    )
    trusted_proxies: int = _option(
        0, "Reverse proxies before the services whose X-Forwarded-For, -Proto and -Host are believed.", ge=0
    )

    model: Path | None = _option(None, "ONNX detector to serve. Empty: the model that comes with labelloop.")
    model_layout: str = _option("", "Layout of the model's outputs, where the file alone does not tell it.")
    score_threshold: float = _option(0.3, "Lowest score of a pre-label, 0 to 1.", ge=0, le=1)
    smart_encoder: Path | None = _option(
        None, "Encoder of a SAM-family export (ONNX) for smart tools. Empty: they work without any model file."
    )
    smart_decoder: Path | None = _option(None, "Decoder of the same export.")
    inference_threads: int = _option(0, "Threads of one inference; 0 lets ONNX Runtime choose.", ge=0)

    learn_cache_bytes: int = _option(
        4096 * MIB, "Most bytes of photo features kept on disk by the worker that learns.", ge=0
    )

    s3_endpoint_url: str = _option("", "Address of an S3-compatible server. Empty: AWS.")
    s3_region: str = _option("us-east-1", "Region of the bucket.")
    s3_access_key_id: str = _option("", "Access key. Empty: botocore's own chain of credentials.")
    s3_secret_access_key: SecretStr = _option(SecretStr(""), "Secret of the access key.")

    media_cache_bytes: int = _option(2048 * MIB, "Most bytes of images kept on disk.", ge=0)
    media_max_bytes: int = _option(256 * MIB, "Largest image file that is read, bytes.", gt=0)
    media_max_pixels: int = _option(100_000_000, "Largest image that is decoded, pixels.", gt=0)
    media_memory_bytes: int = _option(
        512 * MIB, "Most bytes of pixels that one process decodes at the same time.", ge=64 * MIB
    )
    media_timeout_s: float = _option(20.0, "Longest wait for one image, seconds.", gt=0)
    media_allow_private_hosts: bool = _option(False, "Read images from private network addresses.")
    media_hosts: tuple[str, ...] = _option(
        (), "Hosts, separated by commas, that images are read from although their address is private."
    )
    local_files_root: Path | None = _option(
        None, "Folder that Label Studio serves as /data/local-files/, read directly."
    )

    export_webhook_secret: SecretStr = _option(
        SecretStr(""), "Key that signs the webhooks of published data sets. Empty: they are not signed."
    )

    max_body_bytes: int = _option(64 * MIB, "Largest request body, bytes.", gt=0)
    log_format: Literal["console", "json"] = _option("console", "Log lines for people (console) or machines (json).")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = _option("INFO", "Lowest level that is logged.")
    poll_seconds: float = _option(15.0, "Pause between two reconciliations with Label Studio, seconds.", gt=0)
    web_workers: int = _option(2, "Processes of each web service.", ge=1)
    web_threads: int = _option(4, "Threads of each web process.", ge=1)

    job_threads: int = _option(2, "Jobs that one worker runs at a time.", ge=1)
    job_attempts: int = _option(8, "Attempts before an event becomes a dead letter.", ge=1)
    job_backoff_s: float = _option(2.0, "Pause before the second attempt, seconds; it doubles with each attempt.", gt=0)
    job_backoff_max_s: float = _option(600.0, "Longest pause between two attempts, seconds.", gt=0)
    job_lease_s: float = _option(30.0, "A claim that sends no heartbeat for so long is taken over, seconds.", gt=0)
    job_stop_s: float = _option(20.0, "Time that running jobs get to finish when a worker is stopped, seconds.", ge=0)
    job_retention_days: float = _option(14.0, "Days that finished events are kept.", ge=0)
    job_dead_days: float = _option(
        180.0, "Days that events which were given up are kept, to be replayed or discarded.", ge=0
    )
    job_memory_bytes: int = _option(
        2048 * MIB, "Most memory of a job that runs alone, after two workers were lost while they ran it, bytes.", gt=0
    )
    job_age_limit_s: float = _option(
        1800.0, "An event that is unfinished for longer makes /ready answer 503, seconds.", gt=0
    )
    min_free_bytes: int = _option(
        50 * MIB, "Least free space on the disk of the home folder; services do not start with less, bytes.", ge=0
    )

    def __init__(self, **values: Any) -> None:
        unknown = values.keys() - _types().keys()
        if unknown:
            raise TypeError(f"no such settings: {', '.join(sorted(unknown))}")
        found = _stated(values)
        checked, problems = {}, []
        for name, type_ in _types().items():
            try:
                checked[name] = _RULES.get(name, _as_it_is)(_converted(found[name], type_))
            except ValueError as error:
                problems.append(f"{env_name(name)}: {error}")
        problems = problems or list(_half_pairs(checked))
        if problems:
            raise SettingsError(
                f"Settings cannot be used: {'; '.join(problems)}.",
                fix="Correct it in the environment or in settings.env in labelloop's home folder.",
            ) from None  # what was tried on the way may quote the value
        self.__dict__.update(checked)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of all options."""
        return tuple(_types())

    def but(self, **changes: Any) -> Self:
        """The same settings with some values changed, which are taken as they are."""
        unknown = changes.keys() - _types().keys()
        if unknown:
            raise TypeError(f"no such settings: {', '.join(sorted(unknown))}")
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__ | changes)
        return other

    def __repr__(self) -> str:
        shown = {name: getattr(self, name) for name in self.names()}
        shown = {name: hide_password(it) if isinstance(it, str) and "://" in it else it for name, it in shown.items()}
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


_PLACES = {
    "database_url": "sqlite:///{home}/labelloop.sqlite3",
    "queue_url": "sqlite:///{home}/queue.sqlite3",
    "store_url": "file://{home}/store",
}


def env_name(field: str) -> str:
    """The environment variable of a setting."""
    return f"{PREFIX}{field}".upper()


def settings_file(home: Path) -> Path:
    """The file in a home folder that settings are read from; `labelloop up` writes it."""
    return home / "settings.env"


def describe_settings() -> list[tuple[str, str, str]]:
    """Every setting as (environment variable, default, help): the source of the reference page."""
    derived = {name: pattern.format(home="<home>") for name, pattern in _PLACES.items()}
    return [
        (env_name(each.name), derived.get(each.name) or _shown(each.default), each.metadata["help"])
        for each in fields(Settings)
    ]


def unknown_settings(home: Path) -> list[str]:
    """Names in the environment or the home's file that look like settings and are none: most often a typing error."""
    file = settings_file(home)
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    names = {*os.environ, *(line.removeprefix("export ").split("=", 1)[0].strip() for line in lines if "=" in line)}
    known = {env_name(name) for name in Settings.names()}
    return sorted(name for name in names if name.upper().startswith(PREFIX) and name.upper() not in known)


def hide_password(url: str) -> str:
    """A URL with the password in its authority replaced by asterisks."""
    parts = urlsplit(url)
    if not parts.password:
        return url
    user, host = parts.username or "", parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{user}:********@{host}"))


def _stated(values: dict[str, Any]) -> dict[str, Any]:
    """What is said of each option, not checked: given, in the environment, in the file of the home, or by default."""
    environment = _named(os.environ)
    defaults: dict[str, Any] = {each.name: each.default for each in fields(Settings)}
    home = values.get("home") or environment.get("home") or defaults["home"]
    home = home if isinstance(home, str | Path) else str(home)
    home = Path(home).expanduser()
    found = defaults | _named(_read_file(settings_file(home))) | environment | values
    home = home.absolute()
    places = {name: pattern.format(home=home) for name, pattern in _PLACES.items() if not found[name]}
    return found | places | {"home": home}


def _read_file(file: Path) -> Mapping[str, str | None]:
    if not file.is_file():
        return {}
    from dotenv import dotenv_values

    return dotenv_values(file, encoding="utf-8")


def _named(variables: Mapping[str, str | None]) -> dict[str, str]:
    """The options among some variables, whatever their case; empty ones are none."""
    upper = {name.upper(): value for name, value in variables.items() if value}
    return {name: value for name in _types() if (value := upper.get(env_name(name)))}


@cache
def _types() -> dict[str, Any]:
    """The type of each option, its limits included."""
    hints = get_type_hints(Settings)
    return {
        each.name: Annotated[hints[each.name], msgspec.Meta(**limits)]
        if (limits := each.metadata["limits"])
        else hints[each.name]
        for each in fields(Settings)
    }


def _converted(value: Any, type_: Any) -> Any:
    """A value, which may be text, as what an option is. Raises ValueError, which does not quote the value."""
    if type_ is bool and isinstance(value, str):
        value = True if value.lower() in _TRUE else False if value.lower() in _FALSE else value
    elif type_ == tuple[str, ...] and isinstance(value, str):
        value = tuple(part.strip() for part in value.split(",") if part.strip())
    elif get_origin(type_) is Literal and isinstance(value, str):  # each is written in one case
        value = next((choice for choice in get_args(type_) if choice.lower() == value.lower()), value)
    try:
        return msgspec.convert(value, type_, strict=False, dec_hook=_of_text)
    except msgspec.ValidationError:
        raise ValueError(f"expected {_wanted(type_)}") from None


def _of_text(type_: type, value: Any) -> Any:
    """`msgspec.convert` asks how to make what it does not know."""
    if isinstance(value, type_):
        return value
    if type_ in (Path, SecretStr) and isinstance(value, str):
        return type_(value)
    raise ValueError("not a text")


def _wanted(type_: Any) -> str:
    """What a value of a type is, in words."""
    if get_origin(type_) is Literal:
        return " or ".join(map(repr, get_args(type_)))
    plain = get_args(type_)[0] if get_origin(type_) is Annotated else type_
    words = {int: "a whole number", float: "a number", bool: "true or false", tuple[str, ...]: "texts, by commas"}
    limits = get_args(type_)[1] if get_origin(type_) is Annotated else msgspec.Meta()
    bounds = [
        f"{sign} {bound:g}"
        for sign, bound in (("above", limits.gt), ("at least", limits.ge), ("at most", limits.le))
        if bound is not None
    ]
    return ", ".join((words.get(plain, "a text"), *bounds))


def _half_pairs(found: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with options that go together."""
    for one, other in (
        ("basic_auth_user", "basic_auth_password"),
        ("smart_encoder", "smart_decoder"),
        ("s3_access_key_id", "s3_secret_access_key"),
    ):
        if bool(found[one]) != bool(found[other]):
            missing, present = (other, one) if found[one] else (one, other)
            yield f"{env_name(missing)} is empty although {env_name(present)} is set; set both or neither"


def _as_it_is(value: Any) -> Any:
    return value


def _long_enough(value: SecretStr) -> SecretStr:
    if 0 < len(value.get_secret_value()) < _SHORTEST_PASSWORD:
        raise ValueError(f"it has fewer than {_SHORTEST_PASSWORD} characters")
    return value


def _http_url(value: str) -> str:
    if value and (urlsplit(value).scheme not in {"http", "https"} or not urlsplit(value).hostname):
        raise ValueError("expected an address such as http://host:port")
    return value.rstrip("/")


def _database_url(value: str) -> str:
    return _checked_url(_with_psycopg(value), {"sqlite", "postgresql+psycopg"}, "sqlite:///path or postgresql://...")


def _queue_url(value: str) -> str:
    plain = value.replace("postgresql+psycopg://", "postgresql://", 1).replace("postgres://", "postgresql://", 1)
    schemes = {"sqlite", "redis", "rediss", "unix", "postgresql"}
    return _checked_url(plain, schemes, "sqlite:///path, redis://... or postgresql://...")


def _store_url(value: str) -> str:
    return _checked_url(value, {"file", "s3"}, "file:///path or s3://bucket/prefix")


def _with_psycopg(url: str) -> str:
    for scheme in ("postgresql://", "postgres://"):
        if url.startswith(scheme):
            return f"postgresql+psycopg://{url.removeprefix(scheme)}"
    return url


def _checked_url(url: str, schemes: set[str], wanted: str) -> str:
    if url.partition(":")[0] not in schemes:
        raise ValueError(f"expected {wanted}")
    return url


_RULES: Mapping[str, Any] = {
    "label_studio_url": _http_url,
    "label_studio_public_url": _http_url,
    "ml_url": _http_url,
    "qc_url": _http_url,
    "s3_endpoint_url": _http_url,
    "dashboard_password": _long_enough,
    "database_url": _database_url,
    "queue_url": _queue_url,
    "store_url": _store_url,
}
"""What an option's type does not say: the value as it is used, or ValueError."""


def _shown(default: Any) -> str:
    if isinstance(default, SecretStr) or default is None:
        return ""
    return ",".join(default) if isinstance(default, tuple) else str(default)
