"""A Triton backend named "cpu" that compiles nothing.

vLLM's CPU build uses Triton only where Triton has a backend of that name (0.32, triton_utils/importing.py). With TRITON_INTERPRET=1
nothing is compiled, so the two modules here, which Triton looks for by name, only have to be there.
"""
