"""One simulated engine: what a replica of vLLM does step by step, in virtual time."""
