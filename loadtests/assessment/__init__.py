"""`nightjar assess`: what a plain vLLM ran, read from a Prometheus that scrapes it, and what the planner would have run instead."""
