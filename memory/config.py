"""The library's configuration: budgets, window, recall, expiry, stores and models.

Durations are written `150ms 2s 5m 12h 30d never` and are seconds here. The service adds its own
groups (service/config/settings.py); both refuse unknown keys. The text below a field is its
description: `strata config`, the schema and docs/configuration.md show it from here.
"""

from __future__ import annotations

import math
from typing import Annotated, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from memory.durations import Duration, Ttl

DEFAULT_EMBEDDING = "sentence-transformers/all-MiniLM-L6-v2"
Tokens = Annotated[int, Field(ge=0)]


class Group(BaseModel):
    """A table of the configuration. Its values never change; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class BudgetConfig(Group):
    """Tokens of a prompt, in all and for each layer. What one layer leaves unused another does
    not get. window + summary + recall + facts must fit context_tokens."""

    context_tokens: Annotated[int, Field(ge=1)] = 8000
    """Most tokens of everything that is sent to the model."""
    answer_tokens: Tokens = 0
    """Most tokens of an answer, asked of the model. 0: no limit is sent."""
    window_tokens: Tokens = 4000
    """Most tokens of the newest messages, which are sent verbatim."""
    summary_tokens: Tokens = 800
    """Most tokens of the summary of what is older than the window."""
    recall_tokens: Tokens = 1200
    """Most tokens of older messages that recall finds for a question."""
    facts_tokens: Tokens = 400
    """Most tokens of facts about the user, a layer not built yet."""

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
    """How the window gives its oldest messages to the summary."""

    compact_to: Annotated[float, Field(gt=0, le=0.85)] = 0.4
    """Share of budget.window_tokens that a compaction leaves in the window. A low share
    compacts seldom, so that the start of the prompt stays the same for many turns."""


class RecallConfig(Group):
    """How older messages are searched and ranked. A candidate's score is a sum in z-score units:
    1 is one standard deviation of a ranking's scores among the candidates of the question."""

    deadline: Duration = 0.15
    """Longest time a turn waits for recall; then it goes on without."""
    candidates: Annotated[int, Field(ge=1, le=1000)] = 150
    """Hits taken from each of the two rankings, by words and by meaning."""
    floor: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Least cosine similarity of a candidate that shares no word with the question. 0: off."""
    sparse_weight: float = 1.5
    """Weight of the ranking by words (BM25), per unit of z."""
    dense_weight: float = 2.2
    """Weight of the ranking by meaning (embeddings), per unit of z."""
    speaker_weight: float = 3.0
    """Added to what a person said whom the question names."""
    role_weight: float = 3.0
    """Added to the user's own messages, unless the question is about what the assistant
    said."""
    length_weight: float = 0.25
    """Taken off per natural logarithm of a passage's tokens over 30, to 80 tokens."""
    date_weight: float = 2.0
    """Added to what was said on a day that the question names."""
    repeat_weight: float = 2.0
    """Taken off for each better passage of the same message."""
    session_weight: float = 0.3
    """Times the mean of the three best scores of a candidate's session, added."""


class TtlConfig(Group):
    """How long what was said is kept."""

    memory: Ttl = 365 * 86400.0
    """How long a message lives from its recording on. `session`: as long as its session.
    `never`: until it is deleted."""
    session: Duration = math.inf
    """How long a session lives after its last activity. `never`: while one of its messages
    does."""
    purge_grace: Duration = 86400.0
    """How long MongoDB keeps what has expired if no sweep removes it before."""


class StoreConfig(Group):
    """The store of turns, sessions and summaries: the truth that all else is derived from."""

    url: str = "sqlite:///.strata/strata.db"
    """`sqlite:///` and a file (one process), or mongodb://user:password@host/database. Three
    slashes: relative to the working directory; four: absolute."""
    timeout: Duration = 2.0
    """Longest time of one exchange with the store."""

    @property
    def embedded(self) -> bool:
        """One process owns it."""
        return self.url.startswith("sqlite:")


class IndexConfig(Group):
    """The vector index of recall, derived from the store and rebuilt from it when lost."""

    url: str = "edge:///.strata/index"
    """`edge:///` and a folder (one process), http(s)://host:6333 (a Qdrant server), or `none`
    (no recall)."""
    api_key: SecretStr | None = None
    """Key of the Qdrant server."""
    collection: Annotated[str, Field(pattern=r"\A[A-Za-z0-9_-]{1,100}\z")] = "strata"
    """Name of the collection on the Qdrant server."""
    payload_text: bool = False
    """Whether the Qdrant server also gets each passage's text, for LangChain applications that
    search there."""
    timeout: Duration = 2.0
    """Longest time of one exchange with the Qdrant server."""

    @property
    def embedded(self) -> bool:
        """One process owns it."""
        return self.url.startswith("edge:")

    @model_validator(mode="after")
    def _no_text_in_files(self) -> IndexConfig:
        if self.payload_text and not self.url.startswith(("http://", "https://")):
            raise ValueError(
                "payload_text needs a Qdrant server (url = http://…): embedded files hold no text"
            )
        return self


class EmbeddingConfig(Group):
    """The embedding model, for recall by meaning."""

    provider: Literal["fastembed", "openai", "none"] = "fastembed"
    """`fastembed` runs the model here, `openai` asks an OpenAI-compatible server, `none` leaves
    recall to words."""
    name: str = DEFAULT_EMBEDDING
    """Name of the model. The default comes with Strata; FastEmbed downloads others."""
    path: str | None = None
    """Folder with the model's files, for `fastembed`."""
    dimensions: Annotated[int, Field(ge=1)] | None = None
    """Length of the vectors asked of an `openai` server. Unset: the model's own."""
    base_url: str | None = None
    """URL of the `openai` server, with its /v1. Unset: OpenAI's."""
    api_key: SecretStr | None = None
    """Key of the `openai` server. Unset: OPENAI_API_KEY."""
    load_timeout: Duration = 60.0
    """Longest time to load the model, beside the first turns; until then, and if it fails,
    recall is by words. 0: no limit."""


class ProjectorConfig(Group):
    """The work in the background that makes turns searchable and summaries current."""

    concurrency: Annotated[int, Field(ge=1)] | None = None
    """Sessions worked on at once. Unset: 1 on SQLite, 4 on MongoDB."""
    interval: Duration = 1.0
    """Longest time between two looks for turns that were not seen yet."""
    sweep_interval: Duration = 60.0
    """Time between two sweeps for what has expired."""


class SessionConfig(Group):
    """How turns of one session follow each other."""

    wait: Duration = 30.0
    """Longest time a turn waits for another one of its session to end."""
    lease: Duration = 10.0
    """How long a process that died keeps a session busy. A living one renews it."""
    detach: Duration = 30.0
    """How long an answer goes on after its last reader has left. 0: it stops."""
    partial_flush: Duration = 0.5
    """Time between two saves of an unfinished answer. 0: none is saved."""


class LimitsConfig(Group):
    """Bounds against overload."""

    waiting_per_session: Annotated[int, Field(ge=0)] = 64
    """Most turns that wait for one session; more are refused."""


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
    """The configuration that counts now. A turn, sweep or batch reads `current` once, when it
    begins, and keeps to that value, so that a change never meets half a turn."""

    def __init__(self, config: ConfigT) -> None:
        self.current = config
