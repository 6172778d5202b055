"""Pure: which turns stand verbatim in the prompt, and as which chat messages.

The same log always renders alike, and between two compactions messages are only appended, so a
provider's prompt cache keeps hitting.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from memory.models import Message, Turn
from memory.receipt import ChatMessage
from memory.tokens import MESSAGE_OVERHEAD_TOKENS, TokenCounter, cut_middle

EARLIER = "(earlier)"
JOIN = "\n\n"


class Window(NamedTuple):
    """`messages` alternate and begin with a user message; `trailing` user text is still to be
    put before the question. `counted` are the log's messages inside, oldest first."""

    messages: tuple[ChatMessage, ...]
    trailing: str
    counted: tuple[Message, ...]


def shown(turn: Turn) -> list[Message]:
    """The messages of a turn that a prompt can show: not empty, not forgotten."""
    user, answer = turn.user, turn.assistant  # asked several times for every turn of a window
    found = []
    if user is not None and user.content and user.status != "forgotten":
        found.append(user)
    if answer is not None and answer.content and answer.status != "forgotten":
        found.append(answer)
    return found


def turn_tokens(turn: Turn, counter: TokenCounter) -> int:
    """What a turn costs in the window at most."""
    return sum([_message_tokens(message, counter) for message in shown(turn)])


def select(
    turns: Sequence[Turn], *, budget_tokens: int, counter: TokenCounter
) -> tuple[Sequence[Turn], bool]:
    """The newest whole turns that fit, oldest first, of finished `turns` given oldest first.

    The newest one is always chosen; True when it has to be cut to fit.
    """
    used = 0
    for index in range(len(turns) - 1, -1, -1):
        used += turn_tokens(turns[index], counter)
        if used > budget_tokens:
            if index == len(turns) - 1:
                return turns[index:], True
            return turns[index + 1 :], False
    return turns, False


def render(
    turns: Sequence[Turn], *, budget_tokens: int, counter: TokenCounter, cut: bool = False
) -> Window:
    """The chat messages of these turns. With `cut`, their messages are cut in the middle to fit
    the budget; what does not fit even so is left out."""
    counted = [message for turn in turns for message in shown(turn)]
    texts = [_text(message) for message in counted]
    if cut and counted:
        texts = _cut_texts(texts, budget_tokens, counter)
        pairs = [(m, t) for m, t in zip(counted, texts, strict=True) if t]
        counted, texts = [m for m, _ in pairs], [t for _, t in pairs]
    joined: list[tuple[str, list[str]]] = []
    for message, text in zip(counted, texts, strict=True):
        if joined and joined[-1][0] == message.role:
            joined[-1][1].append(text)
        else:
            joined.append((message.role, [text]))
    trailing = JOIN.join(joined.pop()[1]) if joined and joined[-1][0] == "user" else ""
    messages = [
        ChatMessage("user" if role == "user" else "assistant", JOIN.join(parts))
        for role, parts in joined
    ]
    if messages and messages[0].role == "assistant":
        messages.insert(0, ChatMessage("user", EARLIER))
    return Window(tuple(messages), trailing, tuple(counted))


def _text(message: Message) -> str:
    return f"{message.speaker}: {message.content}" if message.speaker else message.content


def _message_tokens(message: Message, counter: TokenCounter) -> int:
    speaker = counter.count(f"{message.speaker}: ") if message.speaker else 0
    return message.tokens + speaker + MESSAGE_OVERHEAD_TOKENS


def _cut_texts(texts: list[str], budget_tokens: int, counter: TokenCounter) -> list[str]:
    """Each text gets an equal share; what a short one leaves goes to the longer ones."""
    room = budget_tokens - MESSAGE_OVERHEAD_TOKENS * len(texts)
    cut = dict.fromkeys(range(len(texts)), "")
    by_length = sorted(range(len(texts)), key=lambda i: (len(texts[i]), i))
    for position, index in enumerate(by_length):
        share = max(0, room) // (len(texts) - position)
        cut[index] = cut_middle(texts[index], share, counter)
        room -= counter.count(cut[index])
    return [cut[index] for index in range(len(texts))]
