"""All that touches vLLM's internals, and nothing else does."""
