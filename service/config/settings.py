"""The service's configuration: a TOML file, overridden by `STRATA_<GROUP>__<KEY>` variables.

Unknown keys are errors that name the nearest known one. Secrets never appear in a repr.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from memory.config import Duration, Group, MemoryConfig
from memory.config import LimitsConfig as MemoryLimits
from memory.errors import ConfigError
from service.auth.keys import AuthConfig

DEFAULT_FILE = Path("strata.toml")
_PREFIX = "STRATA_"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
_HOST_NAME = re.compile(r"\A(\[[0-9a-f:.]+\]|[a-z0-9._-]{1,253})\Z")
_PASSWORD = re.compile(r"(://[^/@:]*:)[^/@]+@")
_SIZES = {"b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3}


def parse_size(value: Any) -> int:
    """Bytes of `256kB`, `64kB`, `1MB` or a bare number."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    digits = text.rstrip("kmgb")
    unit = text[len(digits) :] or "b"
    if not digits.strip().isdigit() or unit not in _SIZES:
        raise ValueError("write a size as 64kB, 1MB or a number of bytes")
    return int(digits) * _SIZES[unit]


Size = Annotated[int, BeforeValidator(parse_size), Field(gt=0)]


class ModelConfig(Group):
    name: str = "gpt-4.1-mini"
    base_url: str | None = None
    api_key: SecretStr | None = None
    summary_name: str | None = None
    system: str = ""
    first_token_timeout: Duration = 30.0
    gap_timeout: Duration = 30.0
    turn_timeout: Duration = 300.0
    max_retries: Annotated[int, Field(ge=0, le=10)] = 1

    @field_validator("base_url")
    @classmethod
    def _http(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError("must start with http:// or https://")
        return value

    @property
    def key(self) -> SecretStr | None:
        """The configured key, else OPENAI_API_KEY: the one foreign variable that is read."""
        if self.api_key is not None:
            return self.api_key
        value = os.environ.get("OPENAI_API_KEY")
        return SecretStr(value) if value else None

    @property
    def offline(self) -> bool:
        return self.base_url is None and self.key is None


class LimitsConfig(MemoryLimits):
    body: Size = 256_000
    message: Size = 64_000
    streams_per_user: Annotated[int, Field(ge=1)] = 64
    streams: Annotated[int, Field(ge=1)] = 1000


class ServerConfig(Group):
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    workers: Annotated[int, Field(ge=1)] = 1
    grace: Duration = 20.0
    allowed_hosts: tuple[str, ...] = ()
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("allowed_hosts")
    @classmethod
    def _names_only(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not _HOST_NAME.match(name.lower()):
                raise ValueError("names of hosts only, without scheme and port: chat.example.org")
        return tuple(name.lower() for name in value)


class Settings(BaseSettings, MemoryConfig):
    """Every group of the configuration."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True
    )

    model: ModelConfig = ModelConfig()
    auth: AuthConfig = AuthConfig()
    limits: LimitsConfig = LimitsConfig()
    server: ServerConfig = ServerConfig()

    @model_validator(mode="after")
    def _sound(self) -> Self:
        self.fit_together()
        return self

    def fit_together(self) -> None:
        """Check what depends on more than one group. Raises ConfigError."""
        if self.server.workers > 1 and (self.store.embedded or self.index.embedded):
            raise ConfigError(
                "server.workers",
                "embedded stores serve one process",
                "use 1; or set store.url = mongodb://… and index.url = http://… (a Qdrant "
                "server) or none",
            )
        if self.auth.mode == "local":
            if self.server.host not in LOOPBACK:
                raise ConfigError(
                    "server.host",
                    "auth.mode = local serves loopback only",
                    "use 127.0.0.1, ::1 or localhost; or set auth.mode = keys with auth.keys, "
                    "which `strata token --key` makes",
                )
            if self.server.allowed_hosts:
                raise ConfigError(
                    "server.allowed_hosts",
                    "auth.mode = local answers to localhost, 127.0.0.1 and [::1] only",
                    "leave it out, or set auth.mode = keys",
                )

    def serving(self, **given: Any) -> Settings:
        """These settings with other values in `server`. Raises ConfigError."""
        try:
            server = ServerConfig(**{**self.server.model_dump(), **given})
        except ValidationError as error:
            raise _first(error, "server") from None
        changed = self.model_copy(update={"server": server})
        changed.fit_together()
        return changed

    def memory(self) -> MemoryConfig:
        """The library's part."""
        return MemoryConfig(**{name: getattr(self, name) for name in MemoryConfig.model_fields})

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def forget_foreign_variables() -> None:
    """Of the OPENAI_* variables only the key is read; the SDK would also take a proxy, an
    organisation, headers and a log level (which logs whole requests) from there. LangChain's
    tracing, which sends every prompt away, stays off."""
    for name in list(os.environ):
        if name.startswith("OPENAI_") and name != "OPENAI_API_KEY":
            del os.environ[name]
    for name in ("LANGSMITH_TRACING", "LANGSMITH_TRACING_V2", "LANGCHAIN_TRACING_V2"):
        os.environ[name] = "false"


def config_path(given: Path | None) -> Path | None:
    """`given`, else STRATA_CONFIG, else ./strata.toml if it is there."""
    if given is not None:
        return given
    if named := os.environ.get("STRATA_CONFIG"):
        return Path(named)
    return DEFAULT_FILE if DEFAULT_FILE.exists() else None


def load_settings(path: Path | None = None) -> Settings:
    """Read, merge and validate. Raises ConfigError naming the key and the fix."""
    path = config_path(path)
    if path is not None:
        try:
            tomllib.loads(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(str(path), f"cannot be read: {error}") from error
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(str(path), f"is not TOML: {error}") from error
    _check_variables()
    chosen: type[Settings] = type(
        "Settings",
        (Settings,),
        {
            "model_config": SettingsConfigDict(**{**Settings.model_config, "toml_file": path}),
            "__module__": __name__,
        },
    )
    try:
        return chosen()
    except ValidationError as error:
        raise _first(error) from None
    except SettingsError as error:
        raise _not_json(str(error)) from None


def without_password(url: str) -> str:
    """`url` as it may be shown and logged."""
    return _PASSWORD.sub(r"\1********@", url)


def _check_variables() -> None:
    """pydantic-settings overlooks variables whose group it does not know."""
    for name in os.environ:
        if not name.startswith(_PREFIX) or "__" not in name:
            continue
        group = name[len(_PREFIX) :].split("__")[0].lower()
        if group not in Settings.model_fields:
            raise ConfigError(name, f"unknown group {group!r}", _nearest(group, Settings))


def _not_json(text: str) -> ConfigError:
    """Names the variable of the group that pydantic-settings names; its value is not shown."""
    found = re.search(r'field "(\w+)"', text)
    group = found[1] if found else ""
    for name, value in os.environ.items():
        if name.upper().startswith(f"{_PREFIX}{group.upper()}") and not _is_json(name, value):
            return ConfigError(name, "is not JSON", "lists and tables are JSON")
    return ConfigError(group or "configuration", "a variable is not JSON")


def _is_json(name: str, value: str) -> bool:
    """Whether it is, or need not be because a text or a number is expected."""
    group, _, key = name.removeprefix(_PREFIX).lower().partition("__")
    field = _model_at([group]).model_fields.get(key)
    if field is not None and get_origin(field.annotation) is not tuple:
        return True
    try:
        json.loads(value)
    except ValueError:
        return False
    return True


def _first(error: ValidationError, *group: str) -> ConfigError:
    detail = error.errors(include_url=False, include_input=False)[0]
    place = [*group, *detail["loc"]]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)[1:]
    key = key or "configuration"
    if detail["type"] == "extra_forbidden":
        known = _model_at([part for part in place[:-1] if isinstance(part, str)])
        return ConfigError(key, "unknown key", _nearest(str(place[-1]), known))
    return ConfigError(key, detail["msg"].removeprefix("Value error, "))


def _model_at(parts: list[str]) -> type[BaseModel]:
    model: type[BaseModel] = Settings
    for part in parts:
        field = model.model_fields.get(part)
        found = _as_model(field.annotation) if field else None
        if found is None:
            break
        model = found
    return model


def _as_model(annotation: Any) -> type[BaseModel] | None:
    """The model in `Model`, `Model | None`, `tuple[Model, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_as_model, get_args(annotation))), None)


def _nearest(name: str, model: type[BaseModel]) -> str:
    near = difflib.get_close_matches(name.lower(), model.model_fields, n=1, cutoff=0.0)
    return f"the nearest known one is {near[0]!r}" if near else ""
