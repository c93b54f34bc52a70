"""Prompts: built in and from files."""

from __future__ import annotations

from pathlib import Path

import pytest

from nightjar.loadtests.load.prompts import (
    BUILT_IN_PROMPTS,
    COMPARISON_PROMPTS,
    PromptsError,
    Text,
    read_prompts,
    read_texts,
    shuffled,
)


def test_built_in_prompts_all_differ_and_the_compared_ones_are_eight_of_them() -> None:
    assert len(set(BUILT_IN_PROMPTS)) == len(BUILT_IN_PROMPTS) >= 300
    assert len(set(COMPARISON_PROMPTS)) == 8
    assert set(COMPARISON_PROMPTS) <= set(BUILT_IN_PROMPTS)


def test_shuffling_keeps_the_prompts_and_depends_on_the_seed_alone() -> None:
    assert sorted(shuffled(BUILT_IN_PROMPTS, 1)) == sorted(BUILT_IN_PROMPTS)
    assert shuffled(BUILT_IN_PROMPTS, 1) == shuffled(BUILT_IN_PROMPTS, 1) != shuffled(BUILT_IN_PROMPTS, 2)


def test_a_file_holds_prompts_or_turns_of_which_the_first_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "One?"}\n\n{"question_id": 81, "turns": ["Two?", "And then?"]}\n')
    assert read_prompts(path) == ("One?", "Two?")


def test_what_people_said_is_taken_from_openai_messages_and_sharegpt_conversations(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        '{"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "One?"}, '
        '{"role": "assistant", "content": "Yes."}, {"role": "user", "content": [{"type": "text", "text": "Two?"}]}]}\n'
        '{"category": "math", "conversations": [{"from": "human", "value": "Three?"}, {"from": "gpt", "value": "No."}]}\n'
    )
    assert read_texts(path) == (Text(1, "", ("One?", "Two?")), Text(2, "math", ("Three?",)))
    path.write_text('[{"id": "a", "conversations": [{"from": "human", "value": "Four?"}]},\n {"prompt": "Five?"}]')
    assert read_texts(path) == (Text(1, "", ("Four?",)), Text(2, "", ("Five?",)))


@pytest.mark.parametrize(
    "line",
    [
        "{broken",
        "3",
        "{}",
        '{"prompt": 3}',
        '{"turns": []}',
        '{"turns": [1]}',
        '{"prompt": " "}',
        '{"messages": [{"role": "assistant", "content": "x"}]}',
        '{"messages": [{"role": "user", "content": 3}]}',
        '{"conversations": []}',
        '{"category": 3, "prompt": "x"}',
    ],
)
def test_a_line_without_a_prompt_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "One?"}\n' + line)
    with pytest.raises(PromptsError, match=r"prompts\.jsonl:2: .*('prompt'|'category')"):
        read_prompts(path)


def test_an_empty_or_missing_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(PromptsError, match="holds no line"):
        read_prompts(tmp_path / "empty.jsonl")
    with pytest.raises(PromptsError, match="cannot be read"):
        read_prompts(tmp_path / "missing.jsonl")
