"""Names of vLLM that stand in another module in another version: the one place that knows where.

vLLM moves functions between modules without leaving the old name behind. Each name here is looked for in the newest home first.
Checked against the sources of 0.29.0, 0.32.0 and 0.33.0. Fails with an ImportError that names every place, which the callers take
as a hook that is missing.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Final

HOMES: Final[Mapping[str, tuple[str, ...]]] = {
    "FrontendArgs": (
        "vllm.entrypoints.common.cli_args",  # 0.33
        "vllm.entrypoints.launchers.cli_args",  # 0.29 to 0.32
    ),
    "get_kv_cache_groups": (
        "vllm.v1.core.kv_cache_planning",  # 0.33
        "vllm.v1.core.kv_cache_utils",  # 0.29 to 0.32
    ),
}


def moved(name: str) -> Any:
    """The class or function from wherever this vLLM has it. Raises ImportError."""
    for module in HOMES[name]:
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            continue
    raise ImportError(f"{name} is in none of {', '.join(HOMES[name])}; this vLLM has moved it elsewhere")
