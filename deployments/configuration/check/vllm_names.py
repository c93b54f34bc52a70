"""The names that vLLM takes, so that a misspelt one is known without vLLM.

`vllm_names.json` was read from vLLM's own dataclasses, and a test compares it with the vLLM that is installed. A name
that it does not hold ends a replica at its start, minutes after the deployment.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

_NAMES: Final = json.loads(Path(__file__).with_name("vllm_names.json").read_text(encoding="utf-8"))

VLLM_VERSION: Final[str] = _NAMES["vllm_version"]
ENGINE_ARGUMENTS: Final = frozenset[str](_NAMES["engine_arguments"])
"""Fields of `AsyncEngineArgs`."""
SERVER_ARGUMENTS: Final = frozenset[str](_NAMES["server_arguments"])
"""Fields of `FrontendArgs`: what vLLM's OpenAI server takes beside the engine."""
SPECULATIVE_ARGUMENTS: Final = frozenset[str](_NAMES["speculative_arguments"])
"""Fields of `SpeculativeConfig` that a user may set."""
FLAGS: Final = frozenset[str](_NAMES["flags"])
"""Of the first two: yes or no, `--name` and `--no-name` on the command line."""
LISTS: Final = frozenset[str](_NAMES["lists"])
"""Of the first two: take several words on the command line."""
TEXTS: Final = frozenset[str](_NAMES["texts"])
"""Of the first two: text, also where it looks like a number."""
