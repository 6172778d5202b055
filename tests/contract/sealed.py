"""A codec as an encrypted store would have one: nothing that people said is stored as they said it.

Its cipher is none; what it shows is that both stores keep their promises with any codec.
"""

from __future__ import annotations

import base64
from typing import Any

import msgspec

from memory.models import Message, Segment, Session, Summary, Turn
from memory.stores.codec import Codec, Value


def _hide(text: str) -> str:
    return "~" + base64.b64encode(bytes(b ^ 0x5A for b in text.encode())).decode()


def _show(text: str) -> str:
    assert text.startswith("~"), f"{text!r} was not sealed"
    return bytes(b ^ 0x5A for b in base64.b64decode(text[1:])).decode()


class Sealed(Codec):
    def seal(self, value: Value) -> Value:
        return _changed(value, _hide, _hide_free)

    def unseal(self, value: Value) -> Value:
        return _changed(value, _show, _show_free)


def _hide_free(free: Any) -> Any:
    return free and {"sealed": _hide(msgspec.json.encode(free).decode())}


def _show_free(free: Any) -> Any:
    return free and msgspec.json.decode(_show(free["sealed"]))


def _changed(value: Any, text: Any, free: Any) -> Any:
    """The value with every text that people wrote through `text`, metadata through `free`."""
    replace = msgspec.structs.replace
    match value:
        case Turn():
            return replace(
                value,
                user=_changed(value.user, text, free),
                assistant=_changed(value.assistant, text, free),
                metadata=free(value.metadata),
                error=value.error and replace(value.error, message=text(value.error.message)),
            )
        case Message():
            speaker = value.speaker and text(value.speaker)
            return replace(value, content=text(value.content), speaker=speaker)
        case Session():
            summary = _changed(value.summary, text, free)
            return replace(
                value, title=text(value.title), summary=summary, metadata=free(value.metadata)
            )
        case Summary():
            return replace(
                value, text=text(value.text), unfiled=_changed(value.unfiled, text, free)
            )
        case Segment():
            return replace(value, text=text(value.text))
    return value
