"""A small trace, and texts of two categories in every form that is read."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class TraceFiles(NamedTuple):
    """What `--trace` and `--prompts` take."""

    trace: Path
    prompts: Path

    @property
    def options(self) -> tuple[str, ...]:
        return ("--trace", str(self.trace), "--prompts", str(self.prompts))


def write_trace_files(folder: Path, requests: int = 30, per_s: float = 30.0, output_tokens: int = 4) -> TraceFiles:
    """Requests evenly spaced, of 5 to 44 prompt tokens."""
    trace, prompts = folder / "trace.csv", folder / "prompts.jsonl"
    rows = "".join(f"{number / per_s},{5 + number % 40},{output_tokens}\n" for number in range(requests))
    trace.write_text("time,prompt_tokens,output_tokens\n" + rows)
    prompts.write_text(
        '{"category": "math", "turns": ["What is two and two?", "And three?"]}\n'
        '{"category": "chat", "messages": [{"role": "user", "content": "Tell me about bees, please."}]}\n'
        '{"category": "chat", "conversations": [{"from": "human", "value": "Why is the sky blue?"}]}\n'
    )
    return TraceFiles(trace, prompts)
