"""Proves an engine: steered in every step, it must answer as plain vLLM does, and draft as it was told."""
