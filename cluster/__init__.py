"""The room that runs once per cluster: the policy actor, its client, its journal, its API and the `nightjar` command.

Beside the folders lie the modules that others know by name: `cli` (the command), `policy_app` and `serve_config` (Serve YAML
files), `policy_actor` (Ray keeps its class), `policy_thread` (a policy without Ray) and `client` (replicas).
"""
