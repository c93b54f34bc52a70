"""A load generator that needs no load: asks which mode runs, and writes what `vllm bench serve` would, with noise from the round.

`python -m tests.loadtests.compare.harness URL RESULT_FILE ROUND SLOWER_MODE`: answers of SLOWER_MODE are 10 % slower. A round of -1
fails.
"""

from __future__ import annotations

import json
import random
import sys
import urllib.request
from pathlib import Path

NOISE = 0.02
SLOWDOWN = 1.10


def result(seconds_per_token: float) -> dict[str, object]:
    """Eight answers of 17 tokens."""
    gaps = [[seconds_per_token] * 16] * 8
    return {
        "duration": 8 * 17 * seconds_per_token, "completed": 8, "failed": 0, "num_prompts": 8, "model_id": "tiny",
        "total_output_tokens": 8 * 17, "mean_ttft_ms": 1e3 * seconds_per_token, "mean_tpot_ms": 1e3 * seconds_per_token,
        "ttfts": [seconds_per_token] * 8, "itls": gaps, "output_lens": [17] * 8, "errors": [""] * 8,
    }  # fmt: skip


def main(url: str, path: str, round_: str, slower_mode: str) -> int:
    if round_ == "-1":
        sys.stderr.write("something before\nno dataset of that name\n")
        return 3
    with urllib.request.urlopen(f"{url}/nightjar/status") as answer:
        status = json.load(answer)
    mode = next((one["mode"] for one in status["overrides"]), "default")
    noise = random.Random(f"{mode} {round_} {slower_mode}").gauss(1.0, NOISE)
    Path(path).write_text(json.dumps(result(0.02 * noise * (SLOWDOWN if mode == slower_mode else 1.0))))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
