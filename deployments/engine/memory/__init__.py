"""What a sleeping draft gives back, and how it returns: its weights, and pages of the KV cache. CPU and CUDA."""
