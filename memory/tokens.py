"""Counts tokens: o200k_base from the package's own assets, or an estimate that says so.

Nothing is downloaded. tiktoken reads its encodings only from a cache folder that it may write
to, so the asset is copied into a temporary one for the moment of loading.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import tiktoken

ASSETS = Path(__file__).parent / "assets"
_ENCODING = "o200k_base"
_FILE = ASSETS / "tiktoken" / "o200k_base.tiktoken"
_CACHE_NAME = "fb374d419588a4632f3f557e76b4b70aebbca790"  # sha1 of the URL that tiktoken knows
_SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"

# What every chat message costs besides its content, and what opens the answer
# (OpenAI cookbook, "How to count tokens with tiktoken").
MESSAGE_OVERHEAD_TOKENS = 4
REPLY_OVERHEAD_TOKENS = 3


class TokenCounter(Protocol):
    """Counts the tokens of a text. `estimated` is True unless the counts are those of the model's
    own encoding; counts of counters with the same `name` are equal."""

    @property
    def estimated(self) -> bool: ...

    @property
    def name(self) -> str: ...

    def count(self, text: str) -> int: ...


class EstimatedCounter:
    """One token per three UTF-8 bytes: holds for Chinese too, where characters / 4 does not."""

    estimated = True
    name = "bytes/3"

    def count(self, text: str) -> int:
        return math.ceil(len(text.encode("utf-8", "surrogatepass")) / 3)


class TiktokenCounter:
    """Exact o200k_base counts; `estimated` says whether the model reads another encoding."""

    name = _ENCODING

    def __init__(self, *, estimated: bool) -> None:
        self.estimated = estimated
        self._encode = _load_encoding().encode_ordinary
        # System texts with their summaries come again every turn. Small texts are quicker to count
        # than to look up, and large ones would fill the memory.
        self._remembered = lru_cache(maxsize=64)(self._count)

    def count(self, text: str) -> int:
        return self._remembered(text) if 600 <= len(text) <= 20_000 else self._count(text)

    def _count(self, text: str) -> int:
        return len(self._encode(text))


def _load_encoding() -> tiktoken.Encoding:
    import tiktoken

    if hashlib.sha256(_FILE.read_bytes()).hexdigest() != _SHA256:
        raise OSError(f"{_FILE} is damaged: reinstall Strata")
    previous = os.environ.get("TIKTOKEN_CACHE_DIR")
    with tempfile.TemporaryDirectory(prefix="strata-") as folder:
        shutil.copy(_FILE, Path(folder) / _CACHE_NAME)
        os.environ["TIKTOKEN_CACHE_DIR"] = folder
        try:
            return tiktoken.get_encoding(_ENCODING)
        finally:
            if previous is None:
                del os.environ["TIKTOKEN_CACHE_DIR"]
            else:
                os.environ["TIKTOKEN_CACHE_DIR"] = previous


def load_counter(model: str) -> TokenCounter:
    """The counter for a chat model: exact for models that read o200k_base, else an estimate.

    Falls back to bytes / 3 when tiktoken or its asset cannot be used.
    """
    try:
        return TiktokenCounter(estimated=not _reads_o200k(model))
    except (ImportError, OSError, ValueError):
        return EstimatedCounter()


def _reads_o200k(model: str) -> bool:
    if model == "offline":
        return True
    import tiktoken.model

    try:
        return tiktoken.model.encoding_name_for_model(model) == _ENCODING
    except KeyError:
        return False


def cut_middle(text: str, max_tokens: int, counter: TokenCounter) -> str:
    """`text` if it has at most `max_tokens`, else its start and its end around ` […] `; "" if not
    even that mark fits."""
    if counter.count(text) <= max_tokens:
        return text
    mark = " […] "
    if counter.count(mark) > max_tokens:
        return ""
    low, high = 0, min(len(text), max_tokens * 8)
    while low < high:  # the largest number of kept characters whose cut text fits
        keep = (low + high + 1) // 2
        if counter.count(_cut(text, keep, mark)) <= max_tokens:
            low = keep
        else:
            high = keep - 1
    return _cut(text, low, mark)


def _cut(text: str, keep: int, mark: str) -> str:
    head = (keep + 1) // 2
    tail = keep - head
    return text[:head] + mark + (text[len(text) - tail :] if tail else "")
