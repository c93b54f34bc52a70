"""`nightjar serve`: one vLLM server, steered, without Ray.

vLLM's own command runs: its parser, application, port, signals and exit codes. `command` adds our options to its parser and says
what runs; `server` stands in for two of vLLM's functions, the one that starts the engine and the one that builds the application;
`arguments` turns vLLM's arguments into ours and back. The policy is a thread of the same process (cluster/policy_thread.py), or
elsewhere and reached over HTTP (cluster/api/exchange_client.py).
Fails open: whatever of ours fails, vLLM serves. Imports no Ray.
"""
