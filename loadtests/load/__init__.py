"""Load over HTTP: what is sent, when, and what each request gave.

`regimes` says when requests arrive, or `traces` does; `prompts` has their texts, which `trace_join` cuts to recorded lengths.
`driver` sends each when it is due through `openai_stream`, `rows` keeps one line a request, `figures` and `goodput` are what lines
come to. `options` reads all of it from the command line of `locustfile.py`, one folder up, where Locust is pointed to.
"""
