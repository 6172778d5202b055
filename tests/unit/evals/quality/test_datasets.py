from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evals.quality.datasets import COMMITTED, DataSet, committed, load
from memory.errors import InvalidInput

CATEGORIES = {
    "single-hop",
    "multi-hop",
    "temporal",
    "knowledge-update",
    "preference",
    "abstention",
}


def conversation() -> dict[str, Any]:
    turns = [
        {"turn_id": "1", "speaker": "user", "role": "user", "text": "I keep bees."},
        {"turn_id": "2", "speaker": "assistant", "role": "assistant", "text": "Lovely."},
    ]
    return {
        "conversation_id": "c",
        "user_id": "u",
        "sessions": [{"session_id": "s", "datetime": "2024-05-08T12:00:00", "turns": turns}],
        "questions": [
            {
                "question_id": "q",
                "category": "single-hop",
                "question": "What do I keep?",
                "evidence": ["1"],
            }
        ],
    }


def loaded(folder: Path, *conversations: dict[str, Any]) -> list[DataSet]:
    path = folder / "given.json"
    path.write_text(json.dumps(conversations), encoding="utf-8")
    return load([path])


@pytest.fixture(params=[path.name for path in committed()])
def small(request: pytest.FixtureRequest) -> DataSet:
    return load([COMMITTED / request.param])[0]


def test_three_languages_are_committed() -> None:
    assert [path.stem for path in committed()] == ["small_de", "small_en", "small_zh"]


def test_all_committed_sets_load_together() -> None:
    assert len(load(committed())) == 3


def test_a_committed_set_is_one_user_over_several_months(small: DataSet) -> None:
    (only,) = small.conversations
    days = [session.datetime for session in only.sessions]
    assert 6 <= len(days) <= 8
    assert days == sorted(days)
    assert (days[-1] - days[0]).days > 120


def test_in_a_committed_set_user_and_assistant_take_turns(small: DataSet) -> None:
    for session in small.conversations[0].sessions:
        roles = [turn.role for turn in session.turns]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert all(turn.text == turn.text.strip() != "" for turn in session.turns)
        assert all(turn.speaker == turn.role for turn in session.turns)


def test_a_committed_set_asks_for_everything(small: DataSet) -> None:
    questions = small.conversations[0].questions
    assert {question.category for question in questions} == CATEGORIES
    for question in questions:
        assert bool(question.evidence) == (question.category != "abstention")
        assert len(set(question.evidence)) == len(question.evidence)
        assert question.answer


def test_a_good_file_loads(tmp_path: Path) -> None:
    (data,) = loaded(tmp_path, conversation())
    assert data.name == "given"
    assert data.conversations[0].questions[0].evidence == ["1"]


def test_a_missing_file_is_named() -> None:
    with pytest.raises(InvalidInput, match=r"--data nowhere\.json: cannot be read"):
        load([Path("nowhere.json")])


def test_the_place_of_a_wrong_field_is_named(tmp_path: Path) -> None:
    wrong = conversation()
    wrong["sessions"][0]["datetime"] = "yesterday"
    with pytest.raises(InvalidInput, match=r"datetime"):
        loaded(tmp_path, wrong)


def test_evidence_must_exist(tmp_path: Path) -> None:
    wrong = conversation()
    wrong["questions"][0]["evidence"] = ["7"]
    with pytest.raises(InvalidInput, match="question 'q': evidence '7' is no turn with text"):
        loaded(tmp_path, wrong)


def test_a_role_must_be_known(tmp_path: Path) -> None:
    wrong = conversation()
    wrong["sessions"][0]["turns"][1]["role"] = "robot"
    with pytest.raises(InvalidInput, match=r"turn '2': role 'robot' \(use user or assistant\)"):
        loaded(tmp_path, wrong)


def test_turn_ids_are_unique_in_a_conversation(tmp_path: Path) -> None:
    wrong = conversation()
    wrong["sessions"][0]["turns"][1]["turn_id"] = "1"
    with pytest.raises(InvalidInput, match="turn_id '1': stands there twice"):
        loaded(tmp_path, wrong)


def test_session_ids_are_unique_in_a_conversation(tmp_path: Path) -> None:
    wrong = conversation()
    wrong["sessions"] *= 2
    with pytest.raises(InvalidInput, match="session_id 's': stands there twice"):
        loaded(tmp_path, wrong)


def test_a_user_has_one_conversation(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="user_id 'u' has two conversations"):
        loaded(tmp_path, conversation(), conversation())


def test_a_question_is_asked_once(tmp_path: Path) -> None:
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    for path in (first, second):
        path.write_text(json.dumps([conversation()]), encoding="utf-8")
    with pytest.raises(InvalidInput, match="question 'q' stands there twice"):
        load([first, second])


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="holds no conversation"):
        loaded(tmp_path)
