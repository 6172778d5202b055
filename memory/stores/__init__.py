"""Where turns, sessions and segments are kept. `make_store` is the door; `base` says what a store
promises, `codec` how values become what is stored."""

from __future__ import annotations

from pathlib import Path

from memory.config import MemoryConfig
from memory.errors import ConfigError
from memory.stores.base import Store


def make_store(config: MemoryConfig) -> Store:
    """The store that `store.url` names, not open yet. Raises ConfigError."""
    url, timeout = config.store.url, config.store.timeout
    if path := file_path(url, "sqlite"):
        from memory.stores.sqlite.store import SqliteStore

        return SqliteStore(path, timeout_seconds=timeout)
    if url.startswith(("mongodb://", "mongodb+srv://")):
        from memory.stores.mongo.store import MongoStore

        return MongoStore(url, timeout_seconds=timeout, purge_grace_seconds=config.ttl.purge_grace)
    raise ConfigError(
        "store.url",
        f"{url.partition('://')[0]}://… is not supported here",
        "use sqlite:///folder/file.db (relative), sqlite:////folder/file.db (absolute) or "
        "mongodb://host/database",
    )


def file_path(url: str, scheme: str) -> Path | None:
    """The path in `scheme:///relative` or `scheme:////absolute` (SQLAlchemy's form), or None."""
    prefix = f"{scheme}:///"
    return Path(url[len(prefix) :]) if url.startswith(prefix) and url != prefix else None
