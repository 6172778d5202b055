from __future__ import annotations

from hypothesis import given

from memory.embeddings import SparseVector, sparse_document, sparse_query
from unit.texts import any_text


def shared(question: str, document: str) -> set[int]:
    return set(sparse_query(question).indices) & set(sparse_document(document).indices)


def test_a_question_meets_the_other_forms_of_its_words() -> None:
    assert shared("Where did she walk?", "We walked and were walking home")


def test_stop_words_find_nothing() -> None:
    assert sparse_query("what is the") == SparseVector([], [])
    assert not shared("what is the", "the cat is what it is")


def test_a_short_question_meets_the_words_of_a_text_in_another_language() -> None:
    assert shared("Bruno Hund", "Ich habe einen Hund, und der Hund heißt Bruno")
    assert shared("Hunde", "Wir haben auch zwei Hunde und eine Katze")


def test_chinese_is_found_by_pairs_of_characters() -> None:
    assert shared("北京", "我昨天在北京见了老朋友")
    assert not shared("上海", "我昨天在北京见了老朋友")


def test_a_document_weighs_what_it_repeats_and_a_query_each_word_once() -> None:
    once = sparse_document("tea with some milk")
    often = sparse_document("tea tea tea with some milk")
    tea = next(iter(set(sparse_query("tea").indices)))
    assert dict(zip(*often, strict=True))[tea] > dict(zip(*once, strict=True))[tea]
    assert set(sparse_query("tea tea tea").values) == {1.0}


@given(any_text)
def test_any_text_has_a_repeatable_vector_of_distinct_words(text: str) -> None:
    for embed in (sparse_document, sparse_query):
        vector = embed(text)
        assert vector == embed(text)
        assert len(set(vector.indices)) == len(vector.indices) == len(vector.values)
        assert all(value > 0 for value in vector.values)
