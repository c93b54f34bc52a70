"""Our load generator against vLLM's: do both see the same server? (`make bench-load`)"""
