"""The service's configuration: the library's groups and the groups of the service itself.

`loading.load_settings` reads it. Secrets never appear in a repr.
"""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    ByteSize,
    Field,
    SecretStr,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from memory.config import Group, MemoryConfig
from memory.config import LimitsConfig as MemoryLimits
from memory.durations import Duration
from memory.errors import ConfigError
from service.auth.keys import AuthConfig

PREFIX = "STRATA_"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
_HOST_NAME = re.compile(r"\A(\[[0-9a-f:.]+\]|[a-z0-9._-]{1,253})\Z")


def _size(value: Any, parse: ValidatorFunctionWrapHandler) -> Any:
    """pydantic's own messages do not say how a size is written, and it takes True for a byte."""
    try:
        if isinstance(value, bool | float):
            raise ValueError
        return parse(value)
    except ValueError:
        raise ValueError("write a size as 64kB, 1MB or a number of bytes") from None


Size = Annotated[ByteSize, WrapValidator(_size), Field(gt=0)]


class ModelConfig(Group):
    """The chat model, behind an OpenAI-compatible API. Without a key and a base_url an offline
    model answers."""

    name: str = "gpt-4.1-mini"
    """Name of the model."""
    base_url: str | None = None
    """URL of the server, with its /v1. Unset: OpenAI's."""
    api_key: SecretStr | None = None
    """Key of the server. Unset: OPENAI_API_KEY."""
    summary_name: str | None = None
    """Name of the model that writes summaries. Unset: model.name."""
    system: str = ""
    """System text of every turn."""
    first_token_timeout: Duration = 30.0
    """Longest time from the call to the first token."""
    gap_timeout: Duration = 30.0
    """Longest time between two tokens of an answer."""
    turn_timeout: Duration = 300.0
    """Longest time of a whole answer."""
    max_retries: Annotated[int, Field(ge=0, le=10)] = 1
    """How often a call that failed before its first token is made again."""

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
    """Bounds against overload."""

    body: Size = ByteSize(256_000)
    """Largest body of a request."""
    message: Size = ByteSize(64_000)
    """Largest text of a message."""
    streams_per_user: Annotated[int, Field(ge=1)] = 64
    """Most answers streamed to one user at once."""
    streams: Annotated[int, Field(ge=1)] = 1000
    """Most answers streamed by one process at once."""


class ServerConfig(Group):
    """The address, the processes behind it, and how they stop."""

    host: str = "127.0.0.1"
    """Address to listen on. One that is not loopback needs auth.mode = keys."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen on. 0: a free one."""
    workers: Annotated[int, Field(ge=1)] = 1
    """Processes behind the address. More than one need MongoDB, and a Qdrant server or no
    index."""
    grace: Duration = 20.0
    """How long running answers may go on when the service stops; then they are kept as
    partial."""
    allowed_hosts: tuple[str, ...] = ()
    """Names of hosts that requests may be sent to, with auth.mode = keys. Empty: any."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severity of what is logged."""

    @field_validator("allowed_hosts")
    @classmethod
    def _names_only(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not _HOST_NAME.match(name.lower()):
                raise ValueError("names of hosts only, without scheme and port: chat.example.org")
        return tuple(name.lower() for name in value)


class Settings(BaseSettings, MemoryConfig):
    """Every group of the configuration: the library's and the service's."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True
    )

    model: ModelConfig = ModelConfig()
    auth: AuthConfig = AuthConfig()
    limits: LimitsConfig = LimitsConfig()
    server: ServerConfig = ServerConfig()

    @model_validator(mode="after")
    def _sound(self) -> Self:
        """Checks what depends on more than one group."""
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
        return self

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
