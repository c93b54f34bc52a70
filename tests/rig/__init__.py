"""Engines on vLLM's GPU code paths without a GPU."""
