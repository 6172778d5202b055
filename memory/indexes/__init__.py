"""Vector indexes over passages. `make_index` is the door; `base` says what an index promises."""

from __future__ import annotations

from pathlib import Path

from memory.config import MemoryConfig
from memory.errors import ConfigError
from memory.indexes.base import VectorIndex

_EDGE = "edge:///"


def make_index(config: MemoryConfig) -> VectorIndex | None:
    """The index that `index.url` names, not open yet; None for "none". Raises ConfigError."""
    url = config.index.url
    if url == "none":
        return None
    if url.startswith(_EDGE) and url != _EDGE:
        from memory.indexes.edge import EdgeIndex

        return EdgeIndex(Path(url.removeprefix(_EDGE)))
    if url.startswith(("http://", "https://")):
        from memory.indexes.qdrant import QdrantIndex

        key = config.index.api_key
        return QdrantIndex(
            url,
            api_key=key.get_secret_value() if key else None,
            collection=config.index.collection,
            timeout_seconds=config.index.timeout,
            payload_text=config.index.payload_text,
        )
    raise ConfigError(
        "index.url",
        f"{url.partition('://')[0]}://… is not supported here",
        "use edge:///folder (relative), edge:////folder (absolute), http(s)://host:port of a "
        "Qdrant server, or none",
    )
