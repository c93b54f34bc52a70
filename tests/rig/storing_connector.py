"""A KV connector that runs on a CPU: vLLM's own for tests, which stores the KV of prompts in files and, here, loads none of it.

vLLM's (0.32, kv_connector/v1/example_connector.py) would load what it stored for a prompt of one token, or for half of a chunked
prompt, and wants files of a draft model's layers that nobody wrote.
"""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.example_connector import ExampleConnector


class StoringConnector(ExampleConnector):
    """For vLLM's `kv_connector`, with this module's name as `kv_connector_module_path`."""

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """None (vLLM's signature and meaning)."""
        del request, num_computed_tokens
        return 0, False
