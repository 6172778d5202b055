"""What an operator tunes in the library: budgets, window, recall, expiry, where things are kept.

Durations read `150ms 2s 5m 12h 30d never` and are seconds here. The service adds its own groups
(service/settings.py); unknown keys are refused in both.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
DEFAULT_EMBEDDING = "sentence-transformers/all-MiniLM-L6-v2"


def parse_duration(value: Any) -> float:
    """Seconds of `150ms 2s 5m 12h 30d`, a bare number of seconds, or `never` (infinity)."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if math.isnan(value) or value < 0:
            raise ValueError("a duration is not negative")
        return float(value)
    text = str(value).strip().lower()
    if text == "never":
        return math.inf
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?", text)
    if not match:
        raise ValueError("write a duration as 150ms, 2s, 5m, 12h, 30d or never")
    return float(match[1]) * _UNITS[match[2] or "s"]


def _memory_ttl(value: Any) -> Any:
    return value if value == "session" else parse_duration(value)


Duration = Annotated[float, BeforeValidator(parse_duration)]
Tokens = Annotated[int, Field(ge=0)]


class Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BudgetConfig(Group):
    """Tokens per layer; `context_tokens` caps everything that is sent."""

    context_tokens: Annotated[int, Field(ge=1)] = 8000
    answer_tokens: Tokens = 0
    window_tokens: Tokens = 4000
    summary_tokens: Tokens = 800
    recall_tokens: Tokens = 1200
    facts_tokens: Tokens = 400

    @model_validator(mode="after")
    def _parts_fit(self) -> BudgetConfig:
        parts = self.window_tokens + self.summary_tokens + self.recall_tokens + self.facts_tokens
        if parts > self.context_tokens:
            raise ValueError(
                f"window + summary + recall + facts = {parts} tokens exceed context_tokens = "
                f"{self.context_tokens}: lower them or raise budget.context_tokens"
            )
        return self


class WindowConfig(Group):
    compact_to: Annotated[float, Field(gt=0, le=0.85)] = 0.4


class RecallConfig(Group):
    """Weights are z-score units; RECALL.md of the design gives the measurements behind them."""

    deadline: Duration = 0.15
    candidates: Annotated[int, Field(ge=1, le=1000)] = 150
    floor: Annotated[float, Field(ge=0, le=1)] = 0.0
    sparse_weight: float = 1.5
    dense_weight: float = 2.2
    speaker_weight: float = 3.0
    role_weight: float = 3.0
    length_weight: float = 0.25
    date_weight: float = 2.0
    repeat_weight: float = 2.0
    session_weight: float = 0.3


class TtlConfig(Group):
    memory: Annotated[float | Literal["session"], BeforeValidator(_memory_ttl)] = 365 * 86400.0
    session: Duration = math.inf
    purge_grace: Duration = 86400.0


class StoreConfig(Group):
    url: str = "sqlite:///.strata/strata.db"
    timeout: Duration = 2.0

    @property
    def embedded(self) -> bool:
        """For one process only."""
        return self.url.startswith("sqlite:")


class IndexConfig(Group):
    url: str = "edge:///.strata/index"
    api_key: SecretStr | None = None
    collection: Annotated[str, Field(pattern=r"\A[A-Za-z0-9_-]{1,100}\z")] = "strata"
    payload_text: bool = False
    timeout: Duration = 2.0

    @property
    def embedded(self) -> bool:
        """For one process only."""
        return self.url.startswith("edge:")

    @model_validator(mode="after")
    def _no_text_in_files(self) -> IndexConfig:
        if self.payload_text and not self.url.startswith(("http://", "https://")):
            raise ValueError(
                "payload_text needs a Qdrant server (url = http://…): embedded files hold no text"
            )
        return self


class EmbeddingConfig(Group):
    provider: Literal["fastembed", "openai", "none"] = "fastembed"
    name: str = DEFAULT_EMBEDDING
    path: str | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    base_url: str | None = None
    api_key: SecretStr | None = None
    load_timeout: Duration = 60.0


class ProjectorConfig(Group):
    concurrency: Annotated[int, Field(ge=1)] | None = None
    interval: Duration = 1.0
    sweep_interval: Duration = 60.0


class SessionConfig(Group):
    wait: Duration = 30.0
    lease: Duration = 10.0
    detach: Duration = 30.0
    partial_flush: Duration = 0.5


class LimitsConfig(Group):
    """What the library bounds; the service bounds more (service/settings.py)."""

    waiting_per_session: Annotated[int, Field(ge=0)] = 64


class MemoryConfig(Group):
    """Everything `memory.open_memory` needs."""

    budget: BudgetConfig = BudgetConfig()
    window: WindowConfig = WindowConfig()
    recall: RecallConfig = RecallConfig()
    ttl: TtlConfig = TtlConfig()
    store: StoreConfig = StoreConfig()
    index: IndexConfig = IndexConfig()
    embedding: EmbeddingConfig = EmbeddingConfig()
    projector: ProjectorConfig = ProjectorConfig()
    session: SessionConfig = SessionConfig()
    limits: LimitsConfig = LimitsConfig()


ConfigT = TypeVar("ConfigT", bound=MemoryConfig)


class ConfigSource(Generic[ConfigT]):
    """The configuration that counts now. Whoever works with it reads `current` once for each turn
    (or sweep, or batch) and keeps to that value, so that a change never meets half a turn."""

    def __init__(self, config: ConfigT) -> None:
        self.current = config
