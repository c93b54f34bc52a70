"""The room that runs once per cluster: the policy actor, its client, its journal, its API and the `nightjar` command."""
