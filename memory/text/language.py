"""Pure: the words of a text, and its language as far as its function words show it.

The language decides stop words, stems and the English first-person rewrite of recall. A text of
unclear language is "unknown", and gets none of them.
"""

from __future__ import annotations

import re

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


def detect(text: str) -> str:
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
