"""BM25 vectors: document weights here, IDF in Qdrant (Robertson and Zaragoza 2009).

Tokenising, stop words, stems and hashing are Qdrant's own (`qdrant_edge.Bm25`), in the language
of the text. A document has one form of each word; a query has two, its own language's and the
English one, so that a short question of unclear language still matches the words of a longer text.
Needs no download.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from qdrant_edge import Bm25, Bm25Config, DisabledStemmer, StopwordsSet

from memory.text import language

K1, B, AVERAGE_WORDS = 1.2, 0.75, 60.0


class SparseVector(NamedTuple):
    """`values[n]` is the weight of the word whose hash is `indices[n]`."""

    indices: list[int]
    values: list[float]


@lru_cache(maxsize=16)
def _model(name: str) -> Bm25:
    if name != language.UNKNOWN:
        return Bm25(Bm25Config(k=K1, b=B, avg_len=AVERAGE_WORDS, language=name))
    nothing = StopwordsSet(languages=set(), custom=set())
    plain = Bm25Config(
        k=K1, b=B, avg_len=AVERAGE_WORDS, stopwords=nothing, stemmer=DisabledStemmer()
    )
    return Bm25(plain)


def embed_document(text: str) -> SparseVector:
    """BM25 weights of the words of a passage (term frequency and length; IDF is Qdrant's)."""
    vector = _model(language.detect(text)).embed_document(language.split_unspaced(text))
    return SparseVector(list(vector.indices), list(vector.values))


def embed_query(text: str) -> SparseVector:
    """Weight 1 for every form of every word; may be empty (only stop words)."""
    prepared = language.split_unspaced(text)
    forms = {language.detect(text), "english"}
    indices = sorted({i for name in forms for i in _model(name).embed_query(prepared).indices})
    return SparseVector(indices, [1.0] * len(indices))
