"""Pure: what all layers do with text: its words and language, its passages, its written dates.

The language is told by function words, and only as far as they go: what recall does differently
for one (stop words, stems, the English first-person rewrite) hangs on it, so an unsure answer is
UNKNOWN, and that means: do nothing special. Passages have the sizes that were measured
(docs/recall.md): a message of at most 520 characters is one, longer ones are cut at line or
sentence ends into pieces of at most 400.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from datetime import date
from typing import NamedTuple

from memory.ids import MessageId
from memory.models import Message

UNKNOWN = "unknown"

# Frequent words that are rare in the other languages listed here.
_FUNCTION_WORDS = {
    "english": "the and is are was were you i my we they what when where who how did does do of to "
    "it that this have has with for not your about there which would can which's it's i'm don't",
    "german": "der die das und ist ich nicht ein eine einen mein meine meinen wir sie war mit auf "
    "für von wie wo wann wer habe hat dem den sich auch aber heißt welche gibt über bin wird im zu "
    "bei nach welchem welcher warum",
    "french": "le la les et est je une des mon ma mes nous vous il elle que qui dans pour pas avec "
    "sur quand où quel quelle comment j'ai c'est du au suis était mais ce",
    "spanish": "el la los las y es yo un una mi mis nosotros que quién en para no con por cuándo "
    "dónde cómo cuál tengo está del al fue pero se lo me su",
    "italian": "il lo gli e è io un una mio mia noi che chi di per non con quando dove come quale "
    "ho sono della nel ma si mi ti del era",
    "portuguese": "o os as e é eu um uma meu minha nós que quem em para não com por quando onde "
    "como qual tenho está do da no na mas foi se",
    "dutch": "de het een en is ik niet mijn wij zij was met op voor van hoe waar wanneer wie heb "
    "heeft ook maar zijn dat dit je",
}
_WORDS_OF = {language: frozenset(words.split()) for language, words in _FUNCTION_WORDS.items()}
_RANGES = (
    "\u0e00-\u0e7f"  # Thai
    "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af"  # Hangul
    "\u3040-\u30ff\u31f0-\u31ff"  # Kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Han
)
_UNSPACED = re.compile(f"[{_RANGES}]+")
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_CYRILLIC = re.compile("[\u0400-\u04ff]")


def words(text: str) -> list[str]:
    """The words of `text` as written, apostrophes inside words kept, in order."""
    return _WORD.findall(text)


def detect_language(text: str) -> str:
    """A Snowball language name, or UNKNOWN, judged by at most the first 200 words."""
    if _UNSPACED.search(text):
        return UNKNOWN
    tokens = [word.casefold().replace("’", "'") for word in words(text[:2000])[:200]]
    if tokens and sum(bool(_CYRILLIC.search(token)) for token in tokens) * 2 > len(tokens):
        return "russian"
    scores = {
        language: sum(token in known for token in tokens) for language, known in _WORDS_OF.items()
    }
    best = max(scores, key=lambda language: scores[language])
    if scores[best] == 0:
        # Without any function word, plain ASCII is most often English.
        return "english" if text.isascii() else UNKNOWN
    rivals = [language for language in scores if scores[language] == scores[best]]
    if len(rivals) > 1:
        return "english" if "english" in rivals and text.isascii() else UNKNOWN
    return best


def split_unspaced(text: str) -> str:
    """`text` with runs of scripts that write no spaces as overlapping pairs of characters."""

    def pairs(match: re.Match[str]) -> str:
        run = match[0]
        if len(run) == 1:
            return f" {run} "
        return " " + " ".join(run[i : i + 2] for i in range(len(run) - 1)) + " "

    return _UNSPACED.sub(pairs, text)


# --- passages -------------------------------------------------------------------------------

WHOLE_CHARACTERS = 520
PIECE_CHARACTERS = 400
TAIL_CHARACTERS = 100

_NAMESPACE = uuid.UUID("5d0c2c1e-6f0e-5a39-9a43-6d2f0f3f7a10")
# Not after "17." of a German date, nor after the commonest short forms.
_SENTENCE_END = re.compile(
    r"\n+|(?<=[.!?…])(?<!\b\d\.)(?<!\b\d\d\.)(?<!\b[DMS][rst]\.)(?<!\bMrs\.)(?<!\bNr\.)\s+"
    r"|(?<=[。！？])"
)
_MONTHS = (
    "january february march april may june july august september october november december"
).split()


class Span(NamedTuple):
    """A slice of a text, in characters."""

    start: int
    end: int


def cut(text: str) -> list[Span]:
    """The passages of `text` in order; together they hold everything but space between them."""
    if len(text) <= WHOLE_CHARACTERS:
        return [Span(0, len(text))]
    spans: list[Span] = []
    start = end = 0
    for sentence in sentences(text, longest=PIECE_CHARACTERS):
        if end > start and sentence.end - start > PIECE_CHARACTERS:
            spans.append(Span(start, end))
            start = sentence.start
        elif end == start:
            start = sentence.start
        end = sentence.end
    if end > start:
        spans.append(Span(start, end))
    if len(spans) > 1:
        before, tail = spans[-2:]
        # With much space between them, the two would make an endless passage.
        if tail.end - tail.start < TAIL_CHARACTERS and tail.end - before.start <= WHOLE_CHARACTERS:
            spans[-2:] = [Span(before.start, tail.end)]
    return spans


def sentences(text: str, *, longest: int) -> list[Span]:
    """Sentences and lines, none longer than `longest` characters (else cut at a space)."""
    found: list[Span] = []
    start = 0
    for match in (*_SENTENCE_END.finditer(text), None):
        end = match.start() if match else len(text)
        while end - start > longest:
            space = text.rfind(" ", start + 1, start + longest)
            split = space if space > start else start + longest
            found.append(Span(start, split))
            start = split + (1 if space > start else 0)
        if text[start:end].strip():
            found.append(Span(start, end))
        start = match.end() if match else end
    return found


def point_id(message_id: MessageId, passage: int) -> str:
    """The UUID of a passage in every index: derived, so that writing it again replaces it."""
    return str(uuid.uuid5(_NAMESPACE, f"{message_id}#{passage}"))


def speaker_of(message: Message) -> str:
    """The speaker's name if the message carries one, else the role."""
    return message.speaker or message.role


def dense_key(message: Message, passage: str) -> str:
    """The text that is embedded: `speaker: passage`, without a date and without neighbours."""
    return f"{speaker_of(message)}: {passage}"


def written_day(day: date) -> str:
    """`8 May 2023`, as dates stand in prompts."""
    return f"{day.day} {_MONTHS[day.month - 1].capitalize()} {day.year}"


def lexical_key(day: date, neighbours: Sequence[tuple[Message, str]]) -> str:
    """The text that is searched by words: the day, then the previous, this and the next passage."""
    lines = [written_day(day).lower()]
    lines += [f"{speaker_of(message)} {passage}" for message, passage in neighbours]
    return "\n".join(lines)
