from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import memory
from memory import tokens
from memory.receipt import ChatMessage
from memory.tokens import (
    EstimatedCounter,
    TiktokenCounter,
    cut_middle,
    load_counter,
)
from unit.builders import count_messages
from unit.texts import any_text

ROOT = Path(memory.__file__).parent.parent
_MODEL = "all-MiniLM-L6-v2"
ASSETS = {
    f"{_MODEL}/config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    f"{_MODEL}/model.onnx": "53056ee5122c15bf5dbc4faf06386e749ff140392f0497b860146d7acc892411",
    f"{_MODEL}/special_tokens_map.json": (
        "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"
    ),
    f"{_MODEL}/tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    f"{_MODEL}/tokenizer_config.json": (
        "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"
    ),
    "tiktoken/o200k_base.tiktoken": (
        "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
    ),
}


def test_counts_are_those_of_o200k_base(counter: TiktokenCounter) -> None:
    assert counter.count("") == 0
    assert counter.count("hello world") == 2
    assert counter.count("我昨天在北京见了老朋友") == 8


def test_special_tokens_in_a_text_are_plain_text(counter: TiktokenCounter) -> None:
    assert counter.count("<|endoftext|>") > 1


def test_lone_surrogates_are_counted_not_raised(counter: TiktokenCounter) -> None:
    assert counter.count("\ud800") >= 1
    assert EstimatedCounter().count("\ud800") >= 1


@pytest.mark.parametrize(
    ("model", "estimated"),
    [("gpt-4.1-mini", False), ("offline", False), ("gpt-4", True), ("llama-4", True)],
)
def test_counts_are_marked_as_estimates_unless_the_model_reads_the_encoding(
    model: str, estimated: bool
) -> None:
    assert load_counter(model).estimated is estimated


def test_a_damaged_asset_gives_the_marked_estimate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = tmp_path / "o200k_base.tiktoken"
    damaged.write_bytes(b"IQ== 0\n")
    monkeypatch.setattr(tokens, "_FILE", damaged)
    counter = load_counter("gpt-4.1-mini")
    assert counter.estimated
    assert counter.count("abcdef") == 2


def test_loading_leaves_the_environment_and_the_package_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = sorted(path for path in tokens.ASSETS.rglob("*"))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "/somewhere")
    load_counter("gpt-4.1-mini")
    assert os.environ["TIKTOKEN_CACHE_DIR"] == "/somewhere"
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR")
    load_counter("gpt-4.1-mini")
    assert "TIKTOKEN_CACHE_DIR" not in os.environ
    assert sorted(path for path in tokens.ASSETS.rglob("*")) == before


@given(any_text)
def test_an_estimate_never_counts_less_than_a_third_of_the_bytes(text: str) -> None:
    assert EstimatedCounter().count(text) * 3 >= len(text.encode())


def test_a_request_costs_contents_and_overheads(counter: TiktokenCounter) -> None:
    messages = [ChatMessage("system", "hello world"), ChatMessage("user", "")]
    assert count_messages(counter, messages) == 3 + (4 + 2) + 4


@given(any_text, st.integers(0, 40))
def test_a_cut_text_never_costs_more_than_its_room(text: str, room: int) -> None:
    counter = TiktokenCounter(estimated=False)
    cut = cut_middle(text, room, counter)
    assert counter.count(cut) <= room
    if counter.count(text) <= room:
        assert cut == text
    elif cut:
        head, mark, tail = cut.partition(" […] ")
        assert mark
        assert text.startswith(head)
        assert text.endswith(tail)


def test_a_cut_text_keeps_its_start_and_its_end(counter: TiktokenCounter) -> None:
    text = "first " + "middle " * 500 + "last"
    cut = cut_middle(text, 40, counter)
    assert cut.startswith("first")
    assert cut.endswith("last")
    assert 30 <= counter.count(cut) <= 40


def test_shipped_files_are_what_their_checksums_say() -> None:
    found = {
        str(path.relative_to(tokens.ASSETS)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in tokens.ASSETS.rglob("*")
        if path.is_file() and path.name not in ("LICENSE", "SOURCE", "README.md")
    }
    assert found == ASSETS
    assert ASSETS["tiktoken/o200k_base.tiktoken"] == tokens._SHA256


@pytest.mark.parametrize(
    "work",
    [
        "from memory.tokens import load_counter; assert not load_counter('gpt-4.1-mini').estimated",
        "import asyncio; from memory.embeddings import DenseModel\n"
        "from memory.config import EmbeddingConfig\n"
        "model = DenseModel(EmbeddingConfig()); asyncio.run(model.load())\n"
        "assert model.state == 'ready', model.reason\n"
        "assert len(asyncio.run(model.query('hello'))) == 384; model.close()",
    ],
    ids=["counter", "embedding"],
)
def test_loading_what_ships_writes_no_file_in_a_fresh_home(work: str, tmp_path: Path) -> None:
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    home.mkdir()
    temporary.mkdir()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "HF_", "ORT_"))}
    env = {**kept, "HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"),
           "TMPDIR": str(temporary), "PYTHONDONTWRITEBYTECODE": "1"}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", work], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert list(home.rglob("*")) == []
    assert [path for path in temporary.rglob("*") if path.is_file()] == []
