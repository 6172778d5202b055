"""The chat model that the configuration names: any OpenAI-compatible server's, or the offline one.

Libraries that take seconds to import are imported by the first call: make models off the event
loop.
"""

from __future__ import annotations

import math

from langchain_core.language_models import BaseChatModel

from service.config.settings import ModelConfig


def make_chat_model(config: ModelConfig) -> BaseChatModel:
    """The model that answers. It has no deadlines of its own: `stream_answer` keeps them, and one
    more here would be a timer more for every token."""
    if config.offline:
        from service.chat_models.offline import OfflineChat

        return OfflineChat()
    from service.chat_models.openai import make_openai

    return make_openai(config, config.name, read_seconds=math.inf)


def make_summary_model(config: ModelConfig) -> BaseChatModel:
    """The model that summarises, under its own deadlines. Not for an offline configuration."""
    from service.chat_models.openai import make_openai

    read_seconds = max(config.first_token_timeout, config.gap_timeout)
    return make_openai(config, config.summary_name or config.name, read_seconds=read_seconds)
