"""The join: every request has a prompt of its own, of its length, from one category, and the same for the same seed."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.loadtests.load.prompts import Text
from nightjar.loadtests.load.trace_join import (
    EstimatedTokens,
    TokenCounter,
    TokenizerError,
    TokenizerTokens,
    TraceJoin,
    context_limits,
    digest,
    join_trace,
    token_counter,
    write_join,
)
from nightjar.loadtests.load.traces import FittedTrace, TraceRow
from tests.loadtests.load.word_tokenizer import word_tokenizer

WORDS = st.text("abcdefgh", min_size=1, max_size=7)
TEXTS = st.lists(
    st.tuples(st.sampled_from(("math", "chat", "")), st.lists(WORDS, min_size=1, max_size=40)), min_size=1, max_size=12
).map(lambda drawn: tuple(Text(line, category, (" ".join(words),)) for line, (category, words) in enumerate(drawn, start=1)))
TRACES = st.lists(st.tuples(st.integers(4, 300), st.integers(1, 50)), min_size=1, max_size=20).map(
    lambda lengths: FittedTrace(tuple(TraceRow(float(n), *row) for n, row in enumerate(lengths)), 0, 0)
)


class WordTokens:
    """One token a word."""

    name = "words"
    is_estimate = False

    def count(self, text: str) -> int:
        return len(text.split())

    def prefix(self, text: str, tokens: int) -> str:
        return " ".join(text.split()[:tokens])


def joined(trace: FittedTrace, texts: tuple[Text, ...], seed: int = 0, counter: TokenCounter | None = None) -> TraceJoin:
    return join_trace(trace, texts, counter or WordTokens(), random.Random(seed))


@given(trace=TRACES, texts=TEXTS, seed=st.integers(0, 99))
def test_every_request_of_the_trace_has_a_prompt_of_its_tokens_from_texts_of_one_category(
    trace: FittedTrace, texts: tuple[Text, ...], seed: int
) -> None:
    join = joined(trace, texts, seed)
    by_line = {text.line: text for text in texts}
    assert [(one.number, one.due_s, one.output_tokens) for one in join.requests] == [
        (number, row.due_s, row.output_tokens) for number, row in enumerate(trace.rows)
    ]
    for request, row in zip(join.requests, trace.rows, strict=True):
        assert len(request.prompt.split()) == request.prompt_tokens == row.prompt_tokens
        assert {by_line[line].category for line in request.lines} == {request.category}
        words = [word for line in request.lines for word in by_line[line].turns[0].split()]
        assert request.prompt.split() == [f"{request.number + 1}.", *words][: row.prompt_tokens]


@given(trace=TRACES, texts=TEXTS)
def test_no_two_prompts_begin_alike_so_that_a_prefix_cache_answers_none(trace: FittedTrace, texts: tuple[Text, ...]) -> None:
    heads = [request.prompt.split()[0] for request in joined(trace, texts).requests]
    assert len(set(heads)) == len(heads)


@given(trace=TRACES, texts=TEXTS, seed=st.integers(0, 9))
def test_the_same_seed_gives_the_same_join_to_every_process(trace: FittedTrace, texts: tuple[Text, ...], seed: int) -> None:
    assert joined(trace, texts, seed) == joined(trace, texts, seed)
    assert digest(joined(trace, texts, seed)) == digest(joined(trace, texts, seed))


def test_another_seed_takes_other_texts() -> None:
    texts = tuple(Text(line, "any", (f"text {line}",)) for line in range(1, 60))
    trace = FittedTrace((TraceRow(0.0, 3, 1),) * 20, 0, 0)
    assert digest(joined(trace, texts, 1)) != digest(joined(trace, texts, 2))


def test_the_shares_say_what_was_clipped_cut_and_stretched() -> None:
    texts = (Text(1, "any", ("a b c d",)), Text(2, "any", ("e f g h",)))
    trace = FittedTrace(tuple(TraceRow(0.0, tokens, 1) for tokens in (3, 5, 9, 20)), clipped_prompts=1, clipped_outputs=2)
    shares = joined(trace, texts).shares
    assert (shares.clipped_prompts, shares.clipped_outputs) == (0.25, 0.5)
    assert (shares.cut_texts, shares.stretched_texts, shares.repeated_texts) == (0.25, 0.5, 0.25)
    assert "25.0% of prompts, 50.0% of answers" in str(shares)


def test_the_join_is_written_as_one_line_per_request(tmp_path: Path) -> None:
    join = joined(FittedTrace((TraceRow(0.0, 3, 7), TraceRow(1.5, 2, 8)), 0, 0), (Text(9, "math", ("one two three",)),))
    write_join(tmp_path / "join.jsonl", join)
    first, second = map(json.loads, (tmp_path / "join.jsonl").read_text().splitlines())
    assert first == {
        "number": 0, "due_s": 0.0, "category": "math", "lines": [9], "prompt_tokens": 3, "output_tokens": 7, "prompt": "1. one two",
    }  # fmt: skip
    assert (second["due_s"], second["prompt"]) == (1.5, "2. one")


@given(text=st.text(max_size=300), tokens=st.integers(0, 80))
def test_an_estimated_prefix_is_a_beginning_of_at_most_so_many_tokens(text: str, tokens: int) -> None:
    prefix = EstimatedTokens().prefix(text, tokens)
    assert text.startswith(prefix)
    assert EstimatedTokens().count(prefix) <= tokens


@given(words=st.lists(st.one_of(WORDS, st.sampled_from(("ä", "日本", "x,y!"))), max_size=30), tokens=st.integers(0, 40))
def test_a_tokenizers_prefix_is_a_beginning_of_at_most_so_many_tokens(
    words: list[str], tokens: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    counter, text = TokenizerTokens(word_tokenizer(tmp_path_factory.mktemp("tokenizer"))), " ".join(words)
    prefix = counter.prefix(text, tokens)
    assert text.startswith(prefix)
    assert counter.count(prefix) == min(tokens, counter.count(text))


def test_who_counted_is_named_and_an_estimate_says_that_it_is_one(tmp_path: Path) -> None:
    assert token_counter("").name == "estimated at 4 characters a token (--tokenizer counts)"
    counted = token_counter(str(word_tokenizer(tmp_path)))
    assert (counted.is_estimate, counted.name) == (False, f"counted by the tokenizer {tmp_path}")


def test_a_path_without_a_tokenizer_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"allowed is a tokenizer\.json"):
        token_counter(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json cannot be read"):
        token_counter(str(tmp_path))


@pytest.mark.parametrize("max_model_len", [1, 2, 100, 2048, 131_072])
def test_limits_of_a_context_leave_room_for_the_chat_template_and_an_estimates_error(tmp_path: Path, max_model_len: int) -> None:
    estimated = context_limits(max_model_len, EstimatedTokens())
    counted = context_limits(max_model_len, WordTokens())
    assert 1 <= estimated.max_prompt_tokens <= counted.max_prompt_tokens
    assert counted.max_output_tokens == max(max_model_len // 2, 1)
    if max_model_len > 200:
        assert counted.max_prompt_tokens + counted.max_output_tokens + 64 == max_model_len
        assert estimated.max_prompt_tokens * 1.5 + counted.max_output_tokens + 64 <= max_model_len
