"""Settings: one table of options, read once from environment, `<home>/settings.env` and defaults, then passed down."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit, urlunsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from labelloop.service.errors import SettingsError

PREFIX = "LABELLOOP_"
MIB = 2**20
_SHORTEST_PASSWORD = 10


def _option(default: Any, help_: str, **limits: Any) -> Any:
    return Field(default=default, description=help_, validate_default=True, **limits)


class Settings(BaseSettings):
    """Every option of labelloop. Frozen; secrets and passwords inside URLs stay out of its repr.

    A value comes from (first wins): a keyword argument, the environment variable ``LABELLOOP_<NAME>``, the file
    ``<home>/settings.env``, the default.

    Raises:
        SettingsError: a value cannot be used; the message names the variable.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="ignore", env_ignore_empty=True, hide_input_in_errors=True
    )

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
    basic_auth_user: str = _option("", "User name for Basic auth on the services. Empty: no Basic auth.")
    basic_auth_password: SecretStr = _option(SecretStr(""), "Password for Basic auth on the services.")
    dashboard_password: SecretStr = _option(
        SecretStr(""), "Password of the dashboard, at least 10 characters. Empty: there is no dashboard."
    )
    ml_url: str = _option("http://localhost:9090", "Address of the ML backend, as Label Studio reaches it.")
    qc_url: str = _option("http://localhost:9091", "Address of the QC service, as Label Studio reaches it.")

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
    s3_access_key_id: str = _option("", "Access key. Empty: boto3's own chain of credentials.")
    s3_secret_access_key: SecretStr = _option(SecretStr(""), "Secret of the access key.")

    media_cache_bytes: int = _option(2048 * MIB, "Most bytes of images kept on disk.", ge=0)
    media_max_bytes: int = _option(256 * MIB, "Largest image file that is read, bytes.", gt=0)
    media_max_pixels: int = _option(100_000_000, "Largest image that is decoded, pixels.", gt=0)
    media_timeout_s: float = _option(20.0, "Longest wait for one image, seconds.", gt=0)
    media_allow_private_hosts: bool = _option(False, "Read images from private network addresses.")
    media_hosts: Annotated[tuple[str, ...], NoDecode] = _option(
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

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _settings_error(error) from None  # pydantic's own text may quote the value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put the file of the home folder below the environment."""
        del dotenv_settings, file_secret_settings
        file = settings_file(_home(init_settings, env_settings))
        return init_settings, env_settings, DotEnvSettingsSource(settings_cls, env_file=file, env_file_encoding="utf-8")

    @field_validator("media_hosts", mode="before")
    @classmethod
    def _split_hosts(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value

    @field_validator("dashboard_password")
    @classmethod
    def _long_enough(cls, value: SecretStr) -> SecretStr:
        if 0 < len(value.get_secret_value()) < _SHORTEST_PASSWORD:
            raise ValueError(f"it has fewer than {_SHORTEST_PASSWORD} characters")
        return value

    @field_validator("label_studio_url", "label_studio_public_url", "ml_url", "qc_url", "s3_endpoint_url")
    @classmethod
    def _http_url(cls, value: str) -> str:
        if value and (urlsplit(value).scheme not in {"http", "https"} or not urlsplit(value).hostname):
            raise ValueError("expected an address such as http://host:port")
        return value.rstrip("/")

    @model_validator(mode="before")
    @classmethod
    def _places(cls, values: Any) -> Any:
        """Derive the three URLs from `home` where they are not given, so that one folder holds everything."""
        home = Path(values.get("home") or cls.model_fields["home"].default).expanduser().absolute()
        given = {name: value for name, value in values.items() if value != "" or name not in _PLACES}
        return {name: pattern.format(home=home) for name, pattern in _PLACES.items()} | given | {"home": home}

    @field_validator("database_url")
    @classmethod
    def _database_url(cls, value: str) -> str:
        return _checked_url(
            _with_psycopg(value), {"sqlite", "postgresql+psycopg"}, "sqlite:///path or postgresql://..."
        )

    @field_validator("queue_url")
    @classmethod
    def _queue_url(cls, value: str) -> str:
        plain = value.replace("postgresql+psycopg://", "postgresql://", 1).replace("postgres://", "postgresql://", 1)
        schemes = {"sqlite", "redis", "rediss", "unix", "postgresql"}
        return _checked_url(plain, schemes, "sqlite:///path, redis://... or postgresql://...")

    @field_validator("store_url")
    @classmethod
    def _store_url(cls, value: str) -> str:
        return _checked_url(value, {"file", "s3"}, "file:///path or s3://bucket/prefix")

    @model_validator(mode="after")
    def _pairs(self) -> Settings:
        pairs = (
            (
                "basic_auth_user",
                self.basic_auth_user,
                "basic_auth_password",
                self.basic_auth_password.get_secret_value(),
            ),
            ("smart_encoder", self.smart_encoder, "smart_decoder", self.smart_decoder),
            (
                "s3_access_key_id",
                self.s3_access_key_id,
                "s3_secret_access_key",
                self.s3_secret_access_key.get_secret_value(),
            ),
        )
        for one, first, other, second in pairs:
            if bool(first) != bool(second):
                missing, present = (other, one) if first else (one, other)
                raise ValueError(
                    f"{env_name(missing)} is empty although {env_name(present)} is set; set both or neither"
                )
        return self

    def __repr_args__(self) -> Any:
        for name, value in super().__repr_args__():
            yield name, hide_password(value) if isinstance(value, str) and "://" in value else value


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
        (env_name(name), derived.get(name) or _shown(field.default), field.description or "")
        for name, field in Settings.model_fields.items()
    ]


def unknown_settings(home: Path) -> list[str]:
    """Names in the environment or the home's file that look like settings and are none: most often a typing error."""
    file = settings_file(home)
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    names = {*os.environ, *(line.removeprefix("export ").split("=", 1)[0].strip() for line in lines if "=" in line)}
    known = {env_name(name) for name in Settings.model_fields}
    return sorted(name for name in names if name.upper().startswith(PREFIX) and name.upper() not in known)


def hide_password(url: str) -> str:
    """A URL with the password in its authority replaced by asterisks."""
    parts = urlsplit(url)
    if not parts.password:
        return url
    user, host = parts.username or "", parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{user}:********@{host}"))


def _home(*sources: PydanticBaseSettingsSource) -> Path:
    for source in sources:
        found = source().get("home") if isinstance(source, (InitSettingsSource, EnvSettingsSource)) else None
        if found:
            return Path(found).expanduser()
    return Path(Settings.model_fields["home"].default)


def _with_psycopg(url: str) -> str:
    for scheme in ("postgresql://", "postgres://"):
        if url.startswith(scheme):
            return f"postgresql+psycopg://{url.removeprefix(scheme)}"
    return url


def _checked_url(url: str, schemes: set[str], wanted: str) -> str:
    if url.partition(":")[0] not in schemes:
        raise ValueError(f"expected {wanted}")
    return url


def _shown(default: Any) -> str:
    if isinstance(default, SecretStr) or default is None:
        return ""
    return ",".join(default) if isinstance(default, tuple) else str(default)


def _settings_error(error: ValidationError) -> SettingsError:
    problems = []
    for detail in error.errors(include_input=False, include_url=False, include_context=False):
        name = env_name(str(detail["loc"][0])) + ": " if detail["loc"] else ""
        problems.append(f"{name}{detail['msg'].removeprefix('Value error, ')}")
    return SettingsError(
        f"Settings cannot be used: {'; '.join(problems)}.",
        fix="Correct it in the environment or in settings.env in labelloop's home folder.",
    )
